//! `GET /v1/offline-grants`: who may act for the caller.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::token_broker::v1::ListOfflineGrantsRequest;
use serde::Serialize;
use utoipa::ToSchema;

use super::OfflineGrantView;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::TokenBroker),
        &["/gatehouse.token_broker.v1.TokenBrokerService/ListOfflineGrants"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// Offline grants.
#[derive(Serialize, ToSchema)]
pub(super) struct OfflineGrantList {
    grants: Vec<OfflineGrantView>,
}

/// The caller's own offline grants, those that ended in the last 30 days behind the others.
#[utoipa::path(get, path = "/v1/offline-grants", operation_id = "listOfflineGrants", tag = "connections", responses((status = 200, body = OfflineGrantList, description = "The grants")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let answer = context
        .broker()
        .await?
        .list_offline_grants(ListOfflineGrantsRequest {})
        .await
        .map_err(from_status)?
        .into_inner();
    let grants = answer.grants.into_iter().map(|grant| OfflineGrantView::new(Some(grant)));
    Ok(HttpResponse::Ok().json(OfflineGrantList { grants: grants.collect::<Result<_>>()? }))
}
