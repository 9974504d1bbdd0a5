//! `GET /healthz`: whether the process lives.

use actix_web::HttpResponse;
use gatehouse_core::Result;
use serde::Serialize;
use utoipa::ToSchema;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(Access::Probe, &[], LimitClass::Read, handler!(handle))
}

/// That it lives.
#[derive(Serialize, ToSchema)]
struct Health {
    /// `alive`.
    status: &'static str,
}

/// Whether the process lives. Says nothing of the services behind it.
#[utoipa::path(
    get, path = "/healthz", operation_id = "health", tag = "about",
    responses((status = 200, body = Health, description = "It lives"))
)]
async fn handle(_context: Context) -> Result<HttpResponse> {
    Ok(HttpResponse::Ok().json(Health { status: "alive" }))
}
