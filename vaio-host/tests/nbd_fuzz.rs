//! Arbitrary bytes against the pure parts of NBD: parsers of both sides and the handshake.
//!
//! Each case is a stream: valid messages, then damaged, or plain noise. It is parsed at once and
//! in arbitrary pieces. Nothing may panic, both ways must give the same items, and what an item
//! holds in memory must be in proportion to its bytes on the wire.
//!
//! `VAIO_FUZZ_CASES` sets the number of cases (default 20,000), `VAIO_FUZZ_SEED` the first seed; a
//! failure names the seed of its case.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "random numbers are cut to size on purpose"
)]

use vaio_host::nbd::{
    negotiate::{Negotiation, Next, OPTIONS_MAX, Offer, Tls},
    proto::{
        BlockSizes, ChunkHeader, ChunkKind, ClientOption, ErrorChunk, ExportNameReply, Greeting,
        HoleChunk, InfoRequest, MetaQuery, OptionParser, OptionReply, OptionReplyType, Parsed,
        ProtoError, ReplyHeader, ReplyMode, Request, StatusChunk, StatusPayload,
        client_flags_decode, option_reply_parse,
    },
};

const CASES: u64 = 20_000;

/// `SplitMix64`: small, fast, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn number(&mut self) -> u64 {
        // Small numbers and those at the edges are more telling than uniform ones.
        match self.below(4) {
            0 => self.next() % 16,
            1 => (1 << self.below(64)) - u64::from(self.below(2) == 0),
            2 => u64::MAX - self.next() % 4,
            _ => self.next(),
        }
    }

    fn text(&mut self) -> String {
        (0..self.below(12))
            .map(|_| char::from(b'a' + self.next() as u8 % 26))
            .collect()
    }

    fn option(&mut self) -> ClientOption {
        let info = InfoRequest {
            export: self.text(),
            infos: (0..self.below(5)).map(|_| self.number() as u16).collect(),
        };
        let meta = MetaQuery {
            export: self.text(),
            queries: (0..self.below(5)).map(|_| self.text()).collect(),
        };
        match self.below(11) {
            0 => ClientOption::ExportName(self.text()),
            1 => ClientOption::Abort,
            2 => ClientOption::List,
            3 => ClientOption::StartTls,
            4 => ClientOption::Info(info),
            5 => ClientOption::Go(info),
            6 => ClientOption::StructuredReply,
            7 => ClientOption::ListMetaContext(meta),
            8 => ClientOption::SetMetaContext(meta),
            9 => ClientOption::ExtendedHeaders,
            _ => ClientOption::Unknown(self.number() as u32),
        }
    }

    fn mode(&mut self) -> ReplyMode {
        let modes = [
            ReplyMode::Simple,
            ReplyMode::Structured,
            ReplyMode::Extended,
        ];
        modes[self.below(3)]
    }

    fn request(&mut self, mode: ReplyMode) -> Request {
        let len = self.number();
        Request {
            flags: self.number() as u16,
            command: self.number() as u16,
            cookie: self.next(),
            offset: self.number(),
            len: if mode == ReplyMode::Extended {
                len
            } else {
                len & 0xffff_ffff
            },
        }
    }

    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..self.below(4) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.next() as u8,
                2 => bytes.truncate(at),
                3 => bytes.insert(at, self.next() as u8),
                _ => {
                    let number = self.number().to_be_bytes();
                    let end = bytes.len().min(at + 1 + self.below(8));
                    let len = end - at;
                    bytes[at..end].copy_from_slice(&number[8 - len..]);
                }
            }
        }
    }

    /// Bytes that look like something, or like nothing.
    fn stream(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        match self.below(6) {
            0 => out.extend((0..self.below(200)).map(|_| self.next() as u8)),
            1 | 2 => {
                for _ in 0..self.below(8) {
                    self.option().encode(&mut out);
                }
            }
            3 => {
                let mode = self.mode();
                for _ in 0..self.below(8) {
                    self.request(mode).encode(mode, &mut out);
                }
            }
            4 => {
                let kind = OptionReplyType::ALL[self.below(OptionReplyType::ALL.len())];
                OptionReply::error(kind, self.text()).encode(7, &mut out);
                let (name, description) = (self.text(), self.text());
                OptionReply::Server { name, description }.encode(7, &mut out);
            }
            _ => {
                for _ in 0..self.below(4) {
                    self.chunk(&mut out);
                }
            }
        }
        self.damage(&mut out);
        out
    }

    fn chunk(&mut self, out: &mut Vec<u8>) {
        let kinds = [0, 1, 2, 5, 6, 0x8001, 0x8002, 0x8077];
        let len = self.next() % 40;
        let header = ChunkHeader {
            done: true,
            kind: ChunkKind::from_wire(kinds[self.below(kinds.len())]).unwrap(),
            cookie: self.next(),
            offset: self.number(),
            len,
        };
        let modes = [ReplyMode::Structured, ReplyMode::Extended];
        header.encode(modes[self.below(2)], out);
        out.extend((0..len).map(|_| self.next() as u8 % 4));
    }
}

type Step<T> = Result<Parsed<Option<T>>, ProtoError>;

/// Every item of a parser is one of the stream.
fn some<T>(parsed: Result<Parsed<T>, ProtoError>) -> Step<T> {
    parsed.map(|parsed| match parsed {
        Parsed::NeedMore(missing) => Parsed::NeedMore(missing),
        Parsed::Item { item, used } => Parsed::Item {
            item: Some(item),
            used,
        },
    })
}

/// Parses `bytes` as they come in pieces, to the end or to an error.
fn drive<T>(
    bytes: &[u8],
    mut piece: impl FnMut() -> usize,
    mut parse: impl FnMut(&[u8]) -> Step<T>,
) -> (Vec<T>, Result<(), ProtoError>) {
    let (mut items, mut from, mut have) = (Vec::new(), 0, 0);
    loop {
        match parse(&bytes[from..have]) {
            Ok(Parsed::Item { item, used }) => {
                assert!(used <= have - from, "no more is used than there was");
                assert!(used > 0, "an item takes bytes");
                from += used;
                items.extend(item);
            }
            Ok(Parsed::NeedMore(missing)) => {
                assert!(missing > 0, "a parser that needs nothing makes progress");
                if have == bytes.len() {
                    return (items, Ok(()));
                }
                have = bytes.len().min(have + piece().max(1));
            }
            Err(error) => return (items, Err(error)),
        }
    }
}

/// The items of a stream, which are the same at once and in pieces.
fn same<T, P>(random: &mut Random, bytes: &[u8], parser: impl Fn() -> P) -> Vec<T>
where
    T: PartialEq + std::fmt::Debug,
    P: FnMut(&[u8]) -> Step<T>,
{
    let (whole, end) = drive(bytes, || bytes.len(), parser());
    let size = 1 + random.below(40);
    let (pieces, piece_end) = drive(bytes, || 1 + random.below(size), parser());
    assert_eq!(end, piece_end, "the same end however the bytes were cut");
    assert_eq!(whole, pieces, "the same items however the bytes were cut");
    whole
}

fn offers() -> Vec<Offer> {
    let offer = |name: &str| Offer {
        name: name.into(),
        description: "fuzz".into(),
        size: 1 << 30,
        flags: 0x1ff,
        blocks: BlockSizes {
            min: 512,
            preferred: 4096,
            max: 32 << 20,
        },
        contexts: vec!["base:allocation".into(), "vaio:dirty".into()],
    };
    vec![offer("a"), offer("b")]
}

/// Bytes on the heap that an option holds.
fn held(option: &ClientOption) -> usize {
    match option {
        ClientOption::ExportName(name) => name.capacity(),
        ClientOption::Info(request) | ClientOption::Go(request) => {
            request.export.capacity() + 2 * request.infos.capacity()
        }
        ClientOption::ListMetaContext(query) | ClientOption::SetMetaContext(query) => {
            let names = query.queries.iter();
            query.export.capacity() + names.map(|name| 24 + name.capacity()).sum::<usize>()
        }
        _ => 0,
    }
}

fn server_side(random: &mut Random, bytes: &[u8], offers: &[Offer]) {
    let options = same(random, bytes, || {
        let mut parser = OptionParser::default();
        move |input: &[u8]| parser.parse(input)
    });
    let tls = [Tls::Off, Tls::Offered, Tls::Required, Tls::Active][random.below(4)];
    let mut secure = tls != Tls::Required;
    let mut state = Negotiation::new(tls);
    let mut out = Vec::new();
    for (index, framed) in options.into_iter().enumerate() {
        if let Ok(option) = &framed.option {
            assert!(
                held(option) <= 16 * bytes.len() + 64,
                "memory in proportion"
            );
        }
        let code = framed.code;
        out.clear();
        let next = state.step(offers, framed, &mut out);
        assert!(out.len() < 64 << 10, "replies are bounded");
        match next {
            Next::Continue => assert!(index < OPTIONS_MAX && !out.is_empty()),
            Next::StartTls => {
                secure = true;
                state.tls_started();
            }
            Next::Transmit(session) => {
                assert!(secure, "no way around TLS");
                assert!(session.export < offers.len());
                return;
            }
            Next::Close => return,
        }
        let (_, end) = drive(
            &out,
            || out.len(),
            |input| some(option_reply_parse(code, input)),
        );
        assert_eq!(end, Ok(()), "our replies parse");
    }
}

fn client_side(random: &mut Random, bytes: &[u8]) {
    let code = [0, 7, 3][random.below(3)];
    let _: Vec<OptionReply> = same(random, bytes, || {
        move |input: &[u8]| some(option_reply_parse(code, input))
    });
    let _ = Greeting::parse(bytes);
    let _ = ExportNameReply::parse(bytes, random.below(2) == 0);
    if let Some(flags) = bytes.first_chunk() {
        let _ = client_flags_decode(*flags);
    }
    let mode = random.mode();
    let headers = same(random, bytes, || {
        move |input: &[u8]| some(ReplyHeader::parse(mode, input))
    });
    for header in headers {
        if let ReplyHeader::Chunk(chunk) = header {
            assert!(chunk.len <= chunk.kind.len_max());
        }
    }
    for number in [5, 6, 0x8001, 0x8002, 0x8fff] {
        let kind = ChunkKind::from_wire(number).unwrap();
        let _ = ErrorChunk::decode(kind, bytes);
        if let Ok(chunk) = StatusChunk::decode(kind, bytes) {
            assert!(16 * chunk.extents.capacity() <= 4 * bytes.len());
        }
    }
    let _ = HoleChunk::decode(bytes);
    let _ = StatusPayload::decode(bytes);
}

fn case(seed: u64, offers: &[Offer]) {
    let mut random = Random(seed);
    let bytes = random.stream();
    server_side(&mut random, &bytes, offers);
    client_side(&mut random, &bytes);
    let mode = random.mode();
    let requests = same(&mut random, &bytes, || {
        move |input: &[u8]| some(Request::parse(mode, input))
    });
    for request in requests {
        let mut again = Vec::new();
        request.encode(mode, &mut again);
        assert_eq!(again.len(), Request::header_len(mode));
    }
}

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[test]
fn arbitrary_bytes_never_panic_and_pieces_give_the_same_items() {
    let cases = env("VAIO_FUZZ_CASES", CASES);
    let first = env("VAIO_FUZZ_SEED", 0);
    let offers = offers();
    for number in first..first + cases {
        let seed = number.wrapping_mul(0xd134_2543_de82_ef95);
        let outcome = std::panic::catch_unwind(|| case(seed, &offers));
        assert!(
            outcome.is_ok(),
            "case failed, run it alone with VAIO_FUZZ_SEED={number} VAIO_FUZZ_CASES=1"
        );
    }
}
