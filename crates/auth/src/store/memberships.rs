//! Who belongs to which tenant, with which role.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::{PersonId, TenantId};
use gatehouse_db::{Error, Row, Tx, params, sql};

use crate::domain::roles::Role;

sql! {
    /// A person's role in a tenant.
    pub LOOKUP_ROLE = "SELECT role FROM memberships WHERE tenant_id = $1 AND person_id = $2";
    /// One member.
    pub LOOKUP_MEMBER = "SELECT memberships.person_id, memberships.role, memberships.added_at, people.email, people.display_name FROM memberships JOIN people ON people.person_id = memberships.person_id WHERE memberships.tenant_id = $1 AND memberships.person_id = $2";
    /// A page of members, in the order of their ids, after the one given.
    pub LIST_MEMBERS = "SELECT memberships.person_id, memberships.role, memberships.added_at, people.email, people.display_name FROM memberships JOIN people ON people.person_id = memberships.person_id WHERE memberships.tenant_id = $1 AND memberships.person_id > $2 ORDER BY memberships.person_id LIMIT $3";
    /// Adds a member unless they are one.
    pub ADD_MEMBER = "INSERT INTO memberships (tenant_id, person_id, role, added_at) VALUES ($1, $2, $3, $4) ON CONFLICT (tenant_id, person_id) DO NOTHING";
    /// Changes a role, unless that would leave the tenant without an owner.
    pub SET_ROLE = "UPDATE memberships SET role = $4 WHERE tenant_id = $1 AND person_id = $2 AND role = $3 AND ($3 <> 'owner' OR EXISTS (SELECT 1 FROM memberships AS others WHERE others.tenant_id = $1 AND others.person_id <> $2 AND others.role = 'owner'))";
    /// Removes a member, unless that would leave the tenant without an owner.
    pub REMOVE_MEMBER = "DELETE FROM memberships WHERE tenant_id = $1 AND person_id = $2 AND role = $3 AND ($3 <> 'owner' OR EXISTS (SELECT 1 FROM memberships AS others WHERE others.tenant_id = $1 AND others.person_id <> $2 AND others.role = 'owner'))";
}

/// A member of a tenant.
#[derive(Clone, Debug)]
pub struct Member {
    /// Who.
    pub person: PersonId,
    /// Their address.
    pub email: String,
    /// Their name for display.
    pub display_name: String,
    /// Their role.
    pub role: Role,
    /// Since when.
    pub added_at: Timestamp,
}

impl Member {
    fn from_row(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            person: row.get("person_id")?,
            email: row.get("email")?,
            display_name: row.get("display_name")?,
            role: row.parse("role")?,
            added_at: row.get("added_at")?,
        })
    }
}

/// The role of `person` in `tenant`.
pub async fn lookup_role(tx: &mut Tx, tenant: TenantId, person: PersonId) -> Result<Option<Role>, Error> {
    let row = tx.fetch_optional(&LOOKUP_ROLE, params![tenant, person]).await?;
    row.map(|row| row.parse("role")).transpose()
}

/// One member.
pub async fn lookup(tx: &mut Tx, tenant: TenantId, person: PersonId) -> Result<Option<Member>, Error> {
    let row = tx.fetch_optional(&LOOKUP_MEMBER, params![tenant, person]).await?;
    row.as_ref().map(Member::from_row).transpose()
}

/// At most `limit` members after `after`, in the order of their ids.
pub async fn list(tx: &mut Tx, tenant: TenantId, after: PersonId, limit: u32) -> Result<Vec<Member>, Error> {
    tx.fetch_all(&LIST_MEMBERS, params![tenant, after, limit]).await?.iter().map(Member::from_row).collect()
}

/// Adds a member; `false` if they are one.
pub async fn add(
    tx: &mut Tx,
    tenant: TenantId,
    person: PersonId,
    role: Role,
    now: Timestamp,
) -> Result<bool, Error> {
    Ok(tx.execute(&ADD_MEMBER, params![tenant, person, role.as_str(), now]).await? == 1)
}

/// Changes a role from `from` to `to`; `false` if it was another or the last owner's. Call
/// [`super::tenants::lock_members`] before.
pub async fn set_role(
    tx: &mut Tx,
    tenant: TenantId,
    person: PersonId,
    from: Role,
    to: Role,
) -> Result<bool, Error> {
    Ok(tx.execute(&SET_ROLE, params![tenant, person, from.as_str(), to.as_str()]).await? == 1)
}

/// Removes a member who has `role`; `false` if they had another or are the last owner. Call
/// [`super::tenants::lock_members`] before.
pub async fn remove(tx: &mut Tx, tenant: TenantId, person: PersonId, role: Role) -> Result<bool, Error> {
    Ok(tx.execute(&REMOVE_MEMBER, params![tenant, person, role.as_str()]).await? == 1)
}
