//! Authentication at the door: what a request shows is verified and exchanged for a token of the one service that
//! the route speaks to.
//!
//! Invariants:
//! - a service never sees what the caller showed, only a token made out to itself;
//! - an exchanged token is kept for at most 60 s, never past its own end or the credential's, and every use checks
//!   the live revocations;
//! - many requests with one credential cause one exchange;
//! - credentials are kept as SHA-256 only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gatehouse_client::{Authorized, Channel, TokenSource, audience, from_status};
use gatehouse_core::{Clock, Error, ErrorCode, Result, Secret, Timestamp};
use gatehouse_proto::auth::v1::ExchangeTokenRequest;
use gatehouse_proto::auth::v1::token_service_client::TokenServiceClient;
use gatehouse_service::{Caller, Lifecycle, Verifier};
use sha2::{Digest as _, Sha256};

use crate::context::own_failure;
use crate::credential::Presented;
use crate::route::Service;

const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// A token this near to its end may end on its way.
const SLACK: Duration = Duration::from_secs(2);

type Key = ([u8; 32], Service);

/// Verifies and exchanges. Cheap to clone; clones share the cache.
#[derive(Clone)]
pub(crate) struct Door(Arc<Inner>);

struct Inner {
    verifier: Verifier,
    auth: Channel,
    tokens: TokenSource,
    clock: Clock,
    keep_for: Duration,
    max_entries: usize,
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
}

/// The async lock is the single flight: who finds nothing exchanges while the others wait. If its request goes
/// away, the next one takes over.
#[derive(Default)]
struct Slot(tokio::sync::Mutex<State>);

#[derive(Default)]
struct State {
    held: Option<Held>,
    failed: Option<(Instant, ErrorCode, String, String)>,
}

#[derive(Clone)]
struct Held {
    token: Secret<String>,
    caller: Caller,
    ends_at: Option<Timestamp>,
    keep_until: Timestamp,
}

/// A caller who may pass to one service.
#[derive(Clone)]
pub(crate) struct Admitted {
    /// Who it is.
    pub(crate) caller: Caller,
    /// The token for the service.
    pub(crate) token: Secret<String>,
    /// When what was shown ends; `None` if it has no end.
    pub(crate) ends_at: Option<Timestamp>,
    /// What was shown.
    pub(crate) presented: Presented,
}

impl Door {
    pub(crate) fn new(
        verifier: &Verifier,
        auth: Channel,
        tokens: TokenSource,
        clock: Clock,
        keep_for: Duration,
        max_entries: usize,
    ) -> Self {
        Self(Arc::new(Inner {
            verifier: verifier.for_audience(audience::GATEWAY),
            auth,
            tokens,
            clock,
            keep_for,
            max_entries,
            slots: Mutex::default(),
        }))
    }

    /// Drops what a revocation has ended, as the news comes in.
    pub(crate) fn watch_revocations(&self, lifecycle: &Lifecycle) {
        let (door, stopping) = (self.clone(), lifecycle.stopping());
        let mut changed = self.0.verifier.revocations().subscribe();
        lifecycle.spawn(async move {
            let mut seen = 0;
            loop {
                tokio::select! {
                    () = stopping.cancelled() => return,
                    news = changed.changed() => if news.is_err() { return },
                }
                let brought = *changed.borrow_and_update();
                if brought != seen {
                    seen = brought;
                    door.sweep();
                }
            }
        });
    }

    /// Who shows this, as far as it can be told without asking auth: by the exchange of it that is remembered, or else
    /// by its signature, which API keys have none of.
    ///
    /// # Errors
    /// Those of [`Verifier::verify`].
    pub(crate) fn recognise(&self, presented: &Presented, service: Service) -> Result<Option<Caller>> {
        let remembered = self.remembered(presented, service);
        match (presented, remembered) {
            // Auth has checked these very bytes a moment ago; checking the signature again is the dearest thing that
            // the gateway would do for a request. What may have changed since is looked at.
            (Presented::AccessToken(_), Some(caller)) => {
                self.0.verifier.revocations().check(&caller, false)?;
                Ok(Some(caller))
            }
            (Presented::AccessToken(token), None) => self.0.verifier.verify(token.expose(), false).map(Some),
            (Presented::ApiKey(_), remembered) => Ok(remembered),
        }
    }

    /// Whom a remembered exchange was for.
    fn remembered(&self, presented: &Presented, service: Service) -> Option<Caller> {
        let slot = self.lock().get(&key(presented, service)).map(Arc::clone)?;
        // Whoever holds the lock is exchanging: then it is not known yet.
        let state = slot.0.try_lock().ok()?;
        state.held.as_ref().filter(|held| self.is_usable(held)).map(|held| held.caller.clone())
    }

    /// A token for `service`, from memory or from auth.
    ///
    /// # Errors
    /// `CREDENTIAL_INVALID`, `TOKEN_REVOKED`, or that auth is away.
    pub(crate) async fn admit(&self, presented: &Presented, service: Service) -> Result<Admitted> {
        let began = Instant::now();
        let key = key(presented, service);
        let slot = self.slot(key);
        let mut state = slot.0.lock().await;
        if let Some(held) = &state.held {
            if self.is_usable(held) {
                match (self.0.verifier.revocations().check(&held.caller, false), presented) {
                    (Ok(()), _) => return Ok(admitted(held, presented)),
                    // What a key was exchanged for so far may have ended and the key go on: auth knows.
                    (Err(error), Presented::ApiKey(_)) if error.code() == ErrorCode::Unauthenticated => {}
                    (Err(error), _) => return Err(error),
                }
            }
            state.held = None;
        }
        // A failure that came while this request waited is its answer too: waiters must not try one by one.
        if let Some((_, code, reason, message)) = state.failed.as_ref().filter(|(at, ..)| *at >= began) {
            return Err(Error::new(*code, reason.clone(), message.clone()));
        }
        match self.exchange(presented, service).await {
            Ok(held) => {
                let admitted = admitted(&held, presented);
                *state = State { held: Some(held), failed: None };
                Ok(admitted)
            }
            Err(error) => {
                let told =
                    (Instant::now(), error.code(), error.reason().to_owned(), error.message().to_owned());
                state.failed = Some(told);
                // Wrong credentials must not push out right ones.
                self.lock().remove(&key);
                Err(error)
            }
        }
    }

    async fn exchange(&self, presented: &Presented, service: Service) -> Result<Held> {
        let inner = &self.0;
        inner.tokens.token(audience::AUTH).await.map_err(own_failure)?;
        let channel = Authorized::as_client(inner.auth.clone(), inner.tokens.clone(), audience::AUTH);
        let mut request = tonic::Request::new(ExchangeTokenRequest {
            subject_token: presented.text().expose().clone(),
            audience: service.audience().to_owned(),
            // Whoever shows us a credential is there: nobody acts in their stead.
            act_for_subject: false,
        });
        request.set_timeout(EXCHANGE_TIMEOUT);
        let answer = TokenServiceClient::new(channel)
            .exchange_token(request)
            .await
            .map_err(|status| refusal(from_status(status)))?
            .into_inner();
        // We believe auth because of its signature, as the services do.
        let caller =
            inner.verifier.for_audience(service.audience()).verify(&answer.access_token, false).map_err(
                |error| match error.reason() {
                    // Whoever was asked had not heard of it yet: the caller's credential ended a moment ago.
                    "TOKEN_REVOKED" => error,
                    _ => own_failure(error),
                },
            )?;
        let ends_at =
            (answer.subject_expires_at > 0).then(|| Timestamp::from_micros(answer.subject_expires_at));
        let now = inner.clock.now();
        let token_end = Timestamp::from_micros(answer.expires_at).minus(SLACK);
        let keep_until = now.plus(inner.keep_for).min(token_end).min(ends_at.unwrap_or(token_end));
        Ok(Held { token: Secret::new(answer.access_token), caller, ends_at, keep_until })
    }

    fn is_usable(&self, held: &Held) -> bool {
        self.0.clock.now() < held.keep_until
    }

    fn slot(&self, key: Key) -> Arc<Slot> {
        let mut slots = self.lock();
        if !slots.contains_key(&key) && slots.len() >= self.0.max_entries {
            slots.retain(|_, slot| self.is_worth_keeping(slot));
            // Still full: any eighth goes. The order of a hash map is random enough.
            let surplus = (slots.len() + 1).saturating_sub(self.0.max_entries);
            if surplus > 0 {
                let victims: Vec<Key> =
                    slots.keys().take(surplus.max(self.0.max_entries / 8)).copied().collect();
                for victim in victims {
                    slots.remove(&victim);
                }
            }
        }
        Arc::clone(slots.entry(key).or_default())
    }

    fn sweep(&self) {
        self.lock().retain(|_, slot| self.is_worth_keeping(slot));
    }

    fn is_worth_keeping(&self, slot: &Slot) -> bool {
        let Ok(state) = slot.0.try_lock() else { return true };
        state.held.as_ref().is_some_and(|held| {
            let revoked = self
                .0
                .verifier
                .revocations()
                .check(&held.caller, false)
                .is_err_and(|error| error.code() == ErrorCode::Unauthenticated);
            self.is_usable(held) && !revoked
        })
    }

    /// Whether a caller's credential still holds, for those who hold streams open.
    ///
    /// # Errors
    /// `TOKEN_REVOKED`; `REVOCATIONS_STALE` when nobody can tell any more.
    pub(crate) fn check_still_live(&self, caller: &Caller) -> Result<()> {
        self.0.verifier.revocations().check(caller, false)
    }

    /// Changes whenever revocations may have.
    pub(crate) fn revocations_changed(&self) -> tokio::sync::watch::Receiver<u64> {
        self.0.verifier.revocations().subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<Slot>>> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A digest, so that what is held longest is no credential. It has no key because it leaves memory never (decision 0098).
fn key(presented: &Presented, service: Service) -> Key {
    (Sha256::digest(presented.text().expose().as_bytes()).into(), service)
}

fn admitted(held: &Held, presented: &Presented) -> Admitted {
    Admitted {
        caller: held.caller.clone(),
        token: held.token.clone(),
        ends_at: held.ends_at,
        presented: presented.clone(),
    }
}

/// Auth's refusal is the caller's fault only where it speaks of what the caller showed.
fn refusal(error: Error) -> Error {
    if error.reason().starts_with("SUBJECT_TOKEN") {
        return Error::unauthenticated(
            "CREDENTIAL_INVALID",
            "The credential was not accepted: it is wrong, has ended or was revoked. Sign in again or use another key.",
        );
    }
    own_failure(error)
}

#[cfg(test)]
mod tests {
    use gatehouse_client::{ChannelConfig, ClientCredentials, channel};
    use gatehouse_core::Entropy;
    use gatehouse_core::ids::CredentialId;
    use gatehouse_proto::auth::v1::{Revocation, RevocationKind};
    use gatehouse_service::revocations::Staleness;
    use gatehouse_service::{Claims, KeySet, Revocations};
    use gatehouse_testkit::eventually;
    use serde_json::json;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A door before an auth that is away, and what it knows of revocations.
    fn door() -> (Door, Revocations) {
        let clock = Clock::system();
        let revocations = Revocations::new(clock.clone(), Staleness::default());
        revocations.apply(&[], 0, true);
        let verifier =
            Verifier::new("i", audience::GATEWAY, KeySet::default(), revocations.clone(), clock.clone());
        let auth = channel(&ChannelConfig::to("http://127.0.0.1:1")).expect("a channel");
        let credentials =
            ClientCredentials { client_id: "gateway".into(), client_secret: Secret::new("none".into()) };
        let tokens = TokenSource::new(auth.clone(), credentials, clock.clone());
        (Door::new(&verifier, auth, tokens, clock, Duration::from_mins(1), 10), revocations)
    }

    /// A credential whose exchange `door` remembers.
    fn remembered(door: &Door) -> (CredentialId, Presented) {
        let (clock, id) = (&door.0.clock, CredentialId::new(&door.0.clock, &Entropy::system()));
        let now = clock.now();
        let claims: Claims = serde_json::from_value(json!({
            "iss": "i", "sub": format!("api_key:{id}"), "aud": audience::JOB, "exp": now.as_seconds() + 60,
            "iat": now.as_seconds(), "iat_us": now.as_micros(), "nbf": now.as_seconds(), "jti": "t",
            "token_use": "access", "scope": "", "cid": id, "roles": [], "permissions": []
        }))
        .expect("claims");
        let held = Held {
            token: Secret::new("t".into()),
            caller: Caller::from_claims(claims).expect("a caller"),
            ends_at: None,
            keep_until: now.plus(PATIENCE),
        };
        let presented = Presented::ApiKey(Secret::new(format!("gh_dev_ak_{id}")));
        let slot = Slot(tokio::sync::Mutex::new(State { held: Some(held), failed: None }));
        door.lock().insert(key(&presented, Service::Job), Arc::new(slot));
        (id, presented)
    }

    fn end_of(id: CredentialId) -> Revocation {
        let now = Clock::system().now();
        Revocation {
            sequence: 5,
            kind: RevocationKind::Credential.into(),
            id: id.to_string(),
            not_before: now.as_micros() + 1,
            expires_at: now.plus(Duration::from_mins(10)).as_micros(),
        }
    }

    /// The table was restored: the number that was heard last is given to another entry.
    #[tokio::test]
    async fn what_a_revocation_ends_is_forgotten_whatever_its_number() {
        let ((door, revocations), lifecycle) = (door(), Lifecycle::new());
        door.watch_revocations(&lifecycle);
        for _ in 0..2 {
            let (id, presented) = remembered(&door);
            revocations.apply(&[end_of(id)], 5, true);
            let is_known = || door.lock().contains_key(&key(&presented, Service::Job));
            eventually(PATIENCE, || async { !is_known() }).await;
        }
        assert!(lifecycle.drain(PATIENCE).await);
    }

    /// What a key was exchanged for may have ended and the key go on: auth is asked, which is away here.
    #[tokio::test]
    async fn a_key_whose_remembered_token_was_revoked_is_not_refused_unasked() {
        let (door, revocations) = door();
        let (id, presented) = remembered(&door);
        assert!(door.admit(&presented, Service::Job).await.is_ok());
        revocations.apply(&[end_of(id)], 5, true);
        let refused = door.admit(&presented, Service::Job).await.map(|_| ()).map_err(|error| error.code());
        assert_eq!(refused, Err(ErrorCode::Unavailable));
    }
}
