//! Reading jobs.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatehouse_core::ids::JobId;
use gatehouse_core::{Error, Result};
use gatehouse_db::read_tx;
use gatehouse_service::Caller;

use super::App;
use crate::domain::{Job, JobState, not_found};
use crate::store::jobs;

/// One page of a tenant's jobs.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) jobs: Vec<Job>,
    /// Empty on the last page.
    pub(crate) next: String,
}

impl App {
    /// # Errors
    /// `JOB_NOT_FOUND`.
    pub(crate) async fn get(&self, caller: &Caller, id: JobId) -> Result<Job> {
        let tenant = caller.tenant()?;
        read_tx!(self.0.db, "job.get", |tx| { jobs::lookup(tx, tenant, id).await })?.ok_or_else(not_found)
    }

    /// The caller's tenant's jobs, newest first.
    ///
    /// # Errors
    /// `INVALID_FIELD` for a page token that this method did not give out, or a page size out of its bounds.
    pub(crate) async fn list(
        &self,
        caller: &Caller,
        page_size: i32,
        page_token: &str,
        kind: &str,
        state: Option<JobState>,
    ) -> Result<Page> {
        let tenant = caller.tenant()?;
        let size = match page_size {
            0 => 50,
            1..=200 => page_size,
            _ => return Err(Error::invalid_field("page_size", "it must be from 1 to 200, or 0 for 50")),
        };
        let before =
            if page_token.is_empty() { JobId::from_uuid(uuid::Uuid::max()) } else { read_token(page_token)? };
        let mut jobs = read_tx!(self.0.db, "job.list", |tx| {
            jobs::list(tx, tenant, before, kind, state, i64::from(size) + 1).await
        })?;
        let more = jobs.len() > usize::try_from(size).unwrap_or(0);
        jobs.truncate(usize::try_from(size).unwrap_or(0));
        let next = jobs.last().filter(|_| more).map_or_else(String::new, |job| write_token(job.id));
        Ok(Page { jobs, next })
    }

    /// The result of a job that succeeded.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`, `JOB_NOT_FINISHED`, `JOB_FAILED`, `JOB_CANCELLED`.
    pub(crate) async fn result(&self, caller: &Caller, id: JobId) -> Result<String> {
        let tenant = caller.tenant()?;
        let found = read_tx!(self.0.db, "job.result", |tx| { jobs::lookup_result(tx, tenant, id).await })?;
        let (job, result) = found.ok_or_else(not_found)?;
        match (job.state, result) {
            (JobState::Succeeded, Some(result)) => Ok(result),
            (JobState::Succeeded, None) => Err(Error::internal("a job succeeded without a result")),
            (JobState::Failed, _) => {
                let failure = job.failure.map_or_else(String::new, |failure| {
                    format!(" ({}): {}", failure.reason, failure.message)
                });
                Err(Error::failed_precondition("JOB_FAILED", format!("The job failed{failure}")))
            }
            (JobState::Cancelled, _) => Err(Error::failed_precondition(
                "JOB_CANCELLED",
                "The job was cancelled, so it has no result.",
            )),
            (JobState::Queued | JobState::Running, _) => Err(Error::failed_precondition(
                "JOB_NOT_FINISHED",
                "The job has not finished. Watch its events and ask again after the end.",
            )),
        }
    }
}

fn write_token(last: JobId) -> String {
    URL_SAFE_NO_PAD.encode(last.as_uuid().as_bytes())
}

fn read_token(token: &str) -> Result<JobId> {
    let wrong = || Error::invalid_field("page_token", "it is not one that this method gave out");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?;
    uuid::Uuid::from_slice(&bytes).map(JobId::from_uuid).map_err(|_| wrong())
}
