//! `audit_events`: the chain.

use std::collections::HashMap;

use gatehouse_core::Timestamp;
use gatehouse_core::ids::EventId;
use gatehouse_db::{Param, Result, Row, Tx, insert, params, sql};
use uuid::Uuid;

use super::{find, read, stored};
use crate::domain::names::LogId;

sql! {
    /// Where an event stands, within what the head states: verification does not go by what lies outside, so nobody is
    /// shown it.
    pub(crate) PLACE = "SELECT log, seq FROM audit_events e WHERE event_id = $1
        AND EXISTS (SELECT 1 FROM audit_heads h WHERE h.log = e.log AND e.seq >= h.first_seq AND e.seq < h.size)";
    /// Where events stand; where fewer are asked for, one is named again.
    pub(crate) PLACES = "SELECT event_id, log, seq FROM audit_events WHERE event_id IN ($1, $2, $3, $4, $5, $6, $7, $8,
        $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25)";
    /// A run of entries.
    pub(crate) LEAVES_FROM = "SELECT seq, event_id, recorded_at, leaf, payload FROM audit_events
        WHERE log = $1 AND seq >= $2 ORDER BY seq LIMIT $3";
    /// All that stands at a run of places, for verification: more than there are places, if one is taken twice.
    pub(crate) ENTRIES_BETWEEN = "SELECT seq, event_id, recorded_at, leaf, payload FROM audit_events
        WHERE log = $1 AND seq >= $2 AND seq < $3 ORDER BY seq LIMIT $4";
    /// One entry, as for [`PLACE`].
    pub(crate) ENTRY = "SELECT seq, event_id, recorded_at, leaf, payload FROM audit_events e WHERE log = $1 AND seq = $2
        AND EXISTS (SELECT 1 FROM audit_heads h WHERE h.log = e.log AND e.seq >= h.first_seq AND e.seq < h.size)";
    /// The first entry that lies outside of what the head states, for verification: in one statement, for both change in
    /// one transaction.
    pub(crate) ENTRY_OUTSIDE = "SELECT CAST(e.seq AS BIGINT) AS seq, h.first_seq AS first_seq FROM audit_heads h
        JOIN audit_events e ON e.log = h.log AND e.seq < h.first_seq WHERE h.log = $1
        UNION ALL SELECT CAST(e.seq AS BIGINT), h.first_seq FROM audit_heads h
        JOIN audit_events e ON e.log = h.log AND e.seq >= h.size WHERE h.log = $1
        ORDER BY seq LIMIT 1";
    /// Whether any event stands at two places: one scan of the index that should forbid it.
    pub(crate) ANY_EVENT_TWICE = "SELECT event_id FROM audit_events GROUP BY event_id HAVING COUNT(*) > 1 LIMIT 1";
    /// The first entry whose event stands at another place too, of this log or another.
    pub(crate) EVENT_TWICE = "SELECT CAST(e.seq AS BIGINT) AS seq FROM audit_events e WHERE log = $1 AND event_id IN
        (SELECT event_id FROM audit_events GROUP BY event_id HAVING COUNT(*) > 1) ORDER BY e.seq LIMIT 1";
    /// The front of the log.
    pub(crate) PRUNE_EVENTS = "DELETE FROM audit_events WHERE log = $1 AND seq < $2";
}

insert! {
    /// Entries, but for events that are there already. A second entry at one place is an error: it would be a fork.
    pub(crate) ADD_EVENTS = "INSERT INTO audit_events"(log, seq, event_id, recorded_at, leaf, payload)
        "ON CONFLICT (event_id) DO NOTHING";
}

/// The parameters of [`PLACES`].
const PLACES_AT_ONCE: usize = 25;

/// An entry to add.
#[derive(Debug)]
pub(crate) struct NewEntry<'a> {
    pub(crate) seq: u64,
    pub(crate) event_id: EventId,
    pub(crate) recorded: Timestamp,
    pub(crate) leaf: Vec<u8>,
    pub(crate) payload: &'a [u8],
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

/// What stands at a place, for verification. Whoever can write to the database can write anything into a column, or change
/// its type: what does not hold what it must is left out.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) seq: Option<u64>,
    pub(crate) event_id: Option<Uuid>,
    pub(crate) recorded: Option<Timestamp>,
    pub(crate) leaf: Option<Vec<u8>>,
    pub(crate) payload: Option<Vec<u8>>,
}

fn found(row: &Row) -> Found {
    Found {
        seq: find(row, "seq"),
        event_id: row.get("event_id").ok(),
        recorded: row.get("recorded_at").ok(),
        leaf: row.get("leaf").ok(),
        payload: row.get("payload").ok(),
    }
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

/// Adds entries; says how many, fewer than were given if an event is there already.
pub(crate) async fn add(tx: &mut Tx, log: &LogId, entries: Vec<NewEntry<'_>>) -> Result<u64> {
    let rows = entries.into_iter().map(|NewEntry { seq, event_id, recorded, leaf, payload }| {
        params![log.as_str(), stored(seq), event_id, recorded, leaf, payload]
    });
    tx.insert(&ADD_EVENTS, rows.collect()).await
}

pub(crate) async fn lookup_place(tx: &mut Tx, event: EventId) -> Result<Option<(String, u64)>> {
    let row = tx.fetch_optional(&PLACE, params![event]).await?;
    row.map(|row| Ok((row.get("log")?, read(&row, "seq")?))).transpose()
}

/// Which of the events are in a log, and where.
pub(crate) async fn places(tx: &mut Tx, events: &[EventId]) -> Result<HashMap<EventId, (String, u64)>> {
    let mut places = HashMap::new();
    for some in events.chunks(PLACES_AT_ONCE) {
        let asked = some.iter().chain(some.last().into_iter().cycle()).take(PLACES_AT_ONCE);
        for row in tx.fetch_all(&PLACES, asked.map(Param::into_value).collect()).await? {
            places.insert(row.get("event_id")?, (row.get("log")?, read(&row, "seq")?));
        }
    }
    Ok(places)
}

/// Up to `most` entries from `from` on.
pub(crate) async fn list(tx: &mut Tx, log: &LogId, from: u64, most: u32) -> Result<Vec<Stored>> {
    let rows = tx.fetch_all(&LEAVES_FROM, params![log.as_str(), stored(from), most]).await?;
    rows.iter().map(entry).collect()
}

/// All that stands at the places from `from` to before `end`, but at most `most`.
pub(crate) async fn list_between(
    tx: &mut Tx,
    log: &LogId,
    from: u64,
    end: u64,
    most: u32,
) -> Result<Vec<Found>> {
    let values = params![log.as_str(), stored(from), stored(end), most];
    Ok(tx.fetch_all(&ENTRIES_BETWEEN, values).await?.iter().map(found).collect())
}

/// The place of the first entry outside of what the head states, and that of the first inside.
pub(crate) async fn lookup_outside(tx: &mut Tx, log: &LogId) -> Result<Option<(i64, i64)>> {
    let row = tx.fetch_optional(&ENTRY_OUTSIDE, params![log.as_str()]).await?;
    row.map(|row| Ok((row.get::<Option<i64>>("seq")?.unwrap_or(0), row.get("first_seq")?))).transpose()
}

/// The first entry of `log` whose event stands at another place too.
pub(crate) async fn lookup_repeated(tx: &mut Tx, log: &LogId) -> Result<Option<u64>> {
    if tx.fetch_optional(&ANY_EVENT_TWICE, params![]).await?.is_none() {
        return Ok(None);
    }
    let row = tx.fetch_optional(&EVENT_TWICE, params![log.as_str()]).await?;
    Ok(row.map(|row| find(&row, "seq").unwrap_or(0)))
}

/// One entry, if it is within what the head states.
pub(crate) async fn lookup(tx: &mut Tx, log: &str, seq: u64) -> Result<Option<Stored>> {
    tx.fetch_optional(&ENTRY, params![log, stored(seq)]).await?.as_ref().map(entry).transpose()
}

pub(crate) async fn prune(tx: &mut Tx, log: &LogId, before: u64) -> Result<u64> {
    tx.execute(&PRUNE_EVENTS, params![log.as_str(), stored(before)]).await
}
