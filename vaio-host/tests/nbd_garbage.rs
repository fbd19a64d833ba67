//! A thousand bad connections: noise, half messages, lies about length. The process neither
//! crashes nor grows, and a client with manners notices nothing. Alone in its file, and so in its
//! process: memory and file descriptors are the process's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "a test's modules are for each other")]

#[path = "nbd_server/client.rs"]
#[allow(dead_code, reason = "the other tests use all of it")]
mod client;
#[path = "nbd_server/server.rs"]
#[allow(dead_code, reason = "the other tests use all of it")]
mod server;

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use vaio_host::nbd::proto::{ClientOption, Command, InfoRequest, ReplyMode, client_flags_encode};

use client::{Client, request};
use server::{Plan, wait_until};

const CONNECTIONS: usize = 1000;
const TOGETHER: usize = 40;
const RSS_GROWTH_MAX: u64 = 8 << 20;

/// Resident memory of this process in bytes.
fn rss() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Open file descriptors of this process.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn noise(seed: usize, len: usize) -> Vec<u8> {
    let mut state = seed as u64 | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_be_bytes()[2]
        })
        .collect()
}

/// The bytes of one bad client, after the greeting.
fn misbehave(kind: usize) -> Vec<u8> {
    let mut out = client_flags_encode(3).to_vec();
    let go = ClientOption::Go(InfoRequest::default());
    let begin = |mode: ReplyMode, out: &mut Vec<u8>| {
        if mode == ReplyMode::Extended {
            ClientOption::ExtendedHeaders.encode(out);
        }
        go.encode(out);
    };
    match kind % 10 {
        0 => return noise(kind, 300),
        1 => out.extend(noise(kind, 3000)),
        2 => return vec![],
        // Half an option, then nothing.
        3 => {
            go.encode(&mut out);
            out.truncate(out.len() - 3);
        }
        // An option of 4 GiB.
        4 => out.extend_from_slice(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff"),
        // An option that is too large, and only a part of it.
        5 => {
            out.extend_from_slice(b"IHAVEOPT\0\0\0\x03\0\x08\0\0");
            out.extend(noise(kind, 100_000));
        }
        // A queries' count that lies.
        6 => {
            ClientOption::StructuredReply.encode(&mut out);
            out.extend_from_slice(b"IHAVEOPT\0\0\0\x0a\0\0\0\x08\0\0\0\0\xff\xff\xff\xff");
        }
        // Transmission, then noise.
        7 => {
            begin(ReplyMode::Simple, &mut out);
            out.extend(noise(kind, 500));
        }
        // A write of 32 MiB of which little comes.
        8 => {
            begin(ReplyMode::Simple, &mut out);
            request(Command::Write, 0, 32 << 20).encode(ReplyMode::Simple, &mut out);
            out.extend(noise(kind, 10_000));
        }
        // A payload of an exabyte.
        _ => {
            begin(ReplyMode::Extended, &mut out);
            request(Command::Write, 0, 1 << 60).encode(ReplyMode::Extended, &mut out);
        }
    }
    out
}

/// Opens bad connections by the dozen, and leaves them open for a moment or until they are closed.
fn storm(socket: &Path, count: usize) {
    let mut open = Vec::new();
    for index in 0..count {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        // The server may close first; that is its right.
        let _ = stream.write_all(&misbehave(index));
        let _ = stream.read(&mut [0; 4096]);
        open.push(stream);
        if open.len() == TOGETHER {
            open.clear();
        }
    }
}

#[test]
fn thousand_bad_connections_leave_no_trace() {
    let server = Plan::ram(64).start();
    let running = Arc::new(AtomicBool::new(true));
    let (socket, go_on) = (server.socket.clone(), Arc::clone(&running));
    let well_behaved = move || {
        let mut client = Client::open(&socket, ReplyMode::Structured);
        let mut served = 0;
        while go_on.load(Ordering::SeqCst) || served < 100 {
            let offset = 4096 * (served % 1000);
            let data = noise(usize::try_from(served).unwrap(), 4096);
            assert_eq!(
                client.call(request(Command::Write, offset, 4096), &data).0,
                0
            );
            let (error, read) = client.call(request(Command::Read, offset, 4096), &[]);
            assert!(error == 0 && read == data);
            served += 1;
        }
    };
    #[expect(clippy::disallowed_methods, reason = "a client beside the bad ones")]
    let client = std::thread::spawn(well_behaved);

    // Once before the baseline, so that pools and allocator are warm.
    storm(&server.socket, CONNECTIONS / 10);
    server.wait_connections(1);
    let (memory, files) = (rss(), descriptors());
    storm(&server.socket, CONNECTIONS);
    server.wait_connections(1);
    wait_until("memory goes back", || rss() <= memory + RSS_GROWTH_MAX);
    assert_eq!(descriptors(), files);
    running.store(false, Ordering::SeqCst);
    client
        .join()
        .expect("the good client was served all the time");
    server.wait_connections(0);
}
