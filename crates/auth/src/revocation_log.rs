//! The revocation table in memory: read by one task a process, followed by any number of watchers.
//!
//! Each reading goes on from the newest entry that the last one brought, if that still is where it was. If it is not, the
//! table went back (its database was restored, or a standby that lagged took over): all is read again, and told again.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use gatehouse_core::{Clock, Result, Timestamp};
use gatehouse_db::{Db, read_tx};
use gatehouse_proto::auth::v1::{Revocation, RevocationKind};
use gatehouse_service::revocations::CLOCK_SLACK;
use gatehouse_service::{Doorbell, Lifecycle, Revocations};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::store::revocations::{self as store, Entry, Revoked};

/// The doorbell topic that is rung after a revocation was committed.
pub const TOPIC: &str = "auth.revocations";

/// How long the table is left alone if nobody rings: half of what the design allows from revocation to effect, less
/// the way to the verifiers.
const PATIENCE: Duration = Duration::from_millis(200);

/// Entries read at once, the one that a reading goes on from among them.
const BATCH: u32 = 1_000;

/// The live revocations. Cheap to clone; clones share them.
#[derive(Clone, Debug)]
pub struct RevocationLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    db: Db,
    clock: Clock,
    entries: RwLock<BTreeMap<i64, Entry>>,
    /// Each reading; absent before the first.
    read: watch::Sender<Option<Reading>>,
    /// What this process itself verifies tokens with.
    own: Revocations,
}

/// One reading of the table.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The highest sequence that it covers.
    pub sequence: i64,
    /// As in the reading before if this one went on from that, and gave no number again. Else numbers of before say
    /// nothing: they may have been given again to other entries.
    pub history: u64,
    /// No later than its snapshot: what was committed since is not in it.
    began: Instant,
    /// The same by the clock that entries end by.
    at: Timestamp,
}

impl Reading {
    /// How old it is by now.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }
}

impl RevocationLog {
    /// Reads the table once.
    ///
    /// # Errors
    /// If the database is away.
    pub async fn open(db: Db, clock: Clock, own: Revocations) -> Result<Self> {
        let shared = Shared { db, clock, entries: RwLock::default(), read: watch::Sender::new(None), own };
        let log = Self(Arc::new(shared));
        log.read().await?;
        Ok(log)
    }

    /// Reads on until the process stops: at each ring of the bell, and every 200 ms in any case.
    pub fn follow(&self, doorbell: &Doorbell, lifecycle: &Lifecycle) {
        let (log, stopping) = (self.clone(), lifecycle.stopping());
        let mut bell = doorbell.subscribe(TOPIC);
        lifecycle.spawn(async move {
            loop {
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = bell.rung_or_after(PATIENCE) => {}
                }
                // Nothing is told to anyone meanwhile, so verifiers find their news late, as they should.
                if let Err(error) = log.read().await {
                    tracing::warn!(?error, "revocations can't be read");
                }
            }
        });
    }

    /// Changes with each reading of the table, whether or not it brought anything.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Reading>> {
        self.0.read.subscribe()
    }

    /// The first live entries after `sequence`, in order, at most `most`.
    #[must_use]
    pub fn after(&self, sequence: i64, most: usize) -> Vec<Revocation> {
        let now = self.0.clock.now();
        let entries = self.0.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries
            .range(sequence.saturating_add(1)..)
            .map(|(_, entry)| entry)
            .filter(|entry| entry.expires_at > now)
            .take(most)
            .map(to_proto)
            .collect()
    }

    async fn read(&self) -> Result<()> {
        let shared = &self.0;
        let before = *shared.read.borrow();
        let (at, began) = (shared.clock.now(), Instant::now());
        // What had ended by a clock that was ahead may live by this one.
        let was_set_back = before.is_some_and(|before| at.plus(CLOCK_SLACK) < before.at);
        let mut newest = if was_set_back { None } else { self.newest(at) };
        let mut anew = newest.is_none();
        let mut news = BTreeMap::new();
        let sequence = loop {
            let after = newest.as_ref().map(|newest| newest.sequence - 1);
            let (entries, last) = read_tx!(shared.db, "auth.revocation.list", |tx| {
                let entries = match after {
                    Some(after) => store::list(tx, after, at, BATCH).await?,
                    None => store::list_first(tx, at, BATCH).await?,
                };
                Ok((entries, store::last_sequence(tx).await?))
            })?;
            let is_whole = entries.len() < BATCH as usize;
            let mut entries = entries.into_iter();
            if newest.is_some() && entries.next() != newest {
                (newest, anew) = (None, true);
                news.clear();
                continue;
            }
            news.extend(entries.map(|entry| (entry.sequence, entry)));
            // Numbers commit in order, so one snapshot's last number covers all before it.
            if is_whole {
                break last;
            }
            newest = news.last_key_value().map(|(_, newest)| newest.clone());
        };
        let first = news.first_key_value().map(|(first, _)| *first);
        let history = before.map_or(0, |before| {
            let gave_again = goes_back(before.sequence, sequence, first);
            before.history + u64::from(anew || gave_again)
        });
        let reading = Reading { sequence, history, began, at };
        let own: Vec<_> = news.values().map(to_proto).collect();
        {
            let mut held = shared.entries.write().unwrap_or_else(PoisonError::into_inner);
            if anew {
                held.clear();
            }
            held.extend(news);
            held.retain(|_, entry| entry.expires_at > at);
        }
        shared.own.apply_aged(&own, sequence, true, reading.age());
        shared.read.send_replace(Some(reading));
        Ok(())
    }

    /// The newest entry that lives, which the next reading goes on from.
    fn newest(&self, now: Timestamp) -> Option<Entry> {
        let entries = self.0.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.values().rev().find(|entry| entry.expires_at > now).cloned()
    }
}

/// Whether numbers up to `told` are given again, though the entry that the reading went on from is where it was: those
/// that had them have ended, so nothing that is held is wrong, but whoever was told of them waits for higher ones.
/// `sequence` is the last number by now, `first` the first that the reading brought.
fn goes_back(told: i64, sequence: i64, first: Option<i64>) -> bool {
    sequence < told || first.is_some_and(|first| first <= told)
}

fn to_proto(entry: &Entry) -> Revocation {
    let kind = match entry.revoked {
        Revoked::Session(_) => RevocationKind::Session,
        Revoked::Credential(_) => RevocationKind::Credential,
        Revoked::Person(_) => RevocationKind::Person,
        Revoked::Membership(..) => RevocationKind::Membership,
        Revoked::Client(_) => RevocationKind::Client,
        Revoked::Tenant(_) => RevocationKind::Tenant,
    };
    Revocation {
        sequence: entry.sequence,
        kind: kind.into(),
        id: entry.revoked.id(),
        not_before: entry.not_before.as_micros(),
        expires_at: entry.expires_at.as_micros(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_or_will_be_given_again_are_seen() {
        assert!(!goes_back(6, 6, None));
        assert!(!goes_back(6, 8, Some(7)));
        assert!(goes_back(6, 8, Some(6)));
        // What comes next has a number that was told, and the reading after this one knows only of 5.
        assert!(goes_back(6, 5, None));
    }
}
