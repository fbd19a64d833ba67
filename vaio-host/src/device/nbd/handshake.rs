//! The client's side of the handshake: from a fresh connection to an agreed export.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vaio_core::{DeviceInfo, Error, ErrorKind, Result, Retry, Support};

use super::{super::spec::NbdUri, link::Stream, tls};
use crate::nbd::{
    BASE_ALLOCATION,
    proto::{
        BlockSizes, ClientOption, Greeting, Info, InfoRequest, InfoType, MetaQuery,
        OPTION_DATA_MAX, OptionReply, OptionReplyType, PAYLOAD_MAX, Parsed, ProtoError, ReplyMode,
        client_flags_encode, handshake_flag, option_reply_parse, transmission_flag,
    },
};

/// Replies to one option that are read; one more is an error.
const REPLIES_MAX: usize = 64;
/// Smallest block of a disk, in bytes.
const BLOCK_MIN: u32 = 512;
/// Largest transfer that we ask for, in bytes.
const TRANSFER_MAX: u32 = 8 << 20;
/// Largest write zeroes or discard that we ask for, in bytes: servers keep lengths in 32 bits,
/// some of them signed.
const ZEROES_MAX: u64 = 1 << 30;

/// What client and server agreed on.
#[derive(Debug)]
pub(super) struct Agreed {
    pub(super) stream: Stream,
    pub(super) mode: ReplyMode,
    /// Number of `base:allocation`.
    pub(super) context: Option<u32>,
    pub(super) info: DeviceInfo,
}

/// A connection during the handshake.
struct Talk<'a> {
    stream: Stream,
    input: Vec<u8>,
    uri: &'a NbdUri,
}

/// Does the handshake over `stream`.
pub(super) async fn agree(stream: Stream, uri: &NbdUri, read_only: bool) -> Result<Agreed> {
    let mut talk = Talk {
        stream,
        input: Vec::new(),
        uri,
    };
    talk.greet().await?;
    if uri.tls {
        talk = talk.start_tls().await?;
    }
    let is_structured = talk.option(ClientOption::StructuredReply).await?.is_ok();
    let mut context = None;
    if is_structured {
        let query = MetaQuery {
            export: uri.export.clone(),
            queries: vec![BASE_ALLOCATION.into()],
        };
        let replies = talk.option(ClientOption::SetMetaContext(query)).await?;
        context = replies.ok().and_then(|replies| {
            replies.into_iter().find_map(|reply| match reply {
                OptionReply::MetaContext { id, name } if name == BASE_ALLOCATION => Some(id),
                _ => None,
            })
        });
    }
    let go = InfoRequest {
        export: uri.export.clone(),
        infos: vec![InfoType::BlockSize.to_wire()],
    };
    let replies = match talk.option(ClientOption::Go(go)).await? {
        Ok(replies) => replies,
        Err(refusal) => return Err(talk.refused(&refusal)),
    };
    let info = device_info(&replies, context.is_some(), read_only)
        .map_err(|what| Error::config(format!("{what}, uri={uri}")))?;
    info.validate()?;
    if !talk.input.is_empty() {
        return Err(talk.broken(ProtoError::Malformed {
            what: "bytes after the handshake",
        }));
    }
    let mode = if is_structured {
        ReplyMode::Structured
    } else {
        ReplyMode::Simple
    };
    Ok(Agreed {
        stream: talk.stream,
        mode,
        context,
        info,
    })
}

/// An option that the server refused.
struct Refusal {
    kind: Option<OptionReplyType>,
    text: String,
}

impl Talk<'_> {
    fn lost(&self, cause: std::io::Error) -> Error {
        let text = format!("the NBD server hung up in the handshake, uri={}", self.uri);
        Error::new(ErrorKind::Gone, text)
            .with_retry(Retry::Later)
            .with_source(cause)
    }

    fn broken(&self, cause: ProtoError) -> Error {
        let text = format!("not an NBD server that we can talk to, uri={}", self.uri);
        Error::config(text).with_source(cause)
    }

    fn refused(&self, refusal: &Refusal) -> Error {
        let uri = self.uri;
        let why = match refusal.kind {
            Some(OptionReplyType::ErrUnknown) => {
                "the NBD server has no such export: check its name"
            }
            Some(OptionReplyType::ErrTlsReqd) => "the NBD server wants TLS: use nbds",
            Some(OptionReplyType::ErrUnsup) => "the NBD server is too old for this client",
            _ => "the NBD server refused the export",
        };
        let text = if refusal.text.is_empty() {
            String::new()
        } else {
            format!(" server=\"{}\"", refusal.text.escape_debug())
        };
        Error::config(format!("{why}, uri={uri}{text}"))
    }

    async fn greet(&mut self) -> Result<()> {
        let mut bytes = [0; Greeting::LEN];
        let read = self.stream.read_exact(&mut bytes).await;
        read.map_err(|cause| self.lost(cause))?;
        let Parsed::Item { item, .. } = Greeting::parse(&bytes).map_err(|e| self.broken(e))? else {
            unreachable!("the whole greeting was read");
        };
        if item.flags & handshake_flag::FIXED_NEWSTYLE == 0 {
            let what = "greeting without fixed newstyle";
            return Err(self.broken(ProtoError::Malformed { what }));
        }
        let ours = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        let flags = client_flags_encode(item.flags & ours);
        let sent = self.stream.write_all(&flags).await;
        sent.map_err(|cause| self.lost(cause))
    }

    async fn start_tls(mut self) -> Result<Self> {
        if let Err(refusal) = self.option(ClientOption::StartTls).await? {
            return Err(self.refused(&refusal));
        }
        if !self.input.is_empty() {
            // Injected before encryption by whoever is in between.
            let what = "bytes before TLS";
            return Err(self.broken(ProtoError::Malformed { what }));
        }
        self.stream = tls::start(self.stream, self.uri).await?;
        Ok(self)
    }

    /// Sends one option and reads its replies up to the last.
    async fn option(
        &mut self,
        option: ClientOption,
    ) -> Result<std::result::Result<Vec<OptionReply>, Refusal>> {
        let mut out = Vec::new();
        option.encode(&mut out);
        let sent = self.stream.write_all(&out).await;
        sent.map_err(|cause| self.lost(cause))?;
        let flushed = self.stream.flush().await;
        flushed.map_err(|cause| self.lost(cause))?;
        let mut replies = Vec::new();
        while replies.len() < REPLIES_MAX {
            match self.reply(option.code()).await? {
                OptionReply::Ack => return Ok(Ok(replies)),
                OptionReply::Error { kind, text } => return Ok(Err(Refusal { kind, text })),
                reply => replies.push(reply),
            }
        }
        let what = "replies to an option: too many";
        Err(self.broken(ProtoError::Malformed { what }))
    }

    async fn reply(&mut self, code: u32) -> Result<OptionReply> {
        loop {
            let parsed = option_reply_parse(code, &self.input).map_err(|e| self.broken(e))?;
            if let Parsed::Item { item, used } = parsed {
                self.input.drain(..used);
                return Ok(item);
            }
            // The parser refuses longer data, so that this stays bounded.
            debug_assert!(self.input.len() <= OPTION_DATA_MAX + 64);
            let mut more = [0; 512];
            let count = self.stream.read(&mut more).await;
            match count.map_err(|cause| self.lost(cause))? {
                0 => return Err(self.lost(std::io::ErrorKind::UnexpectedEof.into())),
                count => self.input.extend_from_slice(&more[..count]),
            }
        }
    }
}

/// The export as a device, or what is wrong with it.
fn device_info(
    replies: &[OptionReply],
    has_status: bool,
    read_only: bool,
) -> std::result::Result<DeviceInfo, String> {
    let mut export = None;
    let mut sizes = BlockSizes {
        min: 1,
        preferred: 4096,
        max: PAYLOAD_MAX,
    };
    for reply in replies {
        match reply {
            OptionReply::Info(Info::Export { size, flags }) => export = Some((*size, *flags)),
            OptionReply::Info(Info::BlockSize(told)) => sizes = *told,
            _ => {}
        }
    }
    let (size, flags) = export.ok_or("the NBD server did not tell the export's size")?;
    if sizes.min > DeviceInfo::BLOCK_MAX || !sizes.min.is_power_of_two() {
        return Err(format!(
            "the NBD server's smallest block is no power of two up to 65536 (block={})",
            sizes.min
        ));
    }
    let block = sizes.min.max(BLOCK_MIN);
    if size == 0 || !size.is_multiple_of(block.into()) {
        return Err(format!(
            "the export's size is not a multiple of the block: give the server a rounded image \
             (size={size} block={block})"
        ));
    }
    if sizes.max < block {
        return Err(format!(
            "the NBD server's largest block is too small (max={})",
            sizes.max
        ));
    }
    let has = |flag: u16| flags & flag != 0;
    let read_only = read_only || has(transmission_flag::READ_ONLY);
    let native = |yes: bool| {
        if yes && !read_only {
            Support::Native
        } else {
            Support::None
        }
    };
    let mut info = DeviceInfo::new(size, block).with_caps(|caps| {
        caps.volatile_cache = has(transmission_flag::SEND_FLUSH) && !read_only;
        caps.fua = native(has(transmission_flag::SEND_FUA));
        caps.write_zeroes = native(has(transmission_flag::SEND_WRITE_ZEROES));
        caps.fast_zeroes = has(transmission_flag::SEND_FAST_ZERO) && !read_only;
        caps.discard = native(has(transmission_flag::SEND_TRIM));
        caps.prefetch = if has(transmission_flag::SEND_CACHE) {
            Support::Native
        } else {
            Support::None
        };
        caps.allocation = has_status;
        caps.read_only = read_only;
    });
    info.transfer_max = sizes.max.min(TRANSFER_MAX) / block * block;
    info.zeroes_max = ZEROES_MAX;
    info.sub_block = (block > BLOCK_MIN).then_some(BLOCK_MIN);
    if sizes.preferred.is_power_of_two() {
        info.optimal_block = sizes.preferred.max(block);
    }
    Ok(info)
}
