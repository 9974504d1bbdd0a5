//! `GET /v1/connections/{connection_id}`: one of the own connections.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_core::ids::ConnectionId;
use gatehouse_proto::token_broker::v1::GetConnectionRequest;

use super::ConnectionView;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::TokenBroker),
        &["/gatehouse.token_broker.v1.TokenBrokerService/GetConnection"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// One of the caller's own connections.
#[utoipa::path(get, path = "/v1/connections/{connection_id}", operation_id = "getConnection", tag = "connections", params(("connection_id" = String, Path, format = Uuid)), responses((status = 200, body = ConnectionView, description = "The connection")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let connection_id = context.id::<ConnectionId>("connection_id")?.to_string();
    let request = GetConnectionRequest { connection_id };
    let answer = context.broker().await?.get_connection(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Ok().json(ConnectionView::new(answer.connection)?))
}
