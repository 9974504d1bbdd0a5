//! What a worker holds and what it may write.

use gatehouse_core::ids::{JobId, TenantId};

use super::{EventType, Failure};

/// One worker's hold on one job. Whoever has an older epoch holds nothing any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The job's owner.
    pub tenant: TenantId,
    /// The job.
    pub job: JobId,
    /// Its kind.
    pub kind: String,
    /// The fencing number.
    pub epoch: i64,
    /// From 1.
    pub attempt: u32,
    /// What to do.
    pub input: String,
    /// Where the last attempt was.
    pub checkpoint: Vec<u8>,
    /// Whether to stop at once.
    pub cancel_requested: bool,
    /// Trace of the submission.
    pub traceparent: String,
    /// Sequence of the event that tells of this lease.
    pub started_sequence: i64,
    /// Highest write number stored in this attempt.
    pub last_write: i64,
}

/// What a worker wants to store about a job that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// An event, and with it perhaps a checkpoint.
    Event {
        /// `Progress` or `Notice`.
        event_type: EventType,
        /// A JSON object.
        data: String,
        /// Replaces the last checkpoint, if given.
        checkpoint: Option<Vec<u8>>,
    },
    /// A checkpoint alone.
    Checkpoint(Vec<u8>),
    /// The end, with a JSON value as result.
    Succeed(String),
    /// The end of the attempt without a result.
    Fail {
        /// Why.
        failure: Failure,
        /// Whether another attempt may do better.
        retryable: bool,
    },
    /// The end because a cancel was asked for.
    Cancelled,
    /// Give the lease back.
    Release,
}

impl Write {
    /// Largest checkpoint, in bytes.
    pub const MAX_CHECKPOINT: usize = 64 * 1024;

    /// Whether the lease ends with it.
    #[must_use]
    pub const fn ends_lease(&self) -> bool {
        matches!(self, Self::Succeed(_) | Self::Fail { .. } | Self::Cancelled | Self::Release)
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Stored.
    Stored {
        /// Of the event that it made; 0 if it made none or was stored before.
        sequence: i64,
        /// Whether the job shall stop.
        cancel_requested: bool,
    },
    /// The writer no longer holds the job; nothing was changed.
    LeaseLost,
    /// A write before this one is not stored; nothing was changed.
    Missing {
        /// The last one that is.
        last_write: i64,
    },
}

impl WriteOutcome {
    /// An end that was stored before.
    pub const STORED_BEFORE: Self = Self::Stored { sequence: 0, cancel_requested: false };
}
