//! `GET /v1/auth/me`: who the caller is.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::auth::v1::WhoAmIRequest;
use serde::Serialize;
use utoipa::ToSchema;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Auth),
        &["/gatehouse.auth.v1.AccountService/WhoAmI"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// Who the caller is.
#[derive(Serialize, ToSchema)]
pub(super) struct Me {
    /// `person`, `api_key` or `client`.
    kind: String,
    /// Person id, credential id or client name.
    subject: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    tenant_id: String,
    roles: Vec<String>,
    /// For every service.
    permissions: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    email: String,
    email_verified: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    display_name: String,
}

/// Who the caller is: person or API key, tenant, roles, permissions.
#[utoipa::path(get, path = "/v1/auth/me", operation_id = "whoAmI", tag = "auth", responses((status = 200, body = Me, description = "The caller")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let me = context.accounts().await?.who_am_i(WhoAmIRequest {}).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Ok().json(Me {
        kind: me.kind,
        subject: me.subject,
        tenant_id: me.tenant_id,
        roles: me.roles,
        permissions: me.permissions,
        email: me.email,
        email_verified: me.email_verified,
        display_name: me.display_name,
    }))
}
