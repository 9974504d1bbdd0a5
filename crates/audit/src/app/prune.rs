//! Removing what is past its time, from the front only, so that what is kept still verifies.
//!
//! What is removed can't be held against anything afterwards, and the service signs that it was right to remove it. So
//! only what the tree holds decides: each leaf says itself when it was recorded, and everything that is removed, and
//! what was said when more was removed before, is verified first. Whoever can write to the database can make the
//! service stop pruning, which is loud, but not prune early.

use std::time::Duration;

use gatehouse_core::{Error, ErrorCode, Result, Timestamp};
use gatehouse_db::{Tx, run_tx};
use gatehouse_service::reply;
use opentelemetry::KeyValue;
use serde_json::json;

use super::append::{Actor, Incoming};
use super::{App, DEFAULT_LOG, Log, pruned_origin};
use crate::domain::checkpoint::Checkpoint;
use crate::domain::digest::Digest;
use crate::domain::leaf::Leaf;
use crate::domain::merkle::{Frontier, leaf_hash};
use crate::domain::names::Service;
use crate::domain::pruned::Pruned;
use crate::domain::tiles::{TileId, WIDTH, tiles_of};
use crate::sequencer::damaged;
use crate::store::heads::Head;
use crate::store::{events, heads, plain, tiles};

/// Entries read at once.
const PAGE: u32 = 500;

impl App {
    /// Removes the entries of every log that are past its days. Each removal is itself audited, in the same transaction:
    /// while the default log takes no events, nothing is removed of any. A log that can't be pruned, because what should be
    /// removed is not what was logged, say, keeps no other from it; it is told, and tried again next time.
    pub(crate) async fn prune(&self) {
        for log in self.logs() {
            let Err(error) = self.prune_and_tell(log).await else { continue };
            if !matches!(error.code(), ErrorCode::Unavailable | ErrorCode::Aborted) {
                tracing::error!(
                    log = %log.id,
                    "NOT PRUNED: what is stored contradicts itself or what was signed; run verify-audit-chain and keep \
                     what it says: {error:?}"
                );
                opentelemetry::global::meter("gatehouse")
                    .u64_counter("gatehouse.audit.prune.refused")
                    .with_description(
                        "Times that a log was not pruned because what it holds contradicts itself.",
                    )
                    .build()
                    .add(1, &[KeyValue::new("log", log.id.to_string())]);
            }
            reply::log(&error);
        }
    }

    async fn prune_and_tell(&self, log: &Log) -> Result<()> {
        let before = self.head(log).await?.first_seq;
        let first = self.prune_log(log).await?;
        if first > before {
            tracing::info!(log = %log.id, first, "entries past their time were removed");
        }
        Ok(())
    }

    /// The first entry that is kept now. Appending waits while entries are removed, so a long backlog goes in parts.
    async fn prune_log(&self, log: &Log) -> Result<u64> {
        // What is removed was signed before: old checkpoints stay connected with new ones.
        self.sign_checkpoint(log).await?;
        loop {
            let part = run_tx!(self.db, "audit.prune", |tx| { self.prune_in(tx, log).await })?;
            self.log(DEFAULT_LOG)?.sequencer.count(part.told);
            if !part.more {
                return Ok(part.first);
            }
            tokio::task::yield_now().await;
        }
    }

    async fn prune_in(&self, tx: &mut Tx, log: &Log) -> gatehouse_db::Result<Part> {
        let cutoff = self.clock.now().minus(Duration::from_secs(u64::from(log.days) * 86_400));
        let locked = heads::lock(tx, &log.id).await?;
        let Some(gone) = self.past_their_time(tx, log, &locked, cutoff).await? else {
            self.countersign_pruned(tx, log, &locked).await?;
            return Ok(Part { first: locked.first_seq, more: false, told: 0 });
        };
        compare_with_tree(tx, log, locked.first_seq, &gone).await?;
        let first = gone.front.size();
        let checkpoint =
            Checkpoint { origin: pruned_origin(&log.origin), size: first, root: gone.front.root() };
        let statement = Pruned { checkpoint, last_recorded: Some(gone.last_recorded) };
        let note = statement.sign(&log.prune_signer).map_err(Error::internal)?;
        events::prune(tx, &log.id, first).await?;
        plain::prune(tx, &log.id, first).await?;
        if !heads::prune(tx, &log.id, &locked, first, gone.chain, &note).await? {
            return Err(Error::internal("the log's lock was lost while it was pruned").into());
        }
        self.tell_in(tx, log, locked.first_seq, first).await?;
        Ok(Part { first, more: first - locked.first_seq == self.max_prune, told: 1 })
    }

    /// Says in the default log that the entries `from..to` of `log` are removed.
    async fn tell_in(&self, tx: &mut Tx, log: &Log, from: u64, to: u64) -> gatehouse_db::Result<()> {
        let service = Service::new("audit").map_err(Error::internal)?;
        let event = self.own_event("audit.entries.prune", Actor::System(service))?;
        let payload = json!({ "from": from, "to": to, "days": log.days }).to_string();
        let target = Some(Self::log_target(log.id.as_str())?);
        let event = Incoming { target, payload, ..event };
        let (into, draft) = self.blocking(move |app| app.draft(event)).await?;
        self.log(&into)?.sequencer.append_within(tx, &draft).await
    }

    /// Signs the statement of what was pruned with the present key too, where one of before signed it. It was checked.
    async fn countersign_pruned(&self, tx: &mut Tx, log: &Log, locked: &Head) -> gatehouse_db::Result<()> {
        let Some(note) = locked.pruned_note.as_deref() else { return Ok(()) };
        let named = Pruned::read_unsigned(note)
            .is_ok_and(|statement| statement.checkpoint.origin == pruned_origin(&log.origin));
        if !named || Pruned::open(note, &log.prune_signer.verifier()).is_ok() {
            return Ok(());
        }
        let note = log.prune_signer.countersign(note).map_err(Error::internal)?;
        if !heads::prune(tx, &log.id, locked, locked.first_seq, locked.first_chain, &note).await? {
            return Err(Error::internal("the log's lock was lost while its statement was signed").into());
        }
        Ok(())
    }

    /// The entries at the front that are past their time, by what their leaves say, each verified; `None` if there are
    /// none. The first one that is not is looked at too.
    async fn past_their_time(
        &self,
        tx: &mut Tx,
        log: &Log,
        locked: &Head,
        cutoff: Timestamp,
    ) -> gatehouse_db::Result<Option<Gone>> {
        let start = locked.first_seq;
        let mut front =
            tiles::load(tx, &log.id, &tiles_of([(0, start)])).await?.frontier(start).map_err(damaged)?;
        check_beginning(log, locked, &front)?;
        let (mut chain, mut hashes, mut last_recorded) = (locked.first_chain, Vec::new(), None);
        let end = locked.size.min(start.saturating_add(self.max_prune));
        'pages: while front.size() < end {
            let page = events::list(tx, &log.id, front.size(), PAGE).await?;
            if page.is_empty() {
                return Err(refused(log, front.size(), "is missing").into());
            }
            for entry in page.iter().take_while(|entry| entry.seq < end) {
                let seq = front.size();
                let leaf = check(log, entry, seq, chain)?;
                if leaf.recorded >= cutoff {
                    break 'pages;
                }
                let hash = leaf_hash(&entry.leaf);
                chain = Digest::of_chain(&entry.leaf);
                front.push(hash);
                hashes.push(hash);
                last_recorded = last_recorded.max(Some(leaf.recorded));
            }
        }
        Ok(last_recorded.map(|last_recorded| Gone { front, chain, hashes, last_recorded }))
    }
}

/// What one transaction removed.
struct Part {
    /// The first entry that is kept now.
    first: u64,
    /// Whether more may be past their time.
    more: bool,
    /// How many events the default log has of it.
    told: u64,
}

/// Entries that are to be removed, as their leaves give them.
struct Gone {
    /// The tree over them and all that went before.
    front: Frontier,
    /// The link after the last of them.
    chain: Digest,
    /// Their leaf hashes.
    hashes: Vec<Digest>,
    /// When the last of them was recorded; where the clock went back, the latest time.
    last_recorded: Timestamp,
}

fn refused(log: &Log, seq: u64, what: &str) -> Error {
    Error::failed_precondition(
        "AUDIT_LOG_DAMAGED",
        format!("The log {} is not pruned: entry {seq} {what}. Run verify-audit-chain.", log.id),
    )
}

/// What was removed before must be what was signed then: otherwise the next statement would cover it up.
fn check_beginning(log: &Log, locked: &Head, front: &Frontier) -> Result<()> {
    if locked.first_seq == 0 {
        return if locked.first_chain == Digest::of_genesis(&log.id) {
            Ok(())
        } else {
            Err(refused(log, 0, "has another link before it than the log's beginning"))
        };
    }
    let note = locked.pruned_note.as_deref().unwrap_or_default();
    let stated = Pruned::open_by_any(note, &log.prune_accepted).is_ok_and(|Pruned { checkpoint, .. }| {
        checkpoint.size == locked.first_seq && checkpoint.root == front.root()
    });
    if stated {
        Ok(())
    } else {
        Err(refused(
            log,
            locked.first_seq,
            "is the first one, and no signed statement says that those before it went",
        ))
    }
}

fn check(log: &Log, entry: &events::Stored, seq: u64, chain: Digest) -> Result<Leaf> {
    let leaf = Leaf::parse(&entry.leaf).map_err(|_| refused(log, seq, "is no leaf"))?;
    if entry.seq != seq || leaf.seq != seq {
        return Err(refused(log, seq, "is missing, or another stands in its place"));
    }
    if leaf.log != log.id || leaf.retention != log.retention {
        return Err(refused(log, seq, "belongs to another log"));
    }
    if leaf.prev_chain != chain {
        return Err(refused(log, seq, "does not fit the one before"));
    }
    if leaf.payload_sha256 != Digest::of_payload(&entry.payload) {
        return Err(refused(log, seq, "has another payload than was logged"));
    }
    if leaf.recorded != entry.recorded || leaf.event_id.as_uuid() != entry.event_id {
        return Err(refused(log, seq, "has columns that contradict its leaf"));
    }
    Ok(leaf)
}

/// Whether the stored tree, which checkpoints were signed by, holds these entries at these places.
async fn compare_with_tree(tx: &mut Tx, log: &Log, start: u64, gone: &Gone) -> gatehouse_db::Result<()> {
    let end = gone.front.size();
    let mut tile = (u64::MAX, Vec::new());
    for (seq, hash) in (start..end).zip(&gone.hashes) {
        let index = seq / WIDTH;
        if tile.0 != index {
            let stored = tiles::lookup(tx, &log.id, TileId { level: 0, index }).await?;
            tile = (index, stored.unwrap_or_default());
        }
        let offset = usize::try_from(seq % WIDTH).unwrap_or(0) * 32;
        if tile.1.get(offset..offset + 32) != Some(hash.as_bytes().as_slice()) {
            return Err(refused(log, seq, "is not the one that the tree holds").into());
        }
    }
    let tree = tiles::load(tx, &log.id, &tiles_of([(0, end)])).await?;
    if tree.range(0, end).map_err(damaged)? == gone.front.root() {
        Ok(())
    } else {
        Err(refused(log, end - 1, "and those before it do not give the tree that is stored").into())
    }
}
