//! Members of a tenant and their roles.

use gatehouse_core::ids::{PersonId, TenantId};
use gatehouse_core::{Error, Result};
use gatehouse_db::{Tx, read_tx, run_tx};
use gatehouse_service::Caller;
use serde_json::json;

use super::App;
use crate::domain::email::Email;
use crate::domain::roles::Role;
use crate::store::memberships::{self, Member};
use crate::store::revocations::{self, Revoked};
use crate::store::sessions::{self, EndReason};
use crate::store::{people, tenants};

fn role_too_high() -> Error {
    Error::permission_denied("ROLE_TOO_HIGH", "Nobody gives or takes a role above their own.")
}

fn member_not_found() -> Error {
    Error::not_found("MEMBER_NOT_FOUND", "This tenant has no such member.")
}

fn last_owner() -> Error {
    Error::failed_precondition("LAST_OWNER", "A tenant needs an owner. Make someone else an owner first.")
}

fn tenant_role(text: &str) -> Result<Role> {
    let wrong = || Error::invalid_field("role", "must be one of owner, admin, member, viewer");
    text.parse::<Role>().ok().filter(|role| role.is_of_a_tenant()).ok_or_else(wrong)
}

/// The role with which the caller manages members: as it is now, not as it was when their token was made.
async fn own_role(tx: &mut Tx, tenant: TenantId, person: PersonId) -> gatehouse_db::Result<Role> {
    memberships::lookup_role(tx, tenant, person).await?.ok_or_else(|| role_too_high().into())
}

impl App {
    /// A page of the tenant's members, in the order of their ids, after `after`.
    ///
    /// # Errors
    /// `TENANT_REQUIRED`.
    pub async fn list_members(&self, caller: &Caller, after: PersonId, limit: u32) -> Result<Vec<Member>> {
        let tenant = caller.tenant()?;
        Ok(read_tx!(self.0.db, "auth.member.list", |tx| {
            memberships::list(tx, tenant, after, limit).await
        })?)
    }

    /// Adds an existing account to the caller's tenant. Outside dev only one whose address was shown to be its owner's:
    /// else whoever registers someone's address first gets the role that was meant for them.
    ///
    /// # Errors
    /// `INVALID_FIELD`, `PERSON_NOT_FOUND`, `EMAIL_NOT_VERIFIED`, `ALREADY_MEMBER`, `ROLE_TOO_HIGH`, `PERSON_REQUIRED`.
    pub async fn add_member(&self, caller: &Caller, address: &str, role: &str) -> Result<Member> {
        let (tenant, actor, role) = (caller.tenant()?, caller.person()?, tenant_role(role)?);
        let email =
            Email::parse(address).map_err(|error| Error::invalid_field("email", error.to_string()))?;
        let now = self.now();
        let event =
            self.0.outbox.event("auth.members.add").by(caller).payload(json!({ "role": role.as_str() }));
        let member = run_tx!(self.0.db, "auth.member.add", |tx| {
            tenants::lock_members(tx, tenant).await?;
            if !own_role(tx, tenant, actor).await?.may_grant(role) {
                return Err(role_too_high().into());
            }
            let Some(person) = people::lookup_by_email(tx, email.as_str())
                .await?
                .filter(|person| person.disabled_at.is_none())
            else {
                let message = "Nobody here has this address. Ask them to make an account first.";
                return Err(Error::not_found("PERSON_NOT_FOUND", message).into());
            };
            if memberships::lookup_role(tx, tenant, person.id).await?.is_some() {
                return Err(Error::already_exists("ALREADY_MEMBER", "They are a member already.").into());
            }
            if !person.email_verified && !self.0.environment.is_dev() {
                let message =
                    "This address has not been verified. Ask its owner to verify it first, then add them.";
                return Err(Error::failed_precondition("EMAIL_NOT_VERIFIED", message).into());
            }
            memberships::add(tx, tenant, person.id, role, now).await?;
            let event = event.clone().about(person.id).target("person", person.id.as_uuid());
            self.0.outbox.emit(tx, &event).await?;
            Ok(Member {
                person: person.id,
                email: person.email,
                display_name: person.display_name,
                role,
                added_at: now,
            })
        })?;
        Ok(member)
    }

    /// Changes a member's role; tokens with the old one die, and so do API keys of theirs that may do more than it.
    ///
    /// # Errors
    /// `INVALID_FIELD`, `MEMBER_NOT_FOUND`, `ROLE_TOO_HIGH`, `LAST_OWNER`, `PERSON_REQUIRED`.
    pub async fn set_member_role(&self, caller: &Caller, person: PersonId, role: &str) -> Result<Member> {
        let (tenant, actor, role) = (caller.tenant()?, caller.person()?, tenant_role(role)?);
        let now = self.now();
        let event = self.0.outbox.event("auth.members.set_role").by(caller).about(person);
        let event = event.target("person", person.as_uuid());
        let member = run_tx!(self.0.db, "auth.member.set_role", |tx| {
            tenants::lock_members(tx, tenant).await?;
            let own = own_role(tx, tenant, actor).await?;
            let Some(member) = memberships::lookup(tx, tenant, person).await? else {
                return Err(member_not_found().into());
            };
            if !own.may_grant(member.role) || !own.may_grant(role) {
                return Err(role_too_high().into());
            }
            if member.role == role {
                return Ok(member);
            }
            if !memberships::set_role(tx, tenant, person, member.role, role).await? {
                return Err(last_owner().into());
            }
            let change = json!({ "from": member.role.as_str(), "to": role.as_str() });
            self.0.outbox.emit(tx, &event.clone().payload(change)).await?;
            self.revoke_keys_above(tx, caller, (tenant, person), Some(role), now).await?;
            let revoked = Revoked::Membership(person, tenant);
            revocations::add(tx, &revoked, now, self.0.config.longest_token()).await?;
            Ok(Member { role, ..member })
        })?;
        self.revoked();
        Ok(member)
    }

    /// Removes a member; their sessions in this tenant end, and every API key that they made there.
    ///
    /// # Errors
    /// `MEMBER_NOT_FOUND`, `ROLE_TOO_HIGH`, `LAST_OWNER`, `PERSON_REQUIRED`.
    pub async fn remove_member(&self, caller: &Caller, person: PersonId) -> Result<()> {
        let (tenant, actor) = (caller.tenant()?, caller.person()?);
        let now = self.now();
        let event = self.0.outbox.event("auth.members.remove").by(caller).about(person);
        let event = event.target("person", person.as_uuid());
        run_tx!(self.0.db, "auth.member.remove", |tx| {
            tenants::lock_members(tx, tenant).await?;
            let own = own_role(tx, tenant, actor).await?;
            let Some(role) = memberships::lookup_role(tx, tenant, person).await? else {
                return Err(member_not_found().into());
            };
            // Whoever may manage members may also leave.
            if !own.may_grant(role) {
                return Err(role_too_high().into());
            }
            if !memberships::remove(tx, tenant, person, role).await? {
                return Err(last_owner().into());
            }
            sessions::end_in_tenant(tx, tenant, person, EndReason::MembershipEnded, now).await?;
            self.0.outbox.emit(tx, &event).await?;
            self.revoke_keys_above(tx, caller, (tenant, person), None, now).await?;
            let revoked = Revoked::Membership(person, tenant);
            revocations::add(tx, &revoked, now, self.0.config.longest_token()).await?;
            Ok(())
        })?;
        self.revoked();
        Ok(())
    }
}
