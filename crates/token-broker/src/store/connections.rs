//! The table `connections`.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::{ConnectionId, PersonId, TenantId};
use gatehouse_db::{Result, Row, Tx, params, sql};
use uuid::Uuid;

use crate::domain::connection::{Connection, ConnectionKey};
use crate::domain::scopes::Scopes;

macro_rules! columns {
    () => {
        "tenant_id, connection_id, person_id, upstream, scopes, state, generation, rotations, lease_until, failures, \
         retry_at, created_at, rotated_at, last_used_at"
    };
}

sql! {
    /// A connection whose first token is being fetched, unless the person has a live one there.
    ADD_CONNECTION = "INSERT INTO connections (tenant_id, connection_id, person_id, upstream, scopes, state, generation, \
        rotations, failures, created_at) VALUES ($1, $2, $3, $4, $5, 'connecting', 0, 0, 0, $6) \
        ON CONFLICT (tenant_id, person_id, upstream) WHERE state <> 'disconnected' DO NOTHING";
    GET_CONNECTION = concat!("SELECT ", columns!(), " FROM connections WHERE tenant_id = $1 AND connection_id = $2");
    /// A person's live connection to an upstream.
    FIND_LIVE = concat!("SELECT ", columns!(), " FROM connections WHERE tenant_id = $1 AND person_id = $2 AND upstream = $3 \
        AND state <> 'disconnected'");
    LIST_CONNECTIONS = concat!("SELECT ", columns!(), " FROM connections WHERE tenant_id = $1 AND person_id = $2 \
        AND state <> 'connecting' ORDER BY CASE WHEN state = 'disconnected' THEN 1 ELSE 0 END, connection_id DESC LIMIT $3");
    COUNT_LIVE = "SELECT COUNT(*) AS live FROM connections WHERE tenant_id = $1 AND person_id = $2 \
        AND state <> 'disconnected'";
    /// A new consent takes the lease from whoever has it. The generation moves on, so that a rotation of the old token
    /// can't put its own back.
    FENCE = "UPDATE connections SET generation = generation + 1, lease_holder = $3, lease_until = $4 \
        WHERE tenant_id = $1 AND connection_id = $2 AND state <> 'disconnected' RETURNING generation";
    /// Gives the lease back with nothing done.
    RELEASE_LEASE = "UPDATE connections SET lease_holder = NULL, lease_until = NULL WHERE tenant_id = $1 \
        AND connection_id = $2 AND generation = $3";
    /// The first token is safe, or a new consent replaced it.
    ACTIVATE = "UPDATE connections SET state = 'active', scopes = $3, generation = generation + 1, lease_holder = NULL, \
        lease_until = NULL, failures = 0, retry_at = NULL WHERE tenant_id = $1 AND connection_id = $2 \
        AND generation = $4 AND state <> 'disconnected' RETURNING generation";
    /// A connection that never came to be.
    DROP_CONNECTING = "DELETE FROM connections WHERE tenant_id = $1 AND connection_id = $2 AND state = 'connecting'";
    /// Of all who saw this generation and no live lease, one gets the next.
    TAKE_LEASE = "UPDATE connections SET generation = generation + 1, lease_holder = $4, lease_until = $5 \
        WHERE tenant_id = $1 AND connection_id = $2 AND generation = $3 AND state IN ('active', 'needs_reauthorization') \
        AND (lease_until IS NULL OR lease_until <= $6) RETURNING generation";
    /// The holder's next attempt.
    NEXT_GENERATION = "UPDATE connections SET generation = generation + 1, lease_until = $5 \
        WHERE tenant_id = $1 AND connection_id = $2 AND generation = $3 AND lease_holder = $4 RETURNING generation";
    /// Whether the holder still is it; extends the lease for what comes now.
    RENEW_LEASE = "UPDATE connections SET lease_until = $5 WHERE tenant_id = $1 AND connection_id = $2 \
        AND generation = $3 AND lease_holder = $4";
    FINISH_ROTATION = "UPDATE connections SET state = 'active', lease_holder = NULL, lease_until = NULL, failures = 0, \
        retry_at = NULL, rotations = rotations + $4, \
        rotated_at = CASE WHEN $4 > 0 THEN $5 ELSE rotated_at END \
        WHERE tenant_id = $1 AND connection_id = $2 AND generation = $3 AND state <> 'disconnected'";
    FAIL_ROTATION = "UPDATE connections SET lease_holder = NULL, lease_until = NULL, failures = failures + 1, retry_at = $4 \
        WHERE tenant_id = $1 AND connection_id = $2 AND generation = $3";
    EXPIRE_CONNECTION = "UPDATE connections SET state = 'needs_reauthorization', lease_holder = NULL, lease_until = NULL, \
        retry_at = NULL WHERE tenant_id = $1 AND connection_id = $2 AND generation = $3 AND state <> 'disconnected'";
    /// Fences out whoever rotates.
    DISCONNECT = "UPDATE connections SET state = 'disconnected', disconnected_at = $4, generation = generation + 1 \
        WHERE tenant_id = $1 AND connection_id = $2 AND person_id = $3 AND state IN ('active', 'needs_reauthorization')";
    SHREDDED = "UPDATE connections SET shredded_at = $3, lease_holder = NULL, lease_until = NULL \
        WHERE tenant_id = $1 AND connection_id = $2 AND state = 'disconnected'";
    USED = "UPDATE connections SET last_used_at = $3 WHERE tenant_id = $1 AND connection_id = $2";
    /// Maintenance: disconnected connections whose secrets may still be there and that nobody works on.
    LIST_UNSHREDDED = "SELECT tenant_id, connection_id FROM connections WHERE state = 'disconnected' \
        AND shredded_at IS NULL AND (lease_until IS NULL OR lease_until <= $1) ORDER BY disconnected_at LIMIT 100";
    /// Maintenance: connections that were begun long ago and never came to be.
    LIST_UNFINISHED = "SELECT tenant_id, connection_id FROM connections WHERE state = 'connecting' AND created_at < $1 \
        ORDER BY created_at LIMIT 100";
    /// Maintenance: connections that were over long ago and hold nothing more.
    LIST_FORGETTABLE = "SELECT tenant_id, connection_id FROM connections WHERE state = 'disconnected' \
        AND shredded_at IS NOT NULL AND disconnected_at < $1 ORDER BY disconnected_at LIMIT 100";
    FORGET_CONNECTION = "DELETE FROM connections WHERE tenant_id = $1 AND connection_id = $2 AND state = 'disconnected' \
        AND shredded_at IS NOT NULL";
    /// Maintenance: where this is the only process, whoever held a lease is dead.
    FREE_LEASES = "UPDATE connections SET lease_holder = NULL, lease_until = NULL WHERE lease_until IS NOT NULL";
}

fn read(row: &Row) -> Result<Connection> {
    Ok(Connection {
        key: key(row)?,
        person: row.get("person_id")?,
        upstream: row.get("upstream")?,
        scopes: Scopes::parse(&row.get::<String>("scopes")?),
        state: row.parse("state")?,
        generation: row.get("generation")?,
        rotations: row.get("rotations")?,
        lease_until: row.get("lease_until")?,
        failures: row.get("failures")?,
        retry_at: row.get("retry_at")?,
        created_at: row.get("created_at")?,
        rotated_at: row.get("rotated_at")?,
        last_used_at: row.get("last_used_at")?,
    })
}

pub(crate) fn key(row: &Row) -> Result<ConnectionKey> {
    Ok(ConnectionKey { tenant: row.get("tenant_id")?, connection: row.get("connection_id")? })
}

pub(crate) async fn add(
    tx: &mut Tx,
    key: ConnectionKey,
    person: PersonId,
    upstream: &str,
    scopes: &Scopes,
    now: Timestamp,
) -> Result<bool> {
    let values = params![key.tenant, key.connection, person, upstream, scopes.to_string(), now];
    Ok(tx.execute(&ADD_CONNECTION, values).await? == 1)
}

pub(crate) async fn lookup(tx: &mut Tx, key: ConnectionKey) -> Result<Option<Connection>> {
    let row = tx.fetch_optional(&GET_CONNECTION, params![key.tenant, key.connection]).await?;
    row.as_ref().map(read).transpose()
}

pub(crate) async fn find_live(
    tx: &mut Tx,
    tenant: TenantId,
    person: PersonId,
    upstream: &str,
) -> Result<Option<Connection>> {
    let row = tx.fetch_optional(&FIND_LIVE, params![tenant, person, upstream]).await?;
    row.as_ref().map(read).transpose()
}

/// At most `most`, those that are over last.
pub(crate) async fn list(
    tx: &mut Tx,
    tenant: TenantId,
    person: PersonId,
    most: i64,
) -> Result<Vec<Connection>> {
    tx.fetch_all(&LIST_CONNECTIONS, params![tenant, person, most]).await?.iter().map(read).collect()
}

pub(crate) async fn count_live(tx: &mut Tx, tenant: TenantId, person: PersonId) -> Result<i64> {
    tx.fetch_one(&COUNT_LIVE, params![tenant, person]).await?.get("live")
}

/// The lease, whoever had it; `None` if the connection is over.
pub(crate) async fn fence(
    tx: &mut Tx,
    key: ConnectionKey,
    holder: Uuid,
    until: Timestamp,
) -> Result<Option<Lease>> {
    let taken =
        generation(tx.fetch_optional(&FENCE, params![key.tenant, key.connection, holder, until]).await?)?;
    Ok(taken.map(|generation| Lease { key, holder, generation }))
}

pub(crate) async fn release(tx: &mut Tx, lease: Lease) -> Result<()> {
    let values = params![lease.key.tenant, lease.key.connection, lease.generation];
    tx.execute(&RELEASE_LEASE, values).await.map(drop)
}

/// Ends the lease of a consent with the connection in use; the new generation, or `None` if the lease was lost.
pub(crate) async fn activate(tx: &mut Tx, lease: Lease, scopes: &Scopes) -> Result<Option<i64>> {
    let Lease { key, generation: held, .. } = lease;
    let values = params![key.tenant, key.connection, scopes.to_string(), held];
    generation(tx.fetch_optional(&ACTIVATE, values).await?)
}

pub(crate) async fn drop_connecting(tx: &mut Tx, key: ConnectionKey) -> Result<bool> {
    Ok(tx.execute(&DROP_CONNECTING, params![key.tenant, key.connection]).await? == 1)
}

/// A holder's claim to rotate: who, with which fencing number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    pub(crate) key: ConnectionKey,
    pub(crate) holder: Uuid,
    pub(crate) generation: i64,
}

fn generation(row: Option<Row>) -> Result<Option<i64>> {
    row.map(|row| row.get("generation")).transpose()
}

pub(crate) async fn take_lease(
    tx: &mut Tx,
    seen: &Connection,
    holder: Uuid,
    until: Timestamp,
    now: Timestamp,
) -> Result<Option<Lease>> {
    let key = seen.key;
    let values = params![key.tenant, key.connection, seen.generation, holder, until, now];
    let taken = generation(tx.fetch_optional(&TAKE_LEASE, values).await?)?;
    Ok(taken.map(|generation| Lease { key, holder, generation }))
}

pub(crate) async fn next_generation(tx: &mut Tx, lease: Lease, until: Timestamp) -> Result<Option<Lease>> {
    let Lease { key, holder, generation: held } = lease;
    let values = params![key.tenant, key.connection, held, holder, until];
    let next = generation(tx.fetch_optional(&NEXT_GENERATION, values).await?)?;
    Ok(next.map(|generation| Lease { generation, ..lease }))
}

pub(crate) async fn renew_lease(tx: &mut Tx, lease: Lease, until: Timestamp) -> Result<bool> {
    let Lease { key, holder, generation } = lease;
    let values = params![key.tenant, key.connection, generation, holder, until];
    Ok(tx.execute(&RENEW_LEASE, values).await? == 1)
}

pub(crate) async fn finish_rotation(
    tx: &mut Tx,
    lease: Lease,
    rotated: bool,
    now: Timestamp,
) -> Result<bool> {
    let values = params![lease.key.tenant, lease.key.connection, lease.generation, i64::from(rotated), now];
    Ok(tx.execute(&FINISH_ROTATION, values).await? == 1)
}

pub(crate) async fn fail_rotation(tx: &mut Tx, lease: Lease, retry_at: Timestamp) -> Result<bool> {
    let values = params![lease.key.tenant, lease.key.connection, lease.generation, retry_at];
    Ok(tx.execute(&FAIL_ROTATION, values).await? == 1)
}

pub(crate) async fn expire(tx: &mut Tx, lease: Lease) -> Result<bool> {
    let values = params![lease.key.tenant, lease.key.connection, lease.generation];
    Ok(tx.execute(&EXPIRE_CONNECTION, values).await? == 1)
}

pub(crate) async fn disconnect(
    tx: &mut Tx,
    key: ConnectionKey,
    person: PersonId,
    now: Timestamp,
) -> Result<bool> {
    Ok(tx.execute(&DISCONNECT, params![key.tenant, key.connection, person, now]).await? == 1)
}

pub(crate) async fn shredded(tx: &mut Tx, key: ConnectionKey, now: Timestamp) -> Result<bool> {
    Ok(tx.execute(&SHREDDED, params![key.tenant, key.connection, now]).await? == 1)
}

pub(crate) async fn used(tx: &mut Tx, key: ConnectionKey, now: Timestamp) -> Result<()> {
    tx.execute(&USED, params![key.tenant, key.connection, now]).await.map(drop)
}

pub(crate) async fn list_unshredded(tx: &mut Tx, now: Timestamp) -> Result<Vec<ConnectionKey>> {
    tx.fetch_all(&LIST_UNSHREDDED, params![now]).await?.iter().map(key).collect()
}

pub(crate) async fn list_unfinished(tx: &mut Tx, before: Timestamp) -> Result<Vec<ConnectionKey>> {
    tx.fetch_all(&LIST_UNFINISHED, params![before]).await?.iter().map(key).collect()
}

pub(crate) async fn list_forgettable(tx: &mut Tx, before: Timestamp) -> Result<Vec<ConnectionKey>> {
    tx.fetch_all(&LIST_FORGETTABLE, params![before]).await?.iter().map(key).collect()
}

pub(crate) async fn forget(tx: &mut Tx, key: ConnectionKey) -> Result<()> {
    tx.execute(&FORGET_CONNECTION, params![key.tenant, key.connection]).await.map(drop)
}

pub(crate) async fn free_leases(tx: &mut Tx) -> Result<u64> {
    tx.execute(&FREE_LEASES, params![]).await
}

/// Where a connection's refresh token lies in the secrets backend.
pub(crate) fn secret_key(key: ConnectionKey) -> gatehouse_secrets::Result<gatehouse_secrets::SecretKey> {
    let ConnectionKey { tenant, connection } = key;
    gatehouse_secrets::SecretKey::new(format!("token-broker/connections/{tenant}/{connection}"))
}

/// A fresh connection's key.
pub(crate) const fn new_key(tenant: TenantId, connection: ConnectionId) -> ConnectionKey {
    ConnectionKey { tenant, connection }
}
