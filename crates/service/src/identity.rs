//! Who is calling: the claims of an access token, and the caller that they make.

use std::collections::BTreeSet;

use gatehouse_core::ids::{CredentialId, PersonId, SessionId, TenantId};
use gatehouse_core::{Error, Result, Timestamp};
use serde::{Deserialize, Serialize};

/// The claims of an access token (RFC 9068, RFC 8693 section 4.1, and requirement B4). Auth signs this struct and
/// every verifier reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Issuer; it ends with the environment.
    pub iss: String,
    /// A person's id, `client:<name>` or `api_key:<credential id>`.
    pub sub: String,
    /// The one service that the token is for (`gatehouse_client::audience`).
    pub aud: String,
    /// End, seconds since the epoch.
    pub exp: i64,
    /// Issued, seconds since the epoch.
    pub iat: i64,
    /// Issued, microseconds since the epoch: revocations are compared with this, because a second is too coarse for
    /// "before" and "after" a revocation.
    pub iat_us: i64,
    /// Not before, seconds since the epoch.
    pub nbf: i64,
    /// Id of the token.
    pub jti: String,
    /// When the person proved who they are, seconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_time: Option<i64>,
    /// `access`; an id token never passes for one.
    pub token_use: String,
    /// The permissions, space-separated (RFC 8693, section 4.2).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scope: String,
    /// A person's name for display.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// A person's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Whether they proved that it is theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email_verified: Option<bool>,
    /// The tenant that the token acts in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tid: Option<TenantId>,
    /// The session that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sid: Option<SessionId>,
    /// The API key that it was exchanged for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cid: Option<CredentialId>,
    /// The client that obtained it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// When that client's own token was issued, microseconds since the epoch: what a revocation of the client is compared
    /// with. Only in exchanged tokens, whose `iat_us` is their subject's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_iat_us: Option<i64>,
    /// Who acts for the subject (RFC 8693, section 4.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act: Option<Actor>,
    /// The roles in the tenant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// What it allows at the service in `aud`; each may carry scope after a colon.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub permissions: Vec<String>,
}

/// The `act` claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// The client that acts, `client:<name>`.
    pub sub: String,
}

/// The one client through which people and API keys speak for themselves: whoever shows it a credential is there. What
/// any other client obtains with a credential, it obtains in the subject's name (RFC 8693, section 1.1: delegation).
pub const PERSONS_CLIENT: &str = "gateway";

/// Whom a token speaks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A person, signed in.
    Person(PersonId),
    /// A tenant's API key.
    ApiKey(CredentialId),
    /// An internal service, by its name.
    Client(String),
}

impl Subject {
    /// As it stands in `sub` and in the audit log: no name, no address.
    #[must_use]
    pub fn as_text(&self) -> String {
        match self {
            Self::Person(id) => id.to_string(),
            Self::ApiKey(id) => format!("api_key:{id}"),
            Self::Client(name) => format!("client:{name}"),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if let Some(name) = text.strip_prefix("client:") {
            return (!name.is_empty()).then(|| Self::Client(name.to_owned()));
        }
        if let Some(id) = text.strip_prefix("api_key:") {
            return id.parse().ok().map(Self::ApiKey);
        }
        text.parse().ok().map(Self::Person)
    }
}

/// A verified caller. Only [`crate::Verifier`] makes one outside tests.
#[derive(Clone, Debug)]
pub struct Caller {
    subject: Subject,
    permissions: BTreeSet<String>,
    claims: Claims,
}

impl Caller {
    /// The caller that verified claims stand for; `None` if the subject is of no known form.
    #[must_use]
    pub fn from_claims(claims: Claims) -> Option<Self> {
        let subject = Subject::parse(&claims.sub)?;
        let permissions = claims.permissions.iter().cloned().collect();
        Some(Self { subject, permissions, claims })
    }

    /// The caller of a request that passed [`crate::AccessLayer`].
    ///
    /// # Errors
    /// `UNAUTHENTICATED` where none was put there: the method is public.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<&Self> {
        request
            .extensions()
            .get::<Self>()
            .ok_or_else(|| Error::unauthenticated("UNAUTHENTICATED", "Sign in and send the access token."))
    }

    /// Whom the token speaks for.
    #[must_use]
    pub const fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The claims as verified.
    #[must_use]
    pub const fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The person whom the token speaks for.
    ///
    /// # Errors
    /// `PERSON_REQUIRED` for API keys and clients.
    pub fn person(&self) -> Result<PersonId> {
        match &self.subject {
            Subject::Person(id) => Ok(*id),
            _ => Err(Error::permission_denied("PERSON_REQUIRED", "Only a signed-in person can do this.")),
        }
    }

    /// The tenant that the token acts in.
    ///
    /// # Errors
    /// `TENANT_REQUIRED` where it acts in none.
    pub fn tenant(&self) -> Result<TenantId> {
        self.claims.tid.ok_or_else(|| {
            Error::permission_denied(
                "TENANT_REQUIRED",
                "Sign in to a tenant first: this credential acts in none.",
            )
        })
    }

    /// The internal service that calls: itself, or acting for the subject. None where the subject speaks for themself,
    /// which they do through [`PERSONS_CLIENT`] alone: a token that any other client obtained is a delegate's, whether or
    /// not it says so.
    #[must_use]
    pub fn client(&self) -> Option<&str> {
        if let Subject::Client(name) = &self.subject
            && self.claims.act.is_none()
        {
            return Some(name);
        }
        match &self.claims.act {
            Some(actor) => Some(actor.sub.strip_prefix("client:").unwrap_or(&actor.sub)),
            None => self.claims.client_id.as_deref().filter(|client| *client != PERSONS_CLIENT),
        }
    }

    /// Whether the caller holds `permission`, with whatever scope.
    #[must_use]
    pub fn holds(&self, permission: &str) -> bool {
        self.permissions.contains(permission) || self.scopes(permission).next().is_some()
    }

    /// The scopes with which the caller holds `permission`: what stands after the first colon.
    pub fn scopes<'a>(&'a self, permission: &'a str) -> impl Iterator<Item = &'a str> {
        self.permissions.iter().filter_map(move |held| held.strip_prefix(permission)?.strip_prefix(':'))
    }

    /// Checks for `permission`, for use cases that need more than their method declares.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`; `TENANT_REQUIRED` where a tenant is what the caller lacks.
    pub fn require(&self, permission: &str) -> Result<()> {
        if self.holds(permission) {
            return Ok(());
        }
        let in_no_tenant = matches!(self.subject, Subject::Person(_)) && self.claims.tid.is_none();
        if in_no_tenant && !BEYOND_TENANTS.contains(&permission) {
            return Err(tenant_required(permission));
        }
        Err(denied(permission))
    }

    /// When the token ends.
    #[must_use]
    pub const fn expires_at(&self) -> Timestamp {
        Timestamp::from_seconds(self.claims.exp)
    }
}

/// Permissions that no role in a tenant has: those of platform administrators and of internal services.
pub const BEYOND_TENANTS: &[&str] = &[
    "audit.log.export",
    "audit.subjects.erase",
    "audit.events.append",
    "auth.revocations.watch",
    "auth.tokens.exchange",
    "auth.tokens.introspect",
    "job.jobs.work",
];

/// Whoever just made an account has no tenant, and so no permission, until they make one or are added to one.
fn tenant_required(permission: &str) -> Error {
    Error::permission_denied(
        "TENANT_REQUIRED",
        format!(
            "This needs the permission {permission} in a tenant, and you are signed in to none. Make one (POST /v1/tenants) \
             or be added to one, then sign in again."
        ),
    )
}

/// The refusal for a missing permission. It names the permission: that is no secret, and the caller's administrator
/// needs it.
#[must_use]
pub fn denied(permission: &str) -> Error {
    Error::permission_denied("PERMISSION_DENIED", format!("This needs the permission {permission}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(sub: &str, permissions: &[&str]) -> Claims {
        Claims {
            iss: "https://gatehouse.test/dev".into(),
            sub: sub.into(),
            aud: "gatehouse.job".into(),
            exp: 1,
            iat: 0,
            iat_us: 0,
            nbf: 0,
            jti: "j".into(),
            auth_time: None,
            token_use: "access".into(),
            scope: String::new(),
            username: None,
            email: None,
            email_verified: None,
            tid: None,
            sid: None,
            cid: None,
            client_id: None,
            client_iat_us: None,
            act: None,
            roles: vec![],
            permissions: permissions.iter().map(|&permission| permission.to_owned()).collect(),
        }
    }

    #[test]
    fn a_permission_is_held_with_or_without_scope_but_not_by_prefix() {
        let caller =
            Caller::from_claims(claims("client:w", &["job.jobs.work:optimize:*", "job.jobs.read"])).unwrap();
        assert!(caller.holds("job.jobs.work") && caller.holds("job.jobs.read"));
        assert!(
            !caller.holds("job.jobs.wor") && !caller.holds("job.jobs") && !caller.holds("job.jobs.reads")
        );
        assert_eq!(caller.scopes("job.jobs.work").collect::<Vec<_>>(), ["optimize:*"]);
        assert_eq!(caller.require("job.jobs.submit").unwrap_err().reason(), "PERMISSION_DENIED");
        let person = claims("01890000-0000-7000-8000-000000000000", &[]);
        let person = Caller::from_claims(Claims { tid: None, ..person }).unwrap();
        for (permission, reason) in
            [("job.jobs.submit", "TENANT_REQUIRED"), ("audit.log.export", "PERMISSION_DENIED")]
        {
            assert_eq!(person.require(permission).unwrap_err().reason(), reason);
        }
    }

    #[test]
    fn only_through_the_gateway_does_a_person_speak_for_themself() {
        let person = "01890000-0000-7000-8000-000000000000";
        let of = |sub: &str, client: Option<&str>, act: Option<&str>| {
            let act = act.map(|sub| Actor { sub: sub.into() });
            let claims = Claims { client_id: client.map(Into::into), act, ..claims(sub, &[]) };
            Caller::from_claims(claims).unwrap().client().map(str::to_owned)
        };
        for (sub, client, act, expected) in [
            (person, Some("gateway"), None, None),
            (person, None, None, None),
            (person, Some("reporter"), None, Some("reporter")),
            (person, Some("reporter"), Some("client:reporter"), Some("reporter")),
            (person, Some("gateway"), Some("client:gateway"), Some("gateway")),
            // Of no known form, but of an actor all the same.
            (person, Some("gateway"), Some("reporter"), Some("reporter")),
            ("client:gateway", Some("gateway"), None, Some("gateway")),
            ("client:reporter", None, None, Some("reporter")),
        ] {
            assert_eq!(of(sub, client, act).as_deref(), expected, "{sub} {client:?} {act:?}");
        }
    }

    #[test]
    fn subjects_of_no_known_form_make_no_caller() {
        for wrong in ["", "client:", "api_key:x", "admin", "CLIENT:x"] {
            assert!(Caller::from_claims(claims(wrong, &[])).is_none(), "{wrong:?} made a caller");
        }
    }
}
