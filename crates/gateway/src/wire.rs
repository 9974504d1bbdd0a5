//! The socket under an HTTP/2 connection, between it and `h2`.
//!
//! Invariants: while the socket takes nothing more, only so many requests are read from it, whatever becomes of them
//! (`h2` reads on by itself, and keeps what can't be written); an answer that was written is not lost because its
//! connection was closed behind it.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// For how long a connection that has been closed from here is read, so that the other end can read to the end.
pub(crate) const LINGER: Duration = Duration::from_secs(1);
/// How many requests are taken while the socket is full, before nothing is read any more. A client that reads while it
/// writes, as clients of HTTP/2 must, notices nothing: its reading makes room.
const TAKEN_WHILE_FULL: usize = 32;

/// The way out of a connection. Cheap to clone; clones share it.
#[derive(Clone, Default)]
pub(crate) struct WayOut(Rc<State>);

#[derive(Default)]
struct State {
    /// Whether something waits that the socket did not take.
    full: Cell<bool>,
    /// How many requests were taken since.
    taken: Cell<usize>,
    /// Who wants to read, and has to wait until something leaves.
    reader: RefCell<Option<Waker>>,
}

impl WayOut {
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
    way_out: WayOut,
    /// Set when our end was closed.
    until: Option<Pin<Box<Sleep>>>,
}

impl<T> Wire<T> {
    pub(crate) fn new(io: T, way_out: WayOut) -> Self {
        Self { io, way_out, until: None }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Wire<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // `h2` flushes after each attempt to read, so whoever waits here is woken by the socket as well.
        if self.way_out.holds(context.waker()) {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.way_out.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, bytes);
        self.way_out.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        self.way_out.flushed(&flushed);
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
