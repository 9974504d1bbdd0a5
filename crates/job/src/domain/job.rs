//! A job and the states that it goes through.

use std::fmt;
use std::str::FromStr;

use gatehouse_core::ids::{JobId, TenantId};
use gatehouse_core::{Error, Timestamp};

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobState {
    /// Waits for a worker.
    Queued,
    /// A worker holds its lease.
    Running,
    /// Ended with a result.
    Succeeded,
    /// Ended without one.
    Failed,
    /// Ended because someone asked for it.
    Cancelled,
}

impl JobState {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled];

    /// The name in the database, in events and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more happens by itself.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no state of a job has this name")]
pub struct UnknownState;

impl FromStr for JobState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(UnknownState)
    }
}

/// Why a job ended without a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Stable, `UPPER_SNAKE_CASE`.
    pub reason: String,
    /// For the job's owner.
    pub message: String,
}

impl Failure {
    /// Longest reason, in bytes.
    pub const MAX_REASON: usize = 64;
    /// Longest message, in characters.
    pub const MAX_MESSAGE: usize = 2000;

    /// A failure of ours.
    #[must_use]
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }

    /// A failure as a worker told it: cut to its bounds, and named `WORKER_ERROR` where the name is no name.
    #[must_use]
    pub fn from_worker(reason: &str, message: &str) -> Self {
        // It goes into an audit event, which takes no other form.
        let reason = if gatehouse_outbox::words::is_reason(reason) { reason } else { "WORKER_ERROR" };
        let message = message.chars().filter(|c| !c.is_control()).take(Self::MAX_MESSAGE).collect::<String>();
        Self::new(reason, message)
    }
}

/// A job as its owner sees it. Input, checkpoint and result are read on their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its owner.
    pub tenant: TenantId,
    /// Its id.
    pub id: JobId,
    /// Its kind.
    pub kind: String,
    /// Where it stands.
    pub state: JobState,
    /// Person id, credential id or client that submitted it.
    pub submitted_by: String,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When it was first leased.
    pub started_at: Option<Timestamp>,
    /// When it reached its final state.
    pub finished_at: Option<Timestamp>,
    /// When it is purged.
    pub expires_at: Option<Timestamp>,
    /// Leases so far.
    pub attempt: u32,
    /// Leases allowed.
    pub max_attempts: u32,
    /// Whether a cancel has been asked for.
    pub cancel_requested: bool,
    /// Sequence of the newest event.
    pub last_sequence: i64,
    /// Whether it runs without progress for longer than its kind allows.
    pub stalled: bool,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
}

/// No such job, or none that this caller may know of.
#[must_use]
pub fn not_found() -> Error {
    Error::not_found(
        "JOB_NOT_FOUND",
        "There is no such job in this tenant. Finished jobs are deleted some time after they end; see expires_at.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_read_back_and_nothing_else_does() {
        for state in JobState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        assert_eq!("done".parse::<JobState>(), Err(UnknownState));
        assert_eq!(JobState::ALL.iter().filter(|state| state.is_final()).count(), 3);
    }

    #[test]
    fn a_workers_words_are_bounded() {
        let failure = Failure::from_worker("OBJECTIVE_NOT_FINITE", &"é\n".repeat(3000));
        assert_eq!(
            (failure.reason.as_str(), failure.message.chars().count()),
            ("OBJECTIVE_NOT_FINITE", 2000)
        );
        for reason in ["", "lower", "A B", "_HIDDEN", "2FA", &"A".repeat(65), "É"] {
            assert_eq!(Failure::from_worker(reason, "").reason, "WORKER_ERROR", "{reason:?}");
        }
    }
}
