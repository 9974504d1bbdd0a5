//! The points between which a process may die, and a place for tests to stand at them.

use std::fmt;
use std::sync::Arc;

/// A point in the life of a refresh token. After each, everything before it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A caller looked and found no token that does.
    TokenWanted,
    /// A replica owns the rotation.
    LeaseTaken,
    /// The attempt is written down; the provider knows nothing yet.
    IntentCommitted,
    /// The provider answered; only this process's memory knows what.
    Answered,
    /// The answer lies in escrow, unread.
    EscrowCommitted,
    /// The new token lies in the secrets backend, pending.
    PendingPut,
    /// The holder was found to be the newest; the new token is not the current one yet.
    HolderChecked,
    /// The new token is the current one.
    Promoted,
    /// The database knows; the escrow is shredded.
    Finished,
    /// The old token is gone from the secrets backend.
    OldDeleted,
    /// A consent was consumed; its connection is being made.
    CodeClaimed,
    /// The provider exchanged the code; only this process's memory knows for what.
    CodeExchanged,
    /// Whoever rotates the connection's older token is fenced out.
    ConsentFenced,
    /// The first token lies in the secrets backend, pending.
    FirstPut,
    /// The first token is the current one.
    FirstPromoted,
    /// An offline grant is allowed and about to be stored, in one transaction.
    GrantAllowed,
    /// A connection is marked as disconnected.
    DisconnectCommitted,
    /// Its secrets are gone.
    SecretDeleted,
}

impl Step {
    /// The points of a rotation, in order.
    pub const ROTATION: [Self; 9] = [
        Self::LeaseTaken,
        Self::IntentCommitted,
        Self::Answered,
        Self::EscrowCommitted,
        Self::PendingPut,
        Self::HolderChecked,
        Self::Promoted,
        Self::Finished,
        Self::OldDeleted,
    ];
}

/// What stands between two steps: nothing in a running service; in tests, a death.
#[derive(Clone, Default)]
pub struct Steps(Option<Arc<dyn Fn(Step) -> bool + Send + Sync>>);

/// The process died here, as far as the work under way can tell: it does nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Died(pub Step);

impl Steps {
    /// Dies wherever `lives` says no. For tests.
    #[must_use]
    pub fn watched(lives: impl Fn(Step) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(lives)))
    }

    pub(crate) fn at(&self, step: Step) -> Result<(), Died> {
        match &self.0 {
            Some(lives) if !lives(step) => Err(Died(step)),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Steps(watched)" } else { "Steps" })
    }
}
