//! `DELETE /v1/connections/{connection_id}`: disconnect.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_core::ids::ConnectionId;
use gatehouse_proto::token_broker::v1::DisconnectRequest;
use serde::Serialize;
use utoipa::ToSchema;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::TokenBroker),
        &["/gatehouse.token_broker.v1.TokenBrokerService/Disconnect"],
        LimitClass::Write,
        handler!(handle),
    )
}

/// What came of it.
#[derive(Serialize, ToSchema)]
pub(super) struct Disconnected {
    /// Whether the upstream confirmed the revocation.
    revoked_upstream: bool,
}

/// End a connection: its refresh token is shredded, and revoked upstream where that is possible.
#[utoipa::path(delete, path = "/v1/connections/{connection_id}", operation_id = "disconnect", tag = "connections", params(("connection_id" = String, Path, format = Uuid)), responses((status = 200, body = Disconnected, description = "Ended")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    context.no_body().await?;
    let connection_id = context.id::<ConnectionId>("connection_id")?.to_string();
    let request = DisconnectRequest { connection_id };
    let answer = context.broker().await?.disconnect(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Ok().json(Disconnected { revoked_upstream: answer.revoked_upstream }))
}
