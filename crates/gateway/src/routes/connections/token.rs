//! `POST /v1/connections/{upstream}/token`: an access token for an upstream.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::{Result, Timestamp};
use gatehouse_proto::token_broker::v1::GetAccessTokenRequest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};
use crate::routes::chosen;

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::TokenBroker),
        &["/gatehouse.token_broker.v1.TokenBrokerService/GetAccessToken"],
        LimitClass::UpstreamToken,
        handler!(handle),
    )
    .for_persons_only()
}

/// What the token is for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UpstreamTokenBody {
    /// Narrows the scopes where the upstream can; elsewhere each token has all of the connection's. Absent means all that
    /// the caller may have.
    scopes: Option<Vec<String>>,
    /// How long a token should still live, seconds, at most 600; absent or 0 takes 60. One that ends sooner is renewed first,
    /// unless it is young: less than half of its own life old (the share is configuration). See `expires_in`.
    #[serde(default)]
    min_remaining_seconds: i32,
}

/// A token for an upstream: a secret.
#[derive(Serialize, ToSchema)]
pub(super) struct UpstreamToken {
    access_token: String,
    /// As the upstream named it, usually `Bearer`.
    token_type: String,
    /// Seconds until it ends.
    expires_in: i64,
    scopes: Vec<String>,
    connection_id: String,
}

/// A short-lived access token for an upstream, for the caller.
#[utoipa::path(post, path = "/v1/connections/{upstream}/token", operation_id = "getUpstreamToken", tag = "connections", params(("upstream" = String, Path)), request_body = UpstreamTokenBody, responses((status = 200, body = UpstreamToken, description = "The token")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let upstream = context.path("upstream")?.to_owned();
    let body: UpstreamTokenBody = context.json().await?;
    let request = GetAccessTokenRequest {
        upstream,
        scopes: chosen("scopes", body.scopes)?,
        min_remaining_seconds: body.min_remaining_seconds,
        offline_grant_id: String::new(),
    };
    let token = context.broker().await?.get_access_token(request).await.map_err(from_status)?.into_inner();
    let end = Timestamp::from_micros(token.expires_at).as_seconds();
    Ok(HttpResponse::Ok().json(UpstreamToken {
        access_token: token.access_token,
        token_type: token.token_type,
        expires_in: (end - context.gateway.clock.now().as_seconds()).max(0),
        scopes: token.scopes,
        connection_id: token.connection_id,
    }))
}
