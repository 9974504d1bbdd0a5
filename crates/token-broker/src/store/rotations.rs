//! The table `rotations`.

use gatehouse_core::Timestamp;
use gatehouse_db::{Result, Row, Tx, params, sql};
use uuid::Uuid;

use super::connections::{Lease, key};
use crate::domain::connection::ConnectionKey;
use crate::domain::scopes::Scopes;

sql! {
    ADD_ROTATION = "INSERT INTO rotations (tenant_id, connection_id, generation, rotation_id, state, token_version, \
        token_hash, scopes, deadline, started_at, expected_version) \
        VALUES ($1, $2, $3, $4, 'intent', $5, $6, $7, $8, $9, $10)";
    /// Lays the answer into escrow: whoever asked, however late. Only a successor that went well makes it pointless.
    LAY_INTO_ESCROW = "UPDATE rotations SET state = 'answered', escrow = $4 WHERE tenant_id = $1 AND connection_id = $2 \
        AND generation = $3 AND state IN ('intent', 'lost', 'answered')";
    END_ROTATION = "UPDATE rotations SET state = $4, failure = $5, escrow = NULL, finished_at = $6 \
        WHERE tenant_id = $1 AND connection_id = $2 AND generation = $3";
    /// Only an intent: if another holder came meanwhile, its word on it stands.
    END_UNSHOWN = "UPDATE rotations SET state = 'failed', failure = 'not_shown', finished_at = $4 WHERE tenant_id = $1 \
        AND connection_id = $2 AND generation = $3 AND state IN ('intent', 'lost')";
    /// As a failure, but the answer stays: nobody could read it, and it may hold a token.
    END_KEEPING_ESCROW = "UPDATE rotations SET state = 'failed', failure = $4, finished_at = $5 \
        WHERE tenant_id = $1 AND connection_id = $2 AND generation = $3";
    SUPERSEDE = "UPDATE rotations SET state = 'superseded', escrow = NULL, finished_at = $4 WHERE tenant_id = $1 \
        AND connection_id = $2 AND generation < $3 AND (state IN ('intent', 'lost', 'answered') OR escrow IS NOT NULL)";
    GIVE_UP = "UPDATE rotations SET state = 'lost' WHERE tenant_id = $1 AND connection_id = $2 AND state = 'intent'";
    SHRED_ESCROWS = "UPDATE rotations SET state = 'superseded', escrow = NULL WHERE tenant_id = $1 AND connection_id = $2 \
        AND (state IN ('intent', 'lost', 'answered') OR escrow IS NOT NULL)";
    PRUNE_ROTATIONS = "DELETE FROM rotations WHERE tenant_id = $1 AND connection_id = $2 AND generation < $3 \
        AND state NOT IN ('intent', 'answered')";
    FORGET_ROTATIONS = "DELETE FROM rotations WHERE tenant_id = $1 AND connection_id = $2";
    LIST_ANSWERED = "SELECT tenant_id, connection_id, generation, rotation_id, token_version, expected_version, scopes, \
        escrow FROM rotations WHERE tenant_id = $1 AND connection_id = $2 AND state = 'answered' ORDER BY generation DESC LIMIT 8";
    LIST_REFUSED = "SELECT token_version FROM rotations WHERE tenant_id = $1 AND connection_id = $2 AND state = 'refused' \
        ORDER BY generation DESC LIMIT 100";
    /// Tokens that brought tokens. One that is not the current one any more was replaced.
    LIST_USED = "SELECT token_version FROM rotations WHERE tenant_id = $1 AND connection_id = $2 AND state = 'done' \
        ORDER BY generation DESC LIMIT 100";
    /// Maintenance: connections with interrupted rotations that nobody works on.
    LIST_INTERRUPTED = "SELECT DISTINCT r.tenant_id, r.connection_id FROM rotations r JOIN connections c \
        ON c.tenant_id = r.tenant_id AND c.connection_id = r.connection_id WHERE r.state IN ('intent', 'answered') \
        AND (c.lease_until IS NULL OR c.lease_until <= $1) AND (c.retry_at IS NULL OR c.retry_at <= $1) \
        AND c.state IN ('active', 'needs_reauthorization') LIMIT 100";
    COUNT_INTERRUPTED = "SELECT COUNT(*) AS interrupted FROM rotations WHERE tenant_id = $1 AND connection_id = $2 \
        AND state IN ('intent', 'answered')";
}

/// An attempt whose answer lies in escrow.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) key: ConnectionKey,
    pub(crate) generation: i64,
    pub(crate) rotation_id: Uuid,
    pub(crate) token_version: String,
    /// The version that what it brings may replace; none if there was no current one.
    pub(crate) expected_version: Option<String>,
    pub(crate) scopes: Scopes,
    pub(crate) escrow: Vec<u8>,
}

/// An attempt about to be made.
#[derive(Clone, Debug)]
pub(crate) struct Intent {
    pub(crate) rotation_id: Uuid,
    pub(crate) token_version: String,
    pub(crate) expected_version: Option<String>,
    /// SHA-256 of the token that is shown, by which a person can tell later whether it was. Nothing is decided by it, and
    /// it has no key: a provider's token can't be guessed (RFC 6749, section 10.10; decision 0098).
    pub(crate) token_hash: [u8; 32],
    pub(crate) scopes: Scopes,
    pub(crate) deadline: Timestamp,
}

pub(crate) async fn add(tx: &mut Tx, lease: Lease, intent: &Intent, now: Timestamp) -> Result<()> {
    let values = params![
        lease.key.tenant,
        lease.key.connection,
        lease.generation,
        intent.rotation_id,
        &intent.token_version,
        intent.token_hash,
        intent.scopes.to_string(),
        intent.deadline,
        now,
        intent.expected_version.as_deref().unwrap_or_default()
    ];
    tx.execute(&ADD_ROTATION, values).await.map(drop)
}

pub(crate) async fn lay_into_escrow(
    tx: &mut Tx,
    key: ConnectionKey,
    generation: i64,
    escrow: &[u8],
) -> Result<bool> {
    Ok(tx.execute(&LAY_INTO_ESCROW, params![key.tenant, key.connection, generation, escrow]).await? == 1)
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Done,
    Refused,
    Failed(&'static str),
    FailedUnread(&'static str),
}

pub(crate) async fn end(
    tx: &mut Tx,
    key: ConnectionKey,
    generation: i64,
    end: End,
    now: Timestamp,
) -> Result<()> {
    let (state, failure) = match end {
        End::Done => ("done", None),
        End::Refused => ("refused", Some("invalid_grant")),
        End::Failed(why) => ("failed", Some(why)),
        End::FailedUnread(why) => {
            let values = params![key.tenant, key.connection, generation, why, now];
            return tx.execute(&END_KEEPING_ESCROW, values).await.map(drop);
        }
    };
    let values = params![key.tenant, key.connection, generation, state, failure, now];
    tx.execute(&END_ROTATION, values).await.map(drop)
}

/// Ends an attempt whose token was not shown.
pub(crate) async fn end_unshown(tx: &mut Tx, lease: Lease, now: Timestamp) -> Result<()> {
    let values = params![lease.key.tenant, lease.key.connection, lease.generation, now];
    tx.execute(&END_UNSHOWN, values).await.map(drop)
}

pub(crate) async fn supersede(tx: &mut Tx, key: ConnectionKey, below: i64, now: Timestamp) -> Result<()> {
    tx.execute(&SUPERSEDE, params![key.tenant, key.connection, below, now]).await.map(drop)
}

pub(crate) async fn give_up(tx: &mut Tx, key: ConnectionKey) -> Result<()> {
    tx.execute(&GIVE_UP, params![key.tenant, key.connection]).await.map(drop)
}

pub(crate) async fn shred_escrows(tx: &mut Tx, key: ConnectionKey) -> Result<()> {
    tx.execute(&SHRED_ESCROWS, params![key.tenant, key.connection]).await.map(drop)
}

pub(crate) async fn prune(tx: &mut Tx, key: ConnectionKey, below: i64) -> Result<()> {
    tx.execute(&PRUNE_ROTATIONS, params![key.tenant, key.connection, below]).await.map(drop)
}

/// Deletes every attempt of a connection that is being forgotten.
pub(crate) async fn forget(tx: &mut Tx, key: ConnectionKey) -> Result<()> {
    tx.execute(&FORGET_ROTATIONS, params![key.tenant, key.connection]).await.map(drop)
}

pub(crate) async fn list_answered(tx: &mut Tx, key: ConnectionKey) -> Result<Vec<Answered>> {
    let rows = tx.fetch_all(&LIST_ANSWERED, params![key.tenant, key.connection]).await?;
    rows.iter().map(read_answered).collect()
}

fn read_answered(row: &Row) -> Result<Answered> {
    let token_version: String = row.get("token_version")?;
    // Before the column was, the current token was the one that was shown, but where it had been refused.
    let expected = row.get::<Option<String>>("expected_version")?.unwrap_or_else(|| token_version.clone());
    Ok(Answered {
        key: key(row)?,
        generation: row.get("generation")?,
        rotation_id: row.get("rotation_id")?,
        token_version,
        expected_version: Some(expected).filter(|expected| !expected.is_empty()),
        scopes: Scopes::parse(&row.get::<String>("scopes")?),
        escrow: row.get("escrow")?,
    })
}

pub(crate) async fn list_refused(tx: &mut Tx, key: ConnectionKey) -> Result<Vec<String>> {
    let rows = tx.fetch_all(&LIST_REFUSED, params![key.tenant, key.connection]).await?;
    rows.iter().map(|row| row.get("token_version")).collect()
}

pub(crate) async fn list_used(tx: &mut Tx, key: ConnectionKey) -> Result<Vec<String>> {
    let rows = tx.fetch_all(&LIST_USED, params![key.tenant, key.connection]).await?;
    rows.iter().map(|row| row.get("token_version")).collect()
}

pub(crate) async fn list_interrupted(tx: &mut Tx, now: Timestamp) -> Result<Vec<ConnectionKey>> {
    tx.fetch_all(&LIST_INTERRUPTED, params![now]).await?.iter().map(key).collect()
}

/// Whether an attempt on this connection has not come to its end.
pub(crate) async fn is_interrupted(tx: &mut Tx, key: ConnectionKey) -> Result<bool> {
    let row = tx.fetch_one(&COUNT_INTERRUPTED, params![key.tenant, key.connection]).await?;
    Ok(row.get::<i64>("interrupted")? > 0)
}
