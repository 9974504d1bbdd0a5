//! API keys: `gh_<env>_ak_<id>_<secret>` (requirement T1).
//!
//! The id finds the row, the secret is 32 random bytes of which only a keyed digest is stored. Argon2 would add
//! nothing: there is no guessing 256 random bits, and a key is checked on every exchange. A key is bound to one
//! tenant, to an environment (prefix and digest), to a list of permissions that is never wider than its role's,
//! and to an end. Rotation makes a successor and lets both hold for an overlap.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatehouse_core::ids::CredentialId;
use gatehouse_core::{Entropy, Environment, Secret, Timestamp};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::keys::{KeyRing, KeyedDigest, MasterKey, Purpose};

/// An API key as its holder has it.
pub struct ApiKey {
    id: CredentialId,
    secret: Secret<[u8; 32]>,
}

impl ApiKey {
    /// A fresh key called `id`.
    #[must_use]
    pub fn generate(id: CredentialId, entropy: &Entropy) -> Self {
        Self { id, secret: Secret::new(entropy.bytes()) }
    }

    /// Reads a key of `environment`; `None` if the text is none.
    #[must_use]
    pub fn parse(text: &str, environment: Environment) -> Option<Self> {
        let rest = text.strip_prefix(&prefix(environment))?;
        let (id, secret) = rest.split_once('_')?;
        let lower = id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let id = lower.then(|| Uuid::try_parse(id).ok())??;
        let mut bytes = Zeroizing::new([0; 32]);
        let length = URL_SAFE_NO_PAD.decode_slice(secret, bytes.as_mut_slice()).ok()?;
        (length == 32).then(|| Self { id: CredentialId::from_uuid(id), secret: Secret::new(*bytes) })
    }

    /// The text to show its holder, once.
    #[must_use]
    pub fn to_text(&self, environment: Environment) -> Secret<String> {
        let mut text = prefix(environment);
        text.push_str(self.id.as_uuid().simple().encode_lower(&mut Uuid::encode_buffer()));
        text.push('_');
        URL_SAFE_NO_PAD.encode_string(self.secret.expose(), &mut text);
        Secret::new(text)
    }

    /// What of the text may be shown, to tell keys and their texts apart: the prefix, the last 4 digits of the id, and
    /// 32 bits of the text's SHA-256, which whoever has a text can compute, and so without a key, and which say nothing of 256 random bits (decision 0098).
    #[must_use]
    pub fn hint(&self, environment: Environment) -> String {
        let id = self.id.as_uuid().simple().to_string();
        let digest = Sha256::digest(self.to_text(environment).expose());
        format!("{}…{}:{}", prefix(environment), &id[28..], hex::encode(&digest[..4]))
    }

    /// What may be stored of it.
    #[must_use]
    pub fn digest(&self, ring: &KeyRing, key: &MasterKey) -> KeyedDigest {
        ring.digest(key, Purpose::ApiKeyDigest, &[self.id.as_uuid().as_bytes(), self.secret.expose()])
    }

    /// Whether this is the key that `stored` was made of.
    #[must_use]
    pub fn matches(&self, ring: &KeyRing, stored: &KeyedDigest) -> bool {
        ring.lookup(&stored.kid).is_some_and(|key| self.digest(ring, key).matches(stored))
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> CredentialId {
        self.id
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}, …)", self.id)
    }
}

/// Whether `text` claims to be an API key of any environment; says nothing about whether it is one.
#[must_use]
pub fn looks_like_one(text: &str) -> bool {
    ["gh_dev_ak_", "gh_staging_ak_", "gh_prod_ak_"].iter().any(|prefix| text.starts_with(prefix))
}

fn prefix(environment: Environment) -> String {
    format!("gh_{environment}_ak_")
}

/// When a key that is rotated at `now` stops: after the overlap, never later than it would have anyway.
#[must_use]
pub fn end_after_rotation(
    expires_at: Option<Timestamp>,
    now: Timestamp,
    overlap: std::time::Duration,
) -> Timestamp {
    let end = now.plus(overlap);
    expires_at.map_or(end, |expires_at| expires_at.min(end))
}

#[cfg(test)]
mod tests {
    use gatehouse_core::Clock;
    use proptest::prelude::*;

    use super::super::keys::tests::ring;
    use super::*;

    fn key() -> ApiKey {
        let entropy = Entropy::seeded(3);
        let id = CredentialId::new(&Clock::settable(Timestamp::from_seconds(5_000)), &entropy);
        ApiKey::generate(id, &entropy)
    }

    #[test]
    fn a_key_reads_back_has_one_spelling_and_is_redacted() {
        let text = key().to_text(Environment::Dev);
        let text = text.expose();
        assert_eq!(ApiKey::parse(text, Environment::Dev).unwrap().id(), key().id());
        assert_eq!(gatehouse_core::redact(text), "gh_dev_ak_[redacted]");
        for wrong in
            [text.to_uppercase(), format!("{text}A"), text.replace("_dev_", "_prod_"), text[1..].to_owned()]
        {
            assert!(ApiKey::parse(&wrong, Environment::Dev).is_none(), "{wrong:?} was read");
        }
        assert!(ApiKey::parse(text, Environment::Prod).is_none());
    }

    #[test]
    fn a_digest_holds_in_its_environment_only() {
        let (dev, prod) = (ring(Environment::Dev, 1), ring(Environment::Prod, 1));
        let stored = key().digest(&dev, &dev.keys()[0]);
        assert!(key().matches(&dev, &stored));
        assert!(!key().matches(&prod, &stored));
        let other = ApiKey::generate(key().id(), &Entropy::seeded(4));
        assert!(!other.matches(&dev, &stored));
    }

    #[test]
    fn rotation_never_lengthens_a_life() {
        let (now, overlap) = (Timestamp::from_seconds(100), std::time::Duration::from_secs(50));
        assert_eq!(end_after_rotation(None, now, overlap), Timestamp::from_seconds(150));
        assert_eq!(end_after_rotation(Some(Timestamp::from_seconds(120)), now, overlap).as_seconds(), 120);
        assert_eq!(end_after_rotation(Some(Timestamp::from_seconds(900)), now, overlap).as_seconds(), 150);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,120}") {
            prop_assert!(ApiKey::parse(&text, Environment::Dev).is_none());
            prop_assert!(ApiKey::parse(&["gh_dev_ak_", &text].concat(), Environment::Dev).is_none());
        }
    }
}
