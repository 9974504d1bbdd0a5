//! How long an HTTP/1.1 connection may take to send its next request.
//!
//! actix-web gives a time to the first head of a connection, and to the silence before each later one, but none to a
//! later head that has begun.
//!
//! Invariant: a connection with no request at work and nothing on its way back is not read for longer than it may be
//! without one, whatever it sends in that time; one with a request at work is left alone, however long that takes.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{self, Poll};
use std::time::Duration;

use actix_web::body::{BoxBody, MessageBody as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::body::holding;

/// Whether a connection has requests at work. Cheap to clone; clones share it. Stands in the connection's data.
#[derive(Clone, Default)]
pub(crate) struct Activity(Rc<State>);

#[derive(Default)]
struct State {
    at_work: Cell<usize>,
    /// Since when there was none; nothing before the first, which actix-web waits for.
    quiet_since: Cell<Option<Instant>>,
}

/// A request whose head is whole, until the last of its answer was handed over.
pub(crate) struct AtWork(Activity);

impl Activity {
    /// Begins a request.
    pub(crate) fn begin(&self) -> AtWork {
        self.0.at_work.set(self.0.at_work.get() + 1);
        self.0.quiet_since.set(None);
        AtWork(self.clone())
    }
}

impl AtWork {
    /// `body`, which ends the request when it is dropped.
    pub(crate) fn carry(self, body: BoxBody) -> BoxBody {
        match body.try_into_bytes() {
            Ok(whole) => BoxBody::new(whole),
            Err(body) => holding(body, self),
        }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let state = &self.0.0;
        state.at_work.set(state.at_work.get() - 1);
        if state.at_work.get() == 0 {
            state.quiet_since.set(Some(Instant::now()));
        }
    }
}

/// A stream that can be read only for so long while no request is at work over it.
pub(crate) struct Patient<T> {
    io: T,
    activity: Activity,
    patience: Duration,
    until: Pin<Box<Sleep>>,
}

impl<T> Patient<T> {
    pub(crate) fn new(io: T, patience: Duration) -> Self {
        let until = Box::pin(sleep_until(Instant::now() + patience));
        Self { io, activity: Activity::default(), patience, until }
    }

    pub(crate) const fn get_ref(&self) -> &T {
        &self.io
    }

    pub(crate) fn activity(&self) -> Activity {
        self.activity.clone()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(quiet_since) = this.activity.0.quiet_since.get() {
            let deadline = quiet_since + this.patience;
            if this.until.deadline() != deadline {
                this.until.as_mut().reset(deadline);
            }
            if this.until.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no whole request came")));
            }
        }
        Pin::new(&mut this.io).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> Patient<T> {
    /// Notes that the client takes an answer: nobody asks for more before it is there.
    fn wrote(&self, written: &Poll<io::Result<usize>>) {
        let quiet_since = &self.activity.0.quiet_since;
        if matches!(written, Poll::Ready(Ok(1..))) && quiet_since.get().is_some() {
            quiet_since.set(Some(Instant::now()));
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, bytes);
        self.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
