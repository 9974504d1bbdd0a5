//! Use cases: authorise what the method's permission does not say, run one named transaction, tell the audit trail.

pub mod accounts;
pub mod api_keys;
pub mod bootstrap;
pub mod containment;
pub mod members;
mod overlaps;
pub mod sessions;
pub mod tenants;
pub mod tokens;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use gatehouse_core::ids::{SessionId, TenantId, new_uuid};
use gatehouse_core::{Clock, Entropy, Environment, Result, Secret, Timestamp};
use gatehouse_db::Db;
use gatehouse_outbox::Outbox;
use gatehouse_service::{Claims, Doorbell, Verifier};
use serde_json::{Value, json};

use crate::clients::Clients;
use crate::config::Config;
use crate::domain::roles::Role;
use crate::hashing::Hasher;
use crate::key_file::Keys;
use crate::revocation_log::{RevocationLog, TOPIC};
use crate::signing_keys::SigningKeys;
use crate::store::people::Person;

/// Everything that the use cases work with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App(pub(crate) Arc<Parts>);

#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) environment: Environment,
    pub(crate) issuer: String,
    pub(crate) db: Db,
    pub(crate) clock: Clock,
    pub(crate) entropy: Entropy,
    pub(crate) keys: Keys,
    pub(crate) signing: SigningKeys,
    pub(crate) hasher: Hasher,
    pub(crate) clients: Clients,
    pub(crate) revocations: RevocationLog,
    /// Of this service's own audience; used with others too.
    pub(crate) verifier: Verifier,
    pub(crate) doorbell: Doorbell,
    pub(crate) outbox: Outbox,
}

/// Where a request came from. Personal data: it goes into sealed payloads of the audit trail only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The client's address, as the gateway saw it; empty if unknown.
    pub ip: String,
    /// The client's User-Agent; empty if unknown.
    pub user_agent: String,
}

impl Origin {
    pub(crate) fn as_json(&self) -> Value {
        json!({ "ip": self.ip, "user_agent": self.user_agent })
    }

    pub(crate) fn with(&self, name: &str, value: &str) -> Value {
        let mut json = self.as_json();
        json[name] = value.into();
        json
    }
}

/// A session's tokens.
#[derive(Debug)]
pub struct Tokens {
    /// For the gateway.
    pub access: Secret<String>,
    /// When it ends.
    pub access_expires_at: Timestamp,
    /// The refresh token.
    pub refresh: Secret<String>,
    /// When the session ends.
    pub session_expires_at: Timestamp,
    /// The session.
    pub session: SessionId,
    /// Whose.
    pub person: gatehouse_core::ids::PersonId,
    /// In which tenant.
    pub tenant: Option<TenantId>,
}

/// What an access token of a session is made from, as one transaction read it.
pub(crate) struct SessionFacts<'a> {
    pub(crate) person: &'a Person,
    pub(crate) session: SessionId,
    pub(crate) tenant: Option<(TenantId, Role)>,
    pub(crate) authenticated_at: Timestamp,
    pub(crate) session_ends_at: Timestamp,
    /// From `latest_not_before`, read in the same transaction.
    pub(crate) not_before: Option<Timestamp>,
    /// Read before that transaction began.
    pub(crate) now: Timestamp,
}

impl App {
    pub(crate) fn retry_window(&self) -> Duration {
        Duration::from_secs(self.0.config.refresh_retry_window_s)
    }

    /// How many password hashes this process computed.
    #[must_use]
    pub fn hashes_computed(&self) -> u64 {
        self.0.hasher.computed()
    }

    /// How often this process took memory for a password hash; see [`Hasher::buffers_made`].
    #[must_use]
    pub fn hash_buffers_made(&self) -> u64 {
        self.0.hasher.buffers_made()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// Tells all replicas that a revocation was committed.
    pub(crate) fn revoked(&self) {
        self.0.doorbell.ring(TOPIC);
    }

    /// Claims with what every token has; the caller fills in whom it is for.
    pub(crate) fn claims(
        &self,
        audience: &str,
        subject: String,
        now: Timestamp,
        expires_at: Timestamp,
        issued_at: Timestamp,
        permissions: Vec<String>,
    ) -> Claims {
        Claims {
            iss: self.0.issuer.clone(),
            sub: subject,
            aud: audience.to_owned(),
            exp: expires_at.as_seconds(),
            iat: now.as_seconds(),
            iat_us: issued_at.as_micros(),
            nbf: now.as_seconds(),
            jti: new_uuid(&self.0.clock, &self.0.entropy).to_string(),
            auth_time: None,
            token_use: "access".to_owned(),
            scope: permissions.join(" "),
            username: None,
            email: None,
            email_verified: None,
            tid: None,
            sid: None,
            cid: None,
            client_id: None,
            client_iat_us: None,
            act: None,
            roles: Vec::new(),
            permissions,
        }
    }

    /// The access token of a session, for the gateway, and when it ends.
    pub(crate) fn session_token(&self, facts: &SessionFacts<'_>) -> Result<(Secret<String>, Timestamp)> {
        let lifetime = Duration::from_secs(self.0.config.access_token_lifetime_s);
        let expires_at = facts.now.plus(lifetime).min(facts.session_ends_at);
        let issued_at = facts.not_before.map_or(facts.now, |not_before| not_before.max(facts.now));
        let roles = roles_of(facts.person, facts.tenant);
        let permissions = permissions_of(&roles);
        let mut claims = self.claims(
            gatehouse_client::audience::GATEWAY,
            facts.person.id.to_string(),
            facts.now,
            expires_at,
            issued_at,
            permissions,
        );
        claims.auth_time = Some(facts.authenticated_at.as_seconds());
        claims.username = Some(facts.person.display_name.clone());
        claims.email = Some(facts.person.email.clone());
        claims.email_verified = Some(facts.person.email_verified);
        claims.tid = facts.tenant.map(|(tenant, _)| tenant);
        claims.sid = Some(facts.session);
        claims.roles = roles.iter().map(ToString::to_string).collect();
        Ok((self.0.signing.sign(&claims)?, Timestamp::from_seconds(claims.exp)))
    }
}

/// The roles that a person acts with.
pub(crate) fn roles_of(person: &Person, tenant: Option<(TenantId, Role)>) -> Vec<Role> {
    tenant
        .map(|(_, role)| role)
        .into_iter()
        .chain(person.platform_admin.then_some(Role::PlatformAdmin))
        .collect()
}

/// What `roles` may do together, sorted.
pub(crate) fn permissions_of(roles: &[Role]) -> Vec<String> {
    let held: BTreeSet<_> = roles.iter().flat_map(|role| role.permissions()).collect();
    held.into_iter().map(str::to_owned).collect()
}
