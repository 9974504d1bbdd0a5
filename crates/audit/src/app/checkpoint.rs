//! Signing what a log is now.

use std::collections::BTreeSet;
use std::path::Path;

use gatehouse_core::{Error, Result};
use gatehouse_db::{read_tx, run_tx};
use gatehouse_service::reply;
use serde_json::json;

use super::append::{Actor, Incoming};
use super::{App, Log};
use crate::domain::checkpoint::{Checkpoint, CheckpointError};
use crate::domain::names::Service;
use crate::domain::note::NoteError;
use crate::domain::tiles::{Tiles, tiles_of};
use crate::sequencer::damaged;
use crate::signed_states::Known;
use crate::store::heads::Head;
use crate::store::{checkpoints, heads, tiles};

/// So often is looked whether the file knows what was signed.
const MOST_LOOKS: u32 = 3;
/// So often is tried to write down what is signed. Each time somebody else has written down something smaller meanwhile.
const MOST_RECORDS: u32 = 10;

/// A signed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signed {
    pub(crate) size: u64,
    pub(crate) note: String,
}

/// A log that extends what was signed of it.
struct Look {
    head: Head,
    tree: Tiles,
    newest: Option<(u64, String)>,
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
    /// what was signed before, as the database and the file outside of it say: a second history gets no signature.
    pub(crate) async fn sign_checkpoint(&self, log: &Log) -> Result<Signed> {
        // Before the log is looked at: another replica may sign more meanwhile.
        let mut known = self.signed_state(log).await.map_err(Error::internal)?.state();
        let known_size = known.as_ref().map_or(0, |state| state.size);
        let Look { head, tree, newest } = self.look(log, known.as_slice()).await?;
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
            // It may be another replica that signed it, with a folder of its own.
            if size > known_size && signed.origin == log.origin {
                self.write_down(log, &signed, known).await?;
                log.standing.extends(&signed);
                self.settle_record(log).await?;
                known = Some(signed.clone());
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
        self.write_down(log, &checkpoint, known).await?;
        log.standing.extends(&checkpoint);
        let note = checkpoint.sign(&log.signer).map_err(Error::internal)?;
        let now = self.clock.now();
        let kept = run_tx!(self.db, "audit.sign", |tx| {
            checkpoints::add(tx, &log.id, head.size, now, &note).await?;
            checkpoints::lookup(tx, &log.id, head.size).await
        })?;
        self.settle_record(log).await?;
        kept_as_stored(kept)
    }

    /// Looks at the log, and holds what this process knows to be signed against it, and `others`, which the file says or said.
    async fn look(&self, log: &Log, others: &[Checkpoint]) -> Result<Look> {
        let expected = log.standing.expected();
        let sizes: BTreeSet<u64> = expected.states.iter().chain(others).map(|state| state.size).collect();
        let look = read_tx!(self.db, "audit.checkpoint_state", |tx| {
            let head = heads::lookup(tx, &log.id)
                .await?
                .ok_or_else(|| Error::internal(format!("the log {} has no head", log.id)))?;
            let newest = checkpoints::lookup_newest(tx, &log.id).await?;
            let older = newest.as_ref().map_or(0, |(size, _)| *size);
            let ends = sizes.iter().copied().chain([head.size, older]);
            let needed: BTreeSet<_> = tiles_of(ends.map(|end| (0, end.min(head.size))));
            let tree = tiles::load(tx, &log.id, &needed).await?;
            Ok(Look { head, tree, newest })
        })?;
        log.standing.compare(&expected, look.head.size, &look.tree).map_err(Error::internal)?;
        // A smaller one, or one beside that of the same size which this process knows: it is the file that is another.
        for state in others {
            if look.tree.range(0, state.size).map_err(damaged)? != state.root {
                let path = self.states.path(&log.origin);
                return Err(Error::internal(format!(
                    "the log {} does not extend its state of {} entries, which was signed, as {} says: it was rewritten or \
                     restored from a backup, or the file was. Run verify-audit-chain.",
                    log.id,
                    state.size,
                    path.display()
                )));
            }
        }
        Ok(look)
    }

    /// Has the file know `state` before it is signed. The log was found to extend `known`, which the file said. Where it
    /// says something else by now, another replica signed that: the log has to extend that too, and `state` still.
    async fn write_down(&self, log: &Log, state: &Checkpoint, mut known: Option<Checkpoint>) -> Result<()> {
        for _ in 0..MOST_RECORDS {
            let Some(found) = self.record(state, known.clone()).await? else { return Ok(()) };
            log.standing.learn(&found);
            self.look(log, &[state.clone(), found.clone()]).await?;
            known = Some(found);
        }
        Err(Error::internal(format!("the log {} is not signed: others sign all the time", log.id)))
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

    /// What the log was signed as, by what stands outside of the database.
    async fn signed_state(&self, log: &Log) -> Result<Known> {
        let standing = log.standing.clone();
        self.blocking(move |_| standing.read()).await
    }

    /// What is wrong with the file is no caller's business.
    async fn record(&self, state: &Checkpoint, known: Option<Checkpoint>) -> Result<Option<Checkpoint>> {
        let state = state.clone();
        self.blocking(move |app| app.states.record(&state, known.as_ref())).await.map_err(Error::internal)
    }

    /// Has the file know the newest checkpoint after all. A replica that stood still with the lock, or went on without
    /// it, may have put an older state over ours. Whoever writes comes here afterwards, and the database is asked before
    /// the file: so of two that cross, one sees what the other did.
    async fn settle_record(&self, log: &Log) -> Result<()> {
        for _ in 0..MOST_LOOKS {
            let newest = read_tx!(self.db, "audit.newest_signed", |tx| {
                checkpoints::lookup_newest(tx, &log.id).await
            })?;
            let signed = newest.and_then(|(_, note)| Checkpoint::open_by_any(&note, &log.accepted).ok());
            let Some((state, _)) = signed.filter(|(state, _)| state.origin == log.origin) else { break };
            let known = self.signed_state(log).await.map_err(Error::internal)?.state();
            if known.is_some_and(|known| known.size >= state.size) {
                break;
            }
            self.write_down(log, &state, None).await?;
            log.standing.learn(&state);
        }
        // One that is still behind knows less until the next look.
        Ok(())
    }

    /// Refuses a log that has fewer entries than were signed: its database was restored from a backup, and what it would
    /// sign next would be a second history. One that was rewritten is told only: events must still be written down. The
    /// state that is given up, if the configuration says so.
    ///
    /// # Errors
    /// `AUDIT_LOG_BEHIND`, `SIGNED_STATE_UNREADABLE`.
    pub(crate) async fn check_signed_state(&self, log: &Log) -> Result<Option<Checkpoint>> {
        let state = match self.signed_state(log).await? {
            Known::Nothing => return Ok(None),
            Known::State(state) => state,
            Known::GivenUp(state) => return Ok(Some(state)),
        };
        let expected = log.standing.expected();
        let (head, tree) = read_tx!(self.db, "audit.signed_state", |tx| {
            let size = heads::lookup(tx, &log.id).await?.map_or(0, |head| head.size);
            let needed = tiles_of([(0, state.size.min(size))]);
            Ok((size, tiles::load(tx, &log.id, &needed).await?))
        })?;
        log.standing.check(&expected, head)?;
        if tree.range(0, state.size).ok() == Some(state.root) {
            log.standing.extends(&state);
        } else {
            log.standing.tell(&state);
            tracing::error!(
                log = %log.id,
                size = state.size,
                "NOTHING WILL BE SIGNED: the log does not extend what was signed of it; run verify-audit-chain and keep what \
                 it says"
            );
        }
        Ok(None)
    }

    /// Goes on without `state`. That is itself audited, and then signed, with which the file knows the new state.
    pub(crate) async fn give_up(&self, log: &Log, state: &Checkpoint) -> Result<()> {
        tracing::warn!(log = %log.id, size = state.size, "a state that was signed is given up");
        let service = Service::new("audit").map_err(Error::internal)?;
        let event = self.own_event("audit.states.give_up", Actor::System(service))?;
        let payload = json!({ "size": state.size, "root": state.root.to_base64() }).to_string();
        let target = Some(Self::log_target(log.id.as_str())?);
        self.append(vec![Incoming { target, payload, ..event }]).await?;
        // A log that can't be signed takes events all the same.
        if let Err(error) = self.sign_checkpoint(log).await {
            reply::log(&error);
        }
        Ok(())
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
