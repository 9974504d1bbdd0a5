//! The least of HTTP/1.1 that load needs: a client library would cost more than what it measures.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::load::Caller;

/// Longest answer that is read.
const MOST: usize = 1 << 20;

/// A kept-alive connection that asks the same thing again and again.
pub(crate) struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

/// A GET of `path`, as bytes.
pub(crate) fn get(address: SocketAddr, path: &str, token: Option<&str>) -> Vec<u8> {
    let credential = token.map_or_else(String::new, |token| format!("authorization: Bearer {token}\r\n"));
    format!("GET {path} HTTP/1.1\r\nhost: {address}\r\naccept: */*\r\n{credential}\r\n").into_bytes()
}

impl Connection {
    /// Connects; nothing is asked yet.
    ///
    /// # Errors
    /// If nobody listens.
    pub(crate) async fn open(address: SocketAddr, request: Vec<u8>) -> Result<Self> {
        let stream =
            TcpStream::connect(address).await.with_context(|| format!("{address} does not answer"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, request, answer: Vec::with_capacity(4096) })
    }

    /// Asks, reads the whole answer, and returns its body.
    ///
    /// # Errors
    /// Any status but 200; an answer without a length.
    pub(crate) async fn ask(&mut self) -> Result<&[u8]> {
        self.stream.write_all(&self.request).await?;
        self.answer.clear();
        let mut whole = None;
        loop {
            ensure!(self.stream.read_buf(&mut self.answer).await? > 0, "the server closed the connection");
            if whole.is_none() {
                whole = head(&self.answer)?;
            }
            match whole {
                Some((body, length)) if self.answer.len() >= body + length => {
                    return Ok(&self.answer[body..body + length]);
                }
                _ => ensure!(self.answer.len() < MOST, "the answer is too long"),
            }
        }
    }
}

impl Caller for Connection {
    async fn call(&mut self) -> Result<u64> {
        self.ask().await.map(|_| 1)
    }
}

/// Where the body begins and how long it is, once the head is whole.
fn head(answer: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&answer[..end]).context("the answer is no HTTP")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!(
            "it answered {}: {}",
            head.lines().next().unwrap_or_default(),
            String::from_utf8_lossy(&answer[end..])
        );
    }
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("the answer has no length")?;
    Ok(Some((end + 4, length.1.trim().parse()?)))
}

/// What all readers of event streams count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delivered {
    /// Events.
    pub(crate) events: Arc<AtomicU64>,
    /// Streams that were answered.
    pub(crate) open: Arc<AtomicU64>,
    /// Streams that ended though nobody asked them to.
    pub(crate) broken: Arc<AtomicU64>,
    /// Set when the streams may end.
    pub(crate) over: Arc<AtomicBool>,
}

/// Opens a stream and counts its events until it ends or the task is ended.
pub(crate) async fn read_events(address: SocketAddr, request: Vec<u8>, delivered: Delivered) {
    if follow(address, request, &delivered).await.is_err() && !delivered.over.load(Ordering::Relaxed) {
        delivered.broken.fetch_add(1, Ordering::Relaxed);
    }
}

async fn follow(address: SocketAddr, request: Vec<u8>, delivered: &Delivered) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&request).await?;
    let mut buffer = vec![0; 8192];
    let mut marks = Marks::default();
    let mut first = true;
    loop {
        let read = stream.read(&mut buffer).await?;
        ensure!(read > 0, "the stream ended");
        if first {
            ensure!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..read]));
            delivered.open.fetch_add(1, Ordering::Relaxed);
            first = false;
        }
        let events = marks.count(&buffer[..read]);
        delivered.events.fetch_add(events, Ordering::Relaxed);
    }
}

/// Counts lines that begin an event, however the bytes are cut.
#[derive(Debug, Default)]
struct Marks {
    matched: usize,
}

impl Marks {
    const MARK: &[u8] = b"\nid: ";

    fn count(&mut self, bytes: &[u8]) -> u64 {
        let mut events = 0;
        for byte in bytes {
            // The mark's first byte stands in it once, so a mismatch can only begin anew.
            self.matched = if *byte == Self::MARK[self.matched] {
                self.matched + 1
            } else {
                usize::from(*byte == Self::MARK[0])
            };
            if self.matched == Self::MARK.len() {
                events += 1;
                self.matched = 0;
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_however_they_are_cut() {
        let text = b"\r\n5\r\n\r\nid: 1\nevent: notice\ndata: {\"id: \":\"\"}\n\n\nid: 2\ndata: id: 3\n\n";
        for cut in 0..text.len() {
            let mut marks = Marks::default();
            assert_eq!(marks.count(&text[..cut]) + marks.count(&text[cut..]), 2, "cut at {cut}");
        }
    }

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        assert_eq!(head(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap(), None);
        assert_eq!(head(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nabc").unwrap(), Some((39, 12)));
        assert!(head(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n").is_err());
    }
}
