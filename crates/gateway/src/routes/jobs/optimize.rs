//! `POST /optimize`: minimise an expression (requirements L-job, L5).

use actix_web::HttpResponse;
use gatehouse_core::{Error, Result};
use gatehouse_objective::Problem;
use serde::{Deserialize, Serialize};
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

/// The kind of job that a search is.
pub(super) const KIND: &str = "optimize";

/// What is to be minimised.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OptimizeBody {
    /// An expression over the variables, at most 4096 bytes.
    #[schema(example = "(x-1)^2 + (y+2)^2")]
    objective: String,
    /// 1 to 64, each with a name of its own.
    variables: Vec<Variable>,
    /// Bounded by `MAX_ITERATIONS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    max_iterations: Option<u64>,
    /// The same seed gives the same run.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// The search ends once the values of a generation differ by less than this, 0 to 1e12; 1e-12 unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    tolerance: Option<f64>,
}

/// A variable and its bounds.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Variable {
    /// As it stands in the objective.
    #[schema(example = "x")]
    name: String,
    /// Least value.
    #[schema(example = -5.0)]
    lower: f64,
    /// Greatest value, above `lower`.
    #[schema(example = 5.0)]
    upper: f64,
}

/// Start a job of kind `optimize`: minimise an expression over bounded variables.
///
/// Progress comes at `/v1/jobs/{job_id}/events`, one event an iteration. More iterations than the installation allows are clamped, and a `notice` event of the job says so.
#[utoipa::path(post, path = "/optimize", operation_id = "optimize", tag = "jobs", params(("Idempotency-Key" = Option<String>, Header, description = "At most 128 visible ASCII characters")), request_body = OptimizeBody, responses((status = 202, body = JobView, description = "Queued", headers(("Location" = String, description = "The job")))))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let body: OptimizeBody = context.json().await?;
    let input = serde_json::to_string(&body).map_err(Error::internal)?;
    submit(&context, KIND.to_owned(), input, "").await
}

/// Reads a search as the worker will: what it would refuse is refused here, with the field and what is wrong with it. The
/// worker clamps the iterations, so any number passes. `at` is where the search stands in the body.
///
/// # Errors
/// `INVALID_FIELD`.
pub(super) fn check(input: &str, at: &str) -> Result<()> {
    let place = |field: &str| match (at, field) {
        ("", field) => field.to_owned(),
        (at, "") => at.to_owned(),
        (at, field) => format!("{at}.{field}"),
    };
    Problem::parse(input.as_bytes(), u32::MAX).map(drop).map_err(|error| {
        let first = error.violations().first().map_or("", |wrong| wrong.field.as_str());
        let message = match (at, first) {
            ("", _) => error.message().to_owned(),
            (at, "") => format!("{at}: {}", error.message()),
            (at, _) => format!("{at}.{}", error.message()),
        };
        let refusal = Error::invalid_argument("INVALID_FIELD", message);
        error.violations().iter().fold(refusal, |refusal, wrong| {
            refusal.with_violation(place(&wrong.field), wrong.description.as_str())
        })
    })
}
