//! The socket under an HTTP/2 connection, between it and `h2`.
//!
//! Invariants: while the socket takes nothing more, only so many requests are read from it, whatever becomes of them
//! (`h2` reads on by itself, and keeps what can't be written); only so much is read at a time, before those it is for
//! have had their turn; an answer that was written is not lost because its connection was closed behind it.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::empty_frames::Sieve;

/// For how long a connection that has been closed from here is read, so that the other end can read to the end.
pub(crate) const LINGER: Duration = Duration::from_secs(1);
/// How many requests are taken while the socket is full, before nothing is read any more. A client that reads while it
/// writes, as clients of HTTP/2 must, notices nothing: its reading makes room.
const TAKEN_WHILE_FULL: usize = 32;
/// How much is read at a time. `h2` reads for as long as something comes, and each frame is an entry of some 256 bytes to
/// it until somebody takes it: this much is 1600 frames at most, of a byte each.
const READ_AT_A_TIME: usize = 16 * 1024;
/// How much of it at once, where it is looked through.
const READ_PIECE: usize = 4 * 1024;

/// How it stands with both ways of a connection. Cheap to clone; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Ways(Rc<State>);

#[derive(Default)]
struct State {
    /// Whether something waits that the socket did not take.
    full: Cell<bool>,
    /// How many requests were taken since.
    taken: Cell<usize>,
    /// Who wants to read, and has to wait until something leaves.
    reader: RefCell<Option<Waker>>,
    /// What was read since the others had their turn.
    read: Cell<usize>,
}

impl Ways {
    /// Whether answers wait because the socket takes no more.
    pub(crate) fn is_full(&self) -> bool {
        self.0.full.get()
    }

    /// Counts a request.
    pub(crate) fn took_request(&self) {
        if self.0.full.get() {
            self.0.taken.set(self.0.taken.get() + 1);
        }
    }

    /// Notes what became of a write. TLS takes some for a full socket, so one that went well says nothing.
    fn wrote(&self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Pending => self.0.full.set(true),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(_)) => self.flushed(written),
        }
    }

    /// Notes whether all that was written has left.
    fn flushed<T>(&self, left: &Poll<T>) {
        self.0.full.set(left.is_pending());
        if left.is_ready() {
            self.0.taken.set(0);
            if let Some(reader) = self.0.reader.take() {
                reader.wake();
            }
        }
    }

    /// Ends when so much was read that nothing more is, until the others had their turn; polled after `h2`, by the same
    /// task.
    pub(crate) async fn read_enough(&self) {
        std::future::poll_fn(|_| if self.has_read_enough() { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    fn has_read_enough(&self) -> bool {
        self.0.read.get() >= READ_AT_A_TIME
    }

    /// Gives the others of this thread their turn; what was read is theirs then.
    pub(crate) async fn give_way(&self) {
        tokio::task::yield_now().await;
        self.0.read.set(0);
    }

    /// Whether nothing may be read now; then `reader` is woken when something may.
    fn holds(&self, reader: &Waker) -> bool {
        let holds = self.0.full.get() && self.0.taken.get() >= TAKEN_WHILE_FULL;
        if holds {
            *self.0.reader.borrow_mut() = Some(reader.clone());
        }
        holds
    }
}

/// A socket that is closed only once the other end has closed it too, or has had its time: closed with something unread
/// (a word about windows, say), the kernel would take back what was sent and not yet read over there.
pub(crate) struct Wire<T> {
    io: T,
    ways: Ways,
    /// What came, and waits to be passed on without empty frames; none where they are for `h2` to judge.
    sieved: Option<(Sieve, BytesMut)>,
    /// Set when our end was closed.
    until: Option<Pin<Box<Sleep>>>,
}

impl<T> Wire<T> {
    /// Without the empty frames of bodies if `is_shared`.
    pub(crate) fn new(io: T, ways: Ways, is_shared: bool) -> Self {
        Self { io, ways, sieved: is_shared.then(Default::default), until: None }
    }
}

impl<T: AsyncRead + Unpin> Wire<T> {
    fn poll_io(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        let read = &self.ways.0.read;
        read.set(read.get() + (buffer.filled().len() - before));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Wire<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            // `h2` flushes after each attempt to read, so whoever waits here is woken by the socket as well; and who has
            // read enough is asked again by the one who gives way.
            if this.ways.holds(context.waker()) || this.ways.has_read_enough() {
                return Poll::Pending;
            }
            let Some((_, waiting)) = &mut this.sieved else { return this.poll_io(context, buffer) };
            if !waiting.is_empty() {
                let now = waiting.split_to(waiting.len().min(buffer.remaining()));
                buffer.put_slice(&now);
                return Poll::Ready(Ok(()));
            }
            let mut come = [0; READ_PIECE];
            let mut come = ReadBuf::new(&mut come);
            ready!(this.poll_io(context, &mut come))?;
            match &mut this.sieved {
                Some((sieve, waiting)) if !come.filled().is_empty() => sieve.pass(come.filled(), waiting),
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.ways.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, bytes);
        self.ways.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        self.ways.flushed(&flushed);
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.until.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(context))?;
        }
        let until = this.until.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut unread = [0; 1024];
        loop {
            if until.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut unread);
            match ready!(Pin::new(&mut this.io).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // Closed, one way or the other.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much can be read now, so much at a time.
    fn read(wire: &mut (impl AsyncRead + Unpin), at_a_time: usize) -> usize {
        let (mut context, mut bytes) = (Context::from_waker(Waker::noop()), vec![0; at_a_time]);
        let mut read = 0;
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            if Pin::new(&mut *wire).poll_read(&mut context, &mut buffer).is_pending() {
                return read;
            }
            read += buffer.filled().len();
            if buffer.filled().is_empty() {
                return read;
            }
        }
    }

    #[tokio::test]
    async fn only_so_much_is_read_before_the_others_have_their_turn() {
        // One frame of which more comes than is sent here.
        let sent = [&[b' '; 24][..], b"\xff\xff\xff\0\0\0\0\0\x01", &[b' '; 10_000].repeat(20)].concat();
        for is_shared in [false, true] {
            for at_a_time in [100, 4096, 9000] {
                let ways = Ways::default();
                let mut wire = Wire::new(&sent[..], ways.clone(), is_shared);
                let mut left = sent.len();
                while left > 0 {
                    let now = read(&mut wire, at_a_time);
                    left -= now;
                    assert!(now < READ_AT_A_TIME + at_a_time, "{now} bytes are read, {at_a_time} at a time");
                    // With something left it has stopped because that is enough, and for nothing else.
                    assert_eq!(ways.has_read_enough(), left > 0 || now >= READ_AT_A_TIME);
                    ways.give_way().await;
                }
            }
        }
    }
}
