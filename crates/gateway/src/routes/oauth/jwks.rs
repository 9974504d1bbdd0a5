//! `GET /.well-known/jwks.json`: the keys that access tokens are signed with.

use actix_web::HttpResponse;
use actix_web::http::header;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::auth::v1::GetJwksRequest;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Public,
        &["/gatehouse.auth.v1.TokenService/GetJwks"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// The public keys that access tokens are signed with, as a JWK set (RFC 7517, RFC 8037).
#[utoipa::path(
    get, path = "/.well-known/jwks.json", operation_id = "jwks", tag = "oauth",
    responses((status = 200, body = Value, content_type = "application/jwk-set+json", description = "The key set"))
)]
async fn handle(context: Context) -> Result<HttpResponse> {
    let keys = context.tokens().await?.get_jwks(GetJwksRequest {}).await.map_err(from_status)?.into_inner();
    let max_age = (keys.max_age_ms / 1000).clamp(0, 86_400);
    Ok(HttpResponse::Ok()
        .content_type("application/jwk-set+json")
        .insert_header((header::CACHE_CONTROL, format!("public, max-age={max_age}")))
        .body(keys.jwks_json))
}
