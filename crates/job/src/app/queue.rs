//! A place in a tenant's queue.

use std::time::Duration;

use gatehouse_core::ids::TenantId;
use gatehouse_core::{Error, Timestamp};
use gatehouse_db::Tx;

use super::App;
use crate::domain::fair_turn;
use crate::store::{jobs, queue_locks};

/// From how many places on a queue counts as nearly full, and is added to by one request after another. More than there
/// are requests of a tenant between their count and their commit at any time: each holds a connection to the database.
const NEARLY_FULL: i64 = 1_000;

impl App {
    /// The turn of one more job of `kind`, of which the tenant may have `limit` waiting; `None` if it has. Holds, whatever
    /// other requests do, until the transaction ends. Before anything that it writes.
    pub(super) async fn place_in_queue(
        &self,
        tx: &mut Tx,
        (tenant, kind): (TenantId, &str),
        limit: i64,
        now: Timestamp,
    ) -> gatehouse_db::Result<Option<Timestamp>> {
        let (mut waiting, mut last_turn) = jobs::queue_of(tx, tenant, kind).await?;
        if (limit - NEARLY_FULL..limit).contains(&waiting) {
            queue_locks::lock(tx, tenant, kind, now).await?;
            // In a statement of its own: this one sees what was committed while we waited for the row.
            (waiting, last_turn) = jobs::queue_of(tx, tenant, kind).await?;
        }
        Ok((waiting < limit).then(|| fair_turn(now, last_turn, self.0.config.fair_share())))
    }
}

/// A tenant may have `limit` jobs of the kind waiting, and has.
pub(super) fn queue_full(limit: i64) -> Error {
    let message = format!("{limit} jobs of this kind wait already. Wait until some of them are done.");
    Error::resource_exhausted("QUEUE_FULL", message).retry_after(Duration::from_secs(5))
}
