//! What has been revoked: every verifier holds all live entries, fed by auth's sequenced table.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use gatehouse_core::{Clock, Error, Result, Timestamp};
use gatehouse_proto::auth::v1::{Revocation, RevocationKind};
use tokio::sync::watch;

pub use feed::RevocationFeed;

use crate::identity::{Caller, Subject};

mod feed;

/// How far the clock may be set back without doubt on what was heard before: a time server's small corrections.
pub const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// How much longer than its whole life an entry is kept by the clock that only goes on: it may be told before that life
/// begins, by as much as auth dates revocations ahead and clocks differ.
const KEEP_LONGER: Duration = Duration::from_mins(1);

/// No token lives longer, so no entry has to.
const LONGEST_LIFE: Duration = Duration::from_hours(24);

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
    /// How often news brought entries.
    changed: watch::Sender<u64>,
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
    /// Until when it is kept, whatever the wall's clock says meanwhile.
    keep_until: Instant,
}

impl Entry {
    /// As told at this moment.
    fn told(revocation: &Revocation) -> Self {
        let not_before = Timestamp::from_micros(revocation.not_before);
        let expires_at = Timestamp::from_micros(revocation.expires_at);
        // Counted from its own two instants: what the wall's clock says now may be wrong.
        let life = expires_at.since(not_before).min(LONGEST_LIFE);
        Self { not_before, expires_at, keep_until: Instant::now() + life + KEEP_LONGER }
    }

    /// Whether a token that it concerns may be live, by either clock: one that jumps ahead and comes back must not bring
    /// what was revoked back to life.
    fn may_count(self, now: Timestamp, instant: Instant) -> bool {
        now < self.expires_at || instant < self.keep_until
    }
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
    ///
    /// `sequence` is that of the table as it is now. It may be lower than before, where the table was restored; what was
    /// heard before then stays all the same, for as long as it may count.
    pub fn apply_aged(&self, revocations: &[Revocation], sequence: i64, complete: bool, age: Duration) {
        let now = self.0.clock.now();
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        for revocation in revocations {
            let entry = Entry::told(revocation);
            let held = state.entries.entry((revocation.kind, revocation.id.clone())).or_insert(entry);
            held.not_before = held.not_before.max(entry.not_before);
            held.expires_at = held.expires_at.max(entry.expires_at);
            held.keep_until = held.keep_until.max(entry.keep_until);
        }
        if !revocations.is_empty() {
            let instant = Instant::now();
            state.entries.retain(|_, entry| entry.may_count(now, instant));
        }
        state.sequence = sequence;
        if complete {
            state.complete = true;
            // Old news takes nothing from newer news, unless the clock was set back since that.
            let newest = state.heard_at.filter(|heard| heard.at <= now);
            let told = Moment::before_now(&self.0.clock, age);
            state.heard_at = Some(newest.map_or(told, |newest| newest.later_of(told)));
        }
        drop(state);
        self.0.changed.send_modify(|brought| *brought += u64::from(!revocations.is_empty()));
    }

    /// The sequence of the last news.
    #[must_use]
    pub fn sequence(&self) -> i64 {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner).sequence
    }

    /// Changes with each [`apply`](Self::apply), for those who hold streams or caches that a revocation must end. The
    /// value rises with each that brought entries; the table's own number may be the same for others, after a restore.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_by_both_clocks_is_forgotten() {
        let (now, life) = (Timestamp::from_seconds(1_800_000_000), Duration::from_mins(10));
        let told = |life: Duration| {
            Entry::told(&Revocation {
                not_before: now.as_micros(),
                expires_at: now.plus(life).as_micros(),
                ..Revocation::default()
            })
        };
        let (entry, instant) = (told(life), Instant::now());
        let later = life + KEEP_LONGER;
        assert!(entry.may_count(now, instant + later), "by the wall's clock it lives");
        assert!(entry.may_count(now.plus(later), instant), "by the other it does");
        assert!(!entry.may_count(now.plus(later), instant + later));
        // Nonsense has an end too.
        let endless = told(Duration::MAX);
        let then = Instant::now() + LONGEST_LIFE + KEEP_LONGER;
        assert!(!endless.may_count(Timestamp::from_micros(i64::MAX), then));
    }
}
