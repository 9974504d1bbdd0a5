//! Whether a process may be sent work, and why not.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

/// Named conditions that all must hold. Cheap to clone; clones share them.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    unmet: RwLock<BTreeMap<String, String>>,
    changed: watch::Sender<()>,
}

/// One condition. It does not hold until [`Gate::ready`].
#[derive(Clone, Debug)]
pub struct Gate {
    readiness: Readiness,
    name: String,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// No condition yet: ready.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner { unmet: RwLock::default(), changed: watch::Sender::new(()) }))
    }

    /// Adds a condition that does not hold yet because of `why`.
    #[must_use]
    pub fn gate(&self, name: impl Into<String>, why: impl Into<String>) -> Gate {
        let gate = Gate { readiness: self.clone(), name: name.into() };
        gate.unready(why);
        gate
    }

    /// The conditions that do not hold, by name, each with its reason. Empty means ready.
    #[must_use]
    pub fn unmet(&self) -> BTreeMap<String, String> {
        self.0.unmet.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Resolves when every condition holds.
    pub async fn wait(&self) {
        let mut changed = self.0.changed.subscribe();
        while !self.unmet().is_empty() {
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, String>)) {
        change(&mut self.0.unmet.write().unwrap_or_else(PoisonError::into_inner));
        self.0.changed.send_replace(());
    }
}

impl Gate {
    /// The condition holds.
    pub fn ready(&self) {
        self.readiness.change(|unmet| {
            unmet.remove(&self.name);
        });
    }

    /// The condition does not hold any more.
    pub fn unready(&self, why: impl Into<String>) {
        self.readiness.change(|unmet| {
            unmet.insert(self.name.clone(), why.into());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_conditions_must_hold() {
        let readiness = Readiness::new();
        let (database, keys) = (readiness.gate("database", "down"), readiness.gate("keys", "none"));
        database.ready();
        assert_eq!(
            readiness.unmet().into_iter().collect::<Vec<_>>(),
            [("keys".to_owned(), "none".to_owned())]
        );
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.wait().await }
        });
        keys.ready();
        waiting.await.unwrap();
        database.unready("gone");
        assert_eq!(readiness.unmet().len(), 1);
    }
}
