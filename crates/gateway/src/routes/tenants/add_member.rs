//! `POST /v1/tenant/members`: add somebody to the tenant.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::auth::v1::AddMemberRequest;
use serde::Deserialize;
use utoipa::ToSchema;

use super::MemberView;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Auth),
        &["/gatehouse.auth.v1.TenantService/AddMember"],
        LimitClass::Write,
        handler!(handle),
    )
}

/// Who is added, as what.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AddMemberBody {
    email: String,
    /// `owner`, `admin`, `member` or `viewer`.
    role: String,
}

/// Add an existing account to the tenant. Nobody grants a role above their own.
#[utoipa::path(post, path = "/v1/tenant/members", operation_id = "addMember", tag = "tenants", request_body = AddMemberBody, responses((status = 201, body = MemberView, description = "Added")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let body: AddMemberBody = context.json().await?;
    let request = AddMemberRequest { email: body.email, role: body.role };
    let answer = context.tenants().await?.add_member(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Created().json(MemberView::new(answer.member)?))
}
