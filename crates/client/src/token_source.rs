//! Tokens for a service itself, by client credentials (RFC 6749, section 4.4).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use gatehouse_core::{Clock, Result, Secret, Timestamp};
use gatehouse_proto::auth::v1::IssueTokenRequest;
use gatehouse_proto::auth::v1::token_service_client::TokenServiceClient;
use tokio::sync::Mutex;

use crate::{Channel, context, from_status};

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
    // One lock an audience: callers that find no token wait for one fetch instead of each making their own.
    held: std::sync::Mutex<HashMap<&'static str, Arc<Mutex<Option<Held>>>>>,
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
        Self(Arc::new(Inner { auth, credentials, clock, held: std::sync::Mutex::default() }))
    }

    /// A token that `audience` accepts, from memory if it has at least a fifth of its life left.
    ///
    /// # Errors
    /// What auth answered, if there is no token that still lives: `INVALID_CLIENT`, `SERVICE_UNAVAILABLE`.
    pub async fn token(&self, audience: &'static str) -> Result<Secret<String>> {
        let slot = self.slot(audience);
        let mut held = slot.lock().await;
        let now = self.0.clock.now();
        if let Some(token) = held.as_ref().filter(|held| now < renewal(held)) {
            return Ok(token.token.clone());
        }
        match self.fetch(audience).await {
            Ok((token, expires_at)) => {
                *held = Some(Held { token: token.clone(), fetched_at: now, expires_at });
                Ok(token)
            }
            // Auth is away, yet what we hold still counts: go on with it.
            Err(error) => {
                match held.as_ref().filter(|held| now < held.expires_at && error.code().is_retryable()) {
                    Some(held) => Ok(held.token.clone()),
                    None => Err(error),
                }
            }
        }
    }

    /// How long a stream that is opened now can go on before it should be opened again: well after a newer token is to be
    /// had, and before the service has to end it because its own has ended. `None` if there is no newer one, as while auth
    /// is away.
    ///
    /// # Errors
    /// As [`TokenSource::token`].
    pub(crate) async fn fades_in(&self, audience: &'static str) -> Result<Option<Duration>> {
        self.token(audience).await?;
        let slot = self.slot(audience);
        let held = slot.lock().await;
        let fades_at = held.as_ref().map(|held| held.expires_at.minus(part_of_life(held, 10)));
        Ok(fades_at.map(|at| at.since(self.0.clock.now())).filter(|left| !left.is_zero()))
    }

    /// Forgets the token for `audience`, after the service refused it.
    pub async fn forget(&self, audience: &'static str) {
        *self.slot(audience).lock().await = None;
    }

    fn slot(&self, audience: &'static str) -> Arc<Mutex<Option<Held>>> {
        let mut held = self.0.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(held.entry(audience).or_default())
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
