use proptest::prelude::*;

use super::*;

fn text() -> impl Strategy<Value = String> {
    "[a-zäö:/ ]{0,40}"
}

fn whole<T>(parsed: Result<Parsed<T>, ProtoError>, len: usize) -> T {
    match parsed {
        Ok(Parsed::Item { item, used }) => {
            assert_eq!(used, len, "an item takes all of its bytes");
            item
        }
        other => panic!("no item, {:?}", other.map(|_| "need more")),
    }
}

fn client_option() -> impl Strategy<Value = ClientOption> {
    let info = || {
        (text(), prop::collection::vec(any::<u16>(), 0..9))
            .prop_map(|(export, infos)| InfoRequest { export, infos })
    };
    let meta = || {
        (text(), prop::collection::vec(text(), 0..9))
            .prop_map(|(export, queries)| MetaQuery { export, queries })
    };
    prop_oneof![
        text().prop_map(ClientOption::ExportName),
        Just(ClientOption::Abort),
        Just(ClientOption::List),
        Just(ClientOption::StartTls),
        info().prop_map(ClientOption::Info),
        info().prop_map(ClientOption::Go),
        Just(ClientOption::StructuredReply),
        meta().prop_map(ClientOption::ListMetaContext),
        meta().prop_map(ClientOption::SetMetaContext),
        Just(ClientOption::ExtendedHeaders),
        (100u32..).prop_map(ClientOption::Unknown),
    ]
}

fn option_reply() -> impl Strategy<Value = OptionReply> {
    let error =
        prop::sample::select(OptionReplyType::ALL).prop_filter("an error", |kind| kind.is_error());
    prop_oneof![
        Just(OptionReply::Ack),
        (text(), text()).prop_map(|(name, description)| OptionReply::Server { name, description }),
        (any::<u64>(), any::<u16>())
            .prop_map(|(size, flags)| OptionReply::Info(Info::Export { size, flags })),
        text().prop_map(|name| OptionReply::Info(Info::Name(name))),
        text().prop_map(|name| OptionReply::Info(Info::Description(name))),
        (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(min, preferred, max)| {
            OptionReply::Info(Info::BlockSize(BlockSizes {
                min,
                preferred,
                max,
            }))
        }),
        (any::<u32>(), text()).prop_map(|(id, name)| OptionReply::MetaContext { id, name }),
        (error, text()).prop_map(|(kind, text)| OptionReply::error(kind, text)),
    ]
}

fn mode() -> impl Strategy<Value = ReplyMode> {
    prop::sample::select(&[
        ReplyMode::Simple,
        ReplyMode::Structured,
        ReplyMode::Extended,
    ])
}

fn extents() -> impl Strategy<Value = Vec<StatusExtent>> {
    let extent = (1..=u64::from(u32::MAX), 0..=u64::from(u32::MAX));
    prop::collection::vec(
        extent.prop_map(|(len, flags)| StatusExtent { len, flags }),
        1..20,
    )
}

/// Every option in `bytes`, which arrive in pieces of the lengths of `cuts`, over and over.
fn options_in_pieces(bytes: &[u8], cuts: &[usize]) -> Result<Vec<FramedOption>, ProtoError> {
    let (mut parser, mut items) = (OptionParser::default(), Vec::new());
    let (mut from, mut have) = (0, 0);
    let mut cuts = cuts.iter().cycle();
    loop {
        match parser.parse(&bytes[from..have])? {
            Parsed::Item { item, used } => {
                from += used;
                items.extend(item);
            }
            Parsed::NeedMore(missing) => {
                assert!(missing > 0, "a parser that needs nothing makes progress");
                if have == bytes.len() {
                    return Ok(items);
                }
                let cut = cuts.next().copied().unwrap_or(1);
                have = (have + cut.max(1)).min(bytes.len());
            }
        }
    }
}

proptest! {
    #[test]
    fn option_encoded_decodes_to_itself(option in client_option()) {
        let mut bytes = Vec::new();
        option.encode(&mut bytes);
        let framed = whole(OptionParser::default().parse(&bytes), bytes.len()).unwrap();
        prop_assert_eq!(framed.code, option.code());
        prop_assert_eq!(framed.option, Ok(option));
    }

    #[test]
    fn option_reply_encoded_decodes_to_itself(reply in option_reply(), code in any::<u32>()) {
        let mut bytes = Vec::new();
        reply.encode(code, &mut bytes);
        prop_assert_eq!(whole(option_reply_parse(code, &bytes), bytes.len()), reply);
        let other = option_reply_parse(code.wrapping_add(1), &bytes);
        prop_assert!(other.is_err(), "another option's reply is refused");
    }

    #[test]
    fn request_encoded_decodes_to_itself(
        mode in mode(),
        (flags, command, cookie, offset, len) in any::<(u16, u16, u64, u64, u64)>(),
    ) {
        let len = if mode == ReplyMode::Extended { len } else { len >> 32 };
        let request = Request { flags, command, cookie, offset, len };
        let mut bytes = Vec::new();
        request.encode(mode, &mut bytes);
        prop_assert_eq!(bytes.len(), Request::header_len(mode));
        prop_assert_eq!(whole(Request::parse(mode, &bytes), bytes.len()), request);
    }

    #[test]
    fn replies_encoded_decode_to_themselves(
        mode in mode(),
        cookie in any::<u64>(),
        offset in any::<u64>(),
        len in 0..=PAYLOAD_MAX,
        error in prop::sample::select(Errno::ALL),
        text in text(),
    ) {
        let at = if mode == ReplyMode::Extended { offset } else { 0 };
        let mut bytes = Vec::new();
        encode_read_header(mode, cookie, offset, len, &mut bytes);
        let header_len = bytes.len() - if mode == ReplyMode::Simple || len == 0 { 0 } else { 8 };
        match whole(ReplyHeader::parse(mode, &bytes), header_len) {
            ReplyHeader::Simple { error, cookie: got } => {
                prop_assert_eq!((mode, error, got), (ReplyMode::Simple, 0, cookie));
            }
            ReplyHeader::Chunk(chunk) if len == 0 => prop_assert_eq!(chunk.kind, ChunkKind::None),
            ReplyHeader::Chunk(chunk) => {
                let want = ChunkHeader {
                    done: true, kind: ChunkKind::OffsetData, cookie, offset: at,
                    len: 8 + u64::from(len),
                };
                prop_assert_eq!(chunk, want);
                prop_assert_eq!(&bytes[header_len..], &offset.to_be_bytes());
            }
        }
        if mode != ReplyMode::Simple {
            bytes.clear();
            encode_read_hole(mode, cookie, offset, len, &mut bytes);
            let content = bytes.len() - 12;
            let want = ChunkHeader {
                done: true, kind: ChunkKind::OffsetHole, cookie, offset: at, len: 12,
            };
            let header = whole(ReplyHeader::parse(mode, &bytes), content);
            prop_assert_eq!(header, ReplyHeader::Chunk(want));
            prop_assert_eq!(HoleChunk::decode(&bytes[content..]), Ok(HoleChunk { offset, len }));
        }
        bytes.clear();
        encode_error(mode, (cookie, offset), error, &text, &mut bytes);
        let content = bytes.len().min(if mode == ReplyMode::Extended { 32 } else { 20 });
        match whole(ReplyHeader::parse(mode, &bytes), content) {
            ReplyHeader::Simple { error: got, .. } => prop_assert_eq!(got, error.to_wire()),
            ReplyHeader::Chunk(chunk) => {
                prop_assert_eq!(chunk.len, (bytes.len() - content) as u64);
                let want = ErrorChunk { error: error.to_wire(), text, offset: None };
                prop_assert_eq!(ErrorChunk::decode(chunk.kind, &bytes[content..]), Ok(want));
            }
        }
    }

    #[test]
    fn status_encoded_decodes_to_itself(
        wide in any::<bool>(), done in any::<bool>(), context in any::<u32>(), extents in extents(),
    ) {
        let mode = if wide { ReplyMode::Extended } else { ReplyMode::Structured };
        let chunk = StatusChunk { context, extents };
        let mut bytes = Vec::new();
        encode_status(mode, (7, 4096), done, &chunk, &mut bytes);
        let content = if wide { 32 } else { 20 };
        let ReplyHeader::Chunk(header) = whole(ReplyHeader::parse(mode, &bytes), content) else {
            panic!("status is a chunk");
        };
        prop_assert_eq!((header.done, header.len), (done, (bytes.len() - content) as u64));
        prop_assert_eq!(StatusChunk::decode(header.kind, &bytes[content..]), Ok(chunk));
    }

    #[test]
    fn status_payload_and_hole_encoded_decode_to_themselves(
        len in any::<u64>(), contexts in prop::collection::vec(any::<u32>(), 0..STATUS_CONTEXTS_MAX),
    ) {
        let mut bytes = Vec::new();
        let payload = StatusPayload { len, contexts };
        payload.encode(&mut bytes);
        prop_assert_eq!(StatusPayload::decode(&bytes), Ok(payload));
        bytes.clear();
        let hole = HoleChunk { offset: len, len: 512 };
        hole.encode(&mut bytes);
        prop_assert_eq!(HoleChunk::decode(&bytes), Ok(hole));
        bytes.push(0);
        prop_assert!(HoleChunk::decode(&bytes).is_err());
    }

    #[test]
    fn options_split_anywhere_are_the_same(
        options in prop::collection::vec(client_option(), 1..6),
        oversize in 0usize..3,
        cuts in prop::collection::vec(1usize..50_000, 1..9),
    ) {
        let mut bytes = Vec::new();
        for (index, option) in options.iter().enumerate() {
            option.encode(&mut bytes);
            if index == oversize {
                bytes.extend_from_slice(b"IHAVEOPT");
                bytes.extend_from_slice(&3u32.to_be_bytes());
                let len = OPTION_DATA_MAX + 1 + oversize;
                bytes.extend_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
                bytes.resize(bytes.len() + len, 0xee);
            }
        }
        let at_once = options_in_pieces(&bytes, &[bytes.len()])?;
        prop_assert_eq!(at_once.len(), options.len() + usize::from(oversize < options.len()));
        prop_assert_eq!(options_in_pieces(&bytes, &cuts)?, at_once);
    }
}

#[test]
fn greeting_encoded_decodes_to_itself_and_others_are_refused() {
    let mut bytes = Greeting::OURS.encode();
    assert_eq!(
        whole(Greeting::parse(&bytes), Greeting::LEN),
        Greeting::OURS
    );
    assert_eq!(Greeting::parse(&bytes[..10]), Ok(Parsed::NeedMore(8)));
    bytes[9] ^= 1;
    assert!(matches!(
        Greeting::parse(&bytes),
        Err(ProtoError::Magic { .. })
    ));
}

#[test]
fn client_flags_unknown_are_refused() {
    assert_eq!(client_flags_decode([0, 0, 0, 3]), Ok(3));
    assert!(client_flags_decode([0, 0, 0, 4]).is_err());
    assert!(client_flags_decode([1, 0, 0, 3]).is_err());
    assert_eq!(client_flags_encode(3), [0, 0, 0, 3]);
}

#[test]
fn export_name_reply_encoded_decodes_to_itself() {
    for no_zeroes in [true, false] {
        let reply = ExportNameReply {
            size: 1 << 40,
            flags: 0x1ff,
        };
        let mut bytes = Vec::new();
        reply.encode(no_zeroes, &mut bytes);
        assert_eq!(bytes.len(), if no_zeroes { 10 } else { 134 });
        assert_eq!(
            whole(Ok(ExportNameReply::parse(&bytes, no_zeroes)), bytes.len()),
            reply
        );
        let short = ExportNameReply::parse(&bytes[..3], no_zeroes);
        assert_eq!(short, Parsed::NeedMore(bytes.len() - 3));
    }
}

#[test]
fn limits_at_and_beyond() {
    let name = |len| ClientOption::decode(1, &vec![b'x'; len]);
    assert!(name(STRING_MAX).is_ok());
    assert!(matches!(
        name(STRING_MAX + 1),
        Err(ProtoError::TooLong { .. })
    ));

    let infos = |count: u16| {
        let mut data = vec![0; 4];
        data.extend_from_slice(&count.to_be_bytes());
        data.resize(data.len() + 2 * usize::from(count), 0);
        ClientOption::decode(7, &data)
    };
    let max = u16::try_from(INFO_REQUESTS_MAX).unwrap();
    assert!(infos(max).is_ok());
    assert!(matches!(infos(max + 1), Err(ProtoError::TooLong { .. })));

    let queries = |count: usize| {
        let mut data = vec![0; 4];
        data.extend_from_slice(&u32::try_from(count).unwrap().to_be_bytes());
        data.resize(data.len() + 4 * count, 0);
        ClientOption::decode(10, &data)
    };
    assert!(queries(META_QUERIES_MAX).is_ok());
    assert!(matches!(
        queries(META_QUERIES_MAX + 1),
        Err(ProtoError::TooLong { .. })
    ));

    let framed = |len: usize| {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend_from_slice(&8u32.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
        OptionParser::default().parse(&bytes)
    };
    assert_eq!(
        framed(OPTION_DATA_MAX),
        Ok(Parsed::NeedMore(OPTION_DATA_MAX))
    );
    assert!(matches!(
        framed(OPTION_DATA_MAX + 1),
        Ok(Parsed::Item { item: None, .. })
    ));
    assert!(framed(OPTION_DRAIN_MAX).is_ok());
    assert!(framed(OPTION_DRAIN_MAX + 1).is_err());

    let contexts = |count: usize| StatusPayload::decode(&vec![0; 8 + 4 * count]);
    assert!(contexts(STATUS_CONTEXTS_MAX).is_ok());
    assert!(contexts(STATUS_CONTEXTS_MAX + 1).is_err());
}

#[test]
fn chunk_that_claims_too_much_is_refused_from_its_header() {
    for kind in [0, 1, 2, 5, 6, 0x8001, 0x8002, 0x8fff].map(|n| ChunkKind::from_wire(n).unwrap()) {
        let header = |len| {
            let mut bytes = Vec::new();
            let (done, cookie, offset) = (true, 1, 0);
            ChunkHeader {
                done,
                kind,
                cookie,
                offset,
                len,
            }
            .encode(ReplyMode::Extended, &mut bytes);
            ReplyHeader::parse(ReplyMode::Extended, &bytes)
        };
        assert!(header(kind.len_max()).is_ok(), "{kind:?}");
        assert!(
            matches!(header(kind.len_max() + 1), Err(ProtoError::TooLong { .. })),
            "{kind:?}"
        );
    }
    assert_eq!(
        ChunkKind::from_wire(3),
        None,
        "an unknown kind that is no error"
    );
}

#[test]
fn error_text_is_cut_at_a_character() {
    let mut bytes = Vec::new();
    encode_error(
        ReplyMode::Structured,
        (1, 0),
        Errno::Io,
        &"ä".repeat(2000),
        &mut bytes,
    );
    let chunk = ErrorChunk::decode(ChunkKind::Error, &bytes[20..]).unwrap();
    assert_eq!(chunk.text, "ä".repeat(256));
}

#[test]
fn payload_follows_writes_and_flagged_extended_requests_only() {
    let request = |command: Command, flags| Request {
        flags,
        command: command.to_wire(),
        cookie: 0,
        offset: 0,
        len: 512,
    };
    let flagged = request(Command::BlockStatus, cmd_flag::PAYLOAD_LEN);
    assert_eq!(
        request(Command::Write, 0).payload_len(ReplyMode::Simple),
        512
    );
    assert_eq!(
        request(Command::Read, 0).payload_len(ReplyMode::Extended),
        0
    );
    assert_eq!(flagged.payload_len(ReplyMode::Structured), 0);
    assert_eq!(flagged.payload_len(ReplyMode::Extended), 512);
}
