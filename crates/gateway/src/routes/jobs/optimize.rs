//! `POST /optimize`: minimise an expression (requirements L-job, L5).

use actix_web::HttpResponse;
use gatehouse_core::{Error, Result};
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

// What the worker takes.
const MAX_VARIABLES: usize = 64;
const MAX_OBJECTIVE_BYTES: usize = 4096;
const MAX_BOUND: f64 = 1e150;
/// The largest that every JSON reader keeps exactly.
const MAX_SEED: u64 = (1 << 53) - 1;

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
    max_iterations: Option<u32>,
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

/// What can be told without parsing the expression; the worker checks the rest.
fn check(body: &OptimizeBody) -> Result<()> {
    if body.objective.trim().is_empty() {
        return Err(Error::invalid_field("objective", "must be an expression such as (x-1)^2"));
    }
    if body.objective.len() > MAX_OBJECTIVE_BYTES {
        return Err(Error::invalid_field("objective", "may have at most 4096 bytes"));
    }
    if body.seed.is_some_and(|seed| seed > MAX_SEED) {
        return Err(Error::invalid_field("seed", "must be at most 9007199254740991"));
    }
    if body.tolerance.is_some_and(|tolerance| !(0.0..=1e12).contains(&tolerance)) {
        return Err(Error::invalid_field("tolerance", "must be from 0 to 1e12"));
    }
    if !(1..=MAX_VARIABLES).contains(&body.variables.len()) {
        return Err(Error::invalid_field("variables", "must name 1 to 64 variables"));
    }
    if body.max_iterations == Some(0) {
        return Err(Error::invalid_field("max_iterations", "must be at least 1"));
    }
    for (index, variable) in body.variables.iter().enumerate() {
        let field = |name: &str| format!("variables[{index}].{name}");
        let mut letters = variable.name.chars();
        let starts = letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_');
        if !starts || variable.name.len() > 64 || !letters.all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(Error::invalid_field(
                field("name"),
                "must be a letter or underscore, then letters, digits or underscores, 64 characters at most",
            ));
        }
        if body.variables[..index].iter().any(|other| other.name == variable.name) {
            return Err(Error::invalid_field(field("name"), "stands there twice"));
        }
        if !(variable.lower.is_finite() && variable.upper.is_finite() && variable.lower < variable.upper) {
            return Err(Error::invalid_field(field("lower"), "must be below upper"));
        }
        if variable.lower < -MAX_BOUND || variable.upper > MAX_BOUND {
            return Err(Error::invalid_field(field("lower"), "bounds must be from -1e150 to 1e150"));
        }
    }
    Ok(())
}

/// Start a job of kind `optimize`: minimise an expression over bounded variables.
///
/// Progress comes at `/v1/jobs/{job_id}/events`, one event an iteration. More iterations than the installation allows are clamped, and a `notice` event of the job says so.
#[utoipa::path(post, path = "/optimize", operation_id = "optimize", tag = "jobs", params(("Idempotency-Key" = Option<String>, Header, description = "At most 128 visible ASCII characters")), request_body = OptimizeBody, responses((status = 202, body = JobView, description = "Queued", headers(("Location" = String, description = "The job")))))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let body: OptimizeBody = context.json().await?;
    check(&body)?;
    let input = serde_json::to_string(&body).map_err(Error::internal)?;
    submit(&context, "optimize".to_owned(), input).await
}
