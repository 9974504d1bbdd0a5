//! `POST /v1/connections`: begin to connect an upstream.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::token_broker::v1::BeginConnectionRequest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};
use crate::routes::chosen;
use crate::time;

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::TokenBroker),
        &["/gatehouse.token_broker.v1.TokenBrokerService/BeginConnection"],
        LimitClass::Write,
        handler!(handle),
    )
}

/// What to connect.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BeginConnectionBody {
    upstream: String,
    /// A subset of the upstream's scopes; absent means all.
    scopes: Option<Vec<String>>,
}

/// Where to go.
#[derive(Serialize, ToSchema)]
pub(super) struct ConnectionBegun {
    /// Where to send the person's browser and nobody else: it is a secret until the callback.
    authorization_url: String,
    #[schema(format = DateTime)]
    expires_at: Option<String>,
}

/// Begin to connect an upstream: send the person's browser to the address in the answer, then hand what comes back to `/v1/connections/callback`.
#[utoipa::path(post, path = "/v1/connections", operation_id = "beginConnection", tag = "connections", request_body = BeginConnectionBody, responses((status = 201, body = ConnectionBegun, description = "Begun")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let body: BeginConnectionBody = context.json().await?;
    let request = BeginConnectionRequest { upstream: body.upstream, scopes: chosen("scopes", body.scopes)? };
    let begun = context.broker().await?.begin_connection(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Created().json(ConnectionBegun {
        authorization_url: begun.authorization_url,
        expires_at: time::text(begun.expires_at),
    }))
}
