//! Jobs: durable work with live progress.

use actix_web::HttpResponse;
use actix_web::http::header;
use gatehouse_client::{Repeatable, from_status};
use gatehouse_core::ids::RequestId;
use gatehouse_core::{Error, Result};
use gatehouse_proto::job::v1::{Job, JobState, SubmitJobRequest};
use serde::Serialize;
use utoipa::ToSchema;

use crate::context::Context;
use crate::route::Route;
use crate::time;

mod cancel;
mod events;
mod get;
mod list;
mod optimize;
mod result;
mod retry;
mod submit;

pub(super) fn routes() -> Vec<Route> {
    vec![
        optimize::route(),
        submit::route(),
        list::route(),
        get::route(),
        events::route(),
        cancel::route(),
        retry::route(),
        result::route(),
    ]
}

/// The states of a job by their names here.
const STATES: [(JobState, &str); 5] = [
    (JobState::Queued, "queued"),
    (JobState::Running, "running"),
    (JobState::Succeeded, "succeeded"),
    (JobState::Failed, "failed"),
    (JobState::Cancelled, "cancelled"),
];

/// A job.
#[derive(Serialize, ToSchema)]
#[schema(as = Job)]
struct JobView {
    job_id: String,
    kind: String,
    /// `queued`, `running`, `succeeded`, `failed` or `cancelled`.
    state: &'static str,
    #[schema(format = DateTime)]
    created_at: Option<String>,
    #[schema(format = DateTime)]
    started_at: Option<String>,
    #[schema(format = DateTime)]
    finished_at: Option<String>,
    /// When the job, its events and its result are purged.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    /// Attempts so far.
    attempt: i32,
    max_attempts: i32,
    cancel_requested: bool,
    /// The highest event number so far.
    last_sequence: i64,
    /// Why it failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<Failure>,
    /// A person id, `api_key:<id>` or `client:<name>`.
    submitted_by: String,
    /// Alive but without progress for too long.
    stalled: bool,
    /// Where its events are.
    events_url: String,
    /// Where its result will be.
    result_url: String,
}

/// Why a job failed.
#[derive(Serialize, ToSchema)]
struct Failure {
    /// Stable name for programs.
    reason: String,
    /// What to do.
    message: String,
}

impl JobView {
    fn new(job: Option<Job>) -> Result<Self> {
        let job = job.ok_or_else(|| Error::internal("the job service answered without a job"))?;
        let state =
            STATES.iter().find(|(state, _)| *state == job.state()).map_or("unknown", |(_, name)| name);
        let failure = (!job.failure_reason.is_empty())
            .then_some(Failure { reason: job.failure_reason, message: job.failure_message });
        Ok(Self {
            events_url: format!("/v1/jobs/{}/events", job.job_id),
            result_url: format!("/v1/jobs/{}/result", job.job_id),
            job_id: job.job_id,
            kind: job.kind,
            state,
            created_at: time::text(job.created_at),
            started_at: time::text(job.started_at),
            finished_at: time::text(job.finished_at),
            expires_at: time::text(job.expires_at),
            attempt: job.attempt,
            max_attempts: job.max_attempts,
            cancel_requested: job.cancel_requested,
            last_sequence: job.last_sequence,
            failure,
            submitted_by: job.submitted_by,
            stalled: job.stalled,
        })
    }
}

/// Queues a job: 202 with its address, also where the idempotency key had made it before. `at` is where the input stands in
/// the body; empty if it is the body.
async fn submit(context: &Context, kind: String, input_json: String, at: &str) -> Result<HttpResponse> {
    if kind == optimize::KIND {
        optimize::check(&input_json, at)?;
    }
    // A key in any case: a call whose answer is lost with a replica can then be made again at another.
    let idempotency_key = match context.header("idempotency-key", 128)? {
        Some(key) => key.to_owned(),
        None => RequestId::new(&context.gateway.clock, &context.gateway.entropy).to_string(),
    };
    let mut request = tonic::Request::new(SubmitJobRequest { kind, input_json, idempotency_key });
    request.extensions_mut().insert(Repeatable);
    let answer = context.jobs().await?.submit_job(request).await.map_err(from_status)?.into_inner();
    let job = JobView::new(answer.job)?;
    let location = format!("/v1/jobs/{}", job.job_id);
    Ok(HttpResponse::Accepted().insert_header((header::LOCATION, location)).json(job))
}
