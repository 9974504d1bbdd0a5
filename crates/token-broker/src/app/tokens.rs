//! Giving out access tokens: for whom, by whose leave, from the cache or renewed.

use std::time::Duration;

use gatehouse_core::ids::{OfflineGrantId, PersonId};
use gatehouse_core::{Error, Result, Secret, Timestamp};
use gatehouse_db::{read_tx, run_tx};
use gatehouse_outbox::AuditEvent;
use gatehouse_service::{Caller, Subject};
use tokio::time::Instant;

use super::Broker;
use super::failure::{Failure, connection_not_found, needs_reauthorization};
use super::grants::grant_not_found;
use super::rotate::Want;
use crate::domain::connection::{Connection, ConnectionState, OfflineGrant};
use crate::domain::policy::{self, Asker};
use crate::domain::scopes::Scopes;
use crate::domain::wish::Wish;
use crate::steps::Step;
use crate::store::access_tokens::{self, Cached};
use crate::store::{connections, offline_grants};

const DEFAULT_REMAINING: Duration = Duration::from_secs(60);
const MOST_REMAINING_SECONDS: i32 = 600;
/// Renewals that one call asks for, where another's answer was not what it needed (other scopes, say).
const RENEWALS: usize = 3;

/// What a caller wants.
#[derive(Clone, Debug, Default)]
pub struct TokenRequest {
    /// The upstream's name.
    pub upstream: String,
    /// The scopes needed; all of the connection's if empty.
    pub scopes: Vec<String>,
    /// How long the token must still live, seconds, 0 (which is 60) to 600; see [`Wish`] for when that counts.
    pub min_remaining_seconds: i32,
    /// The offline grant that a client without a subject token acts by.
    pub offline_grant: Option<OfflineGrantId>,
}

/// An access token for a caller.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The token.
    pub token: Secret<String>,
    /// Its type.
    pub token_type: String,
    /// Until when it may be used; an hour at most.
    pub expires_at: Timestamp,
    /// Its scopes.
    pub scopes: Scopes,
    /// The connection that it is of; none for a static key.
    pub connection: Option<Connection>,
}

/// Whose connection a call is about, and what the caller may have of it.
struct Claim {
    connection: Connection,
    person: PersonId,
    scopes: Scopes,
    grant: Option<OfflineGrant>,
}

fn policy_denied() -> Error {
    Error::permission_denied(
        "POLICY_DENIED",
        "This caller may not have this upstream's token for these scopes.",
    )
}

impl Broker {
    /// An access token for the person whom the caller's token speaks for, or whose offline grant the caller holds.
    ///
    /// # Errors
    /// `CONNECTION_NOT_FOUND`, `NEEDS_REAUTHORIZATION`, `POLICY_DENIED`, `GRANT_NOT_FOUND`, `UPSTREAM_NOT_FOUND`,
    /// `UPSTREAM_UNAVAILABLE`, `UPSTREAM_GIVES_MORE`, `INVALID_FIELD`.
    pub async fn get_access_token(&self, caller: &Caller, request: &TokenRequest) -> Result<Issued> {
        let remaining = match request.min_remaining_seconds {
            0 => DEFAULT_REMAINING,
            seconds @ 1..=MOST_REMAINING_SECONDS => Duration::from_secs(seconds.unsigned_abs().into()),
            _ => return Err(Error::invalid_field("min_remaining_seconds", "must be from 0 to 600")),
        };
        let outcome = if self.0.config.static_keys.contains_key(&request.upstream) {
            self.issue_static(caller, &request.upstream).await
        } else {
            self.issue(caller, request, remaining).await
        };
        let known = self.0.config.upstreams.contains_key(&request.upstream)
            || self.0.config.static_keys.contains_key(&request.upstream);
        let upstream = if known { request.upstream.as_str() } else { "unknown" };
        match &outcome {
            Ok(_) => self.0.metrics.issued(upstream, "ok"),
            Err(error) => {
                self.0.metrics.issued(upstream, error.reason());
                let event = self
                    .outbox
                    .event("token-broker.tokens.issue")
                    .by(caller)
                    .denied(error.reason())
                    .payload(serde_json::json!({ "upstream": upstream }));
                run_tx!(self.db, "token_broker.tokens.refuse", |tx| { self.outbox.emit(tx, &event).await })?;
            }
        }
        outcome
    }

    async fn issue(&self, caller: &Caller, request: &TokenRequest, remaining: Duration) -> Result<Issued> {
        let claim = self.claim_of(caller, request).await?;
        let key = claim.connection.key;
        if claim.connection.state == ConnectionState::NeedsReauthorization {
            return Err(needs_reauthorization());
        }
        let mut wish = Wish { remaining, renew_after_percent: self.0.config.renew_after_percent };
        let patience = Instant::now() + self.0.config.wait();
        for renewals in 0..=RENEWALS {
            let cached = read_tx!(self.db, "token_broker.tokens.look", |tx| {
                access_tokens::lookup(tx, key, &claim.scopes).await
            })?;
            let found = cached.as_ref().map(|cached| cached.generation);
            if let Some(cached) = cached.filter(|cached| wish.is_met_by(cached.life, self.clock.now())) {
                match self.hand_out(caller, &claim, &cached).await {
                    Err(error) if error.reason() == "CACHED_TOKEN_UNREADABLE" => {}
                    other => return other,
                }
            }
            if renewals == RENEWALS {
                break;
            }
            self.steps.at(Step::TokenWanted).map_err(Failure::from)?;
            let want = Want::Token { found, wish };
            // Whoever waits for longer hears nothing: callers have deadlines of their own. The work itself goes on, and
            // leaves its token for those who come again.
            let renewed =
                tokio::time::timeout_at(patience, self.renew(key, claim.scopes.clone(), want)).await;
            match renewed.unwrap_or(Err(Failure::Busy)) {
                // What was renewed for this call is taken however short the upstream makes it.
                Ok(()) => wish = Wish::ANY,
                // Overtaken: whoever was faster may have left a token.
                Err(Failure::Busy) if renewals + 1 < RENEWALS && Instant::now() < patience => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        Err(Error::unavailable("UPSTREAM_UNAVAILABLE", "The upstream gives tokens that have ended already."))
    }

    async fn hand_out(&self, caller: &Caller, claim: &Claim, cached: &Cached) -> Result<Issued> {
        let key = claim.connection.key;
        // The upstream may answer a narrower request with a wider token, and says so (RFC 6749, section 5.1). What the
        // caller may have was decided for what was asked.
        if !cached.granted.are_within(&claim.scopes) {
            tracing::error!(
                connection = %key.connection,
                "the upstream gives more than was asked for; the token is not handed out: see narrows_scopes"
            );
            return Err(Error::failed_precondition(
                "UPSTREAM_GIVES_MORE",
                "The upstream gives a token for more than this caller may have, so it is not handed out. Ask an administrator.",
            ));
        }
        let purpose = access_tokens::purpose(key, &claim.scopes, cached.generation);
        let opened = self.secrets.unseal(&purpose, &cached.sealed).await;
        let text = match opened {
            Ok(bytes) => String::from_utf8(bytes.expose().clone()).map_err(Error::internal)?,
            Err(gatehouse_secrets::Error::DoesNotOpen) => {
                return Err(Error::unavailable("CACHED_TOKEN_UNREADABLE", "The cached token does not open."));
            }
            Err(other) => return Err(other.into()),
        };
        if let Some(grant) = &claim.grant {
            self.refuse_revoked(grant).await?;
        }
        let now = self.clock.now();
        let event = self.issue_event(caller, claim, cached);
        let (live, state) = run_tx!(self.db, "token_broker.tokens.issue", |tx| {
            // Disconnected, or revoked, since we looked? Then the answer is no.
            let state = connections::lookup(tx, key).await?.map(|connection| connection.state);
            let mut live = state == Some(ConnectionState::Active);
            if let Some(OfflineGrant { id, person, .. }) = claim.grant {
                let grant = offline_grants::lookup(tx, key.tenant, id, person).await?;
                live &= grant.is_some_and(|grant| grant.holds(now));
            }
            if live {
                connections::used(tx, key, now).await?;
                self.outbox.emit(tx, &event).await?;
            }
            Ok((live, state))
        })?;
        if !live {
            return Err(match (state, &claim.grant) {
                // Another renewal found out that the upstream accepts it no more.
                (Some(ConnectionState::NeedsReauthorization), _) => needs_reauthorization(),
                (_, Some(_)) => grant_not_found(),
                (_, None) => connection_not_found(),
            });
        }
        Ok(Issued {
            token: Secret::new(text),
            token_type: cached.token_type.clone(),
            expires_at: cached.life.expires_at,
            scopes: cached.granted.clone(),
            connection: Some(claim.connection.clone()),
        })
    }

    fn issue_event(&self, caller: &Caller, claim: &Claim, cached: &Cached) -> AuditEvent {
        let key = claim.connection.key;
        self.outbox
            .event("token-broker.tokens.issue")
            .by(caller)
            .tenant(key.tenant)
            .about(claim.person)
            .target("connection", key.connection.as_uuid())
            .payload(serde_json::json!({
                "upstream": claim.connection.upstream,
                "scopes": cached.granted.to_vec(),
                "expires_at": cached.life.expires_at.as_micros(),
                "generation": cached.generation,
                "offline_grant": claim.grant.as_ref().map(|grant| grant.id.to_string()),
            }))
    }

    /// The client's own token names the client only: whoever gave it the grant may have been revoked.
    async fn refuse_revoked(&self, grant: &OfflineGrant) -> Result<()> {
        if !self.is_revoked(grant) {
            return Ok(());
        }
        self.end_revoked(grant).await?;
        Err(grant_not_found())
    }

    async fn claim_of(&self, caller: &Caller, request: &TokenRequest) -> Result<Claim> {
        let provider = self.0.providers.get(&request.upstream)?;
        let (connection, person, asker, granted) = match (request.offline_grant, caller.subject()) {
            (Some(id), Subject::Client(client)) => {
                let grant = read_tx!(self.db, "token_broker.tokens.grant", |tx| {
                    offline_grants::find_for_client(tx, id, client).await
                })?;
                let now = self.clock.now();
                let tenant = caller.claims().tid;
                let grant = grant
                    .filter(|grant| {
                        grant.holds(now) && tenant.is_none_or(|tenant| tenant == grant.key.tenant)
                    })
                    .ok_or_else(grant_not_found)?;
                self.refuse_revoked(&grant).await?;
                let key = grant.key;
                let connection = read_tx!(self.db, "token_broker.tokens.connection", |tx| {
                    connections::lookup(tx, key).await
                })?;
                let connection = connection.filter(|connection| {
                    connection.upstream == request.upstream && connection.person == grant.person
                });
                (connection, grant.person, Asker::Client(client.clone()), Some(grant))
            }
            // A grant is for when the person is away; beside a subject token it would name a second person.
            (Some(_), _) => {
                return Err(Error::invalid_field(
                    "offline_grant_id",
                    "only for a client without a subject token",
                ));
            }
            (None, _) => {
                let (person, tenant) = (caller.person()?, caller.tenant()?);
                let upstream = request.upstream.as_str();
                let connection = read_tx!(self.db, "token_broker.tokens.find", |tx| {
                    connections::find_live(tx, tenant, person, upstream).await
                })?;
                // Whoever obtained the token, where that is not what the person themself calls through.
                let asker = caller.client().map_or(Asker::Person, |client| Asker::Client(client.to_owned()));
                (connection, person, asker, None)
            }
        };
        let usable = |state| matches!(state, ConnectionState::Active | ConnectionState::NeedsReauthorization);
        let connection =
            connection.filter(|connection| usable(connection.state)).ok_or_else(connection_not_found)?;
        let mut allowed = policy::allowed(&provider.settings.allow, &asker, &connection.scopes)
            .ok_or_else(policy_denied)?;
        if let Some(grant) = &granted {
            allowed = allowed.common(&grant.scopes);
        }
        let wanted: Scopes = request.scopes.iter().cloned().collect();
        if !wanted.are_within(&allowed) {
            return Err(policy_denied());
        }
        let scopes = match (provider.settings.narrows_scopes, wanted.is_empty()) {
            (true, false) => wanted,
            (true, true) => allowed,
            // Its tokens carry every scope of the connection, so the caller must be allowed all of them.
            (false, _) if connection.scopes.are_within(&allowed) => connection.scopes.clone(),
            (false, _) => return Err(policy_denied()),
        };
        if scopes.is_empty() {
            return Err(policy_denied());
        }
        Ok(Claim { connection, person, scopes, grant: granted })
    }
}
