//! One connection from accept to close: greeting, handshake, perhaps TLS, transmission.
//!
//! All decisions are [`Negotiation`]'s; this file moves its bytes.

use std::{
    future::poll_fn,
    io::{self, IoSlice, IoSliceMut},
    sync::Arc,
    time::Duration,
};

use tokio_rustls::server::TlsStream;

use super::{
    connection::{Connection, Service},
    export::Export,
    inbox::Inbox,
    listen::Stream,
    negotiate::{Negotiation, Next, Session, Tls},
    proto::{
        Greeting, OPTION_DATA_MAX, OptionParser, OptionReplyType, Parsed, client_flags_decode,
        handshake_flag,
    },
    query::Queries,
    server::{Shared, within},
    socket::{PlainSocket, Transport},
    stop::Stopped,
    wire::Wire,
};

/// Receive buffer to begin with, in bytes; grows to one option of the largest size.
const INBOX_FIRST: usize = 4 << 10;
const INBOX_OPTION: usize = OPTION_DATA_MAX + 16;
/// How long a connection that is not wanted may take to ask, so that it can be told.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves a connection to its end. Errors are the client's affair: they are logged.
pub(super) async fn serve(stream: Stream, shared: &Shared) {
    let served = match stream {
        Stream::Unix(stream) => serve_stream(stream, shared).await,
        Stream::Tcp(stream) => serve_stream(stream, shared).await,
    };
    match served {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            tracing::warn!(%error, "closing an nbd connection that stalled");
        }
        Err(error) => tracing::debug!(%error, "nbd connection ended"),
    }
}

/// Tells a connection why it is not served.
pub(super) async fn refuse(stream: Stream, shared: &Shared) {
    let text = format!(
        "too many connections, max={}",
        shared.settings.connections_max
    );
    let negotiation = Negotiation::refusing(OptionReplyType::ErrPolicy, text);
    match stream {
        Stream::Unix(stream) => refuse_stream(stream, shared, negotiation).await,
        Stream::Tcp(stream) => refuse_stream(stream, shared, negotiation).await,
    }
}

async fn refuse_stream(stream: impl Transport, shared: &Shared, negotiation: Negotiation) {
    let Ok(mut wire) = PlainSocket::new(stream) else {
        return;
    };
    // Whether it listens or not, it is closed.
    let told = handshake(&mut wire, shared, negotiation);
    let _ = within(REFUSAL_TIMEOUT, told).await;
}

/// What the handshake led to.
enum Established<S> {
    Plain(PlainSocket, Inbox, Session),
    Tls(Box<TlsStream<S>>, Inbox, Session),
    Closed,
}

async fn serve_stream<S: Transport>(stream: S, shared: &Shared) -> io::Result<()> {
    let stopped = shared.stop.subscribe();
    let established = stopped.unless(establish(stream, shared));
    let established = match within(shared.settings.handshake_timeout, established).await {
        Some(Some(established)) => established?,
        Some(None) => return Ok(()),
        None => {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "handshake took too long",
            ));
        }
    };
    match established {
        Established::Plain(socket, inbox, session) => {
            transmit(socket, inbox, &session, shared, stopped).await
        }
        Established::Tls(stream, inbox, session) => {
            transmit(*stream, inbox, &session, shared, stopped).await
        }
        Established::Closed => Ok(()),
    }
}

async fn establish<S: Transport>(stream: S, shared: &Shared) -> io::Result<Established<S>> {
    let mut socket = PlainSocket::new(stream)?;
    let tls = match &shared.settings.tls {
        None => Tls::Off,
        Some(_) if shared.settings.tls_required => Tls::Required,
        Some(_) => Tls::Offered,
    };
    let negotiation = Negotiation::new(tls);
    let (mut negotiation, inbox, next) = handshake(&mut socket, shared, negotiation).await?;
    match (next, &shared.settings.tls) {
        (Next::Transmit(session), _) => Ok(Established::Plain(socket, inbox, session)),
        (Next::StartTls, Some(tls)) => {
            // What was sent in the clear before TLS must never be taken for part of it.
            if !inbox.filled().is_empty() {
                return Err(invalid("plain text behind STARTTLS"));
            }
            let stream: S = socket.into_stream()?;
            let mut stream = Box::new(tls.acceptor().accept(stream).await?);
            negotiation.tls_started();
            let mut inbox = Inbox::new(INBOX_FIRST);
            match options(&mut *stream, &mut inbox, shared, &mut negotiation).await? {
                Next::Transmit(session) => Ok(Established::Tls(stream, inbox, session)),
                Next::Close | Next::StartTls | Next::Continue => {
                    poll_fn(|cx| stream.poll_close(cx)).await?;
                    Ok(Established::Closed)
                }
            }
        }
        (Next::Close | Next::StartTls | Next::Continue, _) => {
            poll_fn(|cx| socket.poll_close(cx)).await?;
            Ok(Established::Closed)
        }
    }
}

/// Greeting, client flags and options, up to what does not continue.
async fn handshake<W: Wire>(
    wire: &mut W,
    shared: &Shared,
    mut negotiation: Negotiation,
) -> io::Result<(Negotiation, Inbox, Next)> {
    send(wire, &Greeting::OURS.encode()).await?;
    let mut inbox = Inbox::new(INBOX_FIRST);
    let flags = loop {
        if let Some(flags) = inbox.filled().first_chunk::<4>() {
            break *flags;
        }
        receive(wire, &mut inbox).await?;
    };
    inbox.consume(flags.len());
    let flags = client_flags_decode(flags).map_err(invalid)?;
    negotiation.no_zeroes(flags & handshake_flag::NO_ZEROES != 0);
    let next = options(wire, &mut inbox, shared, &mut negotiation).await?;
    Ok((negotiation, inbox, next))
}

/// Answers options until one does not continue. The handshake's deadline and
/// [`OPTIONS_MAX`](super::negotiate::OPTIONS_MAX) bound it.
async fn options<W: Wire>(
    wire: &mut W,
    inbox: &mut Inbox,
    shared: &Shared,
    negotiation: &mut Negotiation,
) -> io::Result<Next> {
    let mut parser = OptionParser::default();
    let mut replies = Vec::new();
    loop {
        match parser.parse(inbox.filled()).map_err(invalid)? {
            Parsed::NeedMore(_) => {
                inbox.grow(if inbox.filled().is_empty() {
                    INBOX_FIRST
                } else {
                    INBOX_OPTION
                });
                receive(wire, inbox).await?;
            }
            Parsed::Item { item, used } => {
                inbox.consume(used);
                let Some(framed) = item else { continue };
                let offers: Vec<_> = shared.exports.iter().map(Export::offer).collect();
                let next = negotiation.step(&offers, framed, &mut replies);
                send(wire, &replies).await?;
                replies.clear();
                if next != Next::Continue {
                    return Ok(next);
                }
            }
        }
    }
}

async fn receive<W: Wire>(wire: &mut W, inbox: &mut Inbox) -> io::Result<()> {
    let spare = inbox.spare(INBOX_OPTION);
    let received = poll_fn(|cx| wire.poll_recv(cx, &mut [IoSliceMut::new(spare)])).await?;
    if received == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    inbox.received(received);
    Ok(())
}

async fn send<W: Wire>(wire: &mut W, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = poll_fn(|cx| wire.poll_send(cx, &[IoSlice::new(bytes)])).await?;
        bytes = &bytes[sent..];
    }
    poll_fn(|cx| wire.poll_flush(cx)).await
}

async fn transmit<W: Wire>(
    wire: W,
    inbox: Inbox,
    session: &Session,
    shared: &Shared,
    stopped: Stopped,
) -> io::Result<()> {
    let export = &shared.exports[session.export];
    let service = Service {
        disk: export.disk.clone(),
        mode: session.mode,
        queries: Queries::new(export, &session.contexts),
        pool: shared.pool.clone(),
        settings: Arc::clone(&shared.settings),
        share: shared.budget.share(),
        stopped,
    };
    let mut connection = Connection::new(wire, inbox, service).map_err(|error| {
        tracing::warn!(%error, export = export.name(), "nbd client cannot be served");
        io::Error::other(error)
    })?;
    poll_fn(|cx| connection.poll(cx)).await
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
