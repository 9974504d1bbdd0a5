//! `POST /v1/jobs`: queue a job of any kind.

use actix_web::HttpResponse;
use gatehouse_core::Result;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{JobView, submit};
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Job),
        &["/gatehouse.job.v1.JobService/SubmitJob"],
        LimitClass::Submit,
        handler!(handle),
    )
}

/// What is to be done.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SubmitJobBody {
    /// A kind of job that this installation knows.
    #[schema(example = "optimize")]
    kind: String,
    /// Any JSON value that the kind takes.
    input: Value,
}

/// Queue a job. Follow it at `/v1/jobs/{job_id}/events`.
///
/// With an `Idempotency-Key` header, the same request sent again gives the same job.
#[utoipa::path(post, path = "/v1/jobs", operation_id = "submitJob", tag = "jobs", params(("Idempotency-Key" = Option<String>, Header, description = "At most 128 visible ASCII characters")), request_body = SubmitJobBody, responses((status = 202, body = JobView, description = "Queued", headers(("Location" = String, description = "The job")))))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let body: SubmitJobBody = context.json().await?;
    submit(&context, body.kind, body.input.to_string()).await
}
