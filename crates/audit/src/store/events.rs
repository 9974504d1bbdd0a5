//! `audit_events`: the chain.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::EventId;
use gatehouse_db::{Result, Row, Tx, params, sql};
use uuid::Uuid;

use super::{read, stored};
use crate::domain::names::LogId;

sql! {
    /// One entry; nothing if the event is there already. A second entry at one place is an error: it would be a fork.
    pub(crate) ADD_EVENT = "INSERT INTO audit_events (log, seq, event_id, recorded_at, leaf, payload)
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (event_id) DO NOTHING";
    /// Where an event stands.
    pub(crate) PLACE = "SELECT log, seq FROM audit_events WHERE event_id = $1";
    /// A run of entries.
    pub(crate) LEAVES_FROM = "SELECT seq, event_id, recorded_at, leaf, payload FROM audit_events
        WHERE log = $1 AND seq >= $2 ORDER BY seq LIMIT $3";
    /// One entry.
    pub(crate) ENTRY = "SELECT seq, event_id, recorded_at, leaf, payload FROM audit_events WHERE log = $1 AND seq = $2";
    /// The front of the log.
    pub(crate) PRUNE_EVENTS = "DELETE FROM audit_events WHERE log = $1 AND seq < $2";
}

/// An entry as stored.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) seq: u64,
    pub(crate) event_id: Uuid,
    /// Beside the leaf, which decides: whoever can write to the database can write anything here.
    pub(crate) recorded: Timestamp,
    pub(crate) leaf: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

fn entry(row: &Row) -> Result<Stored> {
    Ok(Stored {
        seq: read(row, "seq")?,
        event_id: row.get("event_id")?,
        recorded: row.get("recorded_at")?,
        leaf: row.get("leaf")?,
        payload: row.get("payload")?,
    })
}

/// Adds an entry; false if the event is there already.
pub(crate) async fn add(
    tx: &mut Tx,
    log: &LogId,
    seq: u64,
    event: EventId,
    recorded: Timestamp,
    leaf: &[u8],
    payload: &[u8],
) -> Result<bool> {
    let values = params![log.as_str(), stored(seq), event, recorded, leaf, payload];
    Ok(tx.execute(&ADD_EVENT, values).await? == 1)
}

pub(crate) async fn lookup_place(tx: &mut Tx, event: EventId) -> Result<Option<(String, u64)>> {
    let row = tx.fetch_optional(&PLACE, params![event]).await?;
    row.map(|row| Ok((row.get("log")?, read(&row, "seq")?))).transpose()
}

/// Up to `most` entries from `from` on.
pub(crate) async fn list(tx: &mut Tx, log: &LogId, from: u64, most: u32) -> Result<Vec<Stored>> {
    let rows = tx.fetch_all(&LEAVES_FROM, params![log.as_str(), stored(from), most]).await?;
    rows.iter().map(entry).collect()
}

pub(crate) async fn lookup(tx: &mut Tx, log: &str, seq: u64) -> Result<Option<Stored>> {
    tx.fetch_optional(&ENTRY, params![log, stored(seq)]).await?.as_ref().map(entry).transpose()
}

pub(crate) async fn prune(tx: &mut Tx, log: &LogId, before: u64) -> Result<u64> {
    tx.execute(&PRUNE_EVENTS, params![log.as_str(), stored(before)]).await
}
