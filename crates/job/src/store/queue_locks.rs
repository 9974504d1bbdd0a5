//! Table `queue_locks`: whose turn it is to add to a tenant's queue that is nearly full.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::TenantId;
use gatehouse_db::{Result, Tx, params, sql};

sql! {
    /// Takes the queue's row. Before anything that the transaction writes, so that none waits for another in a ring.
    pub(crate) LOCK_QUEUE = "INSERT INTO queue_locks (tenant_id, kind, taken_at) VALUES ($1, $2, $3) \
        ON CONFLICT (tenant_id, kind) DO UPDATE SET taken_at = excluded.taken_at";
    pub(crate) OLDEST_LOCK = "SELECT MIN(taken_at) AS oldest FROM queue_locks";
    /// Whoever wants a row that goes just then makes it anew.
    pub(crate) PURGE_QUEUE_LOCKS = "DELETE FROM queue_locks WHERE taken_at < $1";
}

/// See [`LOCK_QUEUE`].
pub(crate) async fn lock(tx: &mut Tx, tenant: TenantId, kind: &str, now: Timestamp) -> Result<()> {
    tx.execute(&LOCK_QUEUE, params![tenant, kind, now]).await.map(drop)
}

/// When the row was taken that nobody took for longest.
pub(crate) async fn oldest(tx: &mut Tx) -> Result<Option<Timestamp>> {
    tx.fetch_one(&OLDEST_LOCK, params![]).await?.get("oldest")
}

pub(crate) async fn purge(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    tx.execute(&PURGE_QUEUE_LOCKS, params![before]).await
}
