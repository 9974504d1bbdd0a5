//! `GET /v1/tenants`: the tenants of the caller.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::auth::v1::ListTenantsRequest;
use serde::Serialize;
use utoipa::ToSchema;

use super::TenantView;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Auth),
        &["/gatehouse.auth.v1.TenantService/ListTenants"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// Tenants.
#[derive(Serialize, ToSchema)]
pub(super) struct TenantList {
    tenants: Vec<TenantView>,
}

/// The tenants that the caller is a member of.
#[utoipa::path(get, path = "/v1/tenants", operation_id = "listTenants", tag = "tenants", responses((status = 200, body = TenantList, description = "The tenants")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let answer =
        context.tenants().await?.list_tenants(ListTenantsRequest {}).await.map_err(from_status)?.into_inner();
    let tenants = answer.tenants.into_iter().map(|tenant| TenantView::new(Some(tenant)));
    Ok(HttpResponse::Ok().json(TenantList { tenants: tenants.collect::<Result<_>>()? }))
}
