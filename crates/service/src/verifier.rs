//! Access tokens at the door of a service (RFC 9068, RFC 8725).

use std::collections::HashMap;
use std::sync::Arc;

use gatehouse_core::{Clock, Error, Result};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use tokio::sync::{Notify, watch};

use crate::identity::{Caller, Claims};
use crate::revocations::{Revocations, stale};

/// The longest token that is looked at, bytes.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// How far clocks may differ, seconds, when `nbf` is checked. `exp` gets no grace.
const CLOCK_SKEW_SECONDS: i64 = 5;

/// Auth's public keys by id. Cheap to clone; clones share one set.
#[derive(Clone, Default)]
pub struct KeySet(Arc<Keys>);

#[derive(Default)]
struct Keys {
    keys: watch::Sender<HashMap<String, DecodingKey>>,
    wanted: Notify,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys.borrow().keys()).finish()
    }
}

impl KeySet {
    /// Takes a JWK set (RFC 7517) in place of what was held. Only Ed25519 keys with an id count.
    ///
    /// # Errors
    /// `JWKS_INVALID` if the text is no key set or none of its keys counts; the old keys then stay.
    pub fn replace(&self, jwks_json: &str) -> Result<()> {
        let invalid = || Error::unavailable("JWKS_INVALID", "The keys that auth published can't be read.");
        let set: JwkSet = serde_json::from_str(jwks_json).map_err(|error| invalid().caused_by(error))?;
        let keys: HashMap<_, _> = set
            .keys
            .iter()
            .filter_map(|jwk| {
                let AlgorithmParameters::OctetKeyPair(parameters) = &jwk.algorithm else { return None };
                let id = jwk.common.key_id.clone().filter(|_| parameters.curve == EllipticCurve::Ed25519)?;
                Some((id, DecodingKey::from_jwk(jwk).ok()?))
            })
            .collect();
        if keys.is_empty() {
            return Err(invalid());
        }
        self.0.keys.send_replace(keys);
        Ok(())
    }

    /// Resolves when a token named a key that is not here: time to ask auth again, though not for each, since anyone can
    /// make such tokens.
    pub async fn wanted(&self) {
        self.0.wanted.notified().await;
    }

    /// Changes with each [`replace`](Self::replace).
    pub(crate) fn changes(&self) -> watch::Receiver<HashMap<String, DecodingKey>> {
        self.0.keys.subscribe()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.keys.borrow().is_empty()
    }

    fn get(&self, id: &str) -> Option<DecodingKey> {
        let key = self.0.keys.borrow().get(id).cloned();
        if key.is_none() {
            self.0.wanted.notify_one();
        }
        key
    }
}

/// Verifies access tokens for one audience.
#[derive(Clone, Debug)]
pub struct Verifier {
    issuer: String,
    audience: &'static str,
    keys: KeySet,
    revocations: Revocations,
    clock: Clock,
}

impl Verifier {
    /// Accepts tokens of `issuer` (it names the environment) for `audience` and no other.
    #[must_use]
    pub fn new(
        issuer: impl Into<String>,
        audience: &'static str,
        keys: KeySet,
        revocations: Revocations,
        clock: Clock,
    ) -> Self {
        Self { issuer: issuer.into(), audience, keys, revocations, clock }
    }

    /// The same checks for another audience.
    #[must_use]
    pub fn for_audience(&self, audience: &'static str) -> Self {
        Self { audience, ..self.clone() }
    }

    /// The revocations that this verifier goes by.
    #[must_use]
    pub const fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// The caller whom `token` stands for.
    ///
    /// Checked, in this order: length; header `alg` `EdDSA`, `typ` at+jwt, a `kid` that auth published (headers such as
    /// `jwk`, `jku` and `x5u` are never followed); signature; `iss`; `aud`; `exp`; `nbf`; `token_use`; the subject's
    /// form; revocations. `privileged` picks the stricter bound for late news.
    ///
    /// # Errors
    /// `TOKEN_INVALID` for all but an end (`TOKEN_EXPIRED`) and revocations (`TOKEN_REVOKED`, `REVOCATIONS_STALE`).
    pub fn verify(&self, token: &str, privileged: bool) -> Result<Caller> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(invalid("the token is too long"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(invalid)?;
        let typed = header.typ.as_deref().is_some_and(|typ| typ.eq_ignore_ascii_case("at+jwt"));
        if header.alg != Algorithm::EdDSA || !typed {
            return Err(invalid("the header is not that of an access token"));
        }
        let key = header.kid.as_deref().and_then(|id| self.keys.get(id)).ok_or_else(|| {
            // Whoever knows no key at all has just started: that is not the token's fault.
            if self.keys.is_empty() { stale() } else { invalid("the key is not known") }
        })?;
        let claims = jsonwebtoken::decode::<Claims>(token, &key, &self.validation()).map_err(invalid)?.claims;
        let now = self.clock.now().as_seconds();
        if claims.exp <= now {
            return Err(Error::unauthenticated(
                "TOKEN_EXPIRED",
                "The access token has ended. Refresh it and try again.",
            ));
        }
        if claims.nbf > now + CLOCK_SKEW_SECONDS || claims.token_use != "access" {
            return Err(invalid("the token is not valid yet, or no access token"));
        }
        let caller = Caller::from_claims(claims).ok_or_else(|| invalid("the subject is of no known form"))?;
        self.revocations.check(&caller, privileged)?;
        Ok(caller)
    }

    fn validation(&self) -> Validation {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub", "nbf"]);
        // Time is checked above, on our clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation
    }
}

/// One answer for every way in which a token can be wrong: the reason is for our log.
fn invalid(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::unauthenticated("TOKEN_INVALID", "The access token was not accepted. Sign in again.")
        .caused_by(cause)
}
