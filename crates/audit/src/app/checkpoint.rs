//! Signing what a log is now.

use std::collections::BTreeSet;
use std::path::Path;

use gatehouse_core::{Error, Result};
use gatehouse_db::{read_tx, run_tx};

use super::{App, Log};
use crate::domain::checkpoint::{Checkpoint, CheckpointError};
use crate::domain::note::NoteError;
use crate::domain::tiles::tiles_of;
use crate::sequencer::damaged;
use crate::store::heads::Head;
use crate::store::{checkpoints, heads, tiles};

/// A signed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signed {
    pub(crate) size: u64,
    pub(crate) note: String,
}

/// What stands in the table, once something was put there.
fn kept_as_stored(kept: Option<(u64, String)>) -> Result<Signed> {
    let (size, note) = kept.ok_or_else(|| Error::internal("a checkpoint vanished while it was stored"))?;
    Ok(Signed { size, note })
}

impl App {
    /// The head of every log.
    pub(crate) async fn heads(&self) -> Result<Vec<(&Log, Head)>> {
        let mut heads = Vec::new();
        for log in self.logs() {
            heads.push((log, self.head(log).await?));
        }
        Ok(heads)
    }

    pub(crate) async fn head(&self, log: &Log) -> Result<Head> {
        let head = read_tx!(self.db, "audit.head", |tx| { heads::lookup(tx, &log.id).await })?;
        head.ok_or_else(|| Error::internal(format!("the log {} has no head", log.id)))
    }

    /// The newest checkpoint of a log; the first one is signed now.
    pub(crate) async fn newest_checkpoint(&self, log: &Log) -> Result<Signed> {
        let newest =
            read_tx!(self.db, "audit.checkpoint", |tx| { checkpoints::lookup_newest(tx, &log.id).await })?;
        match newest {
            Some((size, note)) => Ok(Signed { size, note }),
            None => self.sign_checkpoint(log).await,
        }
    }

    /// Signs the log's present state, unless that is signed already. Refuses where the stored tree does not extend
    /// what was signed before: a second history gets no signature.
    pub(crate) async fn sign_checkpoint(&self, log: &Log) -> Result<Signed> {
        let (head, tree, newest) = read_tx!(self.db, "audit.checkpoint_state", |tx| {
            let head = heads::lookup(tx, &log.id)
                .await?
                .ok_or_else(|| Error::internal(format!("the log {} has no head", log.id)))?;
            let newest = checkpoints::lookup_newest(tx, &log.id).await?;
            let older = newest.as_ref().map_or(0, |(size, _)| (*size).min(head.size));
            let needed: BTreeSet<_> = tiles_of([(0, head.size), (0, older)]);
            Ok((head, tiles::load(tx, &log.id, &needed).await?, newest))
        })?;
        if let Some((size, note)) = newest {
            let (signed, by) = Checkpoint::open_by_any(&note, &log.accepted).map_err(|error| {
                Error::internal(format!("the stored checkpoint of size {size} of {}: {error}", log.id))
            })?;
            let extends = signed.size == size
                && size <= head.size
                && tree.range(0, size).map_err(damaged)? == signed.root;
            if !extends {
                return Err(Error::internal(format!(
                    "the log {} does not extend its checkpoint of size {size}: it was rewritten or restored from a \
                     backup. Run verify-audit-chain.",
                    log.id
                )));
            }
            if size == head.size {
                // Under another name it would be the checkpoint of another log.
                let of_before = *by != log.signer.verifier() && signed.origin == log.origin;
                return if of_before {
                    self.countersign(log, size, &note).await
                } else {
                    Ok(Signed { size, note })
                };
            }
        }
        let root = tree.range(0, head.size).map_err(damaged)?;
        let checkpoint = Checkpoint { origin: log.origin.clone(), size: head.size, root };
        let note = checkpoint.sign(&log.signer).map_err(Error::internal)?;
        let now = self.clock.now();
        let kept = run_tx!(self.db, "audit.sign", |tx| {
            checkpoints::add(tx, &log.id, head.size, now, &note).await?;
            checkpoints::lookup(tx, &log.id, head.size).await
        })?;
        kept_as_stored(kept)
    }

    /// The checkpoint of `size`, which a key of before signed, with a signature of the present one behind it: one note for
    /// a size, for whoever has either key.
    async fn countersign(&self, log: &Log, size: u64, note: &str) -> Result<Signed> {
        let countersigned = log.signer.countersign(note).map_err(Error::internal)?;
        tracing::info!(log = %log.id, size, "the newest checkpoint was countersigned with another key");
        let kept = run_tx!(self.db, "audit.countersign", |tx| {
            checkpoints::countersign(tx, &log.id, size, note, &countersigned).await?;
            checkpoints::lookup(tx, &log.id, size).await
        })?;
        kept_as_stored(kept)
    }

    /// Refuses a key that the log was not signed with, unless the configuration names the one that signed it.
    ///
    /// # Errors
    /// `CHECKPOINT_KEY_REPLACED`.
    pub(crate) async fn check_key(&self, log: &Log, file: &Path) -> Result<()> {
        let newest =
            read_tx!(self.db, "audit.checkpoint", |tx| { checkpoints::lookup_newest(tx, &log.id).await })?;
        let Some((size, note)) = newest else { return Ok(()) };
        match Checkpoint::open_by_any(&note, &log.accepted) {
            Err(CheckpointError::Note(NoteError::NotSigned)) => Err(Error::failed_precondition(
                "CHECKPOINT_KEY_REPLACED",
                format!(
                    "audit.checkpoint_key_file: {} is not the key that the log {} is signed with, under the name {}. \
                     Restore it from a backup, or the database that belongs to it. If the key, audit.origin or GATEHOUSE_ENV \
                     was changed on purpose, name the verifier key of before in audit.accepted_verifier_keys. \
                     (The newest checkpoint is of {size} entries.)",
                    file.display(),
                    log.id,
                    log.origin,
                ),
            )),
            // One that was tampered with says nothing of the key: signing refuses it, and verification tells.
            Ok(_) | Err(_) => Ok(()),
        }
    }
}
