//! The revocation table in memory: read by one task a process, followed by any number of watchers.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use gatehouse_core::{Clock, Result};
use gatehouse_db::{Db, read_tx};
use gatehouse_proto::auth::v1::{Revocation, RevocationKind};
use gatehouse_service::{Doorbell, Lifecycle, Revocations};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::store::revocations::{self as store, Entry, Revoked};

/// The doorbell topic that is rung after a revocation was committed.
pub const TOPIC: &str = "auth.revocations";

/// How long the table is left alone if nobody rings: half of what the design allows from revocation to effect, less
/// the way to the verifiers.
const PATIENCE: Duration = Duration::from_millis(200);

/// Entries read at once.
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
    /// No later than its snapshot: what was committed since is not in it.
    began: Instant,
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
        let mut known = shared.read.borrow().map_or(0, |reading| reading.sequence);
        loop {
            let (now, began) = (shared.clock.now(), Instant::now());
            let (entries, last) = read_tx!(shared.db, "auth.revocation.list", |tx| {
                Ok((store::list(tx, known, now, BATCH).await?, store::last_sequence(tx).await?))
            })?;
            let whole = entries.len() < BATCH as usize;
            // Numbers commit in order, so one snapshot's last number covers all before it.
            known = if whole { last } else { entries.last().map_or(last, |entry| entry.sequence) };
            let news: Vec<_> = entries.iter().map(to_proto).collect();
            {
                let mut held = shared.entries.write().unwrap_or_else(PoisonError::into_inner);
                held.extend(entries.into_iter().map(|entry| (entry.sequence, entry)));
                held.retain(|_, entry| entry.expires_at > now);
            }
            let reading = Reading { sequence: known, began };
            shared.own.apply_aged(&news, known, whole, reading.age());
            if whole {
                shared.read.send_replace(Some(reading));
                return Ok(());
            }
        }
    }
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
