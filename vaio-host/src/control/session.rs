//! One control connection: lines in, lines out, one request after the other.

use std::{future::poll_fn, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use vaio_core::{Error, ErrorKind, Result};

use super::{
    PROTOCOL_VERSION, Shared,
    hold::Hold,
    request::{self, Request},
    verbs, within,
};

/// Longest request, in bytes.
pub(super) const LINE_BYTES_MAX: usize = 64 << 10;
/// Longest wait for the next request.
const IDLE_MAX: Duration = Duration::from_mins(10);
/// Longest wait for a reader that does not read.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// Serves a connection to its end. What it holds is let go then.
pub(super) async fn serve(stream: UnixStream, shared: &Shared) {
    let (read, write) = stream.into_split();
    let mut session = Session {
        reader: BufReader::new(read),
        out: Out {
            write,
            id: Value::Null,
        },
        hold: None,
    };
    // Only a connection that broke ends here with an error; there is no one to tell.
    let _ = session.run(shared).await;
    if let Some(hold) = session.hold {
        hold.abort().await;
    }
}

/// Tells a connection beyond the limit.
pub(super) fn refuse(stream: &UnixStream) {
    let error = Error::new(
        ErrorKind::Busy,
        format!(
            "too many control connections: close one, connections_max={}",
            super::CONNECTIONS_MAX
        ),
    );
    // Fits in the socket's buffer, or the peer does without.
    let _ = stream.try_write(error_line(&Value::Null, &error).as_bytes());
}

/// The connection is gone, or too slow.
#[derive(Debug)]
pub(super) struct Broken;

struct Session {
    reader: BufReader<OwnedReadHalf>,
    out: Out,
    hold: Option<Hold>,
}

/// Where answers go.
pub(super) struct Out {
    write: OwnedWriteHalf,
    /// Of the request that is being answered.
    id: Value,
}

impl Out {
    /// Sends a line of one kind: `ok`, `event` or `progress`.
    pub(super) async fn send(&mut self, kind: &str, value: Value) -> Result<(), Broken> {
        let line = json!({ "v": PROTOCOL_VERSION, "id": self.id, kind: value });
        self.line(format!("{line}\n")).await
    }

    async fn error(&mut self, error: &Error) -> Result<(), Broken> {
        self.line(error_line(&self.id, error)).await
    }

    async fn line(&mut self, line: String) -> Result<(), Broken> {
        match within(WRITE_MAX, self.write.write_all(line.as_bytes())).await {
            Some(Ok(())) => Ok(()),
            _ => Err(Broken),
        }
    }
}

fn error_line(id: &Value, error: &Error) -> String {
    let body = json!({
        "kind": error.kind(),
        "text": crate::exit::one_line(&error.to_line()),
        "retry": error.retry(),
        "disk": error.disk(),
        "filter": error.filter(),
    });
    format!(
        "{}\n",
        json!({ "v": PROTOCOL_VERSION, "id": id, "error": body })
    )
}

impl Session {
    async fn run(&mut self, shared: &Shared) -> Result<(), Broken> {
        loop {
            let line = tokio::select! {
                line = within(IDLE_MAX, read_line(&mut self.reader)) => Some(line.ok_or(Broken)?),
                () = stopping(shared), if self.hold.is_some() => None,
            };
            let Some(line) = line else {
                return self.let_go().await;
            };
            let line = match line {
                Line::Whole(line) => line,
                Line::End => return Ok(()),
                Line::TooLong => {
                    self.out.id = Value::Null;
                    let text = format!("the request is too long, bytes_max={LINE_BYTES_MAX}");
                    return self.out.error(&Error::invalid(text)).await;
                }
            };
            match request::parse(&line) {
                Err((id, error)) => {
                    self.out.id = id;
                    self.out.error(&error).await?;
                }
                Ok(envelope) => {
                    self.out.id = envelope.id;
                    self.answer(shared, envelope.disk.as_deref(), envelope.request)
                        .await?;
                }
            }
        }
    }

    /// The process is to end, and its disks cannot be closed while one is held.
    async fn let_go(&mut self) -> Result<(), Broken> {
        if let Some(hold) = self.hold.take() {
            hold.abort().await;
        }
        self.out.id = Value::Null;
        let text = "the program is ending and let go, so the snapshot is torn: take it again";
        self.out.error(&Error::new(ErrorKind::Gone, text)).await
    }

    async fn answer(
        &mut self,
        shared: &Shared,
        disk: Option<&str>,
        request: Request,
    ) -> Result<(), Broken> {
        let answer = match request {
            Request::Events { follow } => {
                let events = async {
                    let end = verbs::events(shared, disk, follow, &mut self.out).await?;
                    Ok(end)
                };
                // Someone who follows says nothing more; their end is the end of the stream.
                tokio::select! {
                    answer = events => answer?,
                    () = ended(&mut self.reader), if follow => return Err(Broken),
                }
            }
            Request::Flush { to, timeout_ms } => {
                let timeout = request::timeout(timeout_ms);
                verbs::flush(shared, disk, to.into(), timeout, &mut self.out).await?
            }
            Request::Hold {
                name,
                timeout_ms,
                quiesce,
            } if self.hold.is_none() => {
                let timeout = request::timeout(timeout_ms);
                match Hold::begin(shared, disk, &name, timeout, quiesce).await {
                    Ok(hold) => {
                        let told = hold.told();
                        self.hold = Some(hold);
                        Ok(told)
                    }
                    Err(error) => Err(error),
                }
            }
            Request::Hold { .. } => Err(Error::refused(
                "this connection holds already: release first",
            )),
            Request::Release {} => match self.hold.take() {
                Some(hold) => hold.release(shared).await,
                None => Err(Error::refused("this connection holds nothing: hold first")),
            },
            other => verbs::answer(shared, disk, other).await,
        };
        match answer {
            Ok(value) => self.out.send("ok", value).await,
            Err(error) => self.out.error(&error).await,
        }
    }
}

/// Resolves when the process is to end.
async fn stopping(shared: &Shared) {
    // The sender is in what we borrow.
    let _ = shared.stopping.subscribe().wait_for(|is| *is).await;
}

/// Resolves when the peer closes or speaks.
async fn ended(reader: &mut BufReader<OwnedReadHalf>) {
    let _ = reader.fill_buf().await;
}

enum Line {
    Whole(Vec<u8>),
    TooLong,
    End,
}

/// Reads up to a line's end. A line that the connection's end cut off is not one.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin)) -> Line {
    let mut line = Vec::new();
    loop {
        let Ok(buffer) = reader.fill_buf().await else {
            return Line::End;
        };
        if buffer.is_empty() {
            return Line::End;
        }
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let taken = end.unwrap_or(buffer.len());
        if line.len() + taken > LINE_BYTES_MAX {
            return Line::TooLong;
        }
        line.extend_from_slice(&buffer[..taken]);
        reader.consume(taken + usize::from(end.is_some()));
        if end.is_some() {
            return Line::Whole(line);
        }
    }
}

/// Lets other tasks of this thread run.
pub(super) async fn give_way() {
    let mut is_second = false;
    poll_fn(|cx| {
        if is_second {
            return std::task::Poll::Ready(());
        }
        is_second = true;
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::HostRuntime;

    async fn lines(mut bytes: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        loop {
            match read_line(&mut bytes).await {
                Line::Whole(line) => found.push(String::from_utf8(line).expect("text")),
                Line::TooLong => found.push("too long".into()),
                Line::End => return found,
            }
            if found.last().is_some_and(|line| line == "too long") {
                return found;
            }
        }
    }

    fn read_all(lines: impl Future<Output = Vec<String>>) -> Vec<String> {
        HostRuntime::run(|_| lines).unwrap()
    }

    #[test]
    fn lines_end_with_a_line_end_and_are_bounded() {
        assert_eq!(read_all(lines(b"a\n\nbc\nrest")), ["a", "", "bc"]);
        let mut exact = vec![b'x'; LINE_BYTES_MAX];
        exact.push(b'\n');
        assert_eq!(read_all(lines(&exact))[0].len(), LINE_BYTES_MAX);
        exact.insert(0, b'x');
        assert_eq!(read_all(lines(&exact)), ["too long"]);
    }
}
