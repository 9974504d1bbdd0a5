//! Tokens for a service itself, by client credentials (RFC 6749, section 4.4).

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gatehouse_core::{Clock, Error, ErrorCode, Result, Secret, Timestamp};
use gatehouse_proto::auth::v1::IssueTokenRequest;
use gatehouse_proto::auth::v1::token_service_client::TokenServiceClient;
use tokio::sync::Mutex;

use crate::{Channel, context, from_status};

/// How long nobody asks again behind the callers' backs after it failed.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Who an internal service is.
#[derive(Clone)]
pub struct ClientCredentials {
    /// Its name, as auth's configuration has it.
    pub client_id: String,
    /// Its secret.
    pub client_secret: Secret<String>,
}

/// Fetches and keeps one token for each audience. Cheap to clone; clones share the tokens.
#[derive(Clone)]
pub struct TokenSource(Arc<Inner>);

struct Inner {
    auth: Channel,
    credentials: ClientCredentials,
    clock: Clock,
    slots: std::sync::Mutex<HashMap<&'static str, Arc<Slot>>>,
}

/// The token for one audience.
#[derive(Default)]
struct Slot {
    held: std::sync::Mutex<Option<Held>>,
    /// Held by whoever asks auth, so that others wait for that answer instead of each asking; with how it failed last.
    asking: Mutex<Option<Failure>>,
    /// Whether a task renews it.
    renewing: AtomicBool,
}

impl Slot {
    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How asking auth failed, for those who waited for it.
struct Failure {
    at: Instant,
    code: ErrorCode,
    reason: String,
    message: String,
}

struct Held {
    token: Secret<String>,
    fetched_at: Timestamp,
    expires_at: Timestamp,
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenSource({})", self.0.credentials.client_id)
    }
}

impl TokenSource {
    /// A source that asks the auth service behind `auth`.
    #[must_use]
    pub fn new(auth: Channel, credentials: ClientCredentials, clock: Clock) -> Self {
        Self(Arc::new(Inner { auth, credentials, clock, slots: std::sync::Mutex::default() }))
    }

    /// A token that `audience` accepts. Nobody waits while there is one: in the last fifth of its life it is renewed behind
    /// the callers' backs. Where there is none, all who want one wait for one answer of auth, and a failure is the answer of
    /// all of them: so the wait is that of one call, however many wait.
    ///
    /// # Errors
    /// What auth answered, if there is no token that still lives: `INVALID_CLIENT`, `SERVICE_UNAVAILABLE`.
    pub async fn token(&self, audience: &'static str) -> Result<Secret<String>> {
        let slot = self.slot(audience);
        let Some((token, is_due)) = self.living(&slot) else { return self.ask(audience, &slot).await };
        if is_due {
            self.renew_behind(audience, &slot);
        }
        Ok(token)
    }

    /// How long a stream that is opened now can go on before it should be opened again: well after a newer token is to be
    /// had, and before the service has to end it because its own has ended. `None` if there is no newer one, as while auth
    /// is away. A token in the last fifth of its life is renewed before this answers.
    ///
    /// # Errors
    /// As [`TokenSource::token`].
    pub(crate) async fn fades_in(&self, audience: &'static str) -> Result<Option<Duration>> {
        let slot = self.slot(audience);
        match self.living(&slot) {
            Some((_, false)) => {}
            // Auth is away, yet what we hold still counts: go on with it.
            Some((_, true)) => drop(self.ask(audience, &slot).await),
            None => drop(self.ask(audience, &slot).await?),
        }
        let held = slot.held();
        let fades_at = held.as_ref().map(|held| held.expires_at.minus(part_of_life(held, 10)));
        Ok(fades_at.map(|at| at.since(self.0.clock.now())).filter(|left| !left.is_zero()))
    }

    /// Forgets the token for `audience`, after the service refused it.
    pub fn forget(&self, audience: &'static str) {
        *self.slot(audience).held() = None;
    }

    /// The token in memory, if it still lives, and whether it should be renewed.
    fn living(&self, slot: &Slot) -> Option<(Secret<String>, bool)> {
        let now = self.0.clock.now();
        let held = slot.held();
        held.as_ref()
            .filter(|held| now < held.expires_at)
            .map(|held| (held.token.clone(), now >= renewal(held)))
    }

    /// Asks auth for a newer token, or waits for whoever does.
    async fn ask(&self, audience: &'static str, slot: &Slot) -> Result<Secret<String>> {
        let began = Instant::now();
        let mut failure = slot.asking.lock().await;
        if let Some((token, false)) = self.living(slot) {
            return Ok(token);
        }
        // A failure that came while this caller waited is its answer too: waiters must not try one by one.
        if let Some(failure) = failure.as_ref().filter(|failure| failure.at >= began) {
            return Err(Error::new(failure.code, failure.reason.clone(), failure.message.clone()));
        }
        let fetched_at = self.0.clock.now();
        match self.fetch(audience).await {
            Ok((token, expires_at)) => {
                *slot.held() = Some(Held { token: token.clone(), fetched_at, expires_at });
                *failure = None;
                Ok(token)
            }
            Err(error) => {
                *failure = Some(Failure {
                    at: Instant::now(),
                    code: error.code(),
                    reason: error.reason().to_owned(),
                    message: error.message().to_owned(),
                });
                Err(error)
            }
        }
    }

    /// Has a task ask auth, unless somebody does or did in vain just now.
    fn renew_behind(&self, audience: &'static str, slot: &Arc<Slot>) {
        let is_worth_it = slot
            .asking
            .try_lock()
            .is_ok_and(|failure| failure.as_ref().is_none_or(|failure| failure.at.elapsed() >= TRY_AGAIN));
        if !is_worth_it || slot.renewing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (this, slot) = (self.clone(), Arc::clone(slot));
        tokio::spawn(async move {
            if let Err(error) = this.ask(audience, &slot).await {
                tracing::warn!(audience, error = %error, "the token of this service could not be renewed yet");
            }
            slot.renewing.store(false, Ordering::Release);
        });
    }

    fn slot(&self, audience: &'static str) -> Arc<Slot> {
        let mut slots = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(audience).or_default())
    }

    async fn fetch(&self, audience: &'static str) -> Result<(Secret<String>, Timestamp)> {
        let mut request = tonic::Request::new(IssueTokenRequest {
            client_id: self.0.credentials.client_id.clone(),
            client_secret: self.0.credentials.client_secret.expose().clone(),
            audience: audience.to_owned(),
            scope: String::new(),
        });
        let mut headers = http::HeaderMap::new();
        context::inject(&mut headers);
        *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers);
        let answer =
            TokenServiceClient::new(self.0.auth.clone()).issue_token(request).await.map_err(from_status)?;
        let answer = answer.into_inner();
        Ok((Secret::new(answer.access_token), Timestamp::from_micros(answer.expires_at)))
    }
}

fn renewal(held: &Held) -> Timestamp {
    held.expires_at.minus(part_of_life(held, 5))
}

fn part_of_life(held: &Held, divisor: u32) -> Duration {
    held.expires_at.since(held.fetched_at).checked_div(divisor).unwrap_or(Duration::ZERO)
}
