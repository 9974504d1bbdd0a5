//! Connecting: authorization code with PKCE (RFC 6749, 7636, 9700), `state` of one use, `iss` where known (RFC 9207).

use std::time::Duration;

use gatehouse_core::ids::{ConnectionId, PersonId, SessionId, TenantId};
use gatehouse_core::{Error, Result, Secret, Timestamp};
use gatehouse_db::{read_tx, run_tx};
use gatehouse_outbox::AuditEvent;
use gatehouse_secrets::{IdempotencyToken, SecretKey, VersionId};
use gatehouse_service::Caller;

use super::Broker;
use super::failure::Failure;
use crate::domain::answer::{self, Meaning, Tokens};
use crate::domain::connection::{Connection, ConnectionKey, ConnectionState};
use crate::domain::pkce;
use crate::domain::scopes::Scopes;
use crate::provider::Provider;
use crate::steps::Step;
use crate::store::authorizations::{self, Authorization};
use crate::store::connections::{self, Lease, new_key, secret_key};
use crate::store::{access_tokens, person_locks, rotations};

/// RFC 6749 sets no bound; no known provider's codes come near.
const MAX_CODE_BYTES: usize = 4096;
const MAX_STATE_BYTES: usize = 128;
/// How often a consent tries to get its token into place against rotations that are just ending.
const FENCES: usize = 8;

/// A consent that was begun.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Where to send the person's browser; carries `state`.
    pub authorization_url: Secret<String>,
    /// Until when the callback is awaited.
    pub expires_at: Timestamp,
}

/// What the upstream sent to the callback.
#[derive(Clone, Debug)]
pub struct Callback {
    /// `state`.
    pub state: Secret<String>,
    /// `code`; empty if there was an error.
    pub code: Secret<String>,
    /// `error`, or empty.
    pub error: String,
    /// `iss`, or empty.
    pub issuer: String,
}

/// What a person has as many of as they may.
enum Full {
    Connections,
    Consents,
}

fn state_invalid() -> Error {
    Error::failed_precondition(
        "STATE_INVALID",
        "This consent is unknown, was used before, has ended, or was begun by someone else. Begin again.",
    )
}

fn consents_crossed() -> Error {
    Error::aborted("CONNECTION_CHANGED", "Two consents crossed. Begin again.")
}

fn refused(message: &str) -> Error {
    Error::failed_precondition("UPSTREAM_REFUSED", message)
}

impl Broker {
    /// Begins a connection of the caller to `upstream` with `scopes` (all of the upstream's if empty).
    ///
    /// # Errors
    /// `UPSTREAM_NOT_FOUND`, `SCOPE_NOT_ALLOWED`, `TOO_MANY_CONNECTIONS`, `TOO_MANY_CONSENTS`, `PERSON_REQUIRED`,
    /// `TENANT_REQUIRED`.
    pub async fn begin_connection(
        &self,
        caller: &Caller,
        upstream: &str,
        scopes: &[String],
    ) -> Result<Begun> {
        let (person, tenant) = (caller.person()?, caller.tenant()?);
        let provider = self.0.providers.get(upstream)?;
        let known = provider.settings.all_scopes();
        let asked: Scopes = if scopes.is_empty() { known.clone() } else { scopes.iter().cloned().collect() };
        if !asked.are_within(&known) {
            return Err(Error::invalid_argument(
                "SCOPE_NOT_ALLOWED",
                "Ask only for scopes that the list of upstreams names for this one.",
            ));
        }
        let (state, verifier) = (pkce::fresh(&self.entropy), pkce::fresh(&self.entropy));
        let challenge = pkce::challenge(verifier.expose());
        let url =
            provider.authorization_url(&self.0.config.callback_url, &asked, state.expose(), &challenge)?;
        let now = self.clock.now();
        let id = gatehouse_core::ids::new_uuid(&self.clock, &self.entropy);
        let text = Secret::new(verifier.expose().as_bytes().to_vec());
        let authorization = Authorization {
            tenant,
            state_digest: pkce::state_digest(state.expose()),
            person,
            session: caller.claims().sid,
            id,
            upstream: upstream.to_owned(),
            scopes: asked,
            verifier: self.secrets.seal(&verifier_purpose(id), &text).await?,
            expires_at: now.plus(Duration::from_secs(self.0.config.authorization_seconds)),
        };
        let most_open = i64::from(self.0.config.max_open_consents);
        let event =
            self.outbox.event("token-broker.connections.begin").by(caller).about(person).payload(
                serde_json::json!({ "upstream": upstream, "scopes": authorization.scopes.to_vec() }),
            );
        let full = run_tx!(self.db, "token_broker.connect.begin", |tx| {
            person_locks::lock(tx, tenant, person, now).await?;
            let reconnects = connections::find_live(tx, tenant, person, upstream).await?.is_some();
            if !reconnects && connections::count_live(tx, tenant, person).await? >= self.most_connections() {
                return Ok(Some(Full::Connections));
            }
            if authorizations::count(tx, tenant, person, now).await? >= most_open {
                return Ok(Some(Full::Consents));
            }
            authorizations::add(tx, &authorization).await?;
            self.outbox.emit(tx, &event).await?;
            Ok(None)
        })?;
        match full {
            Some(Full::Connections) => return Err(self.too_many_connections()),
            Some(Full::Consents) => {
                let minutes = self.0.config.authorization_seconds.div_ceil(60);
                return Err(Error::resource_exhausted(
                    "TOO_MANY_CONSENTS",
                    format!(
                        "You have begun {most_open} connections that wait for a consent. Complete one, or wait: \
                         each ends after {minutes} minutes."
                    ),
                ));
            }
            None => {}
        }
        Ok(Begun { authorization_url: Secret::new(url.into()), expires_at: authorization.expires_at })
    }

    fn most_connections(&self) -> i64 {
        self.0.config.max_connections.into()
    }

    fn too_many_connections(&self) -> Error {
        let most = self.most_connections();
        Error::resource_exhausted(
            "TOO_MANY_CONNECTIONS",
            format!("You have {most} connections, which is all that you may have. Disconnect one first."),
        )
    }

    /// Completes a connection with what came to the callback. Goes on though the caller went away: the code is worth
    /// something once only.
    ///
    /// # Errors
    /// `STATE_INVALID`, `TOO_MANY_CONNECTIONS`, `UPSTREAM_REFUSED`, `UPSTREAM_UNAVAILABLE`.
    pub async fn complete_connection(&self, caller: &Caller, callback: Callback) -> Result<Connection> {
        let (person, tenant, session) = (caller.person()?, caller.tenant()?, caller.claims().sid);
        let event = self.outbox.event("token-broker.connections.complete").by(caller).about(person);
        let broker = self.clone();
        let work = self.lifecycle.spawn(async move {
            let outcome = broker.complete(tenant, person, session, &callback, event.clone()).await;
            if let Err(error) = &outcome {
                let event = event.denied(error.reason());
                let noted = run_tx!(broker.db, "token_broker.connect.refuse", |tx| {
                    broker.outbox.emit(tx, &event).await
                });
                if let Err(error) = noted {
                    tracing::warn!(%error, "a refused consent could not be audited");
                }
            }
            outcome
        });
        work.await.map_err(Error::internal)?
    }

    async fn complete(
        &self,
        tenant: TenantId,
        person: PersonId,
        session: Option<SessionId>,
        callback: &Callback,
        event: AuditEvent,
    ) -> Result<Connection> {
        let state = callback.state.expose();
        if state.is_empty() || state.len() > MAX_STATE_BYTES || callback.code.expose().len() > MAX_CODE_BYTES
        {
            return Err(state_invalid());
        }
        let (digest, now) = (pkce::state_digest(state), self.clock.now());
        let consumed = run_tx!(self.db, "token_broker.connect.consume", |tx| {
            authorizations::consume(tx, tenant, digest, person, session, now).await
        })?;
        let authorization = consumed.ok_or_else(state_invalid)?;
        let provider = self.0.providers.get(&authorization.upstream)?;
        if !provider.settings.issuer.is_empty() && callback.issuer != provider.settings.issuer {
            return Err(refused(
                "The answer came from another issuer than the one asked (RFC 9207). Begin again.",
            ));
        }
        if !callback.error.is_empty() || callback.code.expose().is_empty() {
            let denied = callback.error == "access_denied";
            return Err(refused(if denied {
                "The consent was declined at the upstream. Begin again if that was a mistake."
            } else {
                "The upstream ended the consent with an error. Begin again."
            })
            .caused_by(callback.error.chars().take(64).collect::<String>()));
        }
        let verifier =
            self.secrets.unseal(&verifier_purpose(authorization.id), &authorization.verifier).await?;
        let key = self.claim(&authorization).await?;
        let exchanged = self.exchange(provider, callback, verifier.expose()).await;
        let outcome = match exchanged {
            Ok((tokens, received_at)) => self.keep(&authorization, key, &tokens, received_at, event).await,
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(connection) => Ok(connection),
            Err(Failure::Died(died)) => Err(Failure::Died(died).into()),
            // The other one is at it: there is nothing to clear away.
            Err(Failure::Busy) => Err(consents_crossed()),
            Err(failure) => {
                if let Err(left) = self.abandon(key).await {
                    tracing::warn!(?left, "what a failed consent left will be removed later");
                }
                Err(match failure {
                    Failure::Upstream { reason: "refused", .. } => {
                        refused("The upstream did not accept the code. Begin again.")
                    }
                    Failure::Upstream { reason: "no_refresh_token", .. } => refused(
                        "The upstream gave no refresh token. Its scopes in the configuration may lack offline access.",
                    ),
                    other => other.into(),
                })
            }
        }
    }

    /// The connection that this consent is for: the person's live one, or a new one if they may have one more. That there
    /// was room for it when the consent was begun says nothing: others were begun beside it.
    async fn claim(&self, authorization: &Authorization) -> Result<ConnectionKey> {
        let Authorization { tenant, person, upstream, scopes, .. } = authorization;
        let fresh = new_key(*tenant, ConnectionId::new(&self.clock, &self.entropy));
        let now = self.clock.now();
        let claimed = run_tx!(self.db, "token_broker.connect.claim", |tx| {
            person_locks::lock(tx, *tenant, *person, now).await?;
            if let Some(live) = connections::find_live(tx, *tenant, *person, upstream).await? {
                return Ok(Ok(live.key));
            }
            if connections::count_live(tx, *tenant, *person).await? >= self.most_connections() {
                return Ok(Err(self.too_many_connections()));
            }
            let added = connections::add(tx, fresh, *person, upstream, scopes, now).await?;
            Ok(if added { Ok(fresh) } else { Err(consents_crossed()) })
        })?;
        let key = claimed?;
        self.steps.at(Step::CodeClaimed).map_err(|died| Error::from(Failure::from(died)))?;
        Ok(key)
    }

    async fn exchange(
        &self,
        provider: &Provider,
        callback: &Callback,
        verifier: &[u8],
    ) -> Result<(Tokens, Timestamp), Failure> {
        let upstream = |reason| Failure::Upstream { reason, wait: Duration::from_secs(1) };
        let verifier = std::str::from_utf8(verifier).map_err(Error::internal)?;
        let code = callback.code.expose();
        let answer =
            provider.exchange(&self.0.config.callback_url, code, verifier).await.map_err(|silence| {
                tracing::warn!(upstream = provider.name, cause = silence.cause(), "no answer to a code");
                upstream(silence.reason())
            })?;
        self.steps.at(Step::CodeExchanged)?;
        match answer::read(&answer) {
            Meaning::Granted(tokens) if tokens.refresh.is_some() => Ok((tokens, answer.received_at)),
            Meaning::Granted(_) => Err(upstream("no_refresh_token")),
            Meaning::InvalidGrant | Meaning::Refused(_) => Err(upstream("refused")),
            Meaning::Unclear(reason) => Err(upstream(reason)),
        }
    }

    /// Puts the first tokens into their places: fenced, pending, promoted, known to the database, old ones deleted.
    /// Whoever rotates the older token is fenced out before anything is stored; if this consent dies on its way, the
    /// old token and, once it was put, the new one are there for the next rotation.
    async fn keep(
        &self,
        authorization: &Authorization,
        key: ConnectionKey,
        tokens: &Tokens,
        received_at: Timestamp,
        event: AuditEvent,
    ) -> Result<Connection, Failure> {
        let secret = secret_key(key)?;
        let granted = match &tokens.scopes {
            Some(scopes) if !scopes.is_empty() => scopes.clone(),
            _ => authorization.scopes.clone(),
        };
        let (lease, version) = self.install(authorization, key, &secret, tokens).await?;
        let cached = match &tokens.access {
            Some(access) => {
                // The generation that this consent's end brings.
                let generation = lease.generation + 1;
                Some(self.sealed(key, &granted, generation, access, &granted, received_at).await?)
            }
            None => None,
        };
        // Listed while nobody else may put any.
        let superseded = self.secrets.list_versions(&secret).await?;
        let now = self.clock.now();
        let event = event.target("connection", key.connection.as_uuid()).payload(serde_json::json!({
            "upstream": authorization.upstream,
            "scopes": granted.to_vec(),
        }));
        let (activated, connection) = run_tx!(self.db, "token_broker.connect.activate", |tx| {
            let generation = connections::activate(tx, lease, &granted).await?;
            if let Some(generation) = generation {
                rotations::supersede(tx, key, generation, now).await?;
                access_tokens::delete_all(tx, key).await?;
                if let Some(cached) = &cached {
                    access_tokens::put(tx, key, &granted, cached).await?;
                }
                self.outbox.emit(tx, &event).await?;
            }
            Ok((generation.is_some(), connections::lookup(tx, key).await?))
        })?;
        let Some(connection) = connection.filter(|found| found.state != ConnectionState::Disconnected) else {
            // Disconnected meanwhile: nobody would ever use or remove the token.
            self.secrets.delete(&secret).await?;
            return Err(Failure::Gone);
        };
        if !activated {
            // Another consent, or a rotation after our lease ran out: what lies there is theirs to tidy.
            return Err(Failure::Busy);
        }
        if let Err(error) = self.delete_all_but(&secret, superseded, &version).await {
            // The next rotation deletes them.
            tracing::warn!(%error, connection = %key.connection, "replaced refresh tokens could not be deleted yet");
        }
        Ok(connection)
    }

    /// Makes a consent's refresh token the current one, under a lease that keeps rotations away until the consent ends.
    async fn install(
        &self,
        authorization: &Authorization,
        key: ConnectionKey,
        secret: &SecretKey,
        tokens: &Tokens,
    ) -> Result<(Lease, VersionId), Failure> {
        use gatehouse_secrets::Error::{Conflict, VersionNotFound};
        let refresh = tokens.refresh.as_ref().ok_or(Failure::Gone)?;
        let value = Secret::new(refresh.expose().as_bytes().to_vec());
        let token = IdempotencyToken::new(authorization.id.to_string())?;
        for _ in 0..FENCES {
            // A holder of its own: two consents in one process are two.
            let (holder, until) = (authorization.id, self.clock.now().plus(self.0.config.lease()));
            let lease = run_tx!(self.db, "token_broker.connect.fence", |tx| {
                connections::fence(tx, key, holder, until).await
            })?;
            let lease = lease.ok_or(Failure::Gone)?;
            self.steps.at(Step::ConsentFenced)?;
            let stored = async {
                let version = self.secrets.put_pending(secret, &value, &token).await?;
                let current = self.secrets.get_current(secret).await?.map(|current| current.id);
                self.steps.at(Step::FirstPut)?;
                match self.secrets.promote(secret, &version, current.as_ref()).await {
                    Ok(()) => Ok(Some(version)),
                    // A rotation that had been found the newest before the fence, or one that began after our lease
                    // ran out. This consent is newer than what it showed.
                    Err(Conflict { .. } | VersionNotFound) => Ok(None),
                    Err(other) => Err(Failure::from(other)),
                }
            };
            match stored.await {
                Ok(Some(version)) => {
                    self.steps.at(Step::FirstPromoted)?;
                    return Ok((lease, version));
                }
                Ok(None) => {}
                Err(Failure::Died(died)) => return Err(died.into()),
                Err(failure) => {
                    let released = run_tx!(self.db, "token_broker.connect.release", |tx| {
                        connections::release(tx, lease).await
                    });
                    if let Err(error) = released {
                        tracing::warn!(%error, "a failed consent's lease could not be given back; it ends by itself");
                    }
                    return Err(failure);
                }
            }
        }
        Err(Failure::Busy)
    }

    /// Removes a connection that never came to be, secrets first: the row is what leads to them.
    pub(crate) async fn abandon(&self, key: ConnectionKey) -> Result<(), Failure> {
        let connection =
            read_tx!(self.db, "token_broker.connect.look", |tx| { connections::lookup(tx, key).await })?;
        if connection.is_some_and(|connection| connection.state == ConnectionState::Connecting) {
            self.secrets.delete(&secret_key(key)?).await?;
            run_tx!(self.db, "token_broker.connect.abandon", |tx| {
                connections::drop_connecting(tx, key).await
            })?;
        }
        Ok(())
    }
}

fn verifier_purpose(authorization: uuid::Uuid) -> String {
    format!("token-broker/verifier/{authorization}")
}
