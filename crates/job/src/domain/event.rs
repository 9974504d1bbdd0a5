//! The events of a job's log.

use std::str::FromStr;

use gatehouse_core::Timestamp;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// It waits for a worker.
    Queued,
    /// A worker began an attempt.
    Started,
    /// The worker tells how far it is.
    Progress,
    /// The worker tells something that the caller should read.
    Notice,
    /// The attempt ended without a result; another follows.
    Retrying,
    /// It runs without progress.
    Stalled,
    /// It reached a final state.
    End,
    /// Someone asked for it to stop.
    CancelRequested,
}

impl EventType {
    /// Every type.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Started,
        Self::Progress,
        Self::Notice,
        Self::Retrying,
        Self::Stalled,
        Self::End,
        Self::CancelRequested,
    ];

    /// The name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Started => "started",
            Self::Progress => "progress",
            Self::Notice => "notice",
            Self::Retrying => "retrying",
            Self::Stalled => "stalled",
            Self::End => "end",
            Self::CancelRequested => "cancel_requested",
        }
    }
}

/// The text names no type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no type of event has this name")]
pub struct UnknownType;

impl FromStr for EventType {
    type Err = UnknownType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|known| known.as_str() == text).ok_or(UnknownType)
    }
}

/// One event. Its key is the job and the sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobEvent {
    /// From 1, without gaps.
    pub sequence: i64,
    /// What happened.
    pub event_type: EventType,
    /// When.
    pub occurred_at: Timestamp,
    /// In which attempt; 0 before the first.
    pub attempt: u32,
    /// A JSON object.
    pub data: String,
}

impl JobEvent {
    /// Largest data of one event, in bytes.
    pub const MAX_DATA: usize = 16 * 1024;
}
