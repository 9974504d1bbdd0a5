//! A job as its handler sees it.

use std::sync::Arc;

use gatehouse_core::ids::{JobId, TenantId};
use gatehouse_proto::job::v1::JobEventType;
use tokio::sync::{Semaphore, mpsc, watch};

use super::held::{Command, Key, Told};

/// Why a job shall stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// The worker shuts down: another attempt goes on from the last checkpoint.
    Draining,
    /// Someone asked for it.
    Cancelled,
    /// Another worker may hold the job: nothing that this one writes counts.
    LeaseLost,
}

/// Why an attempt ended without a result: a failure to be told to the job's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Stable, `UPPER_SNAKE_CASE`, at most 64 characters.
    pub reason: String,
    /// For the job's owner: no internals.
    pub message: String,
    /// Whether another attempt may do better.
    pub retryable: bool,
}

/// A handler's end without a result. `?` makes it of a [`Stop`], a [`Failure`] or a [`gatehouse_core::Error`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// It obeyed a [`Stop`].
    Stopped(Stop),
    /// It failed.
    Failed(Failure),
}

impl From<Stop> for Unfinished {
    fn from(stop: Stop) -> Self {
        Self::Stopped(stop)
    }
}

impl From<Failure> for Unfinished {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The error's public face; another attempt follows if its code says that trying again may help.
impl From<gatehouse_core::Error> for Unfinished {
    fn from(error: gatehouse_core::Error) -> Self {
        Self::Failed(Failure {
            reason: error.reason().to_owned(),
            message: error.message().to_owned(),
            retryable: error.code().is_retryable(),
        })
    }
}

/// A job that this worker holds. It must stop soon after [`LeasedJob::progress`] or [`LeasedJob::stopped`] says so.
#[derive(Debug)]
pub struct LeasedJob {
    /// The job.
    pub id: JobId,
    /// Its owner.
    pub tenant: TenantId,
    /// Its kind.
    pub kind: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// A JSON value.
    pub input: String,
    /// What an earlier attempt stored last; empty if none did.
    pub checkpoint: Vec<u8>,
    pub(super) key: Key,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) window: Arc<Semaphore>,
    pub(super) stop: watch::Receiver<Option<Stop>>,
}

impl LeasedJob {
    /// Tells those who watch how far it is. `data`: a JSON object of at most 16 KiB. `checkpoint`: what a later attempt
    /// needs to go on after this very event, at most 64 KiB; the two are stored together or not at all.
    ///
    /// Waits while too many writes are under way; returns before this one is stored.
    ///
    /// # Errors
    /// That the job shall stop: then nothing was written.
    pub async fn progress(&self, data: String, checkpoint: Option<Vec<u8>>) -> Result<(), Stop> {
        self.tell(Told::Event {
            event_type: JobEventType::Progress,
            data,
            checkpoint: checkpoint.unwrap_or_default(),
        })
        .await
    }

    /// Tells the caller something that they should read, such as that their input was clamped. As
    /// [`LeasedJob::progress`] otherwise: with a checkpoint, a later attempt knows that it was told.
    ///
    /// # Errors
    /// That the job shall stop: then nothing was written.
    pub async fn notice(&self, data: String, checkpoint: Option<Vec<u8>>) -> Result<(), Stop> {
        self.tell(Told::Event {
            event_type: JobEventType::Notice,
            data,
            checkpoint: checkpoint.unwrap_or_default(),
        })
        .await
    }

    /// Stores what a later attempt needs to go on, without telling anyone. At most 64 KiB.
    ///
    /// # Errors
    /// That the job shall stop: then nothing was written.
    pub async fn store_checkpoint(&self, checkpoint: Vec<u8>) -> Result<(), Stop> {
        self.tell(Told::Checkpoint(checkpoint)).await
    }

    /// Whether the job shall stop.
    #[must_use]
    pub fn stop(&self) -> Option<Stop> {
        *self.stop.borrow()
    }

    /// Waits until the job shall stop.
    pub async fn stopped(&self) -> Stop {
        let mut stop = self.stop.clone();
        match stop.wait_for(Option::is_some).await {
            Ok(stop) => stop.unwrap_or(Stop::LeaseLost),
            // The session is gone, and with it the lease.
            Err(_) => Stop::LeaseLost,
        }
    }

    async fn tell(&self, told: Told) -> Result<(), Stop> {
        tokio::select! {
            biased;
            stop = self.stopped() => Err(stop),
            permit = self.window.acquire() => {
                // The session gives the permit back when the write is acknowledged.
                permit.map_err(|_| Stop::LeaseLost)?.forget();
                self.commands.send(Command::Tell(self.key.clone(), told)).map_err(|_| Stop::LeaseLost)
            }
        }
    }
}
