//! Domain types on the wire.

use gatehouse_core::ids::JobId;
use gatehouse_core::{Error, Result, Timestamp};
use gatehouse_proto::job::v1 as proto;

use crate::domain::{EventType, Job, JobEvent, JobState};

pub(super) fn job_id(text: &str) -> Result<JobId> {
    text.parse().map_err(|error| Error::invalid_field("job_id", format!("{error}")))
}

pub(super) fn job(job: Job) -> proto::Job {
    let micros = |at: Option<Timestamp>| at.map_or(0, Timestamp::as_micros);
    let (failure_reason, failure_message) =
        job.failure.map_or_else(Default::default, |failure| (failure.reason, failure.message));
    proto::Job {
        job_id: job.id.to_string(),
        kind: job.kind,
        state: state(job.state).into(),
        created_at: job.created_at.as_micros(),
        started_at: micros(job.started_at),
        finished_at: micros(job.finished_at),
        expires_at: micros(job.expires_at),
        attempt: count(job.attempt),
        max_attempts: count(job.max_attempts),
        cancel_requested: job.cancel_requested,
        last_sequence: job.last_sequence,
        failure_reason,
        failure_message,
        submitted_by: job.submitted_by,
        stalled: job.stalled,
    }
}

pub(super) fn event(event: JobEvent) -> proto::JobEvent {
    let event_type = match event.event_type {
        EventType::Queued => proto::JobEventType::Queued,
        EventType::Started => proto::JobEventType::Started,
        EventType::Progress => proto::JobEventType::Progress,
        EventType::Notice => proto::JobEventType::Notice,
        EventType::Retrying => proto::JobEventType::Retrying,
        EventType::Stalled => proto::JobEventType::Stalled,
        EventType::End => proto::JobEventType::End,
        EventType::CancelRequested => proto::JobEventType::CancelRequested,
    };
    proto::JobEvent {
        sequence: event.sequence,
        r#type: event_type.into(),
        occurred_at: event.occurred_at.as_micros(),
        attempt: count(event.attempt),
        data_json: event.data,
    }
}

pub(super) fn count(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn state(state: JobState) -> proto::JobState {
    match state {
        JobState::Queued => proto::JobState::Queued,
        JobState::Running => proto::JobState::Running,
        JobState::Succeeded => proto::JobState::Succeeded,
        JobState::Failed => proto::JobState::Failed,
        JobState::Cancelled => proto::JobState::Cancelled,
    }
}

/// `None` from unspecified.
pub(super) fn state_filter(value: i32) -> Result<Option<JobState>> {
    match proto::JobState::try_from(value) {
        Ok(proto::JobState::Unspecified) => Ok(None),
        Ok(proto::JobState::Queued) => Ok(Some(JobState::Queued)),
        Ok(proto::JobState::Running) => Ok(Some(JobState::Running)),
        Ok(proto::JobState::Succeeded) => Ok(Some(JobState::Succeeded)),
        Ok(proto::JobState::Failed) => Ok(Some(JobState::Failed)),
        Ok(proto::JobState::Cancelled) => Ok(Some(JobState::Cancelled)),
        Err(_) => Err(Error::invalid_field("state", "it is no state of a job")),
    }
}
