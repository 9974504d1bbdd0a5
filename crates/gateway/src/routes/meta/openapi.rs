//! `GET /openapi.json`: this API as an OpenAPI 3.1 document.

use actix_web::HttpResponse;
use actix_web::http::header;
use gatehouse_core::Result;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(Access::Public, &[], LimitClass::Read, handler!(handle))
}

/// This API as an OpenAPI 3.1 document, generated from the routes.
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "openapi", tag = "about",
    responses((status = 200, body = Value, description = "The document"))
)]
async fn handle(context: Context) -> Result<HttpResponse> {
    Ok(HttpResponse::Ok()
        .content_type("application/json")
        .insert_header((header::CACHE_CONTROL, "public, max-age=300"))
        .body(context.gateway.documents.openapi.clone()))
}
