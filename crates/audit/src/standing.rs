//! Whether a log still has what was signed of it, while the service runs.
//!
//! A database can go back under a service that goes on: it is restored, or a standby takes over that lagged. What is appended
//! then would take the places of entries that somebody has a checkpoint of. So each process remembers what it knows to be
//! signed, and who holds the lock of the head compares before anything gets a place.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gatehouse_core::{Error, Result};
use gatehouse_service::Readiness;
use gatehouse_service::readiness::Gate;

use crate::domain::checkpoint::Checkpoint;
use crate::domain::names::LogId;
use crate::signed_states;

/// What one log has to have. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Standing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    log: LogId,
    /// Where the state stands that decides at a start.
    path: PathBuf,
    gate: Gate,
    /// The largest state that this process knows to be signed. Never a smaller one again: a file may be put back.
    signed: Mutex<Option<Checkpoint>>,
}

impl Standing {
    /// Nothing is known to be signed. A condition of `readiness`, which holds for now.
    pub(crate) fn new(log: &LogId, path: PathBuf, readiness: &Readiness) -> Self {
        let gate = readiness.gate(format!("audit.logs.{log}"), "its signed state is not read yet");
        gate.ready();
        Self(Arc::new(Inner { log: log.clone(), path, gate, signed: Mutex::default() }))
    }

    /// The log that it is about.
    pub(crate) fn log(&self) -> &LogId {
        &self.0.log
    }

    /// Learns that `state` was signed.
    pub(crate) fn learn(&self, state: &Checkpoint) {
        let mut signed = self.signed();
        if signed.as_ref().is_none_or(|known| known.size < state.size) {
            *signed = Some(state.clone());
        }
    }

    /// What is known to be signed by now: what a log must have that is looked at from now on.
    pub(crate) fn known(&self) -> Option<Checkpoint> {
        self.signed().clone()
    }

    /// Refuses a log that has `size` entries now, with the lock of its head held, if more are known to be signed; says what to
    /// do. As long as it is so the process is not ready.
    ///
    /// # Errors
    /// `AUDIT_LOG_BEHIND`.
    pub(crate) fn check_locked(&self, size: u64) -> Result<()> {
        self.check(self.known().as_ref(), size)
    }

    /// The same of a log that had `size` entries at some time after `known` was what [`Self::known`] says. Others may have
    /// appended and signed more since.
    ///
    /// # Errors
    /// `AUDIT_LOG_BEHIND`.
    pub(crate) fn check(&self, known: Option<&Checkpoint>, size: u64) -> Result<()> {
        let Some(state) = known.filter(|state| state.size > size) else {
            // An older look says nothing of what was signed since.
            if self.signed().as_ref().is_none_or(|state| state.size <= size) {
                self.0.gate.ready();
            }
            return Ok(());
        };
        self.0.gate.unready(format!("it has {size} entries, and {} were signed", state.size));
        Err(Error::failed_precondition(
            "AUDIT_LOG_BEHIND",
            format!(
                "The log {} has {size} entries, and {} were signed, as {} says: the database was restored from an older \
                 backup, or is another one. Restore the newest that there is. If what came since is lost, say so: \
                 audit.given_up_states = [\"{}\"]. See \"A restored database\" in docs/audit-log.md.",
                self.0.log,
                state.size,
                self.0.path.display(),
                signed_states::as_configured(state),
            ),
        ))
    }

    fn signed(&self) -> MutexGuard<'_, Option<Checkpoint>> {
        self.0.signed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
