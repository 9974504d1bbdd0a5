//! The tables of the outbox.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::EventId;
use gatehouse_db::{Result, Tx, params, sql};
use uuid::Uuid;

sql! {
    /// A block that runs again writes the same event again.
    pub(crate) ADD_EVENT = "INSERT INTO audit_outbox (event_id, position, event) VALUES ($1, $2, $3)
        ON CONFLICT (event_id) DO NOTHING";
    /// The next events, in the order in which they were made.
    pub(crate) NEXT_EVENTS = "SELECT event_id, event FROM audit_outbox WHERE refused IS NULL
        ORDER BY position, event_id LIMIT $1";
    /// One event that the audit service has.
    pub(crate) REMOVE_EVENT = "DELETE FROM audit_outbox WHERE event_id = $1";
    /// One event that the audit service will never take.
    pub(crate) REFUSE_EVENT = "UPDATE audit_outbox SET refused = $2 WHERE event_id = $1";
    /// How much there is to do, and since when.
    pub(crate) BACKLOG = "SELECT COUNT(*) AS waiting, MIN(position) AS oldest FROM audit_outbox WHERE refused IS NULL";
    /// How much needs a person.
    pub(crate) REFUSED = "SELECT COUNT(*) AS refused FROM audit_outbox WHERE refused IS NOT NULL";
    /// One replica holds the relay; others take it when its time is over.
    pub(crate) HOLD_RELAY = "INSERT INTO audit_outbox_relay (id, holder, held_until) VALUES (1, $1, $2)
        ON CONFLICT (id) DO UPDATE SET holder = excluded.holder, held_until = excluded.held_until
        WHERE audit_outbox_relay.holder = excluded.holder OR audit_outbox_relay.held_until < $3";
    /// At shutdown, so that nobody has to wait.
    pub(crate) RELEASE_RELAY = "DELETE FROM audit_outbox_relay WHERE holder = $1";
}

pub(crate) async fn add(tx: &mut Tx, id: EventId, position: i64, event: Vec<u8>) -> Result<()> {
    tx.execute(&ADD_EVENT, params![id, position, event]).await.map(drop)
}

pub(crate) async fn next(tx: &mut Tx, most: u32) -> Result<Vec<(Uuid, Vec<u8>)>> {
    let rows = tx.fetch_all(&NEXT_EVENTS, params![most]).await?;
    rows.iter().map(|row| Ok((row.get("event_id")?, row.get("event")?))).collect()
}

pub(crate) async fn remove(tx: &mut Tx, ids: &[Uuid]) -> Result<()> {
    for id in ids {
        tx.execute(&REMOVE_EVENT, params![id]).await?;
    }
    Ok(())
}

pub(crate) async fn refuse(tx: &mut Tx, id: Uuid, why: &str) -> Result<()> {
    tx.execute(&REFUSE_EVENT, params![id, why]).await.map(drop)
}

/// How many events wait, since when the oldest does, and how many were refused.
pub(crate) async fn backlog(tx: &mut Tx) -> Result<(i64, Option<Timestamp>, i64)> {
    let row = tx.fetch_one(&BACKLOG, params![]).await?;
    let refused = tx.fetch_one(&REFUSED, params![]).await?.get("refused")?;
    Ok((row.get("waiting")?, row.get("oldest")?, refused))
}

pub(crate) async fn hold_relay(tx: &mut Tx, holder: Uuid, until: Timestamp, now: Timestamp) -> Result<bool> {
    Ok(tx.execute(&HOLD_RELAY, params![holder, until, now]).await? == 1)
}

pub(crate) async fn release_relay(tx: &mut Tx, holder: Uuid) -> Result<()> {
    tx.execute(&RELEASE_RELAY, params![holder]).await.map(drop)
}
