//! Bodies on their way: a request's, which can be sent again, and an answer's, which counts as long as it lasts.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;

use super::connection::Place;

/// The most of a request's body that is kept until it is answered, bytes. A longer one is sent once.
const MAX_KEPT: usize = 4 * 1024 * 1024 + 64 * 1024;

/// A request's body, which keeps what was sent until the answer begins.
pub(super) struct Replay(Arc<Mutex<Source>>);

struct Source {
    body: Body,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    keeping: bool,
    ended: bool,
    attempt: u32,
}

fn lock(source: &Mutex<Source>) -> MutexGuard<'_, Source> {
    source.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Replay {
    pub(super) fn new(body: Body) -> Self {
        let source =
            Source { body, kept: Vec::new(), kept_bytes: 0, keeping: true, ended: false, attempt: 0 };
        Self(Arc::new(Mutex::new(source)))
    }

    /// The body from its beginning; what an earlier attempt held of it ends. `None` if its beginning is gone.
    pub(super) fn attempt(&self) -> Option<Attempt> {
        let mut source = lock(&self.0);
        if !source.keeping {
            return None;
        }
        source.attempt += 1;
        Some(Attempt { source: Arc::clone(&self.0), number: source.attempt, next: 0 })
    }

    /// The answer has begun: nothing will be sent again.
    pub(super) fn settle(&self) {
        lock(&self.0).forget();
    }
}

impl Source {
    fn forget(&mut self) {
        self.keeping = false;
        self.kept = Vec::new();
    }
}

/// The body as one attempt sends it.
pub(super) struct Attempt {
    source: Arc<Mutex<Source>>,
    number: u32,
    next: usize,
}

impl http_body::Body for Attempt {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let mut source = lock(&this.source);
        if source.attempt != this.number {
            return Poll::Ready(Some(Err(Status::cancelled("sent again elsewhere"))));
        }
        if let Some(data) = source.kept.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if source.ended {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut source.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) if source.keeping => match frame.data_ref() {
                Some(data) if source.kept_bytes + data.len() <= MAX_KEPT => {
                    source.kept_bytes += data.len();
                    let data = data.clone();
                    source.kept.push(data);
                    this.next += 1;
                }
                _ => source.forget(),
            },
            Poll::Ready(None) => source.ended = true,
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let source = lock(&self.source);
        self.next >= source.kept.len() && (source.ended || source.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// An answer's body; until it is dropped, the call counts, in the channel and for the replica.
pub(super) struct Answer {
    pub(super) body: Incoming,
    #[expect(dead_code, reason = "held, not read")]
    pub(super) places: (Place, Place),
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use http_body::Body as _;

    use super::*;

    struct Chunks(VecDeque<usize>);

    impl http_body::Body for Chunks {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front().map(|length| Ok(Frame::data(vec![7; length].into()))))
        }
    }

    fn take(attempt: &mut Attempt) -> Option<Result<usize, Status>> {
        match Pin::new(attempt).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(frame) => {
                frame.map(|frame| frame.map(|frame| frame.data_ref().map_or(0, Bytes::len)))
            }
            Poll::Pending => panic!("the source never waits"),
        }
    }

    fn lengths(attempt: &mut Attempt) -> Vec<usize> {
        std::iter::from_fn(|| take(attempt)).map(|length| length.expect("a chunk")).collect()
    }

    #[test]
    fn each_attempt_has_the_whole_body_until_the_answer_begins() {
        let replay = Replay::new(Body::new(Chunks([1, 2, 3].into())));
        let mut first = replay.attempt().expect("the first");
        assert_eq!(take(&mut first).expect("a frame").expect("a chunk"), 1);
        let mut second = replay.attempt().expect("the second");
        take(&mut first).expect("an end").expect_err("the first attempt went on");
        assert_eq!(lengths(&mut second), [1, 2, 3]);
        assert!(second.is_end_stream());
        let mut third = replay.attempt().expect("the third");
        assert!(!third.is_end_stream());
        assert_eq!(lengths(&mut third), [1, 2, 3]);
        replay.settle();
        assert!(replay.attempt().is_none());
    }

    #[test]
    fn a_body_that_is_too_long_goes_out_once() {
        let replay = Replay::new(Body::new(Chunks([MAX_KEPT, 1, 5].into())));
        assert_eq!(lengths(&mut replay.attempt().expect("the first")), [MAX_KEPT, 1, 5]);
        assert!(replay.attempt().is_none());
    }
}
