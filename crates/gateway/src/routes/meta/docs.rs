//! `GET /docs`: this API for people.

use actix_web::HttpResponse;
use actix_web::http::header;
use gatehouse_core::Result;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(Access::Public, &[], LimitClass::Read, handler!(handle))
}

/// This API for people: one page, no scripts, nothing from elsewhere.
#[utoipa::path(
    get, path = "/docs", operation_id = "docs", tag = "about",
    responses((status = 200, content_type = "text/html", body = String, description = "The page"))
)]
async fn handle(context: Context) -> Result<HttpResponse> {
    let documents = &context.gateway.documents;
    Ok(HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header((header::CONTENT_SECURITY_POLICY, documents.page_policy.clone()))
        .insert_header((header::CACHE_CONTROL, "public, max-age=300"))
        .body(documents.page.clone()))
}
