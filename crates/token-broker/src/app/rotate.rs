//! Renewing a connection's tokens: who may, what is left over from before, which token to show.
//!
//! The database's generation fences: each attempt raises it, and only the holder of the newest may move the pointer
//! in the secrets backend and end the rotation. A holder that was overtaken leaves what it got as a candidate.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use gatehouse_core::{Timestamp, redact};
use gatehouse_db::{read_tx, run_tx};
use gatehouse_secrets::{SecretVersion, VersionId};

use super::attempt::Attempted;
use super::failure::Failure;
use super::{Broker, SERVICE};
use crate::domain::connection::{Connection, ConnectionKey, ConnectionState};
use crate::domain::scopes::Scopes;
use crate::domain::wish::Wish;
use crate::provider::Provider;
use crate::steps::Step;
use crate::store::access_tokens::{self, Cached};
use crate::store::connections::{self, Lease, secret_key};
use crate::store::rotations::{self, End};

/// How many tokens of one connection are tried in one go: the current one, what an interrupted rotation left, and
/// what came in between.
const CANDIDATES: usize = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// A rotation as its holder sees it.
pub(crate) struct Rotation<'a> {
    pub(crate) provider: &'a Provider,
    pub(crate) connection: Connection,
    pub(crate) lease: Lease,
    /// The scopes that the caller wants, as the cache knows them.
    pub(crate) scopes: Scopes,
    pub(crate) began: Instant,
}

/// Why a renewal is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Want {
    /// A token that does, other than the one of generation `found`, which did not.
    Token { found: Option<i64>, wish: Wish },
    /// The end of what was interrupted.
    Recovery,
}

impl Want {
    fn is_met_by(self, cached: Option<&Cached>, interrupted: bool, now: Timestamp) -> bool {
        match self {
            Self::Token { found, wish } => cached
                .is_some_and(|cached| found != Some(cached.generation) && wish.is_met_by(cached.life, now)),
            Self::Recovery => !interrupted,
        }
    }
}

/// How a turn at the lease ended.
enum Turn<'a> {
    Mine(Box<Rotation<'a>>),
    /// Another holder has done it: look again.
    Theirs,
}

impl Broker {
    /// Sees to it that `key` has been renewed since the caller looked: by this call, by one under way here, or by
    /// another replica. One provider call for all of them. Goes on though every caller went away.
    pub(crate) async fn renew(&self, key: ConnectionKey, scopes: Scopes, want: Want) -> Result<(), Failure> {
        let broker = self.clone();
        let work = || async move { broker.run(key, scopes, want).await };
        self.0
            .flights
            .join(key, &self.lifecycle, work)
            .await
            .unwrap_or_else(|| Err(gatehouse_core::Error::internal("the rotation's task broke off").into()))
    }

    async fn run(&self, key: ConnectionKey, scopes: Scopes, want: Want) -> Result<(), Failure> {
        let Turn::Mine(mut rotation) = self.take_turn(key, scopes, want).await? else { return Ok(()) };
        let outcome = self.rotate(&mut rotation).await;
        if let Err(failure) = &outcome {
            self.note_failure(&rotation, failure).await;
        }
        let label = match &outcome {
            Ok(()) => "ok",
            Err(Failure::NeedsReauthorization) => "needs_reauthorization",
            Err(Failure::Upstream { reason, .. }) => reason,
            Err(Failure::Gone | Failure::Busy) => "overtaken",
            Err(Failure::Ours(_)) => "internal",
            Err(Failure::Died(_)) => return outcome,
        };
        self.0.metrics.rotation(&rotation.connection.upstream, label, rotation.began.elapsed().as_secs_f64());
        outcome
    }

    /// Takes the lease, or waits for whoever has it.
    async fn take_turn(&self, key: ConnectionKey, scopes: Scopes, want: Want) -> Result<Turn<'_>, Failure> {
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut seen_holder = false;
        loop {
            let now = self.clock.now();
            // The connection first: nobody ends anything of it from there to the lease below without being seen.
            let (connection, cached, interrupted) = read_tx!(self.db, "token_broker.rotation.look", |tx| {
                let connection = connections::lookup(tx, key).await?;
                let cached = access_tokens::lookup(tx, key, &scopes).await?;
                Ok((connection, cached, rotations::is_interrupted(tx, key).await?))
            })?;
            let connection = connection.ok_or(Failure::Gone)?;
            match connection.state {
                ConnectionState::Disconnected => return Err(Failure::Gone),
                ConnectionState::Connecting => return Err(Failure::Busy),
                ConnectionState::Active | ConnectionState::NeedsReauthorization => {}
            }
            if connection.is_leased(now) {
                if began.elapsed() > self.0.config.wait() {
                    return Err(Failure::Busy);
                }
                seen_holder = true;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
            // Between the caller's look and this one another may have ended; the lease below is taken only if nobody
            // has since.
            if seen_holder || want.is_met_by(cached.as_ref(), interrupted, now) {
                return Ok(Turn::Theirs);
            }
            if let Some(retry_at) = connection.retry_at.filter(|retry_at| now < *retry_at) {
                return Err(Failure::Upstream { reason: "backing_off", wait: retry_at.since(now) });
            }
            let provider = self.0.providers.get(&connection.upstream)?;
            let (holder, until) = (self.0.holder, now.plus(self.0.config.lease()));
            let lease = run_tx!(self.db, "token_broker.rotation.lease", |tx| {
                connections::take_lease(tx, &connection, holder, until, now).await
            })?;
            if let Some(lease) = lease {
                self.steps.at(Step::LeaseTaken)?;
                return Ok(Turn::Mine(Box::new(Rotation { provider, connection, lease, scopes, began })));
            }
            // Someone was faster; look who.
        }
    }

    async fn rotate(&self, rotation: &mut Rotation<'_>) -> Result<(), Failure> {
        if self.settle_what_was_answered(rotation).await? {
            return Ok(());
        }
        for attempt in 0..CANDIDATES {
            let Some((candidate, expected)) = self.pick(rotation).await? else {
                return Err(self.expire(rotation).await?);
            };
            if attempt > 0 {
                self.move_on(rotation).await?;
            }
            match self.attempt(rotation, &candidate, expected).await? {
                Attempted::Settled => return Ok(()),
                Attempted::Refused | Attempted::Outdated => {}
            }
        }
        Err(self.expire(rotation).await?)
    }

    /// Finishes attempts whose answer an interrupted holder laid into escrow, newest first. Whether one gave tokens.
    async fn settle_what_was_answered(&self, rotation: &Rotation<'_>) -> Result<bool, Failure> {
        let key = rotation.lease.key;
        let answered = read_tx!(self.db, "token_broker.rotation.answered", |tx| {
            rotations::list_answered(tx, key).await
        })?;
        for row in answered {
            if self.settle_escrow(rotation, &row).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The next token worth showing: the current one, else the newest that lies there, none that was refused before, and
    /// none that was replaced and only not deleted yet, for want of a process that lived: its successor was shown.
    /// With it the version that is current now, under the lease: the only one that its successor may replace.
    async fn pick(
        &self,
        rotation: &Rotation<'_>,
    ) -> Result<Option<(SecretVersion, Option<VersionId>)>, Failure> {
        let key = rotation.lease.key;
        let (refused, used) = read_tx!(self.db, "token_broker.rotation.refused", |tx| {
            Ok((rotations::list_refused(tx, key).await?, rotations::list_used(tx, key).await?))
        })?;
        let (refused, used) = (HashSet::<String>::from_iter(refused), HashSet::<String>::from_iter(used));
        let secret = secret_key(key)?;
        let mut versions = self.secrets.list_versions(&secret).await?;
        // What was put last stands last; the current one goes before all.
        versions.sort_by_key(|version| version.is_current);
        let current = versions.last().filter(|version| version.is_current).map(|version| version.id.clone());
        while let Some(version) = versions.pop() {
            let was_replaced = !version.is_current && used.contains(version.id.as_str());
            if was_replaced || refused.contains(version.id.as_str()) {
                if !version.is_current {
                    self.secrets.delete_version(&secret, &version.id).await?;
                }
                continue;
            }
            if let Some(found) = self.secrets.get_version(&secret, &version.id).await? {
                return Ok(Some((found, current)));
            }
        }
        Ok(None)
    }

    /// A new fencing number for the holder's next attempt.
    async fn move_on(&self, rotation: &mut Rotation<'_>) -> Result<(), Failure> {
        let until = self.clock.now().plus(self.0.config.lease());
        let lease = rotation.lease;
        let next = run_tx!(self.db, "token_broker.rotation.next", |tx| {
            connections::next_generation(tx, lease, until).await
        })?;
        rotation.lease = next.ok_or(Failure::Busy)?;
        Ok(())
    }

    /// Nothing is left to try: the person must be asked.
    async fn expire(&self, rotation: &Rotation<'_>) -> Result<Failure, Failure> {
        let lease = rotation.lease;
        let was_active = rotation.connection.state == ConnectionState::Active;
        let event = self.event(rotation, "token-broker.connections.expire").denied("NEEDS_REAUTHORIZATION");
        let held = run_tx!(self.db, "token_broker.rotation.expire", |tx| {
            let held = connections::expire(tx, lease).await?;
            if held {
                rotations::give_up(tx, lease.key).await?;
                if was_active {
                    self.outbox.emit(tx, &event).await?;
                }
            }
            Ok(held)
        })?;
        if held {
            tracing::warn!(
                upstream = rotation.connection.upstream,
                connection = %lease.key.connection,
                "the upstream refused every refresh token; the person must connect again"
            );
        }
        Ok(if held { Failure::NeedsReauthorization } else { Failure::Busy })
    }

    /// Gives the lease back after a failure, to be tried again after a pause that grows, and tells of it.
    async fn note_failure(&self, rotation: &Rotation<'_>, failure: &Failure) {
        let reason = match failure {
            Failure::Upstream { reason, .. } => *reason,
            Failure::Ours(_) => "internal",
            // The first has been told; the others hold no lease any more, or are dead.
            Failure::NeedsReauthorization | Failure::Gone | Failure::Busy | Failure::Died(_) => return,
        };
        let lease = rotation.lease;
        let retry_at = self.clock.now().plus(backoff(rotation.connection.failures));
        let event = self.event(rotation, "token-broker.tokens.rotate").failed(&reason.to_ascii_uppercase());
        let noted = run_tx!(self.db, "token_broker.rotation.fail", |tx| {
            let held = connections::fail_rotation(tx, lease, retry_at).await?;
            if held {
                self.outbox.emit(tx, &event).await?;
            }
            Ok(held)
        });
        tracing::warn!(
            upstream = rotation.connection.upstream,
            connection = %lease.key.connection,
            generation = lease.generation,
            reason,
            cause = %redact(&format!("{failure:?}")),
            "a rotation failed"
        );
        if let Err(error) = noted {
            // The lease then ends by itself.
            tracing::warn!(%error, "a failed rotation could not be written down");
        }
    }

    /// How long until a failed connection is tried again.
    pub(crate) fn wait_after(rotation: &Rotation<'_>) -> Duration {
        backoff(rotation.connection.failures)
    }

    /// An audit event about this rotation, by the broker itself.
    pub(crate) fn event(&self, rotation: &Rotation<'_>, action: &str) -> gatehouse_outbox::AuditEvent {
        let key = rotation.lease.key;
        self.outbox
            .event(action)
            .by_system(SERVICE)
            .tenant(key.tenant)
            .about(rotation.connection.person)
            .target("connection", key.connection.as_uuid())
            .payload(serde_json::json!({
                "upstream": rotation.connection.upstream,
                "generation": rotation.lease.generation,
            }))
    }

    /// Whether the holder is still the newest; the lease then reaches until storing is done.
    pub(crate) async fn still_holds(&self, lease: Lease) -> Result<bool, Failure> {
        let until: Timestamp = self.clock.now().plus(self.0.config.lease());
        Ok(run_tx!(self.db, "token_broker.rotation.fence", |tx| {
            connections::renew_lease(tx, lease, until).await
        })?)
    }

    /// Ends one attempt's row.
    pub(crate) async fn end(&self, key: ConnectionKey, generation: i64, end: End) -> Result<(), Failure> {
        let now = self.clock.now();
        Ok(run_tx!(self.db, "token_broker.rotation.end", |tx| {
            rotations::end(tx, key, generation, end, now).await
        })?)
    }
}

fn backoff(failures: i64) -> Duration {
    let doublings = u32::try_from(failures.clamp(0, 10)).unwrap_or(10);
    FIRST_BACKOFF.saturating_mul(1 << doublings).min(LONGEST_BACKOFF)
}

/// A version's name as the rotations table has it, back as a name.
pub(crate) fn version_id(text: &str) -> Result<VersionId, Failure> {
    Ok(VersionId::parse(text)?)
}
