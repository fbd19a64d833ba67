//! A blocking client made of the protocol's own parts, which does whatever it is told.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use vaio_host::nbd::proto::{
    ChunkHeader, ChunkKind, ClientOption, Command, ErrorChunk, Greeting, HoleChunk, Info,
    InfoRequest, InfoType, MetaQuery, OptionReply, Parsed, ProtoError, ReplyHeader, ReplyMode,
    Request, client_flags_encode, handshake_flag, option_reply_parse,
};

pub struct Client<S = UnixStream> {
    pub stream: S,
    pub mode: ReplyMode,
    buffer: Vec<u8>,
}

/// A whole reply: simple, or one chunk.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Simple {
        cookie: u64,
        error: u32,
    },
    Chunk {
        header: ChunkHeader,
        content: Vec<u8>,
    },
}

impl Reply {
    pub fn error(&self) -> u32 {
        match self {
            Self::Simple { error, .. } => *error,
            Self::Chunk { header, content } if header.kind.is_error() => {
                ErrorChunk::decode(header.kind, content).unwrap().error
            }
            Self::Chunk { .. } => 0,
        }
    }

    pub fn cookie(&self) -> u64 {
        match self {
            Self::Simple { cookie, .. } => *cookie,
            Self::Chunk { header, .. } => header.cookie,
        }
    }
}

impl Client {
    /// Connects and greets.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        Client::greet(stream)
    }

    /// Connects and begins transmission on the default export.
    pub fn open(socket: &Path, mode: ReplyMode) -> Self {
        let mut client = Self::connect(socket);
        client.enter(mode, "");
        client
    }
}

impl<S: Read + Write> Client<S> {
    pub fn greet(stream: S) -> Self {
        let mut client = Self::without_greeting(stream);
        client.parse(Greeting::parse);
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        client.send(&client_flags_encode(flags));
        client
    }

    pub fn without_greeting(stream: S) -> Self {
        let (mode, buffer) = (ReplyMode::Simple, Vec::new());
        Client {
            stream,
            mode,
            buffer,
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn fill(&mut self, len: usize) {
        while self.buffer.len() < len {
            let mut bytes = vec![0; 64 << 10];
            let received = self.stream.read(&mut bytes).unwrap();
            assert!(received > 0, "the server closed the connection");
            self.buffer.extend_from_slice(&bytes[..received]);
        }
    }

    pub fn take(&mut self, len: usize) -> Vec<u8> {
        self.fill(len);
        self.buffer.drain(..len).collect()
    }

    fn parse<T>(&mut self, parse: impl Fn(&[u8]) -> Result<Parsed<T>, ProtoError>) -> T {
        loop {
            match parse(&self.buffer).unwrap() {
                Parsed::Item { item, used } => {
                    self.buffer.drain(..used);
                    return item;
                }
                Parsed::NeedMore(missing) => self.fill(self.buffer.len() + missing),
            }
        }
    }

    /// Whether the server closed the connection, with nothing left to read.
    pub fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && matches!(self.stream.read(&mut [0; 1]), Ok(0) | Err(_))
    }

    /// All replies to one option.
    pub fn option(&mut self, option: &ClientOption) -> Vec<OptionReply> {
        let mut bytes = Vec::new();
        option.encode(&mut bytes);
        self.send(&bytes);
        let mut replies = Vec::new();
        loop {
            replies.push(self.parse(|input| option_reply_parse(option.code(), input)));
            if let Some(OptionReply::Ack | OptionReply::Error { .. }) = replies.last() {
                return replies;
            }
        }
    }

    /// Begins transmission with `base:allocation` where the mode has it; the export's facts.
    pub fn enter(&mut self, mode: ReplyMode, export: &str) -> (u64, u16) {
        let ack = [OptionReply::Ack];
        match mode {
            ReplyMode::Simple => {}
            ReplyMode::Structured => {
                assert_eq!(self.option(&ClientOption::StructuredReply), ack);
            }
            ReplyMode::Extended => assert_eq!(self.option(&ClientOption::ExtendedHeaders), ack),
        }
        let export = export.to_owned();
        if mode != ReplyMode::Simple {
            let queries = vec!["base:allocation".into(), "test:flags".into()];
            let export = export.clone();
            self.option(&ClientOption::SetMetaContext(MetaQuery { export, queries }));
        }
        let infos = vec![InfoType::BlockSize.to_wire()];
        let replies = self.option(&ClientOption::Go(InfoRequest { export, infos }));
        assert_eq!(replies.last(), Some(&OptionReply::Ack), "{replies:?}");
        self.mode = mode;
        let export = replies.into_iter().find_map(|reply| match reply {
            OptionReply::Info(Info::Export { size, flags }) => Some((size, flags)),
            _ => None,
        });
        export.expect("every export has a size")
    }

    pub fn request(&mut self, request: Request, payload: &[u8]) {
        let mut bytes = Vec::new();
        request.encode(self.mode, &mut bytes);
        bytes.extend_from_slice(payload);
        self.send(&bytes);
    }

    /// One reply; `read` is the length of data that follows a successful simple reply.
    pub fn reply(&mut self, read: usize) -> (Reply, Vec<u8>) {
        let mode = self.mode;
        match self.parse(|input| ReplyHeader::parse(mode, input)) {
            ReplyHeader::Simple { error, cookie } => {
                let data = self.take(if error == 0 { read } else { 0 });
                (Reply::Simple { cookie, error }, data)
            }
            ReplyHeader::Chunk(header) => {
                let content = self.take(usize::try_from(header.len).unwrap());
                let data = match header.kind {
                    ChunkKind::OffsetHole => {
                        vec![0; HoleChunk::decode(&content).unwrap().len as usize]
                    }
                    _ => content.get(8..).unwrap_or_default().to_vec(),
                };
                (Reply::Chunk { header, content }, data)
            }
        }
    }

    /// One request and its only reply; the error number, and the data of a read.
    pub fn call(&mut self, request: Request, payload: &[u8]) -> (u32, Vec<u8>) {
        self.request(request, payload);
        let read = match Command::from_wire(request.command) {
            Some(Command::Read) => usize::try_from(request.len).unwrap(),
            _ => 0,
        };
        let (reply, data) = self.reply(read);
        assert_eq!(reply.cookie(), request.cookie);
        (reply.error(), data)
    }
}

/// A request whose cookie says where it goes.
pub fn request(command: Command, offset: u64, len: u64) -> Request {
    Request {
        flags: 0,
        command: command.to_wire(),
        cookie: 0xc00c_1e00_0000_0000 | offset,
        offset,
        len,
    }
}
