//! The bounded queue between a job's log and one reader.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_stream::Stream;

/// Items on their way to one reader. The reader is behind when the oldest item has waited for too long; then the
/// queue is dropped and the reader gets the reason instead.
///
/// Clones share the queue. One clone writes; [`Reader`] reads.
#[derive(Debug)]
pub(crate) struct Outgoing<T, E>(Arc<Shared<T, E>>);

#[derive(Debug)]
struct Shared<T, E> {
    state: Mutex<State<T, E>>,
    capacity: usize,
    room: Notify,
}

#[derive(Debug)]
struct State<T, E> {
    items: VecDeque<(Instant, T)>,
    reader: Option<Waker>,
    end: End<E>,
    reader_gone: bool,
}

#[derive(Debug)]
enum End<E> {
    /// More may come.
    Open,
    /// Nothing more comes.
    Whole,
    /// The reader gets this in place of the rest.
    CutOff(E),
}

impl<T, E> Outgoing<T, E> {
    /// A queue for at most `capacity` items, and its reader, which gets at most `batch` of them at a time.
    pub(crate) fn new(capacity: usize, batch: usize) -> (Self, Reader<T, E>) {
        let state = State { items: VecDeque::new(), reader: None, end: End::Open, reader_gone: false };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), capacity: capacity.max(1), room: Notify::new() });
        (Self(Arc::clone(&shared)), Reader { shared, batch: batch.max(1) })
    }

    /// How many items may be added now.
    pub(crate) fn room(&self) -> usize {
        self.0.capacity.saturating_sub(self.lock().items.len())
    }

    /// Adds items that there is room for.
    pub(crate) fn add(&self, items: impl IntoIterator<Item = T>) {
        let now = Instant::now();
        let mut state = self.lock();
        state.items.extend(items.into_iter().map(|item| (now, item)));
        wake(state);
    }

    /// When the reader counts as behind, unless it reads before: `None` while nothing waits.
    pub(crate) fn behind_at(&self, patience: Duration) -> Option<Instant> {
        self.lock().items.front().map(|(since, _)| *since + patience)
    }

    /// Resolves when the reader has taken something or has gone.
    pub(crate) async fn taken(&self) {
        self.0.room.notified().await;
    }

    /// Whether nobody reads any more.
    pub(crate) fn reader_gone(&self) -> bool {
        self.lock().reader_gone
    }

    /// Ends the stream after what waits.
    pub(crate) fn finish(&self) {
        let mut state = self.lock();
        if matches!(state.end, End::Open) {
            state.end = End::Whole;
        }
        wake(state);
    }

    /// Drops what waits and ends the stream with `reason`, unless nothing waits and nothing more was to come.
    pub(crate) fn cut_off(&self, reason: E) {
        let mut state = self.lock();
        let is_cut_short = match state.end {
            End::Open => true,
            End::Whole => !state.items.is_empty(),
            End::CutOff(_) => false,
        };
        state.items.clear();
        if is_cut_short {
            state.end = End::CutOff(reason);
        }
        wake(state);
    }

    fn lock(&self) -> MutexGuard<'_, State<T, E>> {
        self.0.lock()
    }
}

impl<T, E> Shared<T, E> {
    fn lock(&self) -> MutexGuard<'_, State<T, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake<T, E>(mut state: MutexGuard<'_, State<T, E>>) {
    let reader = state.reader.take();
    drop(state);
    if let Some(reader) = reader {
        reader.wake();
    }
}

/// The reader's end.
#[derive(Debug)]
pub(crate) struct Reader<T, E> {
    shared: Arc<Shared<T, E>>,
    batch: usize,
}

impl<T, E> Stream for Reader<T, E> {
    type Item = Result<Vec<T>, E>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.shared.lock();
        let count = state.items.len().min(self.batch);
        if count > 0 {
            let items = state.items.drain(..count).map(|(_, item)| item).collect();
            drop(state);
            self.shared.room.notify_one();
            return Poll::Ready(Some(Ok(items)));
        }
        if matches!(state.end, End::Open) {
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        match std::mem::replace(&mut state.end, End::Whole) {
            End::CutOff(reason) => Poll::Ready(Some(Err(reason))),
            End::Open | End::Whole => Poll::Ready(None),
        }
    }
}

impl<T, E> Drop for Reader<T, E> {
    fn drop(&mut self) {
        self.shared.lock().reader_gone = true;
        self.shared.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn items_come_in_order_in_batches_and_then_the_end() {
        let (queue, reader) = Outgoing::<u32, &str>::new(4, 3);
        queue.add([1, 2, 3, 4]);
        assert_eq!(queue.room(), 0);
        queue.finish();
        assert_eq!(reader.collect::<Vec<_>>().await, [Ok(vec![1, 2, 3]), Ok(vec![4])]);
        assert!(queue.reader_gone());
    }

    #[tokio::test]
    async fn what_is_dropped_is_told_though_nothing_more_was_to_come() {
        let (queue, mut reader) = Outgoing::<u32, &str>::new(4, 2);
        queue.add([1, 2, 3]);
        queue.finish();
        assert_eq!(reader.next().await, Some(Ok(vec![1, 2])));
        queue.cut_off("stopping");
        queue.cut_off("the first reason counts");
        assert_eq!(reader.next().await, Some(Err("stopping")));
        assert_eq!(reader.next().await, None);
        // Who has it all is told nothing else.
        let (queue, mut reader) = Outgoing::<u32, &str>::new(4, 2);
        queue.add([1]);
        queue.finish();
        assert_eq!(reader.next().await, Some(Ok(vec![1])));
        queue.cut_off("stopping");
        assert_eq!(reader.next().await, None);
    }

    #[tokio::test]
    async fn the_oldest_item_tells_who_is_behind() {
        let (queue, mut reader) = Outgoing::<u32, &str>::new(2, 1);
        let patience = Duration::from_secs(3);
        assert_eq!(queue.behind_at(patience), None);
        queue.add([1]);
        let first = queue.behind_at(patience).unwrap();
        tokio::task::yield_now().await;
        queue.add([2]);
        assert_eq!(queue.behind_at(patience), Some(first), "the second does not make the first younger");
        reader.next().await;
        assert!(queue.behind_at(patience).unwrap() > first);
        queue.cut_off("slow");
        assert_eq!(reader.next().await, Some(Err("slow")));
        assert_eq!(reader.next().await, None);
    }
}
