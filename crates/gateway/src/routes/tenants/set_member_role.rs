//! `PUT /v1/tenant/members/{person_id}`: change a role.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_core::ids::PersonId;
use gatehouse_proto::auth::v1::SetMemberRoleRequest;
use serde::Deserialize;
use utoipa::ToSchema;

use super::MemberView;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Auth),
        &["/gatehouse.auth.v1.TenantService/SetMemberRole"],
        LimitClass::Write,
        handler!(handle),
    )
}

/// The new role.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SetMemberRoleBody {
    /// `owner`, `admin`, `member` or `viewer`.
    role: String,
}

/// Change a member's role. Their tokens with the old role stop working within a second.
#[utoipa::path(put, path = "/v1/tenant/members/{person_id}", operation_id = "setMemberRole", tag = "tenants", params(("person_id" = String, Path, format = Uuid)), request_body = SetMemberRoleBody, responses((status = 200, body = MemberView, description = "Changed")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let person_id = context.id::<PersonId>("person_id")?.to_string();
    let body: SetMemberRoleBody = context.json().await?;
    let request = SetMemberRoleRequest { person_id, role: body.role };
    let answer = context.tenants().await?.set_member_role(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Ok().json(MemberView::new(answer.member)?))
}
