//! `GET /v1/connections`: the own connections.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::token_broker::v1::ListConnectionsRequest;
use serde::Serialize;
use utoipa::ToSchema;

use super::ConnectionView;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::TokenBroker),
        &["/gatehouse.token_broker.v1.TokenBrokerService/ListConnections"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// Connections.
#[derive(Serialize, ToSchema)]
pub(super) struct ConnectionList {
    connections: Vec<ConnectionView>,
}

/// The caller's own connections, those that were disconnected in the last 30 days behind the others.
#[utoipa::path(get, path = "/v1/connections", operation_id = "listConnections", tag = "connections", responses((status = 200, body = ConnectionList, description = "The connections")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let answer = context
        .broker()
        .await?
        .list_connections(ListConnectionsRequest {})
        .await
        .map_err(from_status)?
        .into_inner();
    let connections = answer.connections.into_iter().map(|connection| ConnectionView::new(Some(connection)));
    Ok(HttpResponse::Ok().json(ConnectionList { connections: connections.collect::<Result<_>>()? }))
}
