//! Requests and replies, byte by byte: all three reply modes, wrong requests, limits.

use std::{
    io::Write,
    sync::{Arc, atomic::Ordering},
};

use async_trait::async_trait;
use vaio_core::{Extent, RamDisk, Result};
use vaio_host::nbd::{
    Export, MetaContext, StatusMap,
    proto::{
        ChunkKind, Command, Errno, PAYLOAD_MAX, ReplyMode, Request, StatusChunk, StatusPayload,
        cmd_flag, transmission_flag as flag,
    },
};

use super::{
    client::{Client, Reply, request},
    device::{FAILURES, TestDevice},
    server::{Plan, wait_until},
};

const MODES: [ReplyMode; 3] = [
    ReplyMode::Simple,
    ReplyMode::Structured,
    ReplyMode::Extended,
];
const INVAL: u32 = Errno::Inval.to_wire();

fn with_flags(flags: u16, request: Request) -> Request {
    Request { flags, ..request }
}

/// A write as this mode wants it.
fn write(mode: ReplyMode, offset: u64, len: u64) -> Request {
    let flags = if mode == ReplyMode::Extended {
        cmd_flag::PAYLOAD_LEN
    } else {
        0
    };
    with_flags(flags, request(Command::Write, offset, len))
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from((at * 31 + at / 251 + seed * 7) % 256).unwrap())
        .collect()
}

#[test]
fn every_command_works_in_every_mode() {
    let server = Plan::ram(64).start();
    for mode in MODES {
        let mut client = Client::open(&server.socket, mode);
        for (index, len) in [512, 4096, 16 << 10, (16 << 10) + 512, 300 << 10, 8 << 20]
            .into_iter()
            .enumerate()
        {
            let (offset, data) = (4096 * index as u64, pattern(len, index));
            let len = len as u64;
            assert_eq!(client.call(write(mode, offset, len), &data).0, 0);
            let (error, read) = client.call(request(Command::Read, offset, len), &[]);
            assert!(error == 0 && read == data, "mode={mode:?} len={len}");
        }
        for (command, flags) in [
            (Command::WriteZeroes, cmd_flag::NO_HOLE | cmd_flag::FUA),
            (Command::WriteZeroes, cmd_flag::FAST_ZERO),
            (Command::Trim, cmd_flag::FUA),
            (Command::Cache, 0),
        ] {
            let call = with_flags(flags, request(command, 4096, 4096));
            assert_eq!(client.call(call, &[]).0, 0, "{command:?}");
        }
        assert_eq!(client.call(request(Command::Flush, 0, 0), &[]).0, 0);
        let (error, read) = client.call(request(Command::Read, 4096, 4096), &[]);
        assert!(error == 0 && read == [0; 4096]);
        let (error, read) = client.call(request(Command::Read, 0, 0), &[]);
        assert!(error == 0 && read.is_empty(), "an empty read is answered");
        client.request(request(Command::Disconnect, 0, 0), &[]);
        assert!(client.is_closed());
    }
}

#[test]
fn extended_replies_repeat_cookie_and_offset_and_zeroes_are_a_hole() {
    let server = Plan::ram(1).start();
    let mut client = Client::open(&server.socket, ReplyMode::Extended);
    // One byte that is not zero is enough for a data chunk.
    let mut data = [0; 512];
    data[511] = 1;
    let written = client.call(request(Command::Write, 4096, 512), &data);
    assert_eq!(written.0, 0);
    for (call, kind) in [
        (request(Command::Read, 512, 512), ChunkKind::OffsetHole),
        (request(Command::Read, 4096, 512), ChunkKind::OffsetData),
        (request(Command::Trim, 1024, 512), ChunkKind::None),
        (request(Command::Read, 1 << 40, 512), ChunkKind::Error),
    ] {
        client.request(call, &[]);
        let (Reply::Chunk { header, .. }, _) = client.reply(0) else {
            panic!("a chunk");
        };
        assert_eq!((header.kind, header.cookie), (kind, call.cookie));
        assert_eq!((header.offset, header.done), (call.offset, true));
    }
}

#[derive(Debug)]
struct Flags;

#[async_trait]
impl MetaContext for Flags {
    fn name(&self) -> &'static str {
        "test:flags"
    }

    async fn status(&self, range: Extent) -> Result<StatusMap> {
        let mut map = StatusMap::default();
        map.push(range.len() / 2, 4);
        map.push(range.len() - range.len() / 2, 8);
        Ok(map)
    }
}

fn status(client: &mut Client, call: Request, payload: &[u8]) -> Vec<StatusChunk> {
    client.request(call, payload);
    let mut chunks = Vec::new();
    loop {
        let (Reply::Chunk { header, content }, _) = client.reply(0) else {
            panic!("a chunk");
        };
        assert_eq!(header.cookie, call.cookie);
        let want = match client.mode {
            ReplyMode::Extended => ChunkKind::BlockStatusExt,
            _ => ChunkKind::BlockStatus,
        };
        assert_eq!(header.kind, want);
        chunks.push(StatusChunk::decode(header.kind, &content).unwrap());
        if header.done {
            return chunks;
        }
    }
}

fn extents(chunk: &StatusChunk) -> Vec<(u64, u64)> {
    chunk
        .extents
        .iter()
        .map(|extent| (extent.len, extent.flags))
        .collect()
}

#[test]
fn block_status_tells_allocation_and_registered_contexts() {
    let mut plan = Plan::ram(1);
    plan.exports = |export: Export| export.with_context(Arc::new(Flags));
    let server = plan.start();
    let chunk = 64 << 10;
    for mode in [ReplyMode::Structured, ReplyMode::Extended] {
        let mut client = Client::open(&server.socket, mode);
        assert_eq!(client.call(write(mode, chunk, 512), &[1; 512]).0, 0);
        let all = request(Command::BlockStatus, 0, 3 * chunk);
        let chunks = status(&mut client, all, &[]);
        assert_eq!(
            chunks.iter().map(|chunk| chunk.context).collect::<Vec<_>>(),
            [0, 1]
        );
        assert_eq!(extents(&chunks[0]), [(chunk, 3), (chunk, 0), (chunk, 3)]);
        assert_eq!(
            extents(&chunks[1]),
            [(3 * chunk / 2, 4), (3 * chunk / 2, 8)]
        );
        let one = status(&mut client, with_flags(cmd_flag::REQ_ONE, all), &[]);
        assert_eq!(extents(&one[0]), [(chunk, 3)]);
        for wrong in [
            request(Command::BlockStatus, 0, 0),
            request(Command::BlockStatus, 1, 512),
            request(Command::BlockStatus, 1 << 20, 512),
        ] {
            assert_eq!(client.call(wrong, &[]).0, INVAL);
        }
        assert_eq!(client.call(request(Command::Trim, 0, 1 << 20), &[]).0, 0);
    }
}

#[test]
fn block_status_payload_selects_contexts() {
    let mut plan = Plan::ram(1);
    plan.exports = |export: Export| export.with_context(Arc::new(Flags));
    let server = plan.start();
    let mut client = Client::open(&server.socket, ReplyMode::Extended);
    let call = |contexts: &[u32], len| {
        let mut payload = Vec::new();
        let contexts = contexts.to_vec();
        StatusPayload { len, contexts }.encode(&mut payload);
        let call = request(Command::BlockStatus, 0, payload.len() as u64);
        (with_flags(cmd_flag::PAYLOAD_LEN, call), payload)
    };
    let (one, payload) = call(&[1], 4096);
    let chunks = status(&mut client, one, &payload);
    assert_eq!((chunks.len(), chunks[0].context), (1, 1));
    assert_eq!(extents(&chunks[0]), [(2048, 4), (2048, 8)]);
    for (wrong, payload) in [
        call(&[7], 4096),
        call(&[], 4096),
        call(&[0], 0),
        call(&[0; 65], 512),
    ] {
        assert_eq!(client.call(wrong, &payload).0, INVAL);
    }
    let torn = with_flags(cmd_flag::PAYLOAD_LEN, request(Command::BlockStatus, 0, 11));
    assert_eq!(client.call(torn, &[0; 11]).0, INVAL);
    assert_eq!(
        client.call(request(Command::Read, 0, 512), &[]).0,
        0,
        "in sync"
    );
}

/// Requests that must fail, with the length of their payload.
fn wrong_requests(mode: ReplyMode) -> Vec<(&'static str, Request, usize)> {
    let read = |offset, len| request(Command::Read, offset, len);
    let unknown = Request {
        command: 999,
        ..read(0, 512)
    };
    let too_long = PAYLOAD_MAX as usize + 512;
    let payload_on_trim = with_flags(cmd_flag::PAYLOAD_LEN, request(Command::Trim, 0, 4096));
    let trims = if mode == ReplyMode::Extended { 4096 } else { 0 };
    vec![
        ("unknown command", unknown, 0),
        ("unknown flag", with_flags(1 << 15, read(0, 512)), 0),
        ("read past the end", read(1 << 20, 512), 0),
        ("read that overflows", read(u64::MAX, 512), 0),
        ("read of unaligned offset", read(1, 512), 0),
        ("read of unaligned length", read(0, 511), 0),
        ("read too long", read(0, too_long as u64), 0),
        (
            "write past the end",
            write(mode, (1 << 20) - 512, 1024),
            1024,
        ),
        (
            "write that overflows",
            write(mode, u64::MAX - 4, 1024),
            1024,
        ),
        ("write unaligned", write(mode, 5, 512), 512),
        ("write too long", write(mode, 0, too_long as u64), too_long),
        ("flush with a length", request(Command::Flush, 0, 512), 0),
        ("trim past the end", request(Command::Trim, 1 << 20, 512), 0),
        (
            "zeroes past the end",
            request(Command::WriteZeroes, 0, 2 << 20),
            0,
        ),
        ("trim with payload", payload_on_trim, trims),
    ]
}

#[test]
fn wrong_requests_fail_and_the_connection_stays_in_sync() {
    let server = Plan::ram(1).start();
    for mode in MODES {
        let mut client = Client::open(&server.socket, mode);
        for (what, wrong, payload) in wrong_requests(mode) {
            let (error, _) = client.call(wrong, &vec![0xee; payload]);
            assert_eq!(error, INVAL, "{what}, mode={mode:?}");
            let (error, data) = client.call(request(Command::Read, 0, 1 << 20), &[]);
            assert!(
                error == 0 && data.iter().all(|byte| *byte == 0),
                "nothing was written"
            );
        }
    }
}

#[test]
fn largest_payload_is_written_and_read() {
    let server = Plan::ram(64).start();
    let data = pattern(PAYLOAD_MAX as usize, 3);
    for mode in MODES {
        let mut client = Client::open(&server.socket, mode);
        let len = u64::from(PAYLOAD_MAX);
        assert_eq!(client.call(write(mode, 4096, len), &data).0, 0);
        let (error, read) = client.call(request(Command::Read, 4096, len), &[]);
        assert!(error == 0 && read == data);
    }
}

#[test]
fn absurd_payload_or_wrong_magic_closes_this_connection_only() {
    let server = Plan::ram(1).start();
    let mut other = Client::open(&server.socket, ReplyMode::Structured);
    let mut absurd = Client::open(&server.socket, ReplyMode::Extended);
    absurd.request(write(ReplyMode::Extended, 0, 1 << 60), &[]);
    assert!(absurd.is_closed());
    let mut garbage = Client::open(&server.socket, ReplyMode::Simple);
    garbage.send(&[0x55; 28]);
    assert!(garbage.is_closed());
    assert_eq!(other.call(request(Command::Read, 0, 512), &[]).0, 0);
    server.wait_connections(1);
}

#[test]
fn disk_errors_map_to_the_protocols_numbers() {
    let server = Plan::device(Arc::new(TestDevice::new(|_| {}))).start();
    let mut client = Client::open(&server.socket, ReplyMode::Structured);
    let numbers = [28, 22, 95, 1, 5, 5];
    for (index, (kind, number)) in FAILURES.into_iter().zip(numbers).enumerate() {
        let call = request(Command::Write, 512 * index as u64, 512);
        client.request(call, &[0; 512]);
        let (reply, _) = client.reply(0);
        assert_eq!(reply.error(), number, "{kind:?}");
        let Reply::Chunk { content, .. } = reply else {
            panic!("an error chunk")
        };
        let text = String::from_utf8_lossy(&content[6..]).into_owned();
        assert!(text.contains("the test wants it"), "{text}");
    }
}

#[test]
fn flags_and_sizes_follow_the_device() {
    let plain = Plan::device(Arc::new(TestDevice::new(|info| {
        info.caps.discard = vaio_core::Support::None;
        info.caps.prefetch = vaio_core::Support::None;
        info.caps.fast_zeroes = false;
    })))
    .start();
    let (size, flags) = Client::connect(&plain.socket).enter(ReplyMode::Structured, "");
    assert_eq!(size, 64 << 20);
    let want = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN;
    assert_eq!(flags, want | flag::SEND_WRITE_ZEROES | flag::SEND_DF);

    let read_only = TestDevice::new(|info| info.caps.read_only = true);
    let server = Plan::device(Arc::new(read_only)).start();
    let mut client = Client::connect(&server.socket);
    let (_, flags) = client.enter(ReplyMode::Simple, "");
    assert_eq!(flags & flag::READ_ONLY, flag::READ_ONLY);
    assert_eq!(flags & (flag::SEND_TRIM | flag::SEND_WRITE_ZEROES), 0);
    assert_eq!(
        client.call(write(ReplyMode::Simple, 0, 512), &[0; 512]).0,
        Errno::Perm.to_wire()
    );
}

#[test]
fn requests_cut_anywhere_are_served() {
    let server = Plan::ram(1).start();
    let mut client = Client::open(&server.socket, ReplyMode::Extended);
    let mut bytes = Vec::new();
    for index in 0..8 {
        write(ReplyMode::Extended, index * 4096, 4096).encode(ReplyMode::Extended, &mut bytes);
        bytes.extend_from_slice(&pattern(4096, usize::try_from(index).unwrap()));
    }
    for (index, piece) in bytes.chunks(7).enumerate() {
        client.stream.write_all(piece).unwrap();
        if index % 100 == 0 {
            // Lets the server see a torn message now and then.
            let flush = request(Command::Flush, 0, 0);
            let _ = Client::open(&server.socket, ReplyMode::Simple).call(flush, &[]);
        }
    }
    for _ in 0..8 {
        assert_eq!(client.reply(0).0.error(), 0);
    }
    for index in 0..8 {
        let (_, data) = client.call(request(Command::Read, index * 4096, 4096), &[]);
        assert_eq!(data, pattern(4096, usize::try_from(index).unwrap()));
    }
}

#[test]
fn requests_beyond_the_depth_wait_and_are_all_answered() {
    let device = Arc::new(TestDevice::new(|_| {}));
    let plan = Plan::device(Arc::clone(&device) as _);
    let server = plan
        .settings(|settings| settings.in_flight_max = 16)
        .start();
    let mut client = Client::open(&server.socket, ReplyMode::Simple);
    device.hold();
    for index in 0..200 {
        client.request(request(Command::Read, index * 4096, 4096), &[]);
    }
    client.request(request(Command::Disconnect, 0, 0), &[]);
    wait_until("the depth is reached", || device.waiting() == 16);
    device.release();
    let mut cookies: Vec<_> = (0..200)
        .map(|_| {
            let (reply, _) = client.reply(4096);
            assert_eq!(reply.error(), 0);
            reply.cookie() & 0xffff_ffff
        })
        .collect();
    cookies.sort_unstable();
    assert_eq!(
        cookies,
        (0..200).map(|index| index * 4096).collect::<Vec<_>>()
    );
    assert!(client.is_closed(), "a disconnect comes after its requests");
    assert_eq!(device.waiting_max.load(Ordering::SeqCst), 16);
}

#[test]
fn payload_beyond_the_limit_waits_in_the_socket() {
    let device = Arc::new(TestDevice::new(|_| {}));
    let plan = Plan::device(Arc::clone(&device) as _);
    let server = plan
        .settings(|settings| settings.buffered_bytes_max = 1 << 20)
        .start();
    let mut client = Client::open(&server.socket, ReplyMode::Simple);
    device.hold();
    for index in 0..40 {
        client.request(request(Command::Read, index << 18, 256 << 10), &[]);
    }
    wait_until("the limit is reached", || device.waiting() == 4);
    device.release();
    for _ in 0..40 {
        assert_eq!(client.reply(256 << 10).0.error(), 0);
    }
    assert_eq!(device.waiting_max.load(Ordering::SeqCst), 4);
    // One request above the limit is served alone.
    assert_eq!(client.call(request(Command::Read, 0, 4 << 20), &[]).0, 0);
}

#[test]
fn client_that_leaves_in_flight_harms_no_one() {
    let device = Arc::new(TestDevice::new(|_| {}));
    let server = Plan::device(Arc::clone(&device) as _).start();
    device.hold();
    let mut leaving = Client::open(&server.socket, ReplyMode::Simple);
    for index in 8..16 {
        leaving.request(write(ReplyMode::Simple, index * 4096, 4096), &[7; 4096]);
    }
    wait_until("writes are in flight", || device.waiting() == 8);
    drop(leaving);
    device.release();
    server.wait_connections(0);
    let mut client = Client::open(&server.socket, ReplyMode::Simple);
    let (_, data) = client.call(request(Command::Read, 8 * 4096, 8 * 4096), &[]);
    assert_eq!(data, vec![7; 8 * 4096], "the writes ended nonetheless");
}

#[test]
fn flush_on_one_connection_covers_another() {
    let server = Plan::device(Arc::new(RamDisk::new(1 << 20))).start();
    let mut one = Client::open(&server.socket, ReplyMode::Simple);
    let mut two = Client::open(&server.socket, ReplyMode::Simple);
    assert_eq!(one.call(write(ReplyMode::Simple, 0, 512), &[9; 512]).0, 0);
    assert_eq!(two.call(request(Command::Flush, 0, 0), &[]).0, 0);
    assert_eq!(two.call(request(Command::Read, 0, 512), &[]).1, [9; 512]);
}
