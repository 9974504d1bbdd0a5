//! `GET /readyz`: whether the process may be sent requests.

use actix_web::HttpResponse;
use gatehouse_core::{Error, ErrorCode, Result};
use serde::Serialize;
use utoipa::ToSchema;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(Access::Probe, &[], LimitClass::Read, handler!(handle))
        .refusing(&[(ErrorCode::Unavailable, "DRAINING"), (ErrorCode::Unavailable, "NOT_READY")])
}

/// That it is ready.
#[derive(Serialize, ToSchema)]
struct Ready {
    /// `ready`.
    status: &'static str,
}

/// Whether to send requests here: not before the first news of revocations, not while draining.
#[utoipa::path(
    get, path = "/readyz", operation_id = "ready", tag = "about",
    responses((status = 200, body = Ready, description = "It is ready"))
)]
async fn handle(context: Context) -> Result<HttpResponse> {
    if context.gateway.lifecycle.leaving().is_cancelled() {
        return Err(Error::unavailable("DRAINING", "This process is going away. Use another."));
    }
    // Which condition is missing stands on the private port: here anyone may look.
    if !context.gateway.readiness.unmet().is_empty() {
        return Err(Error::unavailable("NOT_READY", "This process is not ready yet. Try again in a moment."));
    }
    Ok(HttpResponse::Ok().json(Ready { status: "ready" }))
}
