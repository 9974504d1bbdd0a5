//! Removing what is past its time, from the front only, so that what is kept still verifies.

use std::time::Duration;

use gatehouse_core::{Error, Result};
use gatehouse_db::{Tx, run_tx};
use serde_json::json;

use super::append::{Actor, Incoming};
use super::{App, Log, pruned_origin};
use crate::domain::checkpoint::Checkpoint;
use crate::domain::digest::Digest;
use crate::domain::names::Service;
use crate::domain::tiles::tiles_of;
use crate::sequencer::damaged;
use crate::store::{events, heads, plain, tiles};

impl App {
    /// Removes the entries of every log that are past its days. Each removal is itself audited.
    pub(crate) async fn prune(&self) -> Result<()> {
        for log in self.logs() {
            let before = self.head(log).await?.first_seq;
            let first = self.prune_log(log).await?;
            if first > before {
                tracing::info!(log = %log.id, first, "entries past their time were removed");
                let service = Service::new("audit").map_err(Error::internal)?;
                let event = self.own_event("audit.entries.prune", Actor::System(service))?;
                let payload = json!({ "from": before, "to": first, "days": log.days }).to_string();
                let target = Some(Self::log_target(log.id.as_str())?);
                self.append(vec![Incoming { target, payload, ..event }]).await?;
            }
        }
        Ok(())
    }

    /// The first entry that is kept now. Appending waits while entries are removed, so a long backlog goes in parts.
    async fn prune_log(&self, log: &Log) -> Result<u64> {
        // What is removed was signed before: old checkpoints stay connected with new ones.
        self.sign_checkpoint(log).await?;
        loop {
            let part = run_tx!(self.db, "audit.prune", |tx| { self.prune_in(tx, log).await })?;
            if !part.more {
                return Ok(part.first);
            }
            tokio::task::yield_now().await;
        }
    }

    async fn prune_in(&self, tx: &mut Tx, log: &Log) -> gatehouse_db::Result<Part> {
        let cutoff = self.clock.now().minus(Duration::from_secs(u64::from(log.days) * 86_400));
        let locked = heads::lock(tx, &log.id).await?;
        let due = events::lookup_first_kept(tx, &log.id, cutoff).await?.unwrap_or(locked.size);
        if due <= locked.first_seq {
            return Ok(Part { first: locked.first_seq, more: false });
        }
        let first = due.min(locked.first_seq + self.max_prune);
        let last_gone = events::lookup(tx, log.id.as_str(), first - 1)
            .await?
            .ok_or_else(|| Error::internal(format!("the log {} has a gap before {first}", log.id)))?;
        let tree = tiles::load(tx, &log.id, &tiles_of([(0, first)])).await?;
        let statement = Checkpoint {
            origin: pruned_origin(&log.origin),
            size: first,
            root: tree.range(0, first).map_err(damaged)?,
        };
        let note = statement.sign(&log.prune_signer).map_err(Error::internal)?;
        let chain = Digest::of_chain(&last_gone.leaf);
        events::prune(tx, &log.id, first).await?;
        plain::prune(tx, &log.id, first).await?;
        if !heads::prune(tx, &log.id, &locked, first, chain, &note).await? {
            return Err(Error::internal("the log's lock was lost while it was pruned").into());
        }
        Ok(Part { first, more: first < due })
    }
}

/// What one transaction removed.
struct Part {
    /// The first entry that is kept now.
    first: u64,
    /// Whether more are past their time.
    more: bool,
}
