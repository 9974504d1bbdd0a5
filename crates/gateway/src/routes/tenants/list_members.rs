//! `GET /v1/tenant/members`: who belongs to the tenant.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::auth::v1::ListMembersRequest;
use serde::Serialize;
use utoipa::ToSchema;

use super::MemberView;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};
use crate::routes::PageQuery;

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Auth),
        &["/gatehouse.auth.v1.TenantService/ListMembers"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// One page of members.
#[derive(Serialize, ToSchema)]
pub(super) struct MemberList {
    members: Vec<MemberView>,
    /// Absent at the end.
    #[serde(skip_serializing_if = "String::is_empty")]
    next_page_token: String,
}

/// The members of the tenant.
#[utoipa::path(get, path = "/v1/tenant/members", operation_id = "listMembers", tag = "tenants", params(PageQuery), responses((status = 200, body = MemberList, description = "The members")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let page: PageQuery = context.query()?;
    let request = ListMembersRequest { page_size: page.page_size, page_token: page.page_token };
    let answer = context.tenants().await?.list_members(request).await.map_err(from_status)?.into_inner();
    let members = answer.members.into_iter().map(|member| MemberView::new(Some(member)));
    Ok(HttpResponse::Ok().json(MemberList {
        members: members.collect::<Result<_>>()?,
        next_page_token: answer.next_page_token,
    }))
}
