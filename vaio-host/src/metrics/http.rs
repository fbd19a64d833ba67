//! The smallest HTTP/1.1 server that a Prometheus scraper needs: `GET /metrics`, one answer per
//! connection. Every size and wait is bounded.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// Longest request head, in bytes.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Connections at a time; more wait in the backlog.
const CONNECTIONS_MAX: usize = 8;
/// From accept to the end.
const EXCHANGE_MAX: Duration = Duration::from_secs(5);
/// Pause after accept failed.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves until dropped. `text` makes the answer.
#[expect(
    clippy::disallowed_methods,
    reason = "the control thread owns its runtime"
)]
pub(crate) async fn serve(listener: &TcpListener, text: &dyn Fn() -> String) {
    let turns = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(turn) = Arc::clone(&turns).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a metrics connection, trying again");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let body = text();
        drop(tokio::spawn(async move {
            // A client that is gone or slow is no one's concern.
            let _ = tokio::time::timeout(EXCHANGE_MAX, exchange(stream, &body)).await;
            drop(turn);
        }));
    }
}

async fn exchange(mut stream: TcpStream, body: &str) -> std::io::Result<()> {
    let mut head = Vec::with_capacity(512);
    let answer = loop {
        if let Some(answer) = judge(&head, body) {
            break answer;
        }
        let left = HEAD_BYTES_MAX - head.len();
        if (&mut stream).take(left as u64).read_buf(&mut head).await? == 0 {
            break response("400 Bad Request", "");
        }
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// The answer to a request's head; `None`: it is not complete.
fn judge(head: &[u8], body: &str) -> Option<String> {
    if !head.windows(4).any(|end| end == b"\r\n\r\n") {
        return (head.len() >= HEAD_BYTES_MAX)
            .then(|| response("431 Request Header Fields Too Large", ""));
    }
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ');
    Some(match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/metrics")) => response("200 OK", body),
        (Some(b"GET"), _) => response("404 Not Found", ""),
        _ => response("405 Method Not Allowed", ""),
    })
}

fn response(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_judged_when_complete_and_not_too_long() {
        let status = |head: &[u8]| judge(head, "x 1\n").map(|answer| answer[9..12].to_owned());
        assert_eq!(status(b"GET /metrics HTTP/1.1\r\nHost: x\r\n"), None);
        assert_eq!(
            status(b"GET /metrics HTTP/1.1\r\n\r\n").as_deref(),
            Some("200")
        );
        assert_eq!(status(b"GET / HTTP/1.1\r\n\r\n").as_deref(), Some("404"));
        assert_eq!(
            status(b"POST /metrics HTTP/1.1\r\n\r\n").as_deref(),
            Some("405")
        );
        assert_eq!(status(b"\r\n\r\n").as_deref(), Some("405"));
        assert_eq!(status(&[b'x'; HEAD_BYTES_MAX]).as_deref(), Some("431"));
    }
}
