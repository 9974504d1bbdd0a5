//! `GET /v1/upstreams`: what can be connected.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::token_broker::v1::ListUpstreamsRequest;
use serde::Serialize;
use utoipa::ToSchema;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::TokenBroker),
        &["/gatehouse.token_broker.v1.TokenBrokerService/ListUpstreams"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// Upstreams.
#[derive(Serialize, ToSchema)]
pub(super) struct UpstreamList {
    upstreams: Vec<UpstreamView>,
}

/// An upstream.
#[derive(Serialize, ToSchema)]
#[schema(as = Upstream)]
pub(super) struct UpstreamView {
    name: String,
    display_name: String,
    /// Scopes that may be asked for.
    scopes: Vec<String>,
}

/// The upstreams that a person may connect.
#[utoipa::path(get, path = "/v1/upstreams", operation_id = "listUpstreams", tag = "connections", responses((status = 200, body = UpstreamList, description = "The upstreams")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let answer = context
        .broker()
        .await?
        .list_upstreams(ListUpstreamsRequest {})
        .await
        .map_err(from_status)?
        .into_inner();
    let upstreams = answer.upstreams.into_iter().map(|upstream| UpstreamView {
        name: upstream.name,
        display_name: upstream.display_name,
        scopes: upstream.scopes,
    });
    Ok(HttpResponse::Ok().json(UpstreamList { upstreams: upstreams.collect() }))
}
