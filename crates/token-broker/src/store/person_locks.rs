//! The table `person_locks`.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::{PersonId, TenantId};
use gatehouse_db::{Result, Tx, params, sql};

sql! {
    /// Takes the person's row: what counts or reads something of a person's before it adds to it queues for this, and so does
    /// what ends it. First in its transaction, before any other row, so that none waits for another in a ring.
    LOCK_PERSON = "INSERT INTO person_locks (tenant_id, person_id, taken_at) VALUES ($1, $2, $3) \
        ON CONFLICT (tenant_id, person_id) DO UPDATE SET taken_at = excluded.taken_at";
    /// Maintenance. Whoever wants a row that goes just then makes it anew.
    PURGE_PERSON_LOCKS = "DELETE FROM person_locks WHERE taken_at < $1";
}

/// See [`LOCK_PERSON`].
pub(crate) async fn lock(tx: &mut Tx, tenant: TenantId, person: PersonId, now: Timestamp) -> Result<()> {
    tx.execute(&LOCK_PERSON, params![tenant, person, now]).await.map(drop)
}

pub(crate) async fn purge(tx: &mut Tx, before: Timestamp) -> Result<u64> {
    tx.execute(&PURGE_PERSON_LOCKS, params![before]).await
}
