//! Whether a log still has what was signed of it, while the service runs.
//!
//! A database can go back under a service that goes on: it is restored, or a standby takes over that lagged. What is appended
//! then would take the places of entries that somebody has a checkpoint of. So each process remembers what it knows to be
//! signed. Who holds the lock of the head looks whether the file says more by now, and compares the sizes before anything
//! gets a place; who signs compares the roots too.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gatehouse_core::{Error, Result};
use gatehouse_service::Readiness;
use gatehouse_service::readiness::Gate;

use crate::domain::checkpoint::Checkpoint;
use crate::domain::names::LogId;
use crate::domain::tiles::Tiles;
use crate::sequencer::damaged;
use crate::signed_states::{self, Known, SignedStates, Version};

/// What one log has to have. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Standing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    log: LogId,
    origin: String,
    /// Where the state stands that decides at a start.
    states: SignedStates,
    gate: Gate,
    signed: Mutex<Signed>,
}

/// What this process knows to be signed.
#[derive(Debug, Default)]
struct Signed {
    /// The largest state that the log was found to extend. Only a larger one that it was found to extend too takes its place.
    extended: Option<Checkpoint>,
    /// A larger one that the file said, and that the log was not compared with yet. Never a smaller one again: a file may be
    /// put back.
    learnt: Option<Checkpoint>,
    /// One that the log was found not to extend while this process ran.
    contradicted: Option<Checkpoint>,
    /// One that it did not extend when this process started. Whoever started it was told.
    told: Option<Checkpoint>,
    /// The file that was read last.
    version: Option<Version>,
}

/// What was known to be signed at some time: what a log must have that is looked at from then on.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) states: Vec<Checkpoint>,
    contradicted: Option<Checkpoint>,
}

impl Signed {
    /// The size of the largest state.
    fn size(&self) -> u64 {
        let sizes = [&self.extended, &self.learnt].into_iter().flatten().map(|state| state.size);
        sizes.max().unwrap_or_default()
    }
}

impl Standing {
    /// Nothing is known to be signed. A condition of `readiness`, which holds for now.
    pub(crate) fn new(log: &LogId, origin: &str, states: SignedStates, readiness: &Readiness) -> Self {
        let gate = readiness.gate(format!("audit.logs.{log}"), "its signed state is not read yet");
        gate.ready();
        let (log, origin) = (log.clone(), origin.to_owned());
        Self(Arc::new(Inner { log, origin, states, gate, signed: Mutex::default() }))
    }

    /// The log that it is about.
    pub(crate) fn log(&self) -> &LogId {
        &self.0.log
    }

    /// Reads what the file says, and learns it. Does file I/O: to be called where blocking is allowed.
    ///
    /// # Errors
    /// `SIGNED_STATE_UNREADABLE`.
    pub(crate) fn read(&self) -> Result<Known> {
        let (version, known) = self.0.states.read(&self.0.origin);
        if let Ok(Known::State(state)) = &known {
            self.learn(state);
        }
        // Only now: whoever finds that this is the file that was read takes it that what it says was learnt.
        self.signed().version = version;
        known
    }

    /// Reads the file if it is another one than was read last. Else this costs a `stat`. As [`Self::read`], for where the
    /// lock of the head is held: nobody signs more of the log then than it has.
    pub(crate) fn read_if_changed(&self) {
        // What keeps the file from being looked at keeps it from being read too, and who signs says so.
        let Ok(Some(version)) = self.0.states.version(&self.0.origin) else { return };
        if self.signed().version != Some(version)
            && let Err(error) = self.read()
        {
            // It says nothing of the log, so events are taken; nothing is signed.
            tracing::error!(log = %self.0.log, %error, "what was signed can't be read");
        }
    }

    /// Learns that `state` was signed. The log was not compared with it yet.
    pub(crate) fn learn(&self, state: &Checkpoint) {
        let mut signed = self.signed();
        if signed.size() < state.size || (signed.extended.is_none() && signed.learnt.is_none()) {
            signed.learnt = Some(state.clone());
        }
    }

    /// Notes that the log extends `state`, which is signed.
    pub(crate) fn extends(&self, state: &Checkpoint) {
        note_extended(&mut self.signed(), state);
    }

    /// Notes that the log does not extend `state` as this process starts, which was told: it takes events all the same.
    pub(crate) fn tell(&self, state: &Checkpoint) {
        self.signed().told = Some(state.clone());
    }

    /// What is known to be signed by now.
    pub(crate) fn expected(&self) -> Expected {
        let signed = self.signed();
        let mut states: Vec<Checkpoint> = Vec::new();
        for state in
            [&signed.extended, &signed.learnt, &signed.contradicted, &signed.told].into_iter().flatten()
        {
            if !states.contains(state) {
                states.push(state.clone());
            }
        }
        Expected { states, contradicted: signed.contradicted.clone() }
    }

    /// Refuses a log that has `size` entries now, with the lock of its head held, if more are known to be signed, or if
    /// whoever signed last found it to be another; says what to do. As long as it is so the process is not ready.
    ///
    /// # Errors
    /// `AUDIT_LOG_BEHIND`, `AUDIT_LOG_REWRITTEN`.
    pub(crate) fn check_locked(&self, size: u64) -> Result<()> {
        self.check(&self.expected(), size)?;
        match &self.signed().contradicted {
            Some(state) => Err(self.rewritten(state)),
            None => Ok(()),
        }
    }

    /// The same of a log that had `size` entries at some time after `expected` was what [`Self::expected`] says. Others may have
    /// appended and signed more since. Its root is not looked at.
    ///
    /// # Errors
    /// `AUDIT_LOG_BEHIND`.
    pub(crate) fn check(&self, expected: &Expected, size: u64) -> Result<()> {
        let Some(state) =
            expected.states.iter().max_by_key(|state| state.size).filter(|state| state.size > size)
        else {
            // An older look says nothing of what was signed since.
            let signed = self.signed();
            if signed.size() <= size && signed.contradicted.is_none() {
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
                self.0.states.path(&self.0.origin).display(),
                signed_states::as_configured(state),
            ),
        ))
    }

    /// [`Self::check`], and refuses a log whose `tree` does not extend `expected`: it was rewritten, or the database is another
    /// one. But for what was told at the start, the process is not ready then and takes no events, until a later look
    /// finds that the log extends it.
    ///
    /// # Errors
    /// `AUDIT_LOG_BEHIND`, `AUDIT_LOG_REWRITTEN`, or a tree that is damaged.
    pub(crate) fn compare(&self, expected: &Expected, size: u64, tree: &Tiles) -> Result<()> {
        self.check(expected, size)?;
        let mut others = Vec::new();
        for state in &expected.states {
            if tree.range(0, state.size).map_err(damaged)? != state.root {
                others.push(state);
            }
        }
        let mut signed = self.signed();
        let news = others.iter().find(|state| signed.told.as_ref() != Some(**state));
        if let Some(state) = news.or(others.first()) {
            if news.is_some() {
                signed.contradicted = Some((*state).clone());
                self.0.gate.unready(format!(
                    "it does not extend its state of {} entries, which was signed",
                    state.size
                ));
            }
            return Err(self.rewritten(state));
        }
        for state in &expected.states {
            note_extended(&mut signed, state);
        }
        // A look that began before another found the log to be another one says nothing of what it is since.
        if signed.contradicted == expected.contradicted {
            (signed.contradicted, signed.told) = (None, None);
            if signed.size() <= size {
                self.0.gate.ready();
            }
        }
        Ok(())
    }

    fn rewritten(&self, state: &Checkpoint) -> Error {
        Error::failed_precondition(
            "AUDIT_LOG_REWRITTEN",
            format!(
                "The log {} does not extend its state of {} entries, which was signed with the root {}: it was rewritten, \
                 or the database was restored from an older backup, or is another one. Run verify-audit-chain, and restore \
                 the right database. See \"A restored database\" in docs/audit-log.md.",
                self.0.log,
                state.size,
                state.root.to_base64(),
            ),
        )
    }

    fn signed(&self) -> MutexGuard<'_, Signed> {
        self.0.signed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note_extended(signed: &mut Signed, state: &Checkpoint) {
    if signed.extended.as_ref().is_none_or(|extended| extended.size < state.size) {
        signed.extended = Some(state.clone());
    }
    signed.learnt.take_if(|learnt| learnt == state);
}
