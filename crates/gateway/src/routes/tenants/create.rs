//! `POST /v1/tenants`: make a tenant.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::auth::v1::CreateTenantRequest;
use serde::Deserialize;
use utoipa::ToSchema;

use super::TenantView;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Auth),
        &["/gatehouse.auth.v1.TenantService/CreateTenant"],
        LimitClass::Write,
        handler!(handle),
    )
}

/// A new tenant.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateTenantBody {
    /// 1 to 100 characters.
    name: String,
}

/// Make a tenant with the caller as its owner. Sign in again to act in it.
#[utoipa::path(post, path = "/v1/tenants", operation_id = "createTenant", tag = "tenants", request_body = CreateTenantBody, responses((status = 201, body = TenantView, description = "Made")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let body: CreateTenantBody = context.json().await?;
    let request = CreateTenantRequest { name: body.name };
    let made = context.tenants().await?.create_tenant(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Created().json(TenantView::new(made.tenant)?))
}
