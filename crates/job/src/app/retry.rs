//! Doing a job again.

use gatehouse_core::ids::JobId;
use gatehouse_core::{Error, Result};
use gatehouse_db::run_tx;
use gatehouse_service::Caller;
use serde_json::json;

use super::App;
use super::queue::queue_full;
use crate::domain::{EventType, Job, JobState, not_found};
use crate::store::{events, jobs};

enum Retried {
    Queued(Box<Job>),
    NotOver,
    Succeeded,
    NotFound,
    KindGone,
    QueueFull(i64),
}

impl App {
    /// Queues a failed or cancelled job again, with as many attempts as its kind allows. Its events and its last
    /// checkpoint stay.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`, `JOB_NOT_FINISHED`, `JOB_SUCCEEDED`, `KIND_NOT_FOUND`, `QUEUE_FULL`.
    pub(crate) async fn retry(&self, caller: &Caller, id: JobId) -> Result<Job> {
        let tenant = caller.tenant()?;
        let now = self.0.clock.now();
        let audit = self.0.outbox.event("job.jobs.retry").by(caller).target("job", id.as_uuid());
        let retried = run_tx!(self.0.db, "job.retry", |tx| {
            let Some(found) = jobs::lookup(tx, tenant, id).await? else { return Ok(Retried::NotFound) };
            let Some(bounds) = self.0.config.enabled_kind(&found.kind) else { return Ok(Retried::KindGone) };
            if !matches!(found.state, JobState::Failed | JobState::Cancelled) {
                let succeeded = found.state == JobState::Succeeded;
                return Ok(if succeeded { Retried::Succeeded } else { Retried::NotOver });
            }
            let limit = i64::from(bounds.max_queued_per_tenant);
            let Some(turn) = self.place_in_queue(tx, (tenant, &found.kind), limit, now).await? else {
                return Ok(Retried::QueueFull(limit));
            };
            // Unless another request was first, a moment ago.
            let Some(job) = jobs::retry(tx, tenant, id, now, turn, bounds.max_attempts).await? else {
                return Ok(Retried::NotOver);
            };
            let data = json!({"kind": job.kind, "retry": true}).to_string();
            events::add(tx, (tenant, id), (job.last_sequence, EventType::Queued, job.attempt), now, data)
                .await?;
            self.0.outbox.emit(tx, &audit).await?;
            Ok(Retried::Queued(Box::new(job)))
        })?;
        match retried {
            Retried::Queued(job) => {
                self.ring_events(tenant, id);
                self.ring_queue(&job.kind);
                Ok(*job)
            }
            Retried::QueueFull(limit) => Err(queue_full(limit)),
            Retried::Succeeded => Err(Error::failed_precondition(
                "JOB_SUCCEEDED",
                "The job succeeded. Submit a new one to do it again.",
            )),
            Retried::NotOver => Err(Error::failed_precondition(
                "JOB_NOT_FINISHED",
                "The job still waits or runs. Cancel it first.",
            )),
            Retried::NotFound => Err(not_found()),
            Retried::KindGone => Err(Error::not_found(
                "KIND_NOT_FOUND",
                "Jobs of this kind are no longer done here. The job can't be retried.",
            )),
        }
    }
}
