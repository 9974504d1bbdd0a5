//! Payloads, sealed with a key for each subject (XChaCha20-Poly1305): to erase a person is to shred their key.
//! The chain holds digests of the sealed bytes only, so it still verifies afterwards.

use std::fmt;

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use gatehouse_core::ids::EventId;
use gatehouse_core::{Entropy, Environment, Secret};
use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::names::{LogId, Pseudonym};

/// What a stored payload starts with.
const MAGIC: &[u8; 4] = b"gha1";
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
/// Label, key id, nonce, length.
const PART_HEADER_BYTES: usize = 1 + 16 + NONCE_BYTES + 4;

/// The key of one subject: 256 bits and an id. From it come, by HKDF-SHA256 (RFC 5869), a key that seals and a
/// key that makes the subject's pseudonym.
#[derive(Clone)]
pub struct SubjectKey {
    id: Uuid,
    secret: Secret<[u8; 32]>,
}

impl SubjectKey {
    /// A fresh key.
    #[must_use]
    pub fn generate(entropy: &Entropy) -> Self {
        let id = uuid::Builder::from_random_bytes(entropy.bytes()).into_uuid();
        Self { id, secret: Secret::new(entropy.bytes()) }
    }

    /// The key with this id and these bytes, as a key store kept them.
    #[must_use]
    pub const fn from_parts(id: Uuid, secret: Secret<[u8; 32]>) -> Self {
        Self { id, secret }
    }

    /// Its id, which stands in clear beside what it sealed.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        self.id
    }

    /// Its bytes, for a key store to keep.
    #[must_use]
    pub const fn secret(&self) -> &Secret<[u8; 32]> {
        &self.secret
    }

    /// What stands for `subject` in leaves: the first 16 bytes of HMAC-SHA256 of their id.
    ///
    /// # Panics
    /// Never: the lengths are fixed.
    #[must_use]
    pub fn pseudonym(&self, subject: Uuid) -> Pseudonym {
        let key = self.derive(b"gatehouse/audit/pseudonym/v1");
        let mut mac = Hmac::<Sha256>::new_from_slice(&*key).expect("HMAC takes keys of any length");
        mac.update(subject.as_bytes());
        let tag: [u8; 32] = mac.finalize().into_bytes().into();
        let (first, _) = tag.split_first_chunk::<16>().expect("32 bytes have a first 16");
        Pseudonym::from_bytes(*first)
    }

    /// What opens what this key sealed.
    #[must_use]
    pub fn opener(&self) -> Opener {
        Opener { id: self.id, cipher: self.cipher() }
    }

    fn derive(&self, purpose: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(None, self.secret.expose())
            .expand(purpose, &mut *key)
            .expect("HKDF-SHA256 gives up to 8160 bytes");
        key
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&Key::from(*self.derive(b"gatehouse/audit/seal/v1")))
    }
}

impl fmt::Debug for SubjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SubjectKey({})", self.id)
    }
}

/// Whose data a part of a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// What the event says of its subject: sealed with the subject's key.
    Subject = 0,
    /// Where the actor was (address, user agent), if the actor is somebody else: sealed with the actor's key.
    Actor = 1,
    /// What the plain row says and the leaf may not: subject, request and trace. Sealed with the subject's key.
    Context = 2,
}

/// Where a payload belongs. All of it is authenticated with the payload, which can't be moved to another event.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The environment: what one sealed is worthless in another.
    pub environment: Environment,
    /// The log.
    pub log: &'a LogId,
    /// The event.
    pub event: EventId,
}

impl Place<'_> {
    fn associated_data(&self, part: Part, key: Uuid) -> Vec<u8> {
        let Self { environment, log, event } = self;
        format!("gatehouse/audit/payload/v1\n{environment}\n{log}\n{event}\n{}\n{key}\n", part as u8)
            .into_bytes()
    }
}

/// Why a payload could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The stored bytes are not a sealed payload.
    #[error("not a sealed payload")]
    Malformed,
    /// It was sealed with another key: the subject's key was shredded and made anew.
    #[error("sealed with another key")]
    OtherKey,
    /// The key does not open it: it was changed, or belongs to another event.
    #[error("does not open: changed, or of another event")]
    Refused,
}

/// The bytes to store for a payload of these parts, in this order; also for one without parts.
///
/// # Panics
/// If a part is longer than 4 GiB; callers take 16 KiB.
#[must_use]
pub fn seal(place: Place<'_>, parts: &[(Part, &SubjectKey, &[u8])], entropy: &Entropy) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for (part, key, plain) in parts {
        let nonce: [u8; NONCE_BYTES] = entropy.bytes();
        let payload = Payload { msg: plain, aad: &place.associated_data(*part, key.id) };
        let sealed = key
            .cipher()
            .encrypt(&XNonce::from(nonce), payload)
            .expect("XChaCha20-Poly1305 seals messages of up to 2^38 bytes");
        out.push(*part as u8);
        out.extend_from_slice(key.id.as_bytes());
        out.extend_from_slice(&nonce);
        let length = u32::try_from(sealed.len()).expect("payloads are far shorter than 4 GiB");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&sealed);
    }
    out
}

/// The id of the key that a part was sealed with, if there is such a part.
pub fn key_id(stored: &[u8], part: Part) -> Result<Option<Uuid>, OpenError> {
    Ok(find(stored, part)?.map(|found| found.key))
}

/// A part in clear; `None` if the payload has no such part.
pub fn open(
    place: Place<'_>,
    stored: &[u8],
    part: Part,
    key: &SubjectKey,
) -> Result<Option<Zeroizing<Vec<u8>>>, OpenError> {
    key.opener().open(place, stored, part)
}

/// What opens the parts that one key sealed: derived once for many payloads. It forgets the derived key when dropped.
pub struct Opener {
    id: Uuid,
    cipher: XChaCha20Poly1305,
}

impl Opener {
    /// As [`open`].
    pub fn open(
        &self,
        place: Place<'_>,
        stored: &[u8],
        part: Part,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, OpenError> {
        let Some(found) = find(stored, part)? else { return Ok(None) };
        if found.key != self.id {
            return Err(OpenError::OtherKey);
        }
        let payload = Payload { msg: found.sealed, aad: &place.associated_data(part, self.id) };
        self.cipher
            .decrypt(&XNonce::from(found.nonce), payload)
            .map(|plain| Some(Zeroizing::new(plain)))
            .map_err(|_| OpenError::Refused)
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opener({})", self.id)
    }
}

struct Found<'a> {
    key: Uuid,
    nonce: [u8; NONCE_BYTES],
    sealed: &'a [u8],
}

fn find(stored: &[u8], part: Part) -> Result<Option<Found<'_>>, OpenError> {
    let mut rest = stored.strip_prefix(MAGIC).ok_or(OpenError::Malformed)?;
    let mut result = None;
    while !rest.is_empty() {
        let (header, after) = rest.split_first_chunk::<PART_HEADER_BYTES>().ok_or(OpenError::Malformed)?;
        let (label, header) = header.split_first().ok_or(OpenError::Malformed)?;
        let (key, header) = header.split_first_chunk::<16>().ok_or(OpenError::Malformed)?;
        let (nonce, header) = header.split_first_chunk::<NONCE_BYTES>().ok_or(OpenError::Malformed)?;
        let length = u32::from_be_bytes(header.try_into().map_err(|_| OpenError::Malformed)?);
        let length = usize::try_from(length).map_err(|_| OpenError::Malformed)?;
        if length < TAG_BYTES || length > after.len() || *label > Part::Context as u8 {
            return Err(OpenError::Malformed);
        }
        let (sealed, after) = after.split_at(length);
        if *label == part as u8 && result.is_none() {
            result = Some(Found { key: Uuid::from_bytes(*key), nonce: *nonce, sealed });
        }
        rest = after;
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(log: &LogId) -> Place<'_> {
        Place { environment: Environment::Dev, log, event: EventId::from_uuid(Uuid::from_u128(7)) }
    }

    #[test]
    fn each_part_opens_with_its_own_key_at_its_own_place_only() {
        let entropy = Entropy::seeded(1);
        let log = LogId::new("default").expect("valid");
        let other_log = LogId::new("long").expect("valid");
        let (ada, bob) = (SubjectKey::generate(&entropy), SubjectKey::generate(&entropy));
        let parts = [(Part::Subject, &ada, b"{\"a\":1}".as_slice()), (Part::Actor, &bob, b"{}".as_slice())];
        let stored = seal(place(&log), &parts, &entropy);
        let read = |place, part, key| open(place, &stored, part, key).map(|plain| plain.map(|p| p.to_vec()));
        assert_eq!(read(place(&log), Part::Subject, &ada), Ok(Some(b"{\"a\":1}".to_vec())));
        assert_eq!(read(place(&log), Part::Actor, &bob), Ok(Some(b"{}".to_vec())));
        assert_eq!(read(place(&log), Part::Subject, &bob), Err(OpenError::OtherKey));
        assert_eq!(read(place(&other_log), Part::Subject, &ada), Err(OpenError::Refused));
        let prod = Place { environment: Environment::Prod, ..place(&log) };
        assert_eq!(read(prod, Part::Subject, &ada), Err(OpenError::Refused));
        let other_event = Place { event: EventId::from_uuid(Uuid::from_u128(8)), ..place(&log) };
        assert_eq!(read(other_event, Part::Subject, &ada), Err(OpenError::Refused));
        let forged = SubjectKey::from_parts(ada.id(), Secret::new([0; 32]));
        assert_eq!(read(place(&log), Part::Subject, &forged), Err(OpenError::Refused));
        assert_eq!(key_id(&stored, Part::Actor), Ok(Some(bob.id())));
        assert!(!stored.windows(3).any(|window| window == b"\"a\""));
    }

    #[test]
    fn a_payload_without_parts_is_still_one() {
        let log = LogId::new("default").expect("valid");
        let stored = seal(place(&log), &[], &Entropy::seeded(1));
        assert_eq!(stored, MAGIC);
        assert_eq!(key_id(&stored, Part::Subject), Ok(None));
        assert_eq!(key_id(b"", Part::Subject), Err(OpenError::Malformed));
    }

    #[test]
    fn a_pseudonym_is_stable_under_one_key_and_gone_with_it() {
        let entropy = Entropy::seeded(1);
        let (key, next) = (SubjectKey::generate(&entropy), SubjectKey::generate(&entropy));
        let person = Uuid::from_u128(9);
        assert_eq!(key.pseudonym(person), key.pseudonym(person));
        assert_ne!(key.pseudonym(person), next.pseudonym(person));
        // The vector of docs/audit-log.md.
        let fixed = SubjectKey::from_parts(Uuid::nil(), Secret::new([1; 32]));
        assert_eq!(fixed.pseudonym(person).to_string(), "ae0a507979266ae183e2d40bafebac78");
    }

    proptest::proptest! {
        #[test]
        fn a_changed_byte_never_opens_and_never_panics(place_of_change in 0_usize..200, byte: u8) {
            let log = LogId::new("default").expect("valid");
            let entropy = Entropy::seeded(1);
            let key = SubjectKey::generate(&entropy);
            let stored = seal(place(&log), &[(Part::Subject, &key, b"hello".as_slice())], &entropy);
            let mut changed = stored.clone();
            let at = place_of_change % changed.len();
            changed[at] = byte;
            if changed != stored {
                let read = open(place(&log), &changed, Part::Subject, &key);
                // A changed label reads as a payload without that part.
                proptest::prop_assert!(matches!(read, Err(_) | Ok(None)));
            }
        }
    }
}
