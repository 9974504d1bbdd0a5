//! Tokens for services: client credentials, exchange, introspection, revocation.

use std::collections::BTreeSet;
use std::time::Duration;

use gatehouse_client::audience;
use gatehouse_core::ids::{CredentialId, PersonId, SessionId, TenantId};
use gatehouse_core::{Error, Result, Secret, Timestamp};
use gatehouse_db::read_tx;
use gatehouse_service::identity::Actor;
use gatehouse_service::{Caller, Claims, Subject};
use serde_json::{Value, json};

use super::App;
use super::sessions::standing;
use crate::domain::api_key::looks_like_one;
use crate::domain::refresh::{RefreshToken, Verdict};
use crate::domain::roles::{audience_of, narrow};
use crate::store::revocations::{self, Revoked};
use crate::store::sessions;

/// What a client must hold to obtain tokens that name nobody beside the subject. Of the gateway alone.
pub(crate) const IMPERSONATE: &str = "auth.tokens.impersonate";

/// A token for one service.
#[derive(Debug)]
pub struct ServiceToken {
    /// The token.
    pub token: Secret<String>,
    /// When it ends.
    pub expires_at: Timestamp,
    /// What it allows.
    pub permissions: Vec<String>,
}

/// An exchanged token and whom it speaks for.
#[derive(Debug)]
pub struct Exchanged {
    /// The token.
    pub token: ServiceToken,
    /// When the subject's own credential ends.
    pub subject_expires_at: Option<Timestamp>,
    /// The person.
    pub person: Option<PersonId>,
    /// The tenant.
    pub tenant: Option<TenantId>,
    /// The session.
    pub session: Option<SessionId>,
    /// The API key.
    pub credential: Option<CredentialId>,
}

fn target(audience: &str) -> Result<&'static str> {
    let known = audience::SERVICES.iter().find(|service| **service == audience);
    known.copied().ok_or_else(|| {
        let message = format!("The audience must be one of {}.", audience::SERVICES.join(", "));
        Error::invalid_argument("INVALID_TARGET", message)
    })
}

/// Those of `held` that mean something at `audience`.
fn permissions_at(held: &[String], audience: &str) -> Vec<String> {
    held.iter().filter(|permission| audience_of(permission).as_deref() == Some(audience)).cloned().collect()
}

/// Those of `held` that `scope` (permissions between spaces) wants, no wider than it wants them.
fn narrow_to(held: &[String], scope: &str) -> Result<Vec<String>> {
    let mut narrowed = BTreeSet::new();
    for wanted in scope.split_whitespace() {
        let mut found = held.iter().filter_map(|held| narrow(held, wanted)).peekable();
        if found.peek().is_none() {
            let shown: String = wanted.chars().filter(|c| !c.is_control()).take(64).collect();
            return Err(Error::invalid_argument(
                "INVALID_SCOPE",
                format!("This client does not hold {shown:?} there."),
            ));
        }
        narrowed.extend(found);
    }
    Ok(narrowed.into_iter().collect())
}

fn subject_invalid() -> Error {
    Error::unauthenticated(
        "SUBJECT_TOKEN_INVALID",
        "The credential was not accepted. Sign in again, or use another key.",
    )
}

impl App {
    fn service_token_end(&self, now: Timestamp) -> Timestamp {
        now.plus(Duration::from_secs(self.0.config.service_token_lifetime_s))
    }

    fn sign_service_token(&self, claims: &Claims) -> Result<ServiceToken> {
        Ok(ServiceToken {
            token: self.0.signing.sign(claims)?,
            expires_at: Timestamp::from_seconds(claims.exp),
            permissions: claims.permissions.clone(),
        })
    }

    /// A token for an internal service itself (RFC 6749, section 4.4).
    ///
    /// # Errors
    /// `INVALID_CLIENT`, `INVALID_TARGET`, `INVALID_SCOPE`.
    pub async fn issue_token(
        &self,
        name: &str,
        secret: &Secret<String>,
        audience: &str,
        scope: &str,
    ) -> Result<ServiceToken> {
        let client = self.0.clients.authenticate(name, secret.expose()).ok_or_else(|| {
            tracing::warn!(client = self.0.clients.name_for_logs(name), "client credentials were refused");
            Error::unauthenticated("INVALID_CLIENT", "The client is not known, or its secret is wrong.")
        })?;
        let audience = target(audience)?;
        let mut permissions = permissions_at(&client.permissions, audience);
        if !scope.trim().is_empty() {
            permissions = narrow_to(&permissions, scope)?;
        }
        let now = self.now();
        let subjects = [Revoked::Client(client.name.clone())];
        let not_before = read_tx!(self.0.db, "auth.token.issue", |tx| {
            revocations::latest_not_before(tx, &subjects).await
        })?;
        let issued_at = not_before.map_or(now, |not_before| not_before.max(now));
        let subject = format!("client:{}", client.name);
        let mut claims =
            self.claims(audience, subject, now, self.service_token_end(now), issued_at, permissions);
        claims.client_id = Some(client.name.clone());
        claims.auth_time = Some(claims.iat);
        claims.username = Some(client.name.clone());
        self.sign_service_token(&claims)
    }

    /// Exchanges a credential that someone showed to the calling client for a token that one service accepts
    /// (RFC 8693). The token has those of the subject's permissions that mean something there and no others, and ends
    /// with the subject's credential at the latest. It names the client as the one who acts, unless the client may speak
    /// as the subject, who is there, and asks to.
    ///
    /// # Errors
    /// `SUBJECT_TOKEN_INVALID`, `INVALID_TARGET`, `CLIENT_REQUIRED`, `IMPERSONATION_DENIED`.
    pub async fn exchange_token(
        &self,
        caller: &Caller,
        subject_token: &Secret<String>,
        audience: &str,
        act_for_subject: bool,
    ) -> Result<Exchanged> {
        // By its own token: one that it obtained for somebody else is not proof enough of who asks.
        let (Subject::Client(client), None) = (caller.subject(), &caller.claims().act) else {
            let message = "Only an internal service can exchange tokens.";
            return Err(Error::permission_denied("CLIENT_REQUIRED", message));
        };
        if !act_for_subject && !caller.holds(IMPERSONATE) {
            return Err(Error::permission_denied(
                "IMPERSONATION_DENIED",
                format!(
                    "Set act_for_subject: speaking as the subject, unnamed, needs the permission {IMPERSONATE}."
                ),
            ));
        }
        let audience = target(audience)?;
        let now = self.now();
        let (mut claims, subject_expires_at) = if looks_like_one(subject_token.expose()) {
            self.claims_of_api_key(subject_token.expose(), audience, now).await?
        } else {
            self.claims_of_access_token(subject_token.expose(), audience, now)?
        };
        claims.client_id = Some(client.clone());
        // As the subject's date: what revokes the client's token revokes what it was exchanged with, and no more.
        let own = caller.claims();
        claims.client_iat_us = Some(own.client_iat_us.unwrap_or(own.iat_us));
        if act_for_subject {
            claims.act = Some(Actor { sub: format!("client:{client}") });
        }
        let person = claims.sub.parse().ok();
        Ok(Exchanged {
            token: self.sign_service_token(&claims)?,
            subject_expires_at,
            person,
            tenant: claims.tid,
            session: claims.sid,
            credential: claims.cid,
        })
    }

    async fn claims_of_api_key(
        &self,
        text: &str,
        audience: &str,
        now: Timestamp,
    ) -> Result<(Claims, Option<Timestamp>)> {
        let (key, ends_at, not_before) =
            self.lookup_presented_key(text, now).await?.ok_or_else(subject_invalid)?;
        let end = self.service_token_end(now);
        let end = ends_at.map_or(end, |ends_at| ends_at.min(end));
        let issued_at = not_before.map_or(now, |not_before| not_before.max(now));
        let permissions = permissions_at(&key.permissions, audience);
        let mut claims =
            self.claims(audience, format!("api_key:{}", key.id), now, end, issued_at, permissions);
        claims.auth_time = Some(claims.iat);
        claims.tid = Some(key.tenant);
        claims.cid = Some(key.id);
        Ok((claims, ends_at))
    }

    fn claims_of_access_token(
        &self,
        text: &str,
        audience: &str,
        now: Timestamp,
    ) -> Result<(Claims, Option<Timestamp>)> {
        let verifier = self.0.verifier.for_audience(audience::GATEWAY);
        let subject = verifier.verify(text, false).map_err(|error| match error.reason() {
            // Not the credential's fault.
            "REVOCATIONS_STALE" => error,
            _ => subject_invalid().caused_by(error),
        })?;
        let shown = subject.claims();
        let end = self.service_token_end(now).min(subject.expires_at());
        let permissions = permissions_at(&shown.permissions, audience);
        // Dated as the subject's token: what revokes that one must revoke this one.
        let issued_at = Timestamp::from_micros(shown.iat_us);
        let mut claims = self.claims(audience, shown.sub.clone(), now, end, issued_at, permissions);
        claims.auth_time = shown.auth_time;
        claims.username.clone_from(&shown.username);
        claims.email.clone_from(&shown.email);
        claims.email_verified = shown.email_verified;
        (claims.tid, claims.sid, claims.cid) = (shown.tid, shown.sid, shown.cid);
        claims.roles.clone_from(&shown.roles);
        Ok((claims, Some(subject.expires_at())))
    }

    /// What a live token says (RFC 7662); `None` for unknown and dead ones.
    ///
    /// # Errors
    /// If the database is away, or the news of revocations is late.
    pub async fn introspect_token(&self, token: &Secret<String>) -> Result<Option<Value>> {
        let text = token.expose();
        let now = self.now();
        if looks_like_one(text) {
            let found = self.lookup_presented_key(text, now).await?;
            return Ok(found.map(|(key, ends_at, _)| {
                json!({
                    "active": true, "token_type": "api_key", "sub": format!("api_key:{}", key.id), "cid": key.id, "tid": key.tenant,
                    "scope": key.permissions.join(" "), "exp": ends_at.map(Timestamp::as_seconds), "iat": key.made_at.as_seconds(),
                })
            }));
        }
        let ring = self.0.keys.ring();
        if let Some(refresh) = RefreshToken::parse(text, &ring) {
            let session = read_tx!(self.0.db, "auth.token.introspect", |tx| {
                let Some(session) = sessions::lookup(tx, refresh.family()).await? else { return Ok(None) };
                // Of someone who is no longer let in it would not be exchanged.
                Ok(standing(tx, &session).await?.map(|_| session))
            })?;
            let live = session.filter(|session| {
                session.family.judge(&refresh, &ring, now, self.retry_window()) == Verdict::Alive
            });
            return Ok(live.map(|session| {
                json!({
                    "active": true, "token_type": "refresh_token", "sub": session.person, "sid": refresh.family(),
                    "tid": session.tenant, "exp": session.family.ends_at.as_seconds(),
                })
            }));
        }
        for audience in [audience::GATEWAY].iter().chain(audience::SERVICES) {
            match self.0.verifier.for_audience(audience).verify(text, false) {
                Ok(caller) => {
                    let mut claims = serde_json::to_value(caller.claims()).map_err(Error::internal)?;
                    claims["active"] = true.into();
                    return Ok(Some(claims));
                }
                Err(error) if error.reason() == "REVOCATIONS_STALE" => return Err(error),
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Revokes the token that the caller holds (RFC 7009): of a refresh or access token the whole session, of an API key
    /// the key. Unknown tokens succeed.
    ///
    /// # Errors
    /// If the database is away.
    pub async fn revoke_token(&self, token: &Secret<String>) -> Result<()> {
        let text = token.expose();
        if looks_like_one(text) {
            return match self.lookup_presented_key(text, self.now()).await? {
                Some((key, ..)) => self.revoke_held_api_key(&key).await,
                None => Ok(()),
            };
        }
        if let Some(refresh) = RefreshToken::parse(text, &self.0.keys.ring()) {
            return self.end_held_session(refresh.family()).await;
        }
        // Only what a person's client holds: a service that was shown a token must not end its session.
        match self.0.verifier.for_audience(audience::GATEWAY).verify(text, false) {
            Ok(caller) => match caller.claims().sid {
                Some(session) => self.end_held_session(session).await,
                None => Ok(()),
            },
            Err(error) if error.reason() == "REVOCATIONS_STALE" => Err(error),
            Err(_) => Ok(()),
        }
    }

    /// The public keys as JSON, and how long a verifier may keep them.
    ///
    /// # Errors
    /// None in practice: the keys are plain text.
    pub fn jwks(&self) -> Result<(String, Duration)> {
        let json = serde_json::to_string(&self.0.signing.jwks()).map_err(Error::internal)?;
        Ok((json, Duration::from_secs(self.0.config.signing.jwks_max_age_s)))
    }
}
