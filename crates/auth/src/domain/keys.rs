//! The symmetric keys of the service, each with an id, a life and one environment.
//!
//! A [`KeyRing`] holds a few master keys. Nothing uses a master key itself: each purpose has a key of its own,
//! derived by HKDF-SHA-256 (RFC 5869) with the environment and the purpose in `info`. So a digest made for one
//! purpose, or in one environment, says nothing in another even where the same master key was copied there.
//!
//! The ring lives outside the database. New keys enter it with a `use_from` in the future, so that every replica
//! has read a key before any of them uses it; old keys stay for as long as something made under them lives.

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use gatehouse_core::{Clock, Entropy, Environment, Secret, Timestamp};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// The name of a key: 1 to 8 of `a`–`z`, `0`–`9`. Eight, because the PHC string format allows a `keyid` no more.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(String);

impl KeyId {
    /// The id that `text` spells, if it is one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=8).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        fits.then(|| Self(text.to_owned()))
    }

    /// A fresh id: 8 characters, 40 random bits.
    #[must_use]
    pub fn new(entropy: &Entropy) -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        Self(entropy.bytes::<8>().iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({})", self.0)
    }
}

/// What a derived key is for. The name is part of the derivation: never change one, add another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Makes the secret of a refresh token's successor.
    RefreshSuccessor,
    /// Lets a refresh token be recognised as ours before the database is asked.
    RefreshTag,
    /// The stored digest of a refresh token.
    RefreshDigest,
    /// The stored digest of an API key.
    ApiKeyDigest,
    /// The stored digest of a one-time credential.
    OneTimeDigest,
    /// The pepper of password hashes.
    PasswordPepper,
    /// Seals the private halves of signing keys.
    SealSigningKey,
}

impl Purpose {
    const fn label(self) -> &'static str {
        match self {
            Self::RefreshSuccessor => "refresh-successor",
            Self::RefreshTag => "refresh-tag",
            Self::RefreshDigest => "refresh-digest",
            Self::ApiKeyDigest => "api-key-digest",
            Self::OneTimeDigest => "one-time-digest",
            Self::PasswordPepper => "password-pepper",
            Self::SealSigningKey => "seal-signing-key",
        }
    }
}

/// One master key of a [`KeyRing`].
#[derive(Clone, Debug)]
pub struct MasterKey {
    /// Its name.
    pub id: KeyId,
    /// When it was made; its age is what the 90-day rule counts (requirement P11).
    pub created_at: Timestamp,
    /// From when on it makes new digests. Until then it only checks.
    pub use_from: Timestamp,
    /// 32 random bytes.
    pub secret: Secret<[u8; 32]>,
}

impl MasterKey {
    /// A fresh key, used from `use_from` on.
    #[must_use]
    pub fn generate(clock: &Clock, entropy: &Entropy, use_from: Timestamp) -> Self {
        let secret = Secret::new(entropy.bytes());
        Self { id: KeyId::new(entropy), created_at: clock.now(), use_from, secret }
    }
}

/// A digest and the name of the key that made it.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyedDigest {
    /// The key's name.
    pub kid: KeyId,
    /// HMAC-SHA-256.
    pub bytes: [u8; 32],
}

impl KeyedDigest {
    /// Whether both are the same digest under the same key, in time that does not depend on the bytes.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.kid == other.kid && bool::from(self.bytes.ct_eq(&other.bytes))
    }
}

impl fmt::Debug for KeyedDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyedDigest({}, …)", self.kid)
    }
}

/// Why keys can't form a ring.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyRingError {
    /// There is no key in it.
    #[error("the key ring is empty: it needs at least one key")]
    Empty,
    /// Two keys have one name.
    #[error("two keys of the ring are called {0}: rename one")]
    Duplicate(String),
}

/// Something sealed did not open: it was changed, moved, or belongs to another environment or key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the sealed bytes do not open with key {kid} for this environment and place")]
pub struct UnsealError {
    kid: String,
}

/// The master keys of one environment.
#[derive(Clone, Debug)]
pub struct KeyRing {
    environment: Environment,
    /// Never empty; sorted by `use_from`, so that the last one that is due is the current one.
    keys: Vec<MasterKey>,
}

impl KeyRing {
    /// A ring of `keys` for `environment`.
    pub fn new(environment: Environment, mut keys: Vec<MasterKey>) -> Result<Self, KeyRingError> {
        if keys.is_empty() {
            return Err(KeyRingError::Empty);
        }
        keys.sort_by(|a, b| (a.use_from, &a.id).cmp(&(b.use_from, &b.id)));
        for (place, key) in keys.iter().enumerate() {
            if keys[..place].iter().any(|earlier| earlier.id == key.id) {
                return Err(KeyRingError::Duplicate(key.id.to_string()));
            }
        }
        Ok(Self { environment, keys })
    }

    /// The environment that every derived key is bound to.
    #[must_use]
    pub const fn environment(&self) -> Environment {
        self.environment
    }

    /// The key that makes new digests at `now`: the latest that is due, or the first if none is yet.
    #[must_use]
    pub fn current(&self, now: Timestamp) -> &MasterKey {
        self.keys.iter().rev().find(|key| key.use_from <= now).unwrap_or(&self.keys[0])
    }

    /// The key called `id`, due or not.
    #[must_use]
    pub fn lookup(&self, id: &KeyId) -> Option<&MasterKey> {
        self.keys.iter().find(|key| key.id == *id)
    }

    /// All keys, oldest first.
    #[must_use]
    pub fn keys(&self) -> &[MasterKey] {
        &self.keys
    }

    /// The key derived from `key` for `purpose`.
    ///
    /// # Panics
    /// Never: HKDF refuses only outputs of more than 8160 bytes.
    #[must_use]
    pub fn derive(&self, key: &MasterKey, purpose: Purpose) -> Secret<[u8; 32]> {
        let mut derived = [0; 32];
        let environment = self.environment.as_str();
        let info = [b"gatehouse/auth/v1/", environment.as_bytes(), b"/", purpose.label().as_bytes()];
        Hkdf::<Sha256>::new(None, key.secret.expose())
            .expand_multi_info(&info, &mut derived)
            .expect("32 bytes are within HKDF-SHA-256's 8160");
        Secret::new(derived)
    }

    /// HMAC-SHA-256 over `parts` under the key derived from `key` for `purpose`. Each part goes in after its
    /// length, so that no two lists of parts give one input.
    ///
    /// # Panics
    /// Never: HMAC takes a key of any length.
    #[must_use]
    pub fn mac(&self, key: &MasterKey, purpose: Purpose, parts: &[&[u8]]) -> [u8; 32] {
        let derived = self.derive(key, purpose);
        let mut mac = <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(derived.expose())
            .expect("HMAC takes a key of any length");
        for part in parts {
            mac.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// [`KeyRing::mac`], with the key's name.
    #[must_use]
    pub fn digest(&self, key: &MasterKey, purpose: Purpose, parts: &[&[u8]]) -> KeyedDigest {
        KeyedDigest { kid: key.id.clone(), bytes: self.mac(key, purpose, parts) }
    }

    /// Seals `plain` for `purpose` at `place` (which row and column) with XChaCha20-Poly1305. The environment is
    /// in the derived key, the place is associated data: moved elsewhere, the result opens nothing.
    ///
    /// # Panics
    /// If `plain` is longer than the cipher's 256 GiB.
    #[must_use]
    pub fn seal(
        &self,
        key: &MasterKey,
        purpose: Purpose,
        place: &str,
        plain: &[u8],
        entropy: &Entropy,
    ) -> Vec<u8> {
        let nonce: [u8; 24] = entropy.bytes();
        let derived = self.derive(key, purpose);
        let cipher = XChaCha20Poly1305::new(derived.expose().into());
        let mut sealed = nonce.to_vec();
        sealed.extend(
            cipher
                .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: place.as_bytes() })
                .expect("a plaintext in memory is far below the cipher's 256 GiB"),
        );
        sealed
    }

    /// Opens what [`KeyRing::seal`] made.
    pub fn open(
        &self,
        key: &MasterKey,
        purpose: Purpose,
        place: &str,
        sealed: &[u8],
    ) -> Result<Secret<Vec<u8>>, UnsealError> {
        let failed = || UnsealError { kid: key.id.to_string() };
        let (nonce, body) = sealed.split_first_chunk::<24>().ok_or_else(failed)?;
        let derived = self.derive(key, purpose);
        XChaCha20Poly1305::new(derived.expose().into())
            .decrypt(&XNonce::from(*nonce), Payload { msg: body, aad: place.as_bytes() })
            .map(Secret::new)
            .map_err(|_| failed())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A ring of one key for `environment`, settled by `seed`.
    pub(crate) fn ring(environment: Environment, seed: u64) -> KeyRing {
        let clock = Clock::settable(Timestamp::from_seconds(1_000));
        let key = MasterKey::generate(&clock, &Entropy::seeded(seed), clock.now());
        KeyRing::new(environment, vec![key]).unwrap()
    }

    #[test]
    fn an_environment_and_a_purpose_each_have_their_own_key() {
        // The same master key, copied from one environment into another.
        let (dev, prod) = (ring(Environment::Dev, 1), ring(Environment::Prod, 1));
        let mac = |ring: &KeyRing, purpose| ring.mac(&ring.keys()[0], purpose, &[b"x"]);
        assert_eq!(dev.keys()[0].secret.expose(), prod.keys()[0].secret.expose());
        assert_ne!(mac(&dev, Purpose::RefreshDigest), mac(&prod, Purpose::RefreshDigest));
        assert_ne!(mac(&dev, Purpose::RefreshDigest), mac(&dev, Purpose::RefreshTag));
    }

    #[test]
    fn parts_do_not_run_together() {
        let ring = ring(Environment::Dev, 1);
        let mac = |parts: &[&[u8]]| ring.mac(&ring.keys()[0], Purpose::RefreshTag, parts);
        assert_ne!(mac(&[b"ab", b"c"]), mac(&[b"a", b"bc"]));
        assert_ne!(mac(&[b"ab"]), mac(&[b"ab", b""]));
    }

    #[test]
    fn a_key_is_used_from_its_time_on_and_checks_before() {
        let clock = Clock::settable(Timestamp::from_seconds(1_000));
        let entropy = Entropy::seeded(2);
        let old = MasterKey::generate(&clock, &entropy, clock.now());
        let new = MasterKey::generate(&clock, &entropy, Timestamp::from_seconds(2_000));
        let ring = KeyRing::new(Environment::Dev, vec![new.clone(), old.clone()]).unwrap();
        assert_eq!(ring.current(Timestamp::from_seconds(0)).id, old.id);
        assert_eq!(ring.current(Timestamp::from_seconds(1_999)).id, old.id);
        assert_eq!(ring.current(Timestamp::from_seconds(2_000)).id, new.id);
        assert!(ring.lookup(&new.id).is_some());
    }

    #[test]
    fn what_was_sealed_opens_only_in_its_place() {
        let (dev, prod, entropy) =
            (ring(Environment::Dev, 1), ring(Environment::Prod, 1), Entropy::seeded(9));
        let key = &dev.keys()[0];
        let mut sealed = dev.seal(key, Purpose::SealSigningKey, "row 1", b"private", &entropy);
        let open = |ring: &KeyRing, place: &str, sealed: &[u8]| {
            ring.open(&ring.keys()[0], Purpose::SealSigningKey, place, sealed)
                .map(|plain| plain.expose().clone())
        };
        assert_eq!(open(&dev, "row 1", &sealed).unwrap(), b"private");
        assert!(open(&dev, "row 2", &sealed).is_err());
        assert!(open(&prod, "row 1", &sealed).is_err());
        assert!(open(&dev, "row 1", &sealed[..20]).is_err());
        let last = sealed.len() - 1;
        sealed[last] ^= 1;
        assert!(open(&dev, "row 1", &sealed).is_err());
    }

    #[test]
    fn a_ring_has_keys_of_different_names() {
        let clock = Clock::settable(Timestamp::default());
        let key = MasterKey::generate(&clock, &Entropy::seeded(1), clock.now());
        assert_eq!(KeyRing::new(Environment::Dev, vec![]).unwrap_err(), KeyRingError::Empty);
        assert!(KeyRing::new(Environment::Dev, vec![key.clone(), key]).is_err());
    }
}
