//! Proofs over the stored tree.

use gatehouse_core::ids::{EventId, TenantId};
use gatehouse_core::{Error, Result};
use gatehouse_db::read_tx;

use super::read::not_found;
use super::{App, Log};
use crate::domain::digest::Digest;
use crate::domain::leaf::Leaf;
use crate::domain::proof::{consistency_ranges, hashes, inclusion_ranges};
use crate::domain::tiles::tiles_of;
use crate::sequencer::damaged;
use crate::store::{checkpoints, events, tiles};

/// That an event is in a log.
#[derive(Clone, Debug)]
pub(crate) struct Inclusion {
    pub(crate) log: String,
    pub(crate) seq: u64,
    pub(crate) size: u64,
    pub(crate) hashes: Vec<Digest>,
    pub(crate) leaf: Vec<u8>,
    /// The checkpoint of `size`; empty if none was signed.
    pub(crate) checkpoint: String,
}

impl App {
    /// That an event is in its log, whose size is taken as `size` or, if 0, as that of the newest checkpoint; one is
    /// signed if the event is newer. `tenant` limits to that tenant's events; `None` sees all.
    pub(crate) async fn prove_inclusion(
        &self,
        tenant: Option<TenantId>,
        id: EventId,
        size: u64,
    ) -> Result<Inclusion> {
        let found = read_tx!(self.db, "audit.place", |tx| {
            let Some((log, seq)) = events::lookup_place(tx, id).await? else { return Ok(None) };
            Ok(events::lookup(tx, &log, seq).await?.map(|entry| (log, entry)))
        })?;
        let (name, entry) = found.ok_or_else(not_found)?;
        let leaf = Leaf::parse(&entry.leaf).map_err(Error::internal)?;
        if tenant.is_some() && leaf.tenant != tenant {
            return Err(not_found());
        }
        let log = self.log(&name)?;
        let (size, checkpoint) = self.size_to_prove(log, entry.seq, size).await?;
        let ranges = inclusion_ranges(entry.seq, size)
            .ok_or_else(|| Error::invalid_field("size", "must be greater than the event's index"))?;
        let hashes = self.hashes_of(log, &ranges).await?;
        Ok(Inclusion { log: name, seq: entry.seq, size, hashes, leaf: entry.leaf, checkpoint })
    }

    /// That the log of `to` entries extends the log of `from`.
    pub(crate) async fn prove_consistency(&self, log: &Log, from: u64, to: u64) -> Result<Vec<Digest>> {
        if to > self.head(log).await?.size {
            return Err(Error::invalid_field("to_size", "must not exceed the log's size"));
        }
        let ranges = consistency_ranges(from, to)
            .ok_or_else(|| Error::invalid_field("from_size", "must not exceed to_size"))?;
        self.hashes_of(log, &ranges).await
    }

    async fn size_to_prove(&self, log: &Log, seq: u64, size: u64) -> Result<(u64, String)> {
        if size == 0 {
            let mut newest = self.newest_checkpoint(log).await?;
            if newest.size <= seq {
                newest = self.sign_checkpoint(log).await?;
            }
            return Ok((newest.size, newest.note));
        }
        if size > self.head(log).await?.size {
            return Err(Error::invalid_field("size", "must not exceed the log's size"));
        }
        let stored =
            read_tx!(self.db, "audit.checkpoint", |tx| { checkpoints::lookup(tx, &log.id, size).await })?;
        Ok((size, stored.map(|(_, note)| note).unwrap_or_default()))
    }

    async fn hashes_of(&self, log: &Log, ranges: &[(u64, u64)]) -> Result<Vec<Digest>> {
        let needed = tiles_of(ranges.iter().copied());
        let tree = read_tx!(self.db, "audit.tiles", |tx| { tiles::load(tx, &log.id, &needed).await })?;
        hashes(&tree, ranges).map_err(damaged)
    }
}
