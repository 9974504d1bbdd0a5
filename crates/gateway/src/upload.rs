//! The body of one HTTP/2 request, from `h2` to whoever reads it.
//!
//! `h2` keeps each frame of a body as an entry of its own, of some 256 bytes, whatever it carries, until it is read: a
//! client that sends single bytes costs hundreds of times what its window allows. So frames are taken from `h2` as they
//! come, whether anybody reads the body or not, and kept as the bytes they carry.
//!
//! Invariants: of a body that is not read, no more is kept than the window of its stream, as the window is given back
//! only for what was read; a body that nobody wants any more takes nothing of the connection's window: what came is
//! given back, and what comes after that is thrown away.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use actix_web::error::PayloadError;
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use h2::RecvStream;

struct State {
    body: RecvStream,
    /// What came and was not read.
    kept: BytesMut,
    end: Option<Result<(), h2::Error>>,
    reader: Option<Waker>,
}

/// The end that is read.
pub(crate) struct Upload(Rc<RefCell<State>>);

/// The end that takes in what comes; whoever answers the request looks after it.
pub(crate) struct Intake(Weak<RefCell<State>>);

/// Both ends of a body.
pub(crate) fn upload(body: RecvStream) -> (Upload, Intake) {
    let state = Rc::new(RefCell::new(State { body, kept: BytesMut::new(), end: None, reader: None }));
    let intake = Intake(Rc::downgrade(&state));
    (Upload(state), intake)
}

impl Drop for State {
    fn drop(&mut self) {
        // `h2` gives back what it has itself. That fails where nothing is to be given back any more.
        let _ = self.body.flow_control().release_capacity(self.kept.len());
    }
}

impl Intake {
    /// Takes in what has come by now; `context` is woken when more comes.
    pub(crate) fn take_in(&self, context: &mut Context<'_>) {
        let Some(state) = self.0.upgrade() else { return };
        let mut state = state.borrow_mut();
        let mut news = false;
        while state.end.is_none() {
            match state.body.poll_data(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(chunk))) => state.kept.extend_from_slice(&chunk),
                Poll::Ready(Some(Err(error))) => state.end = Some(Err(error)),
                Poll::Ready(None) => state.end = Some(Ok(())),
            }
            news = true;
        }
        if news && let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }
}

impl Stream for Upload {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.0.borrow_mut();
        if !state.kept.is_empty() {
            let chunk = state.kept.split().freeze();
            state.body.flow_control().release_capacity(chunk.len()).map_err(broken)?;
            return Poll::Ready(Some(Ok(chunk)));
        }
        match &mut state.end {
            None => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
            // It is said once.
            Some(end) => match std::mem::replace(end, Ok(())) {
                Ok(()) => Poll::Ready(None),
                Err(error) => Poll::Ready(Some(Err(broken(error)))),
            },
        }
    }
}

fn broken(error: h2::Error) -> PayloadError {
    PayloadError::Io(io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::StreamExt as _;
    use h2::server::{Builder, Connection};
    use tokio::io::DuplexStream;

    use super::*;

    const WINDOW: usize = 1000;
    const BEYOND: usize = 300;

    /// Takes in what comes until so much is kept; then for a moment longer.
    async fn takes_in(http2: &mut Connection<DuplexStream, Bytes>, intake: &Intake, bytes: usize) -> usize {
        let kept = || intake.0.upgrade().map_or(0, |state| state.borrow().kept.len());
        let mut taking = std::future::poll_fn(|context| {
            assert!(http2.poll_closed(context).is_pending());
            intake.take_in(context);
            if kept() < bytes { Poll::Pending } else { Poll::Ready(()) }
        });
        tokio::time::timeout(Duration::from_secs(20), &mut taking).await.expect("nothing comes");
        let mut longer = std::future::poll_fn(|context| {
            assert!(http2.poll_closed(context).is_pending());
            intake.take_in(context);
            Poll::<()>::Pending
        });
        let _ = tokio::time::timeout(Duration::from_millis(200), &mut longer).await;
        kept()
    }

    #[tokio::test]
    async fn a_body_that_is_not_read_is_kept_as_bytes_within_its_window() {
        let (client, server) = tokio::io::duplex(1024 * 1024);
        let (mut requests, connection) = h2::client::handshake(client).await.expect("a connection");
        tokio::spawn(connection);
        let mut http2 = Builder::new()
            .initial_window_size(u32::try_from(WINDOW).expect("small"))
            .data_frame_budget(usize::MAX)
            .handshake::<_, Bytes>(server)
            .await
            .expect("a connection");
        let request = http::Request::post("https://localhost/").body(()).expect("a request");
        let (_answer, mut body) = requests.send_request(request, false).expect("sent");
        for _ in 0..WINDOW + BEYOND {
            body.send_data(Bytes::from_static(b"a"), false).expect("sent");
        }
        let (request, _reply) = http2.accept().await.expect("open").expect("a request");
        let (mut upload, intake) = upload(request.into_body());

        assert_eq!(takes_in(&mut http2, &intake, WINDOW).await, WINDOW);
        let chunk = upload.next().await.expect("more").expect("a chunk");
        assert_eq!(chunk.len(), WINDOW, "frames are kept apart");
        assert_eq!(takes_in(&mut http2, &intake, BEYOND).await, BEYOND);
        let used = || {
            let state = intake.0.upgrade().expect("the body is there");
            state.borrow_mut().body.flow_control().used_capacity()
        };
        assert_eq!(used(), BEYOND, "what was read is given back, and nothing else");
    }
}
