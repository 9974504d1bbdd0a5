//! Start, stop and drain of a process or of one service in it.

use std::future::Future;
use std::time::Duration;

use gatehouse_client::context;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The one stop signal and the tasks that drain waits for. Cheap to clone; clones share both.
///
/// Whatever must finish though its caller went away runs through [`Lifecycle::spawn`]; whatever goes on until stop
/// watches [`Lifecycle::stopping`].
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    /// Before `stop`: still at work, but others should be asked.
    leave: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Lifecycle {
    /// A running lifecycle.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A lifecycle that stops with this one, and whose drain is waited for by this one's, but which can be stopped
    /// and drained alone.
    #[must_use]
    pub fn child(&self) -> Self {
        let child = Self {
            leave: self.leave.child_token(),
            stop: self.stop.child_token(),
            tasks: TaskTracker::new(),
        };
        let (stop, tasks) = (child.stop.clone(), child.tasks.clone());
        self.spawn(async move {
            stop.cancelled().await;
            tasks.close();
            tasks.wait().await;
        });
        child
    }

    /// Runs `future` to its end even after stop; drain waits for it. It stays part of the request and the span that it
    /// was begun in.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let request = context::request_id();
        self.tasks.spawn(tracing::Instrument::in_current_span(async move {
            match request {
                Some(id) => context::with_request_id(id, future).await,
                None => future.await,
            }
        }))
    }

    /// Cancelled when stop begins.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Cancelled when new work should go to another replica already, at the latest when stop begins. Until then
    /// whatever comes is still done.
    #[must_use]
    pub fn leaving(&self) -> CancellationToken {
        self.leave.clone()
    }

    /// Says that this process is about to stop: whoever asks whether it is ready learns that it is not.
    pub fn leave(&self) {
        self.leave.cancel();
    }

    /// Begins to stop: no new work, streams end themselves.
    pub fn stop(&self) {
        self.leave.cancel();
        self.stop.cancel();
        self.tasks.close();
    }

    /// Stops and waits until every task has ended, at most `limit`. Whether they all did.
    pub async fn drain(&self, limit: Duration) -> bool {
        self.stop();
        tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
    }

    /// Takes SIGTERM, SIGINT (Ctrl-C) and SIGHUP over from the operating system's default, which would end the process
    /// at once. SIGHUP asks nobody to stop: whoever has something to read again listens to it, for others it is nothing.
    ///
    /// # Errors
    /// If the operating system refuses to tell of signals.
    pub fn signals() -> std::io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// The signals that ask a process to stop; from the moment this exists, none of them is lost or ends the process.
#[derive(Debug)]
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    _hangup: tokio::signal::unix::Signal,
}

impl Signals {
    /// Resolves at the next signal, with its name.
    pub async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn drain_waits_for_what_was_begun() {
        let lifecycle = Lifecycle::new();
        let done = Arc::new(AtomicBool::new(false));
        let (finished, go) = (done.clone(), Arc::new(tokio::sync::Notify::new()));
        let gate = go.clone();
        lifecycle.spawn(async move {
            gate.notified().await;
            finished.store(true, Ordering::SeqCst);
        });
        assert!(!lifecycle.drain(Duration::from_millis(20)).await, "drained before the task ended");
        go.notify_one();
        assert!(lifecycle.drain(Duration::from_secs(5)).await);
        assert!(done.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn what_was_begun_keeps_its_request() {
        let lifecycle = Lifecycle::new();
        let seen = context::with_request_id("r-1".into(), async {
            lifecycle.spawn(async { context::request_id() }).await.ok().flatten()
        });
        assert_eq!(seen.await.as_deref(), Some("r-1"));
    }

    #[tokio::test]
    async fn a_child_stops_with_its_parent() {
        let parent = Lifecycle::new();
        let child = parent.child();
        parent.leave();
        assert!(child.leaving().is_cancelled() && !child.stopping().is_cancelled());
        parent.stop();
        assert!(child.stopping().is_cancelled());
        assert!(parent.drain(Duration::from_secs(5)).await == child.drain(Duration::from_secs(5)).await);
    }
}
