//! What has been revoked: every verifier holds all live entries, fed by auth's sequenced table.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use gatehouse_client::{Authorized, Backoff, from_status};
use gatehouse_core::{Clock, Entropy, Error, Result, Timestamp};
use gatehouse_proto::auth::v1::token_service_client::TokenServiceClient;
use gatehouse_proto::auth::v1::{GetJwksRequest, Revocation, RevocationKind, WatchRevocationsRequest};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::identity::{Caller, Subject};
use crate::readiness::Gate;
use crate::verifier::KeySet;
use crate::{Lifecycle, Readiness};

/// How far the clock may be set back without doubt on what was heard before: a time server's small corrections.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// How often it is looked whether the news is too late.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How late the news may be. Both count from the last word of auth.
#[derive(Clone, Copy, Debug)]
pub struct Staleness {
    /// After this, privileged methods refuse.
    pub privileged: Duration,
    /// After this, all do.
    pub all: Duration,
}

impl Default for Staleness {
    fn default() -> Self {
        Self { privileged: Duration::from_secs(2), all: Duration::from_secs(30) }
    }
}

/// The live revocations. Cheap to clone; clones share one state.
#[derive(Clone, Debug)]
pub struct Revocations(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    staleness: Staleness,
    state: RwLock<State>,
    changed: watch::Sender<i64>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<(i32, String), Entry>,
    sequence: i64,
    complete: bool,
    heard_at: Option<Moment>,
}

/// A moment on two clocks: the wall's, which can be set, and one that only goes on, but may stand still while the machine
/// sleeps.
#[derive(Clone, Copy, Debug)]
struct Moment {
    at: Timestamp,
    instant: Instant,
}

impl Moment {
    /// `age` ago.
    fn before_now(clock: &Clock, age: Duration) -> Self {
        let instant = Instant::now();
        // Before the machine started only the wall's clock can tell.
        Self { at: clock.now().minus(age), instant: instant.checked_sub(age).unwrap_or(instant) }
    }

    /// How long ago it was, by the clock that says more.
    fn age(self, now: Timestamp) -> Duration {
        now.since(self.at).max(self.instant.elapsed())
    }

    fn later_of(self, other: Self) -> Self {
        Self { at: self.at.max(other.at), instant: self.instant.max(other.instant) }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    not_before: Timestamp,
    expires_at: Timestamp,
}

impl State {
    fn is_fresh(&self, now: Timestamp, limit: Duration) -> bool {
        // When the clock was set back, news from the future is no news.
        let is_old = |heard: Moment| now.plus(CLOCK_SLACK) < heard.at || heard.age(now) > limit;
        self.complete && !self.heard_at.is_none_or(is_old)
    }
}

impl Revocations {
    /// None yet: until a snapshot is [applied](Self::apply), every check refuses.
    #[must_use]
    pub fn new(clock: Clock, staleness: Staleness) -> Self {
        Self(Arc::new(Inner { clock, staleness, state: RwLock::default(), changed: watch::Sender::new(0) }))
    }

    /// Takes news of this moment in: [`apply_aged`](Self::apply_aged) without an age.
    pub fn apply(&self, revocations: &[Revocation], sequence: i64, complete: bool) {
        self.apply_aged(revocations, sequence, complete, Duration::ZERO);
    }

    /// Takes news in, also empty news: hearing all of it from auth is what keeps the state fresh. `complete` says that
    /// nothing is missing; a part before the last is taken in and proves nothing yet. What was revoked within the last
    /// `age` may be missing all the same.
    pub fn apply_aged(&self, revocations: &[Revocation], sequence: i64, complete: bool, age: Duration) {
        let now = self.0.clock.now();
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        for revocation in revocations {
            let entry = Entry {
                not_before: Timestamp::from_micros(revocation.not_before),
                expires_at: Timestamp::from_micros(revocation.expires_at),
            };
            let held = state.entries.entry((revocation.kind, revocation.id.clone())).or_insert(entry);
            held.not_before = held.not_before.max(entry.not_before);
            held.expires_at = held.expires_at.max(entry.expires_at);
        }
        if !revocations.is_empty() {
            state.entries.retain(|_, entry| entry.expires_at > now);
        }
        state.sequence = state.sequence.max(sequence);
        if complete {
            state.complete = true;
            // Old news takes nothing from newer news, unless the clock was set back since that.
            let newest = state.heard_at.filter(|heard| heard.at <= now);
            let told = Moment::before_now(&self.0.clock, age);
            state.heard_at = Some(newest.map_or(told, |newest| newest.later_of(told)));
        }
        let sequence = state.sequence;
        drop(state);
        self.0.changed.send_replace(sequence);
    }

    /// The highest sequence applied.
    #[must_use]
    pub fn sequence(&self) -> i64 {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner).sequence
    }

    /// Changes with each [`apply`](Self::apply), for those who hold streams or caches that a revocation must end.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<i64> {
        self.0.changed.subscribe()
    }

    /// Whether `id` was revoked after `since`: for what was given at that time and outlives the tokens that it was given
    /// by. Only while the entry lives (as long as a token may); end such things for good once this says so.
    #[must_use]
    pub fn is_revoked_since(&self, kind: RevocationKind, id: &str, since: Timestamp) -> bool {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        state.entries.get(&(kind as i32, id.to_owned())).is_some_and(|entry| since < entry.not_before)
    }

    /// The entries of `kinds` that are held now, for those who go through what they keep whenever this has changed.
    #[must_use]
    pub fn live(&self, kinds: &[RevocationKind]) -> Live {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        state
            .entries
            .iter()
            .filter(|((kind, _), _)| kinds.iter().any(|wanted| *wanted as i32 == *kind))
            .map(|(name, entry)| (name.clone(), entry.not_before))
            .collect()
    }

    /// Whether anyone can be let in: the news is whole and not too late.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        state.is_fresh(self.0.clock.now(), self.0.staleness.all)
    }

    /// Refuses a caller of whom something was revoked after their token was issued, and everyone when the news is
    /// too late.
    ///
    /// # Errors
    /// `TOKEN_REVOKED`, `REVOCATIONS_STALE`.
    pub fn check(&self, caller: &Caller, privileged: bool) -> Result<()> {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        let limit = if privileged { self.0.staleness.privileged } else { self.0.staleness.all };
        if !state.is_fresh(self.0.clock.now(), limit) {
            return Err(stale());
        }
        let claims = caller.claims();
        let revoked = names(caller).into_iter().any(|(kind, id)| {
            let issued_at = match kind {
                RevocationKind::Client => claims.client_iat_us.unwrap_or(claims.iat_us),
                _ => claims.iat_us,
            };
            let issued_at = Timestamp::from_micros(issued_at);
            state.entries.get(&(kind as i32, id)).is_some_and(|entry| issued_at < entry.not_before)
        });
        if revoked {
            return Err(Error::unauthenticated(
                "TOKEN_REVOKED",
                "This credential was revoked. Sign in again.",
            ));
        }
        Ok(())
    }
}

/// Holds `gate` open while anyone can be let in.
async fn tell_readiness(revocations: Revocations, gate: Gate, stopping: CancellationToken) {
    let mut news = revocations.subscribe();
    let mut heard = false;
    loop {
        if revocations.is_fresh() {
            heard = true;
            gate.ready();
        } else if heard {
            gate.unready("no word of auth on revocations for so long that every call is refused");
        }
        tokio::select! {
            () = stopping.cancelled() => return,
            // The sender lives as long as `revocations`.
            _ = news.changed() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Nobody can tell whether a token still counts.
pub(crate) fn stale() -> Error {
    Error::unavailable(
        "REVOCATIONS_STALE",
        "This service has not heard of revocations for too long to let anyone in. Try again in a moment.",
    )
    .retry_after(Duration::from_secs(1))
}

/// What is revoked, by kind and id, and from when on a new start counts again.
pub type Live = BTreeMap<(i32, String), Timestamp>;

/// Everything whose revocation ends this caller's token.
fn names(caller: &Caller) -> Vec<(RevocationKind, String)> {
    let claims = caller.claims();
    let mut names = Vec::with_capacity(5);
    if let Some(session) = claims.sid {
        names.push((RevocationKind::Session, session.to_string()));
    }
    if let Some(credential) = claims.cid {
        names.push((RevocationKind::Credential, credential.to_string()));
    }
    if let Some(tenant) = claims.tid {
        names.push((RevocationKind::Tenant, tenant.to_string()));
        if let Subject::Person(person) = caller.subject() {
            names.push((RevocationKind::Membership, format!("{person}/{tenant}")));
        }
    }
    match caller.subject() {
        Subject::Person(person) => names.push((RevocationKind::Person, person.to_string())),
        Subject::ApiKey(credential) => names.push((RevocationKind::Credential, credential.to_string())),
        Subject::Client(_) => {}
    }
    for client in [caller.client(), claims.client_id.as_deref()].into_iter().flatten() {
        names.push((RevocationKind::Client, client.to_owned()));
    }
    names
}

/// Keeps [`Revocations`] and the [`KeySet`] of a process up to date from the auth service: one stream, taken up again
/// with backoff whenever it ends, and the keys fetched at each start and when an unknown key id turns up.
#[derive(Debug)]
pub struct RevocationFeed {
    auth: TokenServiceClient<Authorized>,
    revocations: Revocations,
    keys: KeySet,
    entropy: Entropy,
}

impl RevocationFeed {
    /// A feed over `auth`, a channel that shows a token with the permission `auth.revocations.watch`.
    #[must_use]
    pub fn new(auth: Authorized, revocations: Revocations, keys: KeySet, entropy: Entropy) -> Self {
        Self { auth: TokenServiceClient::new(auth), revocations, keys, entropy }
    }

    /// Runs until the process stops. `readiness` turns good with the first whole snapshot, and bad while the news is so
    /// late that nobody is let in; `service` names whose it is.
    pub fn start(self, service: &str, lifecycle: &Lifecycle, readiness: &Readiness) {
        let gate =
            readiness.gate(format!("{service}.revocations"), "no snapshot of revocations from auth yet");
        let stopping = lifecycle.stopping();
        lifecycle.spawn(tell_readiness(self.revocations.clone(), gate, lifecycle.stopping()));
        lifecycle.spawn(async move {
            let mut backoff =
                Backoff::new(Duration::from_millis(20), Duration::from_secs(1), self.entropy.clone());
            loop {
                let ended = tokio::select! {
                    () = stopping.cancelled() => return,
                    ended = self.follow(&mut backoff) => ended,
                };
                if let Err(error) = ended {
                    tracing::debug!(?error, "the revocation stream ended; taking it up again");
                }
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = backoff.wait() => {}
                }
            }
        });
    }

    async fn follow(&self, backoff: &mut Backoff) -> Result<()> {
        let mut auth = self.auth.clone();
        self.fetch_keys(&mut auth).await?;
        let request = WatchRevocationsRequest { after_sequence: self.revocations.sequence() };
        let clock = &self.revocations.0.clock;
        let mut last = Moment::before_now(clock, Duration::ZERO);
        let mut stream = auth.watch_revocations(request).await.map_err(from_status)?.into_inner();
        let mut silence = Duration::from_secs(2);
        let silent = || Error::unavailable("STREAM_SILENT", "Auth's stream fell silent.");
        loop {
            let message = tokio::select! {
                // A stream that says nothing for too long is as good as gone.
                message = tokio::time::timeout(silence * 2, stream.message()) => match message {
                    Ok(message) => message.map_err(from_status)?,
                    Err(_) => return Err(silent()),
                },
                () = self.keys.wanted() => {
                    self.fetch_keys(&mut auth.clone()).await?;
                    continue;
                }
            };
            // If it was this process that stood still, what auth said meanwhile is here at once, and as old as that.
            if last.age(clock.now()) > silence * 2 {
                return Err(silent());
            }
            last = Moment::before_now(clock, Duration::ZERO);
            let Some(news) = message else { return Ok(()) };
            if let Ok(heartbeat @ 1..) = u64::try_from(news.heartbeat_ms) {
                silence = Duration::from_millis(heartbeat.max(100));
            }
            let age = Duration::from_millis(u64::try_from(news.age_ms).unwrap_or(0));
            self.revocations.apply_aged(&news.revocations, news.sequence, news.snapshot_complete, age);
            if news.snapshot_complete {
                backoff.reset();
            }
        }
    }

    async fn fetch_keys(&self, auth: &mut TokenServiceClient<Authorized>) -> Result<()> {
        let answer = auth.get_jwks(GetJwksRequest {}).await.map_err(from_status)?.into_inner();
        self.keys.replace(&answer.jwks_json)
    }
}
