//! Tenants.

use gatehouse_core::ids::{PersonId, TenantId};
use gatehouse_core::{Error, Result, Timestamp};
use gatehouse_db::{Tx, read_tx, run_tx};
use gatehouse_service::Caller;

use super::App;
use crate::domain::roles::Role;
use crate::domain::text;
use crate::store::tenants::{self, Tenant};
use crate::store::{memberships, people};

impl App {
    /// Makes a tenant with the caller as its owner.
    ///
    /// # Errors
    /// `PERSON_REQUIRED`, `INVALID_FIELD`, `TOO_MANY_TENANTS`.
    pub async fn create_tenant(&self, caller: &Caller, name: &str) -> Result<Tenant> {
        let person = caller.person()?;
        let name = text::name("name", name)?;
        let id = TenantId::new(&self.0.clock, &self.0.entropy);
        let now = self.now();
        // The new tenant's own trail begins with its making.
        let event =
            self.0.outbox.event("auth.tenants.create").by(caller).tenant(id).target("tenant", id.as_uuid());
        run_tx!(self.0.db, "auth.tenant.create", |tx| {
            people::lock(tx, person).await?;
            let held = tenants::list_of_person(tx, person).await?.len();
            if held >= self.0.config.max_tenants_per_person as usize {
                let message = "You are in as many tenants as are allowed. Leave one first.";
                return Err(Error::failed_precondition("TOO_MANY_TENANTS", message).into());
            }
            found(tx, id, &name, person, now).await?;
            self.0.outbox.emit(tx, &event).await
        })?;
        Ok(Tenant { id, name, created_at: now })
    }

    /// The caller's tenant, with the caller's role in it where they are a person.
    ///
    /// # Errors
    /// `TENANT_REQUIRED`, `TENANT_NOT_FOUND`.
    pub async fn get_tenant(&self, caller: &Caller) -> Result<(Tenant, Option<Role>)> {
        let id = caller.tenant()?;
        let (tenant, role) = read_tx!(self.0.db, "auth.tenant.get", |tx| {
            let role = match caller.person() {
                Ok(person) => memberships::lookup_role(tx, id, person).await?,
                Err(_) => None,
            };
            Ok((tenants::lookup(tx, id).await?, role))
        })?;
        let tenant = tenant.ok_or_else(|| Error::not_found("TENANT_NOT_FOUND", "This tenant is no more."))?;
        Ok((tenant, role))
    }

    /// The tenants that the caller is a member of, with their role in each.
    ///
    /// # Errors
    /// `PERSON_REQUIRED`.
    pub async fn list_tenants(&self, caller: &Caller) -> Result<Vec<(Tenant, Role)>> {
        let person = caller.person()?;
        Ok(read_tx!(self.0.db, "auth.tenant.list", |tx| { tenants::list_of_person(tx, person).await })?)
    }
}

/// Adds a tenant with its first owner.
pub(crate) async fn found(
    tx: &mut Tx,
    id: TenantId,
    name: &str,
    owner: PersonId,
    now: Timestamp,
) -> gatehouse_db::Result<()> {
    tenants::add(tx, &Tenant { id, name: name.to_owned(), created_at: now }).await?;
    memberships::add(tx, id, owner, Role::Owner, now).await.map(drop)
}
