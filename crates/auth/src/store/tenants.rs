//! Tenants.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::{PersonId, TenantId};
use gatehouse_db::{Error, Row, Tx, params, sql};

use crate::domain::roles::Role;

sql! {
    /// Adds a tenant.
    pub ADD_TENANT = "INSERT INTO tenants (tenant_id, name, members_version, created_at) VALUES ($1, $2, 0, $3)";
    /// A tenant.
    pub LOOKUP_TENANT = "SELECT tenant_id, name, created_at FROM tenants WHERE tenant_id = $1";
    /// The tenants of a person, oldest first.
    pub LIST_TENANTS_OF_PERSON = "SELECT tenants.tenant_id, tenants.name, tenants.created_at, memberships.role FROM memberships JOIN tenants ON tenants.tenant_id = memberships.tenant_id WHERE memberships.person_id = $1 ORDER BY tenants.created_at, tenants.tenant_id LIMIT 200";
    /// Takes the tenant's row, for which all changes of its members queue: "there is always an owner" is about
    /// several rows of another table.
    pub LOCK_MEMBERS = "UPDATE tenants SET members_version = members_version + 1 WHERE tenant_id = $1";
}

/// A tenant.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Tenant {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self { id: row.get("tenant_id")?, name: row.get("name")?, created_at: row.get("created_at")? })
    }
}

/// Adds a tenant.
pub async fn add(tx: &mut Tx, tenant: &Tenant) -> Result<(), Error> {
    tx.execute(&ADD_TENANT, params![tenant.id, &tenant.name, tenant.created_at]).await?;
    Ok(())
}

/// The tenant `id`.
pub async fn lookup(tx: &mut Tx, id: TenantId) -> Result<Option<Tenant>, Error> {
    let row = tx.fetch_optional(&LOOKUP_TENANT, params![id]).await?;
    row.as_ref().map(Tenant::from_row).transpose()
}

/// The tenants of a person with their role in each, oldest first, at most 200.
pub async fn list_of_person(tx: &mut Tx, person: PersonId) -> Result<Vec<(Tenant, Role)>, Error> {
    let rows = tx.fetch_all(&LIST_TENANTS_OF_PERSON, params![person]).await?;
    rows.iter().map(|row| Ok((Tenant::from_row(row)?, row.parse("role")?))).collect()
}

/// See [`LOCK_MEMBERS`].
pub async fn lock_members(tx: &mut Tx, id: TenantId) -> Result<(), Error> {
    tx.execute(&LOCK_MEMBERS, params![id]).await?;
    Ok(())
}
