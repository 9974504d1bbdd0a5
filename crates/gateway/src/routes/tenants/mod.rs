//! Tenants and who belongs to them.

use gatehouse_core::{Error, Result};
use gatehouse_proto::auth::v1::{Member, Tenant};
use serde::Serialize;
use utoipa::ToSchema;

use crate::route::Route;
use crate::time;

mod add_member;
mod create;
mod get;
mod list;
mod list_members;
mod remove_member;
mod set_member_role;

pub(super) fn routes() -> Vec<Route> {
    vec![
        create::route(),
        list::route(),
        get::route(),
        list_members::route(),
        add_member::route(),
        set_member_role::route(),
        remove_member::route(),
    ]
}

/// A tenant.
#[derive(Serialize, ToSchema)]
#[schema(as = Tenant)]
struct TenantView {
    tenant_id: String,
    name: String,
    #[schema(format = DateTime)]
    created_at: Option<String>,
    /// The caller's role in it.
    role: String,
}

impl TenantView {
    fn new(tenant: Option<Tenant>) -> Result<Self> {
        let tenant = tenant.ok_or_else(|| Error::internal("auth answered without a tenant"))?;
        Ok(Self {
            tenant_id: tenant.tenant_id,
            name: tenant.name,
            created_at: time::text(tenant.created_at),
            role: tenant.role,
        })
    }
}

/// A member of a tenant.
#[derive(Serialize, ToSchema)]
#[schema(as = Member)]
struct MemberView {
    person_id: String,
    email: String,
    display_name: String,
    role: String,
    #[schema(format = DateTime)]
    added_at: Option<String>,
}

impl MemberView {
    fn new(member: Option<Member>) -> Result<Self> {
        let member = member.ok_or_else(|| Error::internal("auth answered without a member"))?;
        Ok(Self {
            person_id: member.person_id,
            email: member.email,
            display_name: member.display_name,
            role: member.role,
            added_at: time::text(member.added_at),
        })
    }
}
