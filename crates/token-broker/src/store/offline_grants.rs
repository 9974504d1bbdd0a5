//! The table `offline_grants`.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::{OfflineGrantId, PersonId, TenantId};
use gatehouse_db::{Result, Row, Tx, params, sql};

use super::connections::key;
use crate::domain::connection::{ConnectionKey, OfflineGrant};
use crate::domain::scopes::Scopes;

macro_rules! columns {
    () => {
        "tenant_id, offline_grant_id, person_id, connection_id, client_id, scopes, created_at, expires_at, revoked_at"
    };
}

sql! {
    ADD_GRANT = "INSERT INTO offline_grants (tenant_id, offline_grant_id, person_id, connection_id, client_id, scopes, \
        created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    LIST_GRANTS = concat!("SELECT ", columns!(), " FROM offline_grants WHERE tenant_id = $1 AND person_id = $2 \
        ORDER BY CASE WHEN revoked_at IS NULL AND expires_at > $3 THEN 0 ELSE 1 END, offline_grant_id DESC LIMIT $4");
    COUNT_GRANTS = "SELECT COUNT(*) AS held FROM offline_grants WHERE tenant_id = $1 AND person_id = $2 \
        AND revoked_at IS NULL AND expires_at > $3";
    /// By id and client alone: a platform's client has no tenant, the grant names it.
    FIND_GRANT = concat!("SELECT ", columns!(), " FROM offline_grants WHERE offline_grant_id = $1 AND client_id = $2");
    GET_GRANT = concat!("SELECT ", columns!(), " FROM offline_grants WHERE tenant_id = $1 AND offline_grant_id = $2 \
        AND person_id = $3");
    REVOKE_GRANT = "UPDATE offline_grants SET revoked_at = $4 WHERE tenant_id = $1 AND offline_grant_id = $2 \
        AND person_id = $3 AND revoked_at IS NULL";
    /// Maintenance: those that ended long ago.
    FORGET_GRANTS = "DELETE FROM offline_grants WHERE revoked_at < $1 OR expires_at < $1";
    /// Maintenance: the grants of everyone that have not ended, a page at a time.
    LIST_STANDING_GRANTS = concat!("SELECT ", columns!(), " FROM offline_grants WHERE offline_grant_id > $1 \
        AND revoked_at IS NULL AND expires_at > $2 ORDER BY offline_grant_id LIMIT 500");
    REVOKE_GRANTS_OF_CONNECTION = "UPDATE offline_grants SET revoked_at = $3 WHERE tenant_id = $1 AND connection_id = $2 \
        AND revoked_at IS NULL";
}

fn read(row: &Row) -> Result<OfflineGrant> {
    Ok(OfflineGrant {
        id: row.get("offline_grant_id")?,
        key: key(row)?,
        person: row.get("person_id")?,
        client: row.get("client_id")?,
        scopes: Scopes::parse(&row.get::<String>("scopes")?),
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
        revoked_at: row.get("revoked_at")?,
    })
}

pub(crate) async fn add(tx: &mut Tx, grant: &OfflineGrant) -> Result<()> {
    let values = params![
        grant.key.tenant,
        grant.id,
        grant.person,
        grant.key.connection,
        &grant.client,
        grant.scopes.to_string(),
        grant.created_at,
        grant.expires_at
    ];
    tx.execute(&ADD_GRANT, values).await.map(drop)
}

/// At most `most`, those that have ended at `now` last.
pub(crate) async fn list(
    tx: &mut Tx,
    tenant: TenantId,
    person: PersonId,
    now: Timestamp,
    most: i64,
) -> Result<Vec<OfflineGrant>> {
    tx.fetch_all(&LIST_GRANTS, params![tenant, person, now, most]).await?.iter().map(read).collect()
}

pub(crate) async fn count(tx: &mut Tx, tenant: TenantId, person: PersonId, now: Timestamp) -> Result<i64> {
    tx.fetch_one(&COUNT_GRANTS, params![tenant, person, now]).await?.get("held")
}

pub(crate) async fn find_for_client(
    tx: &mut Tx,
    id: OfflineGrantId,
    client: &str,
) -> Result<Option<OfflineGrant>> {
    tx.fetch_optional(&FIND_GRANT, params![id, client]).await?.as_ref().map(read).transpose()
}

pub(crate) async fn lookup(
    tx: &mut Tx,
    tenant: TenantId,
    id: OfflineGrantId,
    person: PersonId,
) -> Result<Option<OfflineGrant>> {
    tx.fetch_optional(&GET_GRANT, params![tenant, id, person]).await?.as_ref().map(read).transpose()
}

pub(crate) async fn revoke(
    tx: &mut Tx,
    tenant: TenantId,
    id: OfflineGrantId,
    person: PersonId,
    now: Timestamp,
) -> Result<bool> {
    Ok(tx.execute(&REVOKE_GRANT, params![tenant, id, person, now]).await? == 1)
}

pub(crate) async fn list_standing(
    tx: &mut Tx,
    after: OfflineGrantId,
    now: Timestamp,
) -> Result<Vec<OfflineGrant>> {
    tx.fetch_all(&LIST_STANDING_GRANTS, params![after, now]).await?.iter().map(read).collect()
}

pub(crate) async fn forget(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    tx.execute(&FORGET_GRANTS, params![before]).await
}

pub(crate) async fn revoke_all_of(tx: &mut Tx, key: ConnectionKey, now: Timestamp) -> Result<u64> {
    tx.execute(&REVOKE_GRANTS_OF_CONNECTION, params![key.tenant, key.connection, now]).await
}
