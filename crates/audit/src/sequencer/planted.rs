//! A bug for the fault harness to find: entries added beside the sequencer, without the lock of the head.

use std::collections::BTreeSet;
use std::time::Duration;

use gatehouse_core::{Error, Timestamp};
use gatehouse_db::{Tx, params, sql};

use super::{Draft, Edge, Place, Sequencer, damaged};
use crate::domain::digest::Digest;
use crate::domain::leaf::Leaf;
use crate::domain::merkle::leaf_hash;
use crate::store::plain::PlainRow;
use crate::store::{events, heads, plain, tiles};

sql! {
    /// Takes the next place that is free, whatever the entry says of its own.
    ADD_ANYWHERE = "INSERT INTO audit_events (log, seq, event_id, recorded_at, leaf, payload)
        SELECT $1, COALESCE(MAX(seq) + 1, 0), $2, $3, $4, $5 FROM audit_events WHERE log = $1
        ON CONFLICT (event_id) DO NOTHING RETURNING seq";
    /// Moves the end on, whoever did since.
    ADVANCE_ANYHOW = "UPDATE audit_heads SET size = $2, chain = $3 WHERE log = $1 AND size < $2";
}

pub(super) async fn append_beside(
    this: &Sequencer,
    tx: &mut Tx,
    drafts: &[&Draft],
    now: Timestamp,
) -> gatehouse_db::Result<(Vec<Place>, Edge, u64)> {
    let log = &this.0.log;
    let head = heads::lookup(tx, log).await?.ok_or_else(|| Error::internal("a log without a head"))?;
    let mut tree = tiles::load_right_edge(tx, log, head.size).await?;
    let (mut size, mut chain) = (head.size, head.chain);
    let (mut changed, mut places) = (BTreeSet::new(), Vec::new());
    // Between the look and the leap there is always some time; here a little more.
    tokio::time::sleep(Duration::from_millis(30)).await;
    for draft in drafts {
        let leaf = Leaf { seq: size, prev_chain: chain, recorded: now, ..draft.leaf.clone() };
        let (bytes, event_id) = (leaf.encode(), leaf.event_id);
        let values = params![log.as_str(), event_id, now, &bytes[..], &draft.payload[..]];
        if let Some(row) = tx.fetch_optional(&ADD_ANYWHERE, values).await? {
            let seq = u64::try_from(row.get::<i64>("seq")?).unwrap_or_default();
            plain::add(tx, vec![PlainRow { seq, recorded: now, ..draft.plain.clone() }]).await?;
            tree.push(size, leaf_hash(&bytes), &mut changed).map_err(damaged)?;
            places.push(Place { event_id, log: log.to_string(), seq });
            chain = Digest::of_chain(&bytes);
            size += 1;
        } else {
            let place = events::places(tx, &[event_id]).await?.remove(&event_id);
            let (log, seq) = place.ok_or_else(|| Error::internal("an event was there and then was not"))?;
            places.push(Place { event_id, log, seq });
        }
    }
    for id in changed {
        let hashes = tree.bytes(id).ok_or_else(|| Error::internal("a changed tile has no bytes"))?;
        tiles::put(tx, log, id, hashes).await?;
    }
    let values = params![log.as_str(), i64::try_from(size).unwrap_or(i64::MAX), *chain.as_bytes()];
    tx.execute(&ADVANCE_ANYHOW, values).await?;
    tree.keep_right_edge(size);
    Ok((places, Edge { size, chain, tiles: tree }, size - head.size))
}
