//! The tables of the outbox.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::EventId;
use gatehouse_db::{Param, Result, Tx, params, sql};
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
    /// Several such events; where there are fewer, one is named again.
    pub(crate) REMOVE_EVENTS = "DELETE FROM audit_outbox WHERE event_id IN ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
        $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25)";
    /// One event that the audit service will never take.
    pub(crate) REFUSE_EVENT = "UPDATE audit_outbox SET refused = $2 WHERE event_id = $1";
    /// Whether there is anything to do; unlike [`BACKLOG`], it costs the same however much there is.
    pub(crate) OLDEST_EVENT = "SELECT position FROM audit_outbox WHERE refused IS NULL ORDER BY position LIMIT 1";
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

/// The parameters of [`REMOVE_EVENTS`].
const REMOVED_AT_ONCE: usize = 25;

pub(crate) async fn add(tx: &mut Tx, id: EventId, position: i64, event: Vec<u8>) -> Result<()> {
    tx.execute(&ADD_EVENT, params![id, position, event]).await.map(drop)
}

pub(crate) async fn next(tx: &mut Tx, most: u32) -> Result<Vec<(Uuid, Vec<u8>)>> {
    let rows = tx.fetch_all(&NEXT_EVENTS, params![most]).await?;
    rows.iter().map(|row| Ok((row.get("event_id")?, row.get("event")?))).collect()
}

pub(crate) async fn remove(tx: &mut Tx, ids: &[Uuid]) -> Result<()> {
    for ids in ids.chunks(REMOVED_AT_ONCE) {
        if let [id] = ids {
            tx.execute(&REMOVE_EVENT, params![id]).await?;
        } else if let Some(last) = ids.last() {
            let several = ids.iter().chain(std::iter::repeat(last)).take(REMOVED_AT_ONCE);
            tx.execute(&REMOVE_EVENTS, several.map(Param::into_value).collect()).await?;
        }
    }
    Ok(())
}

/// Whether an event waits.
pub(crate) async fn any_waits(tx: &mut Tx) -> Result<bool> {
    tx.fetch_optional(&OLDEST_EVENT, params![]).await.map(|row| row.is_some())
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gatehouse_core::{Clock, Entropy};
    use gatehouse_db::{Migrations, read_tx, run_tx};
    use gatehouse_testkit::{TestDb, both_engines};

    use super::*;

    both_engines! {
        migrations: Migrations::new(&[("0001_init", crate::MIGRATION)]);

        /// However many they are: one by one, in groups, and what a group leaves over.
        async fn exactly_the_named_events_are_removed(db: TestDb) {
            let (clock, entropy) = (Clock::system(), Entropy::system());
            for named in [0, 1, 2, 24, 25, 26, 50, 53, 60] {
                let ids: Vec<EventId> = (0..60).map(|_| EventId::new(&clock, &entropy)).collect();
                let all: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
                let left = run_tx!(db, "test.remove", |tx| {
                    for (position, id) in (0..).zip(&ids) {
                        add(tx, *id, position, Vec::new()).await?;
                    }
                    remove(tx, &all[..named]).await?;
                    Ok(next(tx, 100).await?.into_iter().map(|(id, _)| id).collect::<BTreeSet<_>>())
                });
                assert_eq!(left.unwrap(), all[named..].iter().copied().collect(), "{named} of 60");
                let waits = read_tx!(db, "test.look", |tx| { any_waits(tx).await });
                assert_eq!(waits.unwrap(), named < 60);
                run_tx!(db, "test.clear", |tx| { remove(tx, &all).await }).unwrap();
            }
        }
    }
}
