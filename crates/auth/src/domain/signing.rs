//! The keys that sign access tokens: Ed25519 (RFC 8032), published as a JWK set (RFC 7517, RFC 8037), rotated on a
//! schedule with overlap (requirement P11).
//!
//! A key is published a while before it signs, so that every verifier's cache knows it, and stays published until
//! the last token it signed has ended.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use gatehouse_core::{Entropy, Secret, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use gatehouse_service::Claims;

/// A signing key.
#[derive(Clone)]
pub struct TokenKey {
    /// Its name in the token's header: the RFC 7638 thumbprint of the public half.
    pub kid: String,
    /// Its place in the row of keys, from 1. Two replicas that both make the next one collide here.
    pub sequence: i64,
    /// From when on it signs.
    pub signs_from: Timestamp,
    key: SigningKey,
}

impl TokenKey {
    /// A fresh key.
    #[must_use]
    pub fn generate(sequence: i64, signs_from: Timestamp, entropy: &Entropy) -> Self {
        Self::from_private(sequence, signs_from, &Secret::new(entropy.bytes()))
    }

    /// The key whose private half is `private`.
    #[must_use]
    pub fn from_private(sequence: i64, signs_from: Timestamp, private: &Secret<[u8; 32]>) -> Self {
        let key = SigningKey::from_bytes(private.expose());
        Self { kid: thumbprint(&key.verifying_key()), sequence, signs_from, key }
    }

    /// The private half, to be sealed.
    #[must_use]
    pub fn private(&self) -> Secret<[u8; 32]> {
        Secret::new(self.key.to_bytes())
    }

    /// The public half as a JWK.
    #[must_use]
    pub fn jwk(&self) -> Jwk {
        Jwk {
            kty: "OKP".into(),
            crv: "Ed25519".into(),
            usage: "sig".into(),
            alg: "EdDSA".into(),
            kid: self.kid.clone(),
            x: URL_SAFE_NO_PAD.encode(self.key.verifying_key().as_bytes()),
        }
    }

    /// Signs `claims` as a JWT of type `at+jwt` (RFC 9068, section 2.1).
    pub fn sign(&self, claims: &Claims) -> Result<Secret<String>, serde_json::Error> {
        let header = serde_json::json!({ "typ": "at+jwt", "alg": "EdDSA", "kid": self.kid });
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(claims)?, &mut token);
        let signature = self.key.sign(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.to_bytes(), &mut token);
        Ok(Secret::new(token))
    }

    /// Whether `signature` over `message` is this key's.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        self.key.verifying_key().verify_strict(message, &signature).is_ok()
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenKey({}, sequence {}, signs from {})", self.kid, self.sequence, self.signs_from)
    }
}

/// RFC 7638: SHA-256 over the required members in lexical order, without white space.
fn thumbprint(key: &VerifyingKey) -> String {
    let x = URL_SAFE_NO_PAD.encode(key.as_bytes());
    URL_SAFE_NO_PAD.encode(Sha256::digest(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#)))
}

/// A public key (RFC 8037, section 2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwk {
    /// `OKP`.
    pub kty: String,
    /// `Ed25519`.
    pub crv: String,
    /// `sig`.
    #[serde(rename = "use")]
    pub usage: String,
    /// `EdDSA`.
    pub alg: String,
    /// The key's name.
    pub kid: String,
    /// The public key, base64url.
    pub x: String,
}

/// A set of public keys (RFC 7517, section 5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JwkSet {
    /// The keys.
    pub keys: Vec<Jwk>,
}

/// When signing keys come and go.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// How long a key signs.
    pub period: Duration,
    /// How long it is published before it signs. Longer than any verifier caches the set.
    pub lead: Duration,
    /// How long it is published after it signed last: the longest token plus clock skew.
    pub tail: Duration,
}

/// Every signing key that is not forgotten yet, oldest first.
#[derive(Clone, Debug, Default)]
pub struct TokenKeys(Vec<TokenKey>);

impl TokenKeys {
    /// The set of `keys`.
    #[must_use]
    pub fn new(mut keys: Vec<TokenKey>) -> Self {
        keys.sort_by_key(|key| key.sequence);
        Self(keys)
    }

    /// The key that signs at `now`: the newest that is due.
    #[must_use]
    pub fn signer(&self, now: Timestamp) -> Option<&TokenKey> {
        self.0.iter().rev().find(|key| key.signs_from <= now)
    }

    /// The keys that a verifier should know at `now`.
    #[must_use]
    pub fn published(&self, now: Timestamp, schedule: Schedule) -> Vec<&TokenKey> {
        (0..self.0.len())
            .filter(|place| !self.is_over(*place, now, schedule))
            .map(|place| &self.0[place])
            .collect()
    }

    /// [`TokenKeys::published`] as a JWK set.
    #[must_use]
    pub fn jwks(&self, now: Timestamp, schedule: Schedule) -> JwkSet {
        JwkSet { keys: self.published(now, schedule).into_iter().map(TokenKey::jwk).collect() }
    }

    /// The published key called `kid`.
    #[must_use]
    pub fn lookup(&self, kid: &str, now: Timestamp, schedule: Schedule) -> Option<&TokenKey> {
        self.published(now, schedule).into_iter().find(|key| key.kid == kid)
    }

    /// Sequence and first use of the key that should be made at `now`, if one should.
    #[must_use]
    pub fn next(&self, now: Timestamp, schedule: Schedule) -> Option<(i64, Timestamp)> {
        let Some(newest) = self.0.last() else {
            return Some((1, now));
        };
        let due = newest.signs_from.plus(schedule.period);
        // Late, after a long sleep: still publish for the lead before it signs.
        (now >= due.minus(schedule.lead)).then(|| (newest.sequence + 1, due.max(now.plus(schedule.lead))))
    }

    /// Sequences of the keys that no verifier needs any more.
    #[must_use]
    pub fn forgettable(&self, now: Timestamp, schedule: Schedule) -> Vec<i64> {
        (0..self.0.len())
            .filter(|place| self.is_over(*place, now, schedule))
            .map(|place| self.0[place].sequence)
            .collect()
    }

    fn is_over(&self, place: usize, now: Timestamp, schedule: Schedule) -> bool {
        self.0.get(place + 1).is_some_and(|next| now >= next.signs_from.plus(schedule.tail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule {
        period: Duration::from_secs(1000),
        lead: Duration::from_secs(100),
        tail: Duration::from_secs(50),
    };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    #[test]
    fn a_key_is_published_before_it_signs_and_after() {
        let entropy = Entropy::seeded(1);
        let mut keys = TokenKeys::default();
        assert_eq!(keys.next(at(10), SCHEDULE), Some((1, at(10))));
        keys.0.push(TokenKey::generate(1, at(10), &entropy));
        assert_eq!(keys.next(at(909), SCHEDULE), None);
        assert_eq!(keys.next(at(910), SCHEDULE), Some((2, at(1010))));
        keys.0.push(TokenKey::generate(2, at(1010), &entropy));
        assert_eq!(keys.next(at(911), SCHEDULE), None);
        let published =
            |now| keys.published(at(now), SCHEDULE).iter().map(|key| key.sequence).collect::<Vec<_>>();
        let signer = |now| keys.signer(at(now)).map(|key| key.sequence);
        assert_eq!((signer(1009), published(1009)), (Some(1), vec![1, 2]));
        assert_eq!((signer(1010), published(1010)), (Some(2), vec![1, 2]));
        assert_eq!((published(1059), published(1060)), (vec![1, 2], vec![2]));
        assert_eq!(keys.forgettable(at(1060), SCHEDULE), vec![1]);
    }

    #[test]
    fn a_late_rotation_still_publishes_first() {
        let keys = TokenKeys::new(vec![TokenKey::generate(1, at(10), &Entropy::seeded(1))]);
        assert_eq!(keys.next(at(9_000), SCHEDULE), Some((2, at(9_100))));
    }

    /// RFC 8037, appendix A.
    #[test]
    fn the_thumbprint_is_that_of_the_rfc() {
        let d = URL_SAFE_NO_PAD.decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A").unwrap();
        let key = TokenKey::from_private(1, at(0), &Secret::new(d.try_into().unwrap()));
        assert_eq!(key.jwk().x, "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
        assert_eq!(key.kid, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }
}
