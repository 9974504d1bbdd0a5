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
    // Read as the worker will: what it would refuse is refused here, with the field and what is wrong with it. The
    // worker clamps the iterations, so any number passes.
    Problem::parse(input.as_bytes(), u32::MAX).map_err(|error| {
        let refusal = Error::invalid_argument("INVALID_FIELD", error.message());
        error.violations().iter().fold(refusal, |refusal, wrong| {
            refusal.with_violation(wrong.field.as_str(), wrong.description.as_str())
        })
    })?;
    submit(&context, "optimize".to_owned(), input).await
}
