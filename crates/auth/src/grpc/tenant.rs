//! `gatehouse.auth.v1.TenantService`.

use gatehouse_core::ids::PersonId;
use gatehouse_core::{Error, Result};
use gatehouse_proto::auth::v1::tenant_service_server::TenantService;
use gatehouse_proto::auth::v1::{
    AddMemberRequest, AddMemberResponse, CreateTenantRequest, CreateTenantResponse, GetTenantRequest,
    GetTenantResponse, ListMembersRequest, ListMembersResponse, ListTenantsRequest, ListTenantsResponse,
    Member, RemoveMemberRequest, RemoveMemberResponse, SetMemberRoleRequest, SetMemberRoleResponse, Tenant,
};
use gatehouse_service::{Caller, reply};
use tonic::{Request, Response, Status, async_trait};
use uuid::Uuid;

use super::{Face, id, text};
use crate::domain::roles::Role;
use crate::store;

#[async_trait]
impl TenantService for Face {
    async fn create_tenant(
        &self,
        request: Request<CreateTenantRequest>,
    ) -> Result<Response<CreateTenantResponse>, Status> {
        let made = async { self.app.create_tenant(Caller::of(&request)?, &request.get_ref().name).await };
        reply(made.await.map(|made| CreateTenantResponse { tenant: Some(tenant(made, Some(Role::Owner))) }))
    }

    async fn get_tenant(
        &self,
        request: Request<GetTenantRequest>,
    ) -> Result<Response<GetTenantResponse>, Status> {
        let found = async { self.app.get_tenant(Caller::of(&request)?).await };
        reply(found.await.map(|(found, role)| GetTenantResponse { tenant: Some(tenant(found, role)) }))
    }

    async fn list_tenants(
        &self,
        request: Request<ListTenantsRequest>,
    ) -> Result<Response<ListTenantsResponse>, Status> {
        let listed = async { self.app.list_tenants(Caller::of(&request)?).await };
        reply(listed.await.map(|listed| ListTenantsResponse {
            tenants: listed.into_iter().map(|(listed, role)| tenant(listed, Some(role))).collect(),
        }))
    }

    async fn list_members(
        &self,
        request: Request<ListMembersRequest>,
    ) -> Result<Response<ListMembersResponse>, Status> {
        let listed = async {
            let message = request.get_ref();
            let size = match message.page_size {
                0 => 50,
                size => u32::try_from(size)
                    .ok()
                    .filter(|size| *size <= 200)
                    .ok_or_else(|| Error::invalid_field("page_size", "must be from 1 to 200, or 0 for 50"))?,
            };
            let after = match message.page_token.as_str() {
                "" => PersonId::from_uuid(Uuid::nil()),
                token => id("page_token", token)?,
            };
            // One more than asked for shows whether there is more.
            let mut members = self.app.list_members(Caller::of(&request)?, after, size + 1).await?;
            let more = members.len() > size as usize;
            members.truncate(size as usize);
            let next = members.last().filter(|_| more).map(|last| last.person);
            Ok(ListMembersResponse {
                next_page_token: text(next),
                members: members.into_iter().map(member).collect(),
            })
        };
        reply(listed.await)
    }

    async fn add_member(
        &self,
        request: Request<AddMemberRequest>,
    ) -> Result<Response<AddMemberResponse>, Status> {
        let added = async {
            let message = request.get_ref();
            self.app.add_member(Caller::of(&request)?, &message.email, &message.role).await
        };
        reply(added.await.map(|added| AddMemberResponse { member: Some(member(added)) }))
    }

    async fn set_member_role(
        &self,
        request: Request<SetMemberRoleRequest>,
    ) -> Result<Response<SetMemberRoleResponse>, Status> {
        let changed = async {
            let message = request.get_ref();
            let (person, role) = (id("person_id", &message.person_id)?, message.role.clone());
            let (app, caller) = (self.app.clone(), Caller::of(&request)?.clone());
            // It ends keys: as many as they made.
            self.finish(async move { app.set_member_role(&caller, person, &role).await }).await
        };
        reply(changed.await.map(|changed| SetMemberRoleResponse { member: Some(member(changed)) }))
    }

    async fn remove_member(
        &self,
        request: Request<RemoveMemberRequest>,
    ) -> Result<Response<RemoveMemberResponse>, Status> {
        let removed = async {
            let person = id("person_id", &request.get_ref().person_id)?;
            let (app, caller) = (self.app.clone(), Caller::of(&request)?.clone());
            self.finish(async move { app.remove_member(&caller, person).await }).await
        };
        reply(removed.await.map(|()| RemoveMemberResponse {}))
    }
}

fn tenant(tenant: store::tenants::Tenant, role: Option<Role>) -> Tenant {
    Tenant {
        tenant_id: tenant.id.to_string(),
        name: tenant.name,
        created_at: tenant.created_at.as_micros(),
        role: text(role),
    }
}

fn member(member: store::memberships::Member) -> Member {
    Member {
        person_id: member.person.to_string(),
        email: member.email,
        display_name: member.display_name,
        role: member.role.to_string(),
        added_at: member.added_at.as_micros(),
    }
}
