//! `POST /v1/jobs`: queue a job of any kind.

use actix_web::HttpResponse;
use gatehouse_core::Result;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
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
    /// Any JSON value that the kind takes, for `optimize` an `OptimizeBody`. The worker gets it as it stands here, to the last digit and space.
    #[schema(value_type = Value)]
    #[expect(dead_code, reason = "checked here, passed on by `Verbatim`")]
    input: IgnoredAny,
}

/// The part that is passed on as it stands: numbers have more forms than a type of ours tells apart.
#[derive(Deserialize)]
struct Verbatim {
    input: Box<RawValue>,
}

/// Queue a job. Follow it at `/v1/jobs/{job_id}/events`.
///
/// With an `Idempotency-Key` header, the same request sent again gives the same job. `input` is compared as text.
#[utoipa::path(post, path = "/v1/jobs", operation_id = "submitJob", tag = "jobs", params(("Idempotency-Key" = Option<String>, Header, description = "At most 128 visible ASCII characters")), request_body = SubmitJobBody, responses((status = 202, body = JobView, description = "Queued", headers(("Location" = String, description = "The job")))))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let (body, Verbatim { input }) = context.json_and_verbatim::<SubmitJobBody, _>().await?;
    submit(&context, body.kind, Box::<str>::from(input).into(), "input").await
}
