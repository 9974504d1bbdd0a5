//! Whether a process may be sent work, and why not.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

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
        self.until(BTreeMap::is_empty).await;
    }

    async fn until(&self, enough: impl Fn(&BTreeMap<String, String>) -> bool) {
        let mut changed = self.0.changed.subscribe();
        while !enough(&self.unmet()) {
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }

    /// Changes whenever a condition begins or ceases to hold.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// Notes that `name` does not hold because of `why`, or holds. Whether that is news.
    fn note(&self, name: &str, why: Option<String>) -> bool {
        let mut unmet = self.0.unmet.write().unwrap_or_else(PoisonError::into_inner);
        if unmet.get(name) == why.as_ref() {
            return false;
        }
        match why {
            Some(why) => unmet.insert(name.to_owned(), why),
            None => unmet.remove(name),
        };
        drop(unmet);
        self.0.changed.send_replace(());
        true
    }
}

impl Gate {
    /// The condition holds.
    pub fn ready(&self) {
        if self.readiness.note(&self.name, None) {
            tracing::info!(condition = self.name, "ready");
        }
    }

    /// The condition does not hold any more.
    pub fn unready(&self, why: impl Into<String>) {
        let why = why.into();
        if self.readiness.note(&self.name, Some(why.clone())) {
            tracing::warn!(condition = self.name, why, "not ready");
        }
    }

    /// Resolves when every other condition holds: for what can't begin before them.
    pub async fn others(&self) {
        self.readiness.until(|unmet| unmet.keys().all(|name| *name == self.name)).await;
    }

    /// Has the condition hold as soon as `holds` says so, and cease to with `why` once `holds` has said otherwise for
    /// `grace`: what comes back within that is no reason to send the work elsewhere. Ends, as one that does not hold,
    /// when nobody can say any more.
    pub async fn follow(&self, mut holds: watch::Receiver<bool>, grace: Duration, why: &str) {
        loop {
            if holds.wait_for(|holds| *holds).await.is_err() {
                break;
            }
            self.ready();
            if holds.wait_for(|holds| !*holds).await.is_err() {
                break;
            }
            match tokio::time::timeout(grace, holds.wait_for(|holds| *holds)).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => break,
                Err(_) => self.unready(why),
            }
        }
        self.unready(why);
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

    #[tokio::test]
    async fn the_last_waits_for_the_others_and_nobody_sees_all_ready_before_it() {
        let readiness = Readiness::new();
        let (keys, session) = (readiness.gate("keys", "none"), readiness.gate("session", "not open yet"));
        let (soon, late) = (Duration::from_millis(20), Duration::from_secs(5));
        tokio::time::timeout(soon, session.others()).await.unwrap_err();
        keys.ready();
        tokio::time::timeout(late, session.others()).await.unwrap();
        tokio::time::timeout(soon, readiness.wait()).await.unwrap_err();
        session.ready();
        tokio::time::timeout(late, readiness.wait()).await.unwrap();
    }

    #[tokio::test]
    async fn what_comes_back_in_time_was_never_away() {
        let readiness = Readiness::new();
        let (say, holds) = watch::channel(false);
        for (name, grace) in [("patient", Duration::from_hours(1)), ("strict", Duration::ZERO)] {
            let (gate, holds) = (readiness.gate(name, "not open yet"), holds.clone());
            tokio::spawn(async move { gate.follow(holds, grace, "lost").await });
        }
        let becomes = async |expected: &[(&str, &str)]| {
            let mut changes = readiness.changes();
            let expected =
                expected.iter().map(|(name, why)| ((*name).to_owned(), (*why).to_owned())).collect();
            while readiness.unmet() != expected {
                let news = tokio::time::timeout(Duration::from_mins(1), changes.changed()).await;
                news.unwrap_or_else(|_| panic!("{:?}", readiness.unmet())).unwrap();
            }
        };
        becomes(&[("patient", "not open yet"), ("strict", "not open yet")]).await;
        say.send_replace(true);
        becomes(&[]).await;
        say.send_replace(false);
        becomes(&[("strict", "lost")]).await;
        say.send_replace(true);
        becomes(&[]).await;
        drop(say);
        becomes(&[("patient", "lost"), ("strict", "lost")]).await;
    }
}
