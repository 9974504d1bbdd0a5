//! What waits for the reader of one event stream: a bounded queue that can be given up from outside.
//!
//! Over HTTP/2 a reader that grants no window leaves the answer's body unpolled for as long as it likes, so the body
//! can't be what notices. Invariants: no more than the bound waits; what was given up is freed at once, whether or not
//! the reader ever comes back; a reader that does is told why.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The queue of one stream, whose endings are `E`.
#[derive(Debug)]
pub(crate) struct Frames<E> {
    most: usize,
    state: Mutex<State<E>>,
    /// Rung for the one who adds: there is room, or no need.
    room: Notify,
    /// Rung for the one who takes: there is a frame, or the end.
    news: Notify,
    reader_left: CancellationToken,
}

#[derive(Debug)]
struct State<E> {
    waiting: VecDeque<Frame>,
    ending: Option<E>,
    /// Since when the reader has something that it did not take yet.
    given_at: Option<Instant>,
}

#[derive(Debug)]
struct Frame {
    bytes: Bytes,
    queued_at: Instant,
}

/// What the reader gets next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<E> {
    Frame(Bytes),
    End(E),
}

impl<E: Copy> Frames<E> {
    /// Of which at most `most` wait.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            state: Mutex::new(State { waiting: VecDeque::new(), ending: None, given_at: None }),
            room: Notify::new(),
            news: Notify::new(),
            reader_left: CancellationToken::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a frame as soon as there is room; false if nobody is going to read it.
    pub(crate) async fn add(&self, bytes: Bytes) -> bool {
        loop {
            {
                let mut state = self.lock();
                if state.ending.is_some() || self.reader_left.is_cancelled() {
                    return false;
                }
                if state.waiting.len() < self.most {
                    state.waiting.push_back(Frame { bytes, queued_at: Instant::now() });
                    self.news.notify_one();
                    return true;
                }
            }
            self.room.notified().await;
        }
    }

    /// Nothing more comes; what waits is still delivered. The first ending stays.
    pub(crate) fn end(&self, ending: E) {
        self.lock().ending.get_or_insert(ending);
        self.room.notify_one();
        self.news.notify_one();
    }

    /// Frees what waits and ends with `ending` if the oldest that the reader did not take is older than `patience`.
    /// Whether that was so.
    pub(crate) fn give_up_after(&self, patience: Duration, ending: E) -> bool {
        let mut state = self.lock();
        let oldest = state.given_at.or_else(|| state.waiting.front().map(|frame| frame.queued_at));
        if oldest.is_none_or(|since| since.elapsed() <= patience) {
            return false;
        }
        state.waiting = VecDeque::new();
        state.ending = Some(ending);
        drop(state);
        self.room.notify_one();
        self.news.notify_one();
        true
    }

    /// The reader took what it was given last.
    pub(crate) fn taken(&self) {
        self.lock().given_at = None;
    }

    /// The reader is given something, of this queue or not.
    pub(crate) fn given(&self) {
        self.lock().given_at = Some(Instant::now());
    }

    /// What comes next. A frame that waited longer than `patience` is not delivered: all is given up with `ending`.
    pub(crate) async fn next(&self, patience: Duration, ending: E) -> Next<E> {
        loop {
            {
                let mut state = self.lock();
                match state.waiting.pop_front() {
                    Some(frame) if frame.queued_at.elapsed() > patience => {
                        state.waiting = VecDeque::new();
                        state.ending = Some(ending);
                        drop(state);
                        self.room.notify_one();
                        return Next::End(ending);
                    }
                    Some(frame) => {
                        self.room.notify_one();
                        return Next::Frame(frame.bytes);
                    }
                    None => {
                        if let Some(ending) = state.ending {
                            return Next::End(ending);
                        }
                    }
                }
            }
            self.news.notified().await;
        }
    }

    /// Nobody reads any more.
    pub(crate) fn leave(&self) {
        self.lock().waiting = VecDeque::new();
        self.reader_left.cancel();
        self.room.notify_one();
    }

    /// Waits until nobody reads any more.
    pub(crate) async fn reader_left(&self) {
        self.reader_left.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// Everything is older than this, and nothing than that.
    const NONE: Duration = Duration::ZERO;
    const LONG: Duration = Duration::from_hours(1);

    #[tokio::test]
    async fn what_nobody_takes_is_freed_without_the_reader() {
        let frames = Frames::new(2);
        for text in ["a", "b"] {
            assert!(frames.add(Bytes::from(text)).await);
        }
        assert_eq!(frames.add(Bytes::from("c")).now_or_never(), None, "more than the bound waited");
        frames.end("finished");
        assert!(!frames.give_up_after(LONG, "slow"));
        assert!(frames.give_up_after(NONE, "slow"));
        assert_eq!(frames.lock().waiting.capacity(), 0, "the memory is held");
        assert_eq!(frames.next(LONG, "slow").await, Next::End("slow"));
        assert!(!frames.add(Bytes::from("d")).await);
    }

    #[tokio::test]
    async fn what_the_reader_has_in_its_hands_counts_as_waiting() {
        let frames = Frames::new(2);
        assert!(!frames.give_up_after(NONE, "slow"), "a reader with nothing to read is not slow");
        frames.given();
        assert!(!frames.give_up_after(LONG, "slow"));
        assert!(frames.give_up_after(NONE, "slow"));
        let quick = Frames::new(2);
        quick.given();
        quick.taken();
        assert!(!quick.give_up_after(NONE, "slow"), "it took what it was given");
    }

    #[tokio::test]
    async fn a_frame_that_came_too_late_is_not_delivered() {
        let frames = Frames::new(2);
        assert!(frames.add(Bytes::from("a")).await && frames.add(Bytes::from("b")).await);
        assert_eq!(frames.next(LONG, "slow").await, Next::Frame(Bytes::from("a")));
        assert_eq!(frames.next(NONE, "slow").await, Next::End("slow"));
        assert_eq!(frames.next(LONG, "slow").await, Next::End("slow"));
    }

    #[tokio::test]
    async fn a_full_queue_waits_for_its_reader_and_not_for_one_who_left() {
        let frames = Frames::<&str>::new(1);
        assert!(frames.add(Bytes::from("a")).await);
        let (added, taken) = tokio::join!(frames.add(Bytes::from("b")), frames.next(LONG, "slow"));
        assert!(added && taken == Next::Frame(Bytes::from("a")));
        let (added, ()) = tokio::join!(frames.add(Bytes::from("c")), async { frames.leave() });
        assert!(!added);
        frames.reader_left().await;
    }
}
