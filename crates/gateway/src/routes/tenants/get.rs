//! `GET /v1/tenant`: the tenant acted in.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::auth::v1::GetTenantRequest;

use super::TenantView;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Auth),
        &["/gatehouse.auth.v1.TenantService/GetTenant"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// The tenant that the credential acts in.
#[utoipa::path(get, path = "/v1/tenant", operation_id = "getTenant", tag = "tenants", responses((status = 200, body = TenantView, description = "The tenant")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let answer =
        context.tenants().await?.get_tenant(GetTenantRequest {}).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Ok().json(TenantView::new(answer.tenant)?))
}
