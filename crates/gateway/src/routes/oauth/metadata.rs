//! `GET /.well-known/oauth-authorization-server`: what this authorization server can do (RFC 8414).

use actix_web::HttpResponse;
use actix_web::http::header;
use gatehouse_core::{Error, ErrorCode, Result};
use serde::Serialize;
use utoipa::ToSchema;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(Access::Public, &[], LimitClass::Read, handler!(handle))
}

pub(super) fn route_with_environment() -> Route {
    Route::new::<__path_handle_environment>(
        Access::Public,
        &[],
        LimitClass::Read,
        handler!(handle_environment),
    )
    .refusing(&[(ErrorCode::NotFound, "ENVIRONMENT_NOT_FOUND")])
}

/// Authorization server metadata.
#[derive(Serialize, ToSchema)]
struct Metadata {
    issuer: String,
    token_endpoint: String,
    introspection_endpoint: String,
    revocation_endpoint: String,
    jwks_uri: String,
    service_documentation: String,
    grant_types_supported: [&'static str; 2],
    response_types_supported: [&'static str; 0],
    token_endpoint_auth_methods_supported: [&'static str; 2],
    introspection_endpoint_auth_methods_supported: [&'static str; 2],
    revocation_endpoint_auth_methods_supported: [&'static str; 1],
}

/// Where the OAuth endpoints are and what they take.
#[utoipa::path(
    get, path = "/.well-known/oauth-authorization-server", operation_id = "oauthMetadata", tag = "oauth",
    responses((status = 200, body = Metadata, description = "The metadata"))
)]
async fn handle(context: Context) -> Result<HttpResponse> {
    Ok(answer(&context))
}

/// The same, where RFC 8414, section 3.1, puts it for an issuer that ends with the environment.
#[utoipa::path(
    get, path = "/.well-known/oauth-authorization-server/{environment}",
    operation_id = "oauthMetadataOfEnvironment", tag = "oauth",
    params(("environment" = String, Path)),
    responses((status = 200, body = Metadata, description = "The metadata"))
)]
async fn handle_environment(context: Context) -> Result<HttpResponse> {
    if context.path("environment")? == context.gateway.environment.as_str() {
        return Ok(answer(&context));
    }
    Err(Error::not_found("ENVIRONMENT_NOT_FOUND", "This gateway serves another environment."))
}

fn answer(context: &Context) -> HttpResponse {
    let base = context.base_url();
    // What is made of one request is for no other.
    let of_the_request = context.gateway.config.public_url.is_empty();
    let cache = if of_the_request { "no-store" } else { "public, max-age=300" };
    HttpResponse::Ok().insert_header((header::CACHE_CONTROL, cache)).json(Metadata {
        issuer: context.gateway.issuer.clone(),
        token_endpoint: format!("{base}/oauth2/token"),
        introspection_endpoint: format!("{base}/oauth2/introspect"),
        revocation_endpoint: format!("{base}/oauth2/revoke"),
        jwks_uri: format!("{base}/.well-known/jwks.json"),
        service_documentation: format!("{base}/docs"),
        grant_types_supported: ["client_credentials", "refresh_token"],
        response_types_supported: [],
        token_endpoint_auth_methods_supported: ["client_secret_basic", "client_secret_post"],
        introspection_endpoint_auth_methods_supported: ["client_secret_basic", "client_secret_post"],
        revocation_endpoint_auth_methods_supported: ["none"],
    })
}
