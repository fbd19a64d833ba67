//! Options of the handshake and the replies to them.
//!
//! An option is framed first (magic, code, length) and decoded second, so that a malformed one can
//! be refused without losing sync.

use super::{
    INFO_REQUESTS_MAX, InfoType, META_QUERIES_MAX, OPTION_DATA_MAX, OPTION_DRAIN_MAX, OptionCode,
    OptionReplyType, Parsed, ProtoError,
    handshake::OPTION_MAGIC,
    wire::{Reader, be32, be64, fixed, len32, put_string32},
};

const OPTION_HEADER: usize = 16;
const REPLY_HEADER: usize = 20;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Data of [`ClientOption::Info`] and [`ClientOption::Go`].
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct InfoRequest {
    /// Export asked for; empty for the default one.
    pub export: String,
    /// Facts asked for, as numbers: unknown ones are to be ignored.
    pub infos: Vec<u16>,
}

impl InfoRequest {
    /// Whether this fact was asked for.
    pub fn wants(&self, info: InfoType) -> bool {
        self.infos.contains(&info.to_wire())
    }
}

/// Data of [`ClientOption::ListMetaContext`] and [`ClientOption::SetMetaContext`].
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MetaQuery {
    /// Export asked about.
    pub export: String,
    /// Names asked for, or `namespace:` for all of a namespace when listing.
    pub queries: Vec<String>,
}

/// One option of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientOption {
    /// Chooses an export and ends the handshake, without any way to refuse but closing.
    ExportName(String),
    /// Ends the session.
    Abort,
    /// Lists the exports.
    List,
    /// Starts TLS.
    StartTls,
    /// Asks for facts.
    Info(InfoRequest),
    /// Asks for facts and starts transmission.
    Go(InfoRequest),
    /// Asks for structured replies.
    StructuredReply,
    /// Lists meta contexts.
    ListMetaContext(MetaQuery),
    /// Chooses meta contexts.
    SetMetaContext(MetaQuery),
    /// Asks for extended headers.
    ExtendedHeaders,
    /// Something else; its data is dropped.
    Unknown(u32),
}

impl ClientOption {
    /// The number on the wire.
    pub fn code(&self) -> u32 {
        let code = match self {
            Self::ExportName(_) => OptionCode::ExportName,
            Self::Abort => OptionCode::Abort,
            Self::List => OptionCode::List,
            Self::StartTls => OptionCode::StartTls,
            Self::Info(_) => OptionCode::Info,
            Self::Go(_) => OptionCode::Go,
            Self::StructuredReply => OptionCode::StructuredReply,
            Self::ListMetaContext(_) => OptionCode::ListMetaContext,
            Self::SetMetaContext(_) => OptionCode::SetMetaContext,
            Self::ExtendedHeaders => OptionCode::ExtendedHeaders,
            Self::Unknown(code) => return *code,
        };
        code.to_wire()
    }

    /// Appends the option, header and data.
    ///
    /// # Panics
    /// If it asks for more than 65,535 facts.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&self.code().to_be_bytes());
        let len_at = out.len();
        out.extend_from_slice(&[0; 4]);
        match self {
            Self::ExportName(name) => out.extend_from_slice(name.as_bytes()),
            Self::Info(request) | Self::Go(request) => {
                put_string32(out, &request.export);
                let count = u16::try_from(request.infos.len())
                    .expect("no more facts are asked for than there are");
                out.extend_from_slice(&count.to_be_bytes());
                for info in &request.infos {
                    out.extend_from_slice(&info.to_be_bytes());
                }
            }
            Self::ListMetaContext(query) | Self::SetMetaContext(query) => {
                put_string32(out, &query.export);
                out.extend_from_slice(&len32(query.queries.len()).to_be_bytes());
                for name in &query.queries {
                    put_string32(out, name);
                }
            }
            _ => {}
        }
        fill_len(out, len_at);
    }

    /// Decodes an option's data.
    ///
    /// # Errors
    /// Malformed data; to be answered with
    /// [`OptionReplyType::ErrInvalid`] or, for [`ProtoError::TooLong`],
    /// [`OptionReplyType::ErrTooBig`].
    pub fn decode(code: u32, data: &[u8]) -> Result<Self, ProtoError> {
        let Some(known) = OptionCode::from_wire(code) else {
            return Ok(Self::Unknown(code));
        };
        let mut reader = Reader::new("option data", data);
        let option = match known {
            OptionCode::ExportName => {
                return reader.rest_string("export name").map(Self::ExportName);
            }
            OptionCode::Info => Self::Info(info_request(&mut reader)?),
            OptionCode::Go => Self::Go(info_request(&mut reader)?),
            OptionCode::ListMetaContext => Self::ListMetaContext(meta_query(&mut reader)?),
            OptionCode::SetMetaContext => Self::SetMetaContext(meta_query(&mut reader)?),
            OptionCode::Abort => Self::Abort,
            OptionCode::List => Self::List,
            OptionCode::StartTls => Self::StartTls,
            OptionCode::StructuredReply => Self::StructuredReply,
            OptionCode::ExtendedHeaders => Self::ExtendedHeaders,
        };
        // Abort ends the session whatever it carries.
        if known != OptionCode::Abort {
            reader.end()?;
        }
        Ok(option)
    }
}

fn info_request(reader: &mut Reader<'_>) -> Result<InfoRequest, ProtoError> {
    let export = reader.string32("export name")?;
    let count = usize::from(reader.u16()?);
    check_count("information requests", count, INFO_REQUESTS_MAX)?;
    let infos = (0..count).map(|_| reader.u16()).collect::<Result<_, _>>()?;
    Ok(InfoRequest { export, infos })
}

fn meta_query(reader: &mut Reader<'_>) -> Result<MetaQuery, ProtoError> {
    let export = reader.string32("export name")?;
    let count = reader.u32()? as usize;
    check_count("meta context queries", count, META_QUERIES_MAX)?;
    let queries = (0..count)
        .map(|_| reader.string32("meta context"))
        .collect::<Result<_, _>>()?;
    Ok(MetaQuery { export, queries })
}

fn check_count(what: &'static str, count: usize, max: usize) -> Result<(), ProtoError> {
    if count > max {
        let (len, max) = (count as u64, max as u64);
        return Err(ProtoError::TooLong { what, len, max });
    }
    Ok(())
}

fn fill_len(out: &mut [u8], at: usize) {
    let len = len32(out.len() - at - 4);
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

/// One option off the wire, decoded as far as it can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FramedOption {
    /// Its number, which every reply repeats.
    pub code: u32,
    /// The option, or what is wrong with its data. The connection is in sync either way.
    pub option: Result<ClientOption, ProtoError>,
}

/// Incremental parser of the client's options: the server's side.
#[derive(Clone, Copy, Debug, Default)]
pub struct OptionParser {
    /// Bytes of an oversized option still to drop, and its error.
    draining: Option<(u32, usize, ProtoError)>,
}

impl OptionParser {
    /// Reads one option. `used` may be non-zero with an item of `None`: bytes of an oversized
    /// option were dropped; call again.
    ///
    /// # Errors
    /// Wrong magic, or data longer than [`OPTION_DRAIN_MAX`]: close the connection.
    pub fn parse(&mut self, input: &[u8]) -> Result<Parsed<Option<FramedOption>>, ProtoError> {
        if let Some((code, left, error)) = self.draining {
            return Ok(self.drain(code, left, error, input.len()));
        }
        let header: &[u8; OPTION_HEADER] = match fixed(input) {
            Ok(header) => header,
            Err(missing) => return Ok(Parsed::NeedMore(missing)),
        };
        let magic = be64(header, 0);
        if magic != OPTION_MAGIC {
            let what = "option";
            return Err(ProtoError::Magic { what, got: magic });
        }
        let (code, len) = (be32(header, 8), be32(header, 12) as usize);
        if len > OPTION_DATA_MAX {
            let what = "option data";
            let error = |max: usize| ProtoError::TooLong {
                what,
                len: len as u64,
                max: max as u64,
            };
            if len > OPTION_DRAIN_MAX {
                return Err(error(OPTION_DRAIN_MAX));
            }
            self.draining = Some((code, len, error(OPTION_DATA_MAX)));
            return Ok(Parsed::Item {
                item: None,
                used: OPTION_HEADER,
            });
        }
        let Some(data) = input[OPTION_HEADER..].get(..len) else {
            return Ok(Parsed::NeedMore(OPTION_HEADER + len - input.len()));
        };
        let option = ClientOption::decode(code, data);
        Ok(Parsed::Item {
            item: Some(FramedOption { code, option }),
            used: OPTION_HEADER + len,
        })
    }

    fn drain(
        &mut self,
        code: u32,
        left: usize,
        error: ProtoError,
        have: usize,
    ) -> Parsed<Option<FramedOption>> {
        let used = left.min(have);
        if used == 0 {
            return Parsed::NeedMore(1);
        }
        let option = Err(error);
        let done = used == left;
        self.draining = (!done).then_some((code, left - used, error));
        Parsed::Item {
            item: done.then_some(FramedOption { code, option }),
            used,
        }
    }
}

/// Block sizes of an export, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Smallest request and alignment; a power of two.
    pub min: u32,
    /// What the device does best; a power of two.
    pub preferred: u32,
    /// Largest read or write payload; a multiple of `min`.
    pub max: u32,
}

/// One fact on an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Info {
    /// Size in bytes and [`transmission_flag`](super::transmission_flag)s.
    Export {
        /// Size in bytes.
        size: u64,
        /// Flags.
        flags: u16,
    },
    /// Canonical name.
    Name(String),
    /// Text for people.
    Description(String),
    /// Block sizes.
    BlockSize(BlockSizes),
    /// A fact that we do not know; to be ignored.
    Unknown(u16),
}

/// One reply to an option. Several may answer one; the last is `Ack` or an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionReply {
    /// Done.
    Ack,
    /// One export of the list.
    Server {
        /// Name.
        name: String,
        /// Text for people; may be empty.
        description: String,
    },
    /// One fact.
    Info(Info),
    /// One meta context.
    MetaContext {
        /// Number in block status replies; 0 when listing.
        id: u32,
        /// Name.
        name: String,
    },
    /// The option is refused.
    Error {
        /// Why; `None` for an error that we do not know.
        kind: Option<OptionReplyType>,
        /// Text for people; may be empty.
        text: String,
    },
}

impl OptionReply {
    /// An error with a text.
    pub fn error(kind: OptionReplyType, text: impl Into<String>) -> Self {
        let (kind, text) = (Some(kind), text.into());
        Self::Error { kind, text }
    }

    fn wire_type(&self) -> u32 {
        let known = match self {
            Self::Ack => OptionReplyType::Ack,
            Self::Server { .. } => OptionReplyType::Server,
            Self::Info(_) => OptionReplyType::Info,
            Self::MetaContext { .. } => OptionReplyType::MetaContext,
            Self::Error { kind, .. } => kind.unwrap_or(OptionReplyType::ErrPolicy),
        };
        known.to_wire()
    }

    /// Appends the reply to the option numbered `code`.
    pub fn encode(&self, code: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(&self.wire_type().to_be_bytes());
        let len_at = out.len();
        out.extend_from_slice(&[0; 4]);
        match self {
            Self::Ack => {}
            Self::Server { name, description } => {
                put_string32(out, name);
                out.extend_from_slice(description.as_bytes());
            }
            Self::Info(info) => encode_info(info, out),
            Self::MetaContext { id, name } => {
                out.extend_from_slice(&id.to_be_bytes());
                out.extend_from_slice(name.as_bytes());
            }
            Self::Error { text, .. } => out.extend_from_slice(text.as_bytes()),
        }
        fill_len(out, len_at);
    }

    fn decode(wire_type: u32, data: &[u8]) -> Result<Self, ProtoError> {
        let mut reader = Reader::new("option reply", data);
        let known = OptionReplyType::from_wire(wire_type);
        match known {
            Some(OptionReplyType::Ack) => Ok(Self::Ack),
            Some(OptionReplyType::Server) => Ok(Self::Server {
                name: reader.string32("export name")?,
                description: reader.rest_string("description")?,
            }),
            Some(OptionReplyType::Info) => decode_info(reader).map(Self::Info),
            Some(OptionReplyType::MetaContext) => Ok(Self::MetaContext {
                id: reader.u32()?,
                name: reader.rest_string("meta context")?,
            }),
            kind if wire_type >> 31 == 1 => Ok(Self::Error {
                kind,
                // A text that is no text must not hide the error itself.
                text: reader.rest_string("error text").unwrap_or_default(),
            }),
            _ => Err(reader.malformed()),
        }
    }
}

fn encode_info(info: &Info, out: &mut Vec<u8>) {
    let mut put_type = |info: InfoType| out.extend_from_slice(&info.to_wire().to_be_bytes());
    match info {
        Info::Export { size, flags } => {
            put_type(InfoType::Export);
            out.extend_from_slice(&size.to_be_bytes());
            out.extend_from_slice(&flags.to_be_bytes());
        }
        Info::Name(name) => {
            put_type(InfoType::Name);
            out.extend_from_slice(name.as_bytes());
        }
        Info::Description(text) => {
            put_type(InfoType::Description);
            out.extend_from_slice(text.as_bytes());
        }
        Info::BlockSize(sizes) => {
            put_type(InfoType::BlockSize);
            for size in [sizes.min, sizes.preferred, sizes.max] {
                out.extend_from_slice(&size.to_be_bytes());
            }
        }
        Info::Unknown(number) => out.extend_from_slice(&number.to_be_bytes()),
    }
}

fn decode_info(mut reader: Reader<'_>) -> Result<Info, ProtoError> {
    let number = reader.u16()?;
    let info = match InfoType::from_wire(number) {
        Some(InfoType::Export) => Info::Export {
            size: reader.u64()?,
            flags: reader.u16()?,
        },
        Some(InfoType::Name) => return reader.rest_string("export name").map(Info::Name),
        Some(InfoType::Description) => {
            return reader.rest_string("description").map(Info::Description);
        }
        Some(InfoType::BlockSize) => Info::BlockSize(BlockSizes {
            min: reader.u32()?,
            preferred: reader.u32()?,
            max: reader.u32()?,
        }),
        None => return Ok(Info::Unknown(number)),
    };
    reader.end()?;
    Ok(info)
}

/// Reads one reply to the option numbered `code`: the client's side.
///
/// # Errors
/// Wrong magic, another option's reply, data longer than [`OPTION_DATA_MAX`] or malformed.
pub fn option_reply_parse(code: u32, input: &[u8]) -> Result<Parsed<OptionReply>, ProtoError> {
    let header: &[u8; REPLY_HEADER] = match fixed(input) {
        Ok(header) => header,
        Err(missing) => return Ok(Parsed::NeedMore(missing)),
    };
    let what = "option reply";
    let magic = be64(header, 0);
    if magic != REPLY_MAGIC {
        return Err(ProtoError::Magic { what, got: magic });
    }
    if be32(header, 8) != code {
        return Err(ProtoError::Malformed { what });
    }
    let len = be32(header, 16) as usize;
    check_count(what, len, OPTION_DATA_MAX)?;
    let Some(data) = input[REPLY_HEADER..].get(..len) else {
        return Ok(Parsed::NeedMore(REPLY_HEADER + len - input.len()));
    };
    Ok(Parsed::Item {
        item: OptionReply::decode(be32(header, 12), data)?,
        used: REPLY_HEADER + len,
    })
}
