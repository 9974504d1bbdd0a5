//! Asking a job to stop.

use gatehouse_core::Result;
use gatehouse_core::ids::JobId;
use gatehouse_db::run_tx;
use gatehouse_service::Caller;
use serde_json::json;

use super::App;
use super::write::end_data;
use crate::domain::{EventType, Job, JobState, not_found};
use crate::store::{events, jobs};

impl App {
    /// Ends a waiting job at once, asks a running one to stop, and leaves a finished one as it is.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`.
    pub(crate) async fn cancel(&self, caller: &Caller, id: JobId) -> Result<Job> {
        let tenant = caller.tenant()?;
        let now = self.0.clock.now();
        let expires_at = now.plus(self.0.config.ttl(JobState::Cancelled));
        let audit = self.0.outbox.event("job.jobs.cancel").by(caller).target("job", id.as_uuid());
        let (job, holder, ended) = run_tx!(self.0.db, "job.cancel", |tx| {
            if let Some(job) = jobs::cancel_queued(tx, tenant, id, now, expires_at).await? {
                let data = end_data(JobState::Cancelled, None);
                events::add(tx, (tenant, id), (job.last_sequence, EventType::End, job.attempt), now, data)
                    .await?;
                self.0.outbox.emit(tx, &audit).await?;
                return Ok((Some(job), None, true));
            }
            if let Some((job, holder)) = jobs::request_cancel(tx, tenant, id).await? {
                let data = json!({}).to_string();
                let event = (job.last_sequence, EventType::CancelRequested, job.attempt);
                events::add(tx, (tenant, id), event, now, data).await?;
                self.0.outbox.emit(tx, &audit).await?;
                return Ok((Some(job), holder, false));
            }
            Ok((jobs::lookup(tx, tenant, id).await?, None, false))
        })?;
        let job = job.ok_or_else(not_found)?;
        if ended {
            self.0.metrics.finished(&job.kind, job.state.as_str());
        }
        self.ring_events(tenant, id);
        if let Some(holder) = holder {
            self.ring_worker(holder);
        }
        Ok(job)
    }
}
