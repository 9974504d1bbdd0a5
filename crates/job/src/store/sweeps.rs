//! What the sweeper looks for in table `jobs`, across tenants. Each find is acted on by a conditional statement of
//! [`super::jobs`], so that replicas may sweep at once.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::{JobId, TenantId, WorkerId};
use gatehouse_db::{Result, Row, Tx, params, sql};

sql! {
    pub(crate) HELD_BY = "SELECT tenant_id, id, kind, epoch, holder, attempt, max_attempts, cancel_requested, last_write \
        FROM jobs WHERE holder = $1 AND state = 'running' ORDER BY id";
    pub(crate) LIST_STALLED = "SELECT tenant_id, id, kind, epoch, holder, attempt, max_attempts, cancel_requested, last_write \
        FROM jobs WHERE kind = $1 AND state = 'running' AND NOT stalled AND progressed_at <= $2 \
        ORDER BY progressed_at LIMIT 100";
    pub(crate) LIST_TIMED_OUT = "SELECT tenant_id, id, kind, epoch, holder, attempt, max_attempts, cancel_requested, last_write \
        FROM jobs WHERE kind = $1 AND state = 'running' AND attempt_started_at <= $2 LIMIT 100";
    pub(crate) LIST_EXPIRED = "SELECT tenant_id, id, kind FROM jobs WHERE expires_at <= $1 ORDER BY expires_at LIMIT 100";
    pub(crate) COUNT_BY_STATE = "SELECT kind, state, COUNT(*) AS jobs, \
        MIN(available_at) AS oldest FROM jobs WHERE state IN ('queued', 'running') GROUP BY kind, state";
}

/// A running job as the sweeper and a worker's stream see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) tenant: TenantId,
    pub(crate) job: JobId,
    pub(crate) kind: String,
    pub(crate) epoch: i64,
    pub(crate) holder: WorkerId,
    pub(crate) attempt: u32,
    pub(crate) max_attempts: u32,
    pub(crate) cancel_requested: bool,
    pub(crate) last_write: i64,
}

pub(crate) async fn list_held_by(tx: &mut Tx, session: WorkerId) -> Result<Vec<Held>> {
    tx.fetch_all(&HELD_BY, params![session]).await?.iter().map(read).collect()
}

/// Running jobs of `kind` without progress since `since`.
pub(crate) async fn list_stalled(tx: &mut Tx, kind: &str, since: Timestamp) -> Result<Vec<Held>> {
    tx.fetch_all(&LIST_STALLED, params![kind, since]).await?.iter().map(read).collect()
}

/// Running jobs of `kind` whose attempt began before `since`.
pub(crate) async fn list_timed_out(tx: &mut Tx, kind: &str, since: Timestamp) -> Result<Vec<Held>> {
    tx.fetch_all(&LIST_TIMED_OUT, params![kind, since]).await?.iter().map(read).collect()
}

/// Jobs whose time to be kept is over.
pub(crate) async fn list_expired(tx: &mut Tx, now: Timestamp) -> Result<Vec<(TenantId, JobId, String)>> {
    let rows = tx.fetch_all(&LIST_EXPIRED, params![now]).await?;
    rows.iter().map(|row| Ok((row.get("tenant_id")?, row.get("id")?, row.get("kind")?))).collect()
}

/// Jobs by kind and state, with the oldest waiting time's beginning; for metrics.
pub(crate) async fn count_by_state(tx: &mut Tx) -> Result<Vec<(String, String, i64, Timestamp)>> {
    let rows = tx.fetch_all(&COUNT_BY_STATE, params![]).await?;
    rows.iter()
        .map(|row| Ok((row.get("kind")?, row.get("state")?, row.get("jobs")?, row.get("oldest")?)))
        .collect()
}

fn read(row: &Row) -> Result<Held> {
    Ok(Held {
        tenant: row.get("tenant_id")?,
        job: row.get("id")?,
        kind: row.get("kind")?,
        epoch: row.get("epoch")?,
        holder: row.get("holder")?,
        attempt: row.get("attempt")?,
        max_attempts: row.get("max_attempts")?,
        cancel_requested: row.get("cancel_requested")?,
        last_write: row.get("last_write")?,
    })
}
