//! Refresh tokens that rotate, and the rule that finds a stolen one (RFC 9700, section 4.14.2; requirement C1).
//!
//! A sign-in starts a *family* of tokens, one alive at a time, numbered by *generation*. Using a token consumes
//! it and makes its successor:
//!
//! ```text
//! secret(n+1) = HMAC(key[kid], family, n+1, secret(n), salt)      key[kid] is bound to the environment
//! ```
//!
//! `kid` and a fresh random `salt` are stored by the one compare-and-set that consumes generation n. Whoever
//! presents n again — a second tab that raced, a client whose answer was lost — is given the SAME successor,
//! recomputed. It can be: the key is in the ring, the salt in the row, and the parent's secret in the caller's
//! hand. It can't be by anyone else: the database holds the salt and keyed digests, but neither the key nor any
//! secret; the key ring holds no salt; and both together still lack the parent's secret, which is stored nowhere.
//!
//! Only the family's row is stored: digests of the current token and its parent. Generations before those need no
//! rows, for each token carries a tag under the key ring that proves that we made it; so an old token is known as
//! a replay, while a made-up one, which anybody who knows a session id could send, is merely refused. A tag lets
//! garbage be refused before the database is asked, too.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatehouse_core::ids::SessionId;
use gatehouse_core::{Entropy, Secret, Timestamp};
use subtle::ConstantTimeEq;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::keys::{KeyId, KeyRing, KeyedDigest, MasterKey, Purpose};

/// Random bytes that make each consumption's successor its own.
pub type Salt = [u8; 32];

const TAG_LEN: usize = 16;
const BODY_LEN: usize = 16 + 4 + 32 + TAG_LEN;

/// A refresh token that carries our tag: we made it, for this environment. Whether it is still good, only
/// [`Family::judge`] says.
///
/// Its text is `gh_<env>_rt_<kid>_<body>`; the body is base64url of family, generation, secret and tag.
pub struct RefreshToken {
    family: SessionId,
    generation: u32,
    kid: KeyId,
    secret: Secret<[u8; 32]>,
}

impl RefreshToken {
    /// The first token of `family`: a random secret, generation 0.
    #[must_use]
    pub fn first(family: SessionId, key: &MasterKey, entropy: &Entropy) -> Self {
        Self { family, generation: 0, kid: key.id.clone(), secret: Secret::new(entropy.bytes()) }
    }

    /// The successor of this token under `key` and `salt`: always the same for the same three.
    #[must_use]
    pub fn successor(&self, ring: &KeyRing, key: &MasterKey, salt: &Salt) -> Self {
        let generation = self.generation.saturating_add(1);
        let secret = ring.mac(
            key,
            Purpose::RefreshSuccessor,
            &[self.family.as_uuid().as_bytes(), &generation.to_be_bytes(), self.secret.expose(), salt],
        );
        Self { family: self.family, generation, kid: key.id.clone(), secret: Secret::new(secret) }
    }

    /// Reads a token; `None` if it is malformed, of another environment, of a key that is not in the ring, or was
    /// not made by us. One answer for all, so that a caller learns nothing from it.
    #[must_use]
    pub fn parse(text: &str, ring: &KeyRing) -> Option<Self> {
        let rest = text.strip_prefix(&prefix(ring))?;
        let (kid, body) = rest.split_once('_')?;
        let kid = KeyId::parse(kid)?;
        let mut bytes = Zeroizing::new([0; BODY_LEN]);
        // The engine refuses padding and stray trailing bits: one token, one spelling.
        let length = URL_SAFE_NO_PAD.decode_slice(body, bytes.as_mut_slice()).ok()?;
        if length != BODY_LEN {
            return None;
        }
        let (family, rest) = bytes.split_first_chunk::<16>()?;
        let (generation, rest) = rest.split_first_chunk::<4>()?;
        let (secret, tag) = rest.split_first_chunk::<32>()?;
        let token = Self {
            family: SessionId::from_uuid(Uuid::from_bytes(*family)),
            generation: u32::from_be_bytes(*generation),
            kid,
            secret: Secret::new(*secret),
        };
        let key = ring.lookup(&token.kid)?;
        bool::from(token.tag(ring, key).ct_eq(tag)).then_some(token)
    }

    /// The text to give to the client; `None` if the ring has lost the token's key.
    #[must_use]
    pub fn to_text(&self, ring: &KeyRing) -> Option<Secret<String>> {
        let key = ring.lookup(&self.kid)?;
        let mut body = Zeroizing::new(Vec::with_capacity(BODY_LEN));
        body.extend_from_slice(self.family.as_uuid().as_bytes());
        body.extend_from_slice(&self.generation.to_be_bytes());
        body.extend_from_slice(self.secret.expose());
        body.extend_from_slice(&self.tag(ring, key));
        let mut text = prefix(ring);
        text.push_str(self.kid.as_str());
        text.push('_');
        URL_SAFE_NO_PAD.encode_string(body.as_slice(), &mut text);
        Some(Secret::new(text))
    }

    /// What may be stored of the token; `None` if the ring has lost its key.
    #[must_use]
    pub fn digest(&self, ring: &KeyRing) -> Option<KeyedDigest> {
        let key = ring.lookup(&self.kid)?;
        Some(ring.digest(
            key,
            Purpose::RefreshDigest,
            &[self.family.as_uuid().as_bytes(), &self.generation.to_be_bytes(), self.secret.expose()],
        ))
    }

    /// The family that it belongs to, which is also the session's id.
    #[must_use]
    pub const fn family(&self) -> SessionId {
        self.family
    }

    /// Its place in the family, from 0.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    fn tag(&self, ring: &KeyRing, key: &MasterKey) -> [u8; TAG_LEN] {
        let mac = ring.mac(
            key,
            Purpose::RefreshTag,
            &[self.family.as_uuid().as_bytes(), &self.generation.to_be_bytes(), self.secret.expose()],
        );
        let (tag, _) = mac.split_first_chunk().expect("16 bytes are part of 32");
        *tag
    }
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RefreshToken({}, generation {}, …)", self.family, self.generation)
    }
}

fn prefix(ring: &KeyRing) -> String {
    format!("gh_{}_rt_", ring.environment())
}

/// How the parent of the current token was consumed.
#[derive(Clone, Debug)]
pub struct Consumed {
    /// The parent's digest.
    pub digest: KeyedDigest,
    /// The salt of its successor; the key is that of the current token's digest.
    pub salt: Salt,
    /// When.
    pub at: Timestamp,
}

/// A family as it is stored.
#[derive(Clone, Debug)]
pub struct Family {
    /// Its id, also the session's.
    pub id: SessionId,
    /// Generation of the one token that is alive.
    pub generation: u32,
    /// That token's digest.
    pub current: KeyedDigest,
    /// Its parent; absent in generation 0.
    pub parent: Option<Consumed>,
    /// When the family ends, whatever happens.
    pub ends_at: Timestamp,
    /// Whether it was ended before: signed out, revoked, or killed by a replay.
    pub ended: bool,
}

/// What a presented token is worth.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the one that is alive: consume it.
    Alive,
    /// It was consumed a moment ago and its successor is unused: give that successor again.
    Again {
        /// The salt of that successor.
        salt: Salt,
        /// Its key.
        kid: KeyId,
    },
    /// It was consumed before, and this is no retry: end the family.
    Replayed,
    /// The family is over.
    Ended,
    /// Not a token of this family.
    Unknown,
}

impl Family {
    /// What `token` is worth at `now`, where a consumed one is taken for a retry for `retry_window`.
    ///
    /// That the successor has been used needs no mark of its own: then the family is a generation further and
    /// the token is no longer its parent.
    #[must_use]
    pub fn judge(
        &self,
        token: &RefreshToken,
        ring: &KeyRing,
        now: Timestamp,
        retry_window: Duration,
    ) -> Verdict {
        let Some(digest) = token.digest(ring).filter(|_| token.family == self.id) else {
            return Verdict::Unknown;
        };
        if self.ended || now >= self.ends_at {
            return Verdict::Ended;
        }
        match &self.parent {
            _ if token.generation == self.generation => {
                if digest.matches(&self.current) {
                    Verdict::Alive
                } else {
                    Verdict::Unknown
                }
            }
            _ if token.generation > self.generation => Verdict::Unknown,
            Some(parent) if token.generation + 1 == self.generation => {
                if !digest.matches(&parent.digest) {
                    Verdict::Unknown
                } else if now.since(parent.at) <= retry_window {
                    Verdict::Again { salt: parent.salt, kid: self.current.kid.clone() }
                } else {
                    Verdict::Replayed
                }
            }
            // Older than the parent. Its tag, checked when it was read, shows that we made it.
            _ => Verdict::Replayed,
        }
    }
}

#[cfg(test)]
#[path = "refresh_tests.rs"]
mod tests;
