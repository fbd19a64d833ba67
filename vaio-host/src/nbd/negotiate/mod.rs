//! The server's side of the handshake as a pure state machine: one option in, replies out.
//!
//! Invariants:
//! * Where TLS is required, nothing but `STARTTLS` and `ABORT` is answered before it, and nothing
//!   agreed before TLS is valid after it.
//! * Meta contexts are only valid for the export they were chosen for.
//! * Every option gets exactly one final reply, except an export name that is refused: the
//!   protocol has no words for that, so the connection is closed.

use super::proto::{
    BlockSizes, ClientOption, ExportNameReply, FramedOption, Info, InfoRequest, InfoType,
    MetaQuery, OptionReply, OptionReplyType as Refusal, ProtoError, ReplyMode, transmission_flag,
};

/// Most options on one connection; then it is closed. Clients need a handful.
pub const OPTIONS_MAX: usize = 128;
/// Block size that a client assumes which never asks for one, in bytes.
const BLOCK_ASSUMED: u32 = 512;

/// An export as the handshake shows it. Taken anew for each option: a disk may be resized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Name that chooses it; the empty name chooses the first of the list.
    pub name: String,
    /// Text for people; may be empty.
    pub description: String,
    /// Size in bytes.
    pub size: u64,
    /// [`transmission_flag`]s, without those that depend on the reply mode.
    pub flags: u16,
    /// Block sizes.
    pub blocks: BlockSizes,
    /// Names of its meta contexts. The index is the context's number on the wire.
    pub contexts: Vec<String>,
}

/// Whether TLS is there, and whether it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Not configured.
    Off,
    /// A client may start it.
    Offered,
    /// A client must start it.
    Required,
    /// It was started.
    Active,
}

/// What the two sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Index of the export.
    pub export: usize,
    /// Shape of requests and replies.
    pub mode: ReplyMode,
    /// Numbers of the chosen meta contexts: indices into [`Offer::contexts`], ascending.
    pub contexts: Vec<u32>,
}

/// What to do after the replies were sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read the next option.
    Continue,
    /// Start TLS; call [`Negotiation::tls_started`] then.
    StartTls,
    /// Begin transmission.
    Transmit(Session),
    /// Close the connection.
    Close,
}

/// State of one connection's handshake.
#[derive(Clone, Debug)]
pub struct Negotiation {
    tls: Tls,
    no_zeroes: bool,
    mode: ReplyMode,
    /// Export and context numbers chosen last.
    contexts: Option<(usize, Vec<u32>)>,
    options: usize,
    /// Answer to everything, if the server does not want this connection.
    refusal: Option<(Refusal, String)>,
}

impl Negotiation {
    /// A fresh connection.
    pub fn new(tls: Tls) -> Self {
        Self {
            tls,
            no_zeroes: false,
            mode: ReplyMode::Simple,
            contexts: None,
            options: 0,
            refusal: None,
        }
    }

    /// A connection that is told why it is not wanted, and closed.
    pub fn refusing(kind: Refusal, text: impl Into<String>) -> Self {
        Self {
            refusal: Some((kind, text.into())),
            ..Self::new(Tls::Off)
        }
    }

    /// The client's flags: whether it wants no padding behind the reply to an export name.
    pub fn no_zeroes(&mut self, no_zeroes: bool) {
        self.no_zeroes = no_zeroes;
    }

    /// TLS is up: all that was agreed before is void.
    pub fn tls_started(&mut self) {
        self.tls = Tls::Active;
        self.mode = ReplyMode::Simple;
        self.contexts = None;
    }

    /// Answers one option: appends the replies to `out` and says what follows.
    pub fn step(&mut self, offers: &[Offer], framed: FramedOption, out: &mut Vec<u8>) -> Next {
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Next::Close;
        }
        let mut replies = Replies {
            code: framed.code,
            out,
        };
        if let Some((kind, text)) = &self.refusal {
            replies.error(*kind, text.as_str());
            return Next::Close;
        }
        let option = match framed.option {
            Ok(option) => option,
            // The export name's option has no error reply.
            Err(_) if framed.code == EXPORT_NAME => return Next::Close,
            Err(error) => return replies.malformed(error),
        };
        if self.tls == Tls::Required {
            match option {
                ClientOption::StartTls | ClientOption::Abort => {}
                ClientOption::ExportName(_) => return Next::Close,
                _ => return replies.error(Refusal::ErrTlsReqd, "this server requires TLS"),
            }
        }
        match option {
            ClientOption::ExportName(name) => self.export_name(offers, &name, replies.out),
            ClientOption::Abort => {
                replies.ack();
                Next::Close
            }
            ClientOption::List => {
                for offer in offers {
                    replies.send(&OptionReply::Server {
                        name: offer.name.clone(),
                        description: offer.description.clone(),
                    });
                }
                replies.ack()
            }
            ClientOption::StartTls => self.start_tls(&mut replies),
            ClientOption::Info(request) => {
                self.info(offers, &request, &mut replies);
                Next::Continue
            }
            ClientOption::Go(request) => match self.info(offers, &request, &mut replies) {
                Some(export) => Next::Transmit(self.session(export)),
                None => Next::Continue,
            },
            ClientOption::StructuredReply => self.structured(&mut replies),
            ClientOption::ExtendedHeaders => self.extended(&mut replies),
            ClientOption::ListMetaContext(query) => {
                self.list_contexts(offers, &query, &mut replies)
            }
            ClientOption::SetMetaContext(query) => self.set_contexts(offers, &query, &mut replies),
            ClientOption::Unknown(_) => {
                replies.error(Refusal::ErrUnsup, "option is not known here")
            }
        }
    }

    fn session(&self, export: usize) -> Session {
        let contexts = match &self.contexts {
            Some((chosen_for, contexts)) if *chosen_for == export => contexts.clone(),
            _ => Vec::new(),
        };
        Session {
            export,
            mode: self.mode,
            contexts,
        }
    }

    fn flags(&self, offer: &Offer) -> u16 {
        let by_mode = match self.mode {
            ReplyMode::Simple => 0,
            ReplyMode::Structured => transmission_flag::SEND_DF,
            ReplyMode::Extended => {
                transmission_flag::SEND_DF | transmission_flag::BLOCK_STATUS_PAYLOAD
            }
        };
        offer.flags | by_mode
    }

    fn export_name(&self, offers: &[Offer], name: &str, out: &mut Vec<u8>) -> Next {
        let Some(export) = find(offers, name) else {
            return Next::Close;
        };
        let reply = ExportNameReply {
            size: offers[export].size,
            flags: self.flags(&offers[export]),
        };
        reply.encode(self.no_zeroes, out);
        Next::Transmit(self.session(export))
    }

    fn start_tls(&self, replies: &mut Replies<'_>) -> Next {
        match self.tls {
            Tls::Off => replies.error(Refusal::ErrUnsup, "this server has no TLS"),
            Tls::Active => replies.error(Refusal::ErrInvalid, "TLS is on already"),
            Tls::Offered | Tls::Required => {
                replies.ack();
                Next::StartTls
            }
        }
    }

    /// The facts on an export; its index if they were sent.
    fn info(
        &self,
        offers: &[Offer],
        request: &InfoRequest,
        replies: &mut Replies<'_>,
    ) -> Option<usize> {
        let Some(export) = find(offers, &request.export) else {
            replies.unknown_export();
            return None;
        };
        let offer = &offers[export];
        if offer.blocks.min > BLOCK_ASSUMED && !request.wants(InfoType::BlockSize) {
            let text = format!("ask for block sizes: smallest={}", offer.blocks.min);
            replies.error(Refusal::ErrBlockSizeReqd, text);
            return None;
        }
        let mut send = |info| replies.send(&OptionReply::Info(info));
        if request.wants(InfoType::Name) {
            send(Info::Name(offer.name.clone()));
        }
        if request.wants(InfoType::Description) && !offer.description.is_empty() {
            send(Info::Description(offer.description.clone()));
        }
        send(Info::BlockSize(offer.blocks));
        send(Info::Export {
            size: offer.size,
            flags: self.flags(offer),
        });
        replies.ack();
        Some(export)
    }

    fn structured(&mut self, replies: &mut Replies<'_>) -> Next {
        match self.mode {
            ReplyMode::Simple => {
                self.mode = ReplyMode::Structured;
                replies.ack()
            }
            ReplyMode::Structured => {
                replies.error(Refusal::ErrInvalid, "structured replies are on already")
            }
            ReplyMode::Extended => {
                replies.error(Refusal::ErrExtHeaderReqd, "extended headers are on already")
            }
        }
    }

    fn extended(&mut self, replies: &mut Replies<'_>) -> Next {
        if self.mode == ReplyMode::Extended {
            return replies.error(Refusal::ErrInvalid, "extended headers are on already");
        }
        self.mode = ReplyMode::Extended;
        replies.ack()
    }

    fn list_contexts(
        &self,
        offers: &[Offer],
        query: &MetaQuery,
        replies: &mut Replies<'_>,
    ) -> Next {
        let Some(export) = self.context_export(offers, query, replies) else {
            return Next::Continue;
        };
        let asked = |name: &str| {
            query.queries.is_empty()
                || query.queries.iter().any(|asked| {
                    asked == name || (asked.ends_with(':') && name.starts_with(asked.as_str()))
                })
        };
        for name in offers[export].contexts.iter().filter(|name| asked(name)) {
            let (id, name) = (0, name.clone());
            replies.send(&OptionReply::MetaContext { id, name });
        }
        replies.ack()
    }

    fn set_contexts(
        &mut self,
        offers: &[Offer],
        query: &MetaQuery,
        replies: &mut Replies<'_>,
    ) -> Next {
        // A new choice, even a refused one, ends the one before.
        self.contexts = None;
        let Some(export) = self.context_export(offers, query, replies) else {
            return Next::Continue;
        };
        let mut chosen = Vec::new();
        for (id, name) in (0..).zip(&offers[export].contexts) {
            if query.queries.contains(name) {
                chosen.push(id);
                let name = name.clone();
                replies.send(&OptionReply::MetaContext { id, name });
            }
        }
        self.contexts = Some((export, chosen));
        replies.ack()
    }

    fn context_export(
        &self,
        offers: &[Offer],
        query: &MetaQuery,
        replies: &mut Replies<'_>,
    ) -> Option<usize> {
        if self.mode == ReplyMode::Simple {
            replies.error(Refusal::ErrInvalid, "meta contexts need structured replies");
            return None;
        }
        let export = find(offers, &query.export);
        if export.is_none() {
            replies.unknown_export();
        }
        export
    }
}

const EXPORT_NAME: u32 = super::proto::OptionCode::ExportName.to_wire();

fn find(offers: &[Offer], name: &str) -> Option<usize> {
    let by_name = offers.iter().position(|offer| offer.name == name);
    by_name.or((name.is_empty() && !offers.is_empty()).then_some(0))
}

/// Replies to one option.
struct Replies<'a> {
    code: u32,
    out: &'a mut Vec<u8>,
}

impl Replies<'_> {
    fn send(&mut self, reply: &OptionReply) {
        reply.encode(self.code, self.out);
    }

    fn ack(&mut self) -> Next {
        self.send(&OptionReply::Ack);
        Next::Continue
    }

    fn error(&mut self, kind: Refusal, text: impl Into<String>) -> Next {
        self.send(&OptionReply::error(kind, text));
        Next::Continue
    }

    fn malformed(&mut self, error: ProtoError) -> Next {
        let kind = match error {
            ProtoError::TooLong { .. } => Refusal::ErrTooBig,
            _ => Refusal::ErrInvalid,
        };
        self.error(kind, error.to_string())
    }

    fn unknown_export(&mut self) {
        self.error(Refusal::ErrUnknown, "no export of this name");
    }
}

#[cfg(test)]
mod tests;
