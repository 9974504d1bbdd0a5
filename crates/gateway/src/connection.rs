//! What has to be known of a connection beyond its requests one by one.
//!
//! Invariants: nothing is done after a request or an answer that says `Connection: close` (RFC 9112, section 9.6); over
//! one HTTP/2 connection no more requests are at work than the bound, those that were taken back included; no answer waits for good
//! for a client that grants it no window (RFC 9113, section 5.2), with its memory.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{self, Poll, ready};
use std::time::Duration;

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::rt::net::TcpStream;
use bytes::Bytes;
use gatehouse_core::{Error, Result};
use ipnet::IpNet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A piece of an answer: what has to leave within the time that a client is given.
const PIECE_BYTES: usize = 16 * 1024;
/// How often answers are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// One connection. Cheap to clone; clones share it. Stands in the connection's data, over HTTP/2 in each request's.
#[derive(Clone)]
pub(crate) struct Connection(Rc<Shared>);

struct Shared {
    tls: bool,
    /// Most requests at a time; HTTP/2 only, as HTTP/1.1 has one.
    most: Option<usize>,
    /// How long a client may leave a piece of an answer lying.
    patience: Duration,
    /// What ends the connection. None where that harms others than the client; HTTP/2 only.
    cut: Option<Cut>,
    /// Whether the last request has come.
    closing: Cell<bool>,
    open: Cell<usize>,
}

/// How a connection ends whose answers are not taken.
#[derive(Default)]
struct Cut {
    now: CancellationToken,
    /// The answers on their way, and those that have left since the last look.
    answers: RefCell<Vec<Weak<Progress>>>,
    /// Whether somebody looks.
    watched: Cell<bool>,
}

/// A request at work or its answer on the way.
pub(crate) struct Underway {
    connection: Connection,
    progress: Rc<Progress>,
}

#[derive(Default)]
struct Progress {
    /// Since when the connection has a piece that did not leave.
    given_at: Cell<Option<Instant>>,
}

impl Connection {
    /// The connection behind `io`, which is what actix-web shows of a new one: a TCP or TLS stream.
    pub(crate) fn new(io: &dyn Any, most: usize, patience: Duration, trusted: &[IpNet]) -> Self {
        let tls = io.downcast_ref::<TlsStream<TcpStream>>().map(|stream| stream.get_ref());
        let http2 = tls.filter(|(_, session)| session.alpn_protocol() == Some(b"h2"));
        // Over a proxy's connection come the requests of others.
        let of_client = |socket: &&TcpStream| {
            socket.peer_addr().is_ok_and(|peer| {
                let peer = peer.ip().to_canonical();
                !trusted.iter().any(|net| net.contains(&peer))
            })
        };
        let cut = http2.map(|(socket, _)| socket).filter(of_client).map(|_| Cut::default());
        Self(Rc::new(Shared {
            tls: tls.is_some(),
            most: http2.map(|_| most),
            patience,
            cut,
            closing: Cell::new(false),
            open: Cell::new(0),
        }))
    }

    /// Whether it is encrypted up to this process.
    pub(crate) fn is_tls(&self) -> bool {
        self.0.tls
    }

    /// Whether it is one of HTTP/2 over which the requests of many may come: what ends it ends them all.
    pub(crate) fn is_shared(&self) -> bool {
        self.0.most.is_some() && self.0.cut.is_none()
    }

    /// How long a piece of one answer may lie where the connection can't be ended for it.
    pub(crate) fn patience_with_an_answer(&self) -> Option<Duration> {
        self.is_shared().then_some(self.0.patience)
    }

    /// Notes that no request comes after this one.
    pub(crate) fn close(&self) {
        self.0.closing.set(true);
    }

    /// Begins a request.
    ///
    /// # Errors
    /// `CONNECTION_CLOSING` after the last one, `TOO_MANY_REQUESTS` over the bound.
    pub(crate) fn begin(&self) -> (Underway, Result<()>) {
        let open = self.0.open.get() + 1;
        self.0.open.set(open);
        let underway = Underway { connection: self.clone(), progress: Rc::default() };
        (underway, self.check(open))
    }

    fn check(&self, open: usize) -> Result<()> {
        if self.0.closing.get() {
            return Err(Error::invalid_argument(
                "CONNECTION_CLOSING",
                "A request before this one closed the connection; nothing was done. Send it over another.",
            ));
        }
        let Some(most) = self.0.most.filter(|most| open > *most) else { return Ok(()) };
        Err(Error::resource_exhausted(
            "TOO_MANY_REQUESTS",
            format!("At most {most} requests at a time go over one connection. Wait for some to end."),
        ))
    }

    /// Ends when the connection is to.
    pub(crate) async fn cut(&self) {
        match &self.0.cut {
            Some(cut) => cut.now.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Looks at the answers for as long as there are any.
    async fn watch(self) {
        let Some(cut) = &self.0.cut else { return };
        loop {
            tokio::time::sleep(LOOK).await;
            if cut.is_due(self.0.patience) {
                tracing::info!("a connection is cut off: an answer was not taken");
                cut.now.cancel();
                break;
            }
            if cut.answers.borrow().is_empty() {
                break;
            }
        }
        cut.watched.set(false);
    }
}

impl Cut {
    /// Whether an answer waits for longer than `patience` for a client that does not take it. Forgets those that have left.
    fn is_due(&self, patience: Duration) -> bool {
        let mut answers = self.answers.borrow_mut();
        answers.retain(|answer| answer.strong_count() > 0);
        let stuck = |since: Instant| since.elapsed() > patience;
        answers.iter().filter_map(Weak::upgrade).any(|answer| answer.given_at.get().is_some_and(stuck))
    }
}

impl Underway {
    /// `body`, which ends the request when it is dropped.
    pub(crate) fn carry(self, body: BoxBody) -> BoxBody {
        let connection = &self.connection;
        if connection.0.most.is_none() || matches!(body.size(), BodySize::None | BodySize::Sized(0)) {
            return body;
        }
        // Where nobody looks, nobody would forget it either.
        if let Some(cut) = &connection.0.cut {
            cut.answers.borrow_mut().push(Rc::downgrade(&self.progress));
            if !cut.watched.replace(true) {
                actix_web::rt::spawn(connection.clone().watch());
            }
        }
        BoxBody::new(Carried { body, rest: Bytes::new(), underway: self })
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let open = &self.connection.0.open;
        open.set(open.get() - 1);
    }
}

struct Carried {
    body: BoxBody,
    rest: Bytes,
    underway: Underway,
}

impl MessageBody for Carried {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = &mut *self;
        this.underway.progress.given_at.set(None);
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_next(context)) {
                Some(Ok(chunk)) => this.rest = chunk,
                end => return Poll::Ready(end),
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE_BYTES));
        this.underway.progress.given_at.set(Some(Instant::now()));
        Poll::Ready(Some(Ok(piece)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over_http2(cut: Option<Cut>) -> Connection {
        Connection(Rc::new(Shared {
            tls: true,
            most: Some(2),
            patience: Duration::from_mins(1),
            cut,
            closing: Cell::new(false),
            open: Cell::new(0),
        }))
    }

    fn answer(connection: &Connection) -> (Rc<Progress>, BoxBody) {
        let (underway, begun) = connection.begin();
        begun.unwrap();
        (Rc::clone(&underway.progress), underway.carry(BoxBody::new("x")))
    }

    #[actix_web::test]
    async fn nothing_is_kept_of_answers_that_have_left() {
        // A proxy's: nobody looks at its answers here.
        let connection = over_http2(None);
        for _ in 0..100 {
            let (progress, answer) = answer(&connection);
            drop(answer);
            assert_eq!((Rc::strong_count(&progress), Rc::weak_count(&progress)), (1, 0));
        }
        assert_eq!(connection.0.open.get(), 0);
        // A client's.
        let connection = over_http2(Some(Cut::default()));
        for _ in 0..100 {
            drop(answer(&connection));
        }
        tokio::time::sleep(LOOK * 2).await;
        let cut = connection.0.cut.as_ref().unwrap();
        assert!(cut.answers.borrow().is_empty() && !cut.watched.get());
    }
}
