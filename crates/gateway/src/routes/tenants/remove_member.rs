//! `DELETE /v1/tenant/members/{person_id}`: remove somebody from the tenant.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_core::ids::PersonId;
use gatehouse_proto::auth::v1::RemoveMemberRequest;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Auth),
        &["/gatehouse.auth.v1.TenantService/RemoveMember"],
        LimitClass::Write,
        handler!(handle),
    )
}

/// Remove a member. Their tokens for this tenant stop working within a second.
#[utoipa::path(delete, path = "/v1/tenant/members/{person_id}", operation_id = "removeMember", tag = "tenants", params(("person_id" = String, Path, format = Uuid)), responses((status = 204, description = "Removed")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    context.no_body().await?;
    let person_id = context.id::<PersonId>("person_id")?.to_string();
    context.tenants().await?.remove_member(RemoveMemberRequest { person_id }).await.map_err(from_status)?;
    Ok(HttpResponse::NoContent().finish())
}
