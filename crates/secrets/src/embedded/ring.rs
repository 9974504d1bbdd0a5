//! The master keys of the embedded store: every key it ever had, the last one in use for what is new.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use gatehouse_core::{Clock, Entropy, Environment, Secret, Timestamp};
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use crate::backend::SealingKey;
use crate::{Error, Result};

/// First byte of everything sealed here: format 1.
const FORMAT: u8 = 1;
const ID_BYTES: usize = 8;
const NONCE_BYTES: usize = 24;
const HEADER_BYTES: usize = 1 + ID_BYTES + NONCE_BYTES;

/// XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha) under keys derived from the master keys by HKDF-SHA-256
/// (RFC 5869) with the environment as context. Its 192-bit nonces may be drawn at random for ever.
///
/// Sealed: format (1 byte), key id (8), nonce (24), ciphertext and tag. The header is part of the associated data.
pub(crate) struct KeyRing {
    environment: Environment,
    keys: Vec<MasterKey>,
}

struct MasterKey {
    id: [u8; ID_BYTES],
    created_at: Timestamp,
    material: Zeroizing<[u8; 32]>,
    cipher: XChaCha20Poly1305,
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<_> = self.keys.iter().map(|key| hex(&key.id)).collect();
        f.debug_struct("KeyRing").field("environment", &self.environment).field("keys", &ids).finish()
    }
}

impl MasterKey {
    fn new(
        environment: Environment,
        id: [u8; ID_BYTES],
        created_at: Timestamp,
        material: Zeroizing<[u8; 32]>,
    ) -> Self {
        let mut derived = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(None, &*material)
            .expand_multi_info(&[b"gatehouse secrets v1 ", environment.as_str().as_bytes()], &mut *derived)
            .expect("32 bytes are within what HKDF-SHA-256 gives");
        let cipher = XChaCha20Poly1305::new(&Key::from(*derived));
        Self { id, created_at, material, cipher }
    }
}

impl KeyRing {
    /// A ring of one fresh key.
    pub(crate) fn generate(environment: Environment, clock: &Clock, entropy: &Entropy) -> Self {
        let mut ring = Self { environment, keys: Vec::new() };
        ring.add(clock, entropy);
        ring
    }

    /// Adds a fresh key, which seals from now on.
    pub(crate) fn add(&mut self, clock: &Clock, entropy: &Entropy) {
        let material = Zeroizing::new(entropy.bytes::<32>());
        self.keys.push(MasterKey::new(self.environment, entropy.bytes(), clock.now(), material));
    }

    /// The newest key, without itself.
    pub(crate) fn primary(&self) -> SealingKey {
        let key = self.newest();
        SealingKey { id: hex(&key.id), created_at: key.created_at }
    }

    fn newest(&self) -> &MasterKey {
        self.keys.last().expect("a ring is made with a key and none is ever taken away")
    }

    pub(crate) fn seal(&self, aad: &[u8], plaintext: &[u8], entropy: &Entropy) -> Result<Vec<u8>> {
        let key = self.newest();
        let nonce = entropy.bytes::<NONCE_BYTES>();
        let mut sealed = Vec::with_capacity(HEADER_BYTES + plaintext.len() + 16);
        sealed.push(FORMAT);
        sealed.extend_from_slice(&key.id);
        sealed.extend_from_slice(&nonce);
        let aad = [&sealed[..], aad].concat();
        let payload = Payload { msg: plaintext, aad: &aad };
        let text = key.cipher.encrypt(&XNonce::from(nonce), payload).map_err(|_| Error::DoesNotOpen)?;
        sealed.extend_from_slice(&text);
        Ok(sealed)
    }

    pub(crate) fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Secret<Vec<u8>>> {
        let (header, text) = sealed.split_at_checked(HEADER_BYTES).ok_or(Error::DoesNotOpen)?;
        let (id, nonce) = header.split_at(1 + ID_BYTES);
        let key = self
            .keys
            .iter()
            .find(|key| id[0] == FORMAT && key.id[..] == id[1..])
            .ok_or(Error::DoesNotOpen)?;
        let nonce = <[u8; NONCE_BYTES]>::try_from(nonce).map_err(|_| Error::DoesNotOpen)?;
        let aad = [header, aad].concat();
        let payload = Payload { msg: text, aad: &aad };
        key.cipher.decrypt(&XNonce::from(nonce), payload).map(Secret::new).map_err(|_| Error::DoesNotOpen)
    }

    /// The key file's text.
    pub(crate) fn to_text(&self) -> Result<Zeroizing<Vec<u8>>> {
        let file = KeyFile {
            format: 1,
            environment: self.environment,
            keys: self
                .keys
                .iter()
                .map(|key| KeyLine {
                    id: hex(&key.id),
                    created_us: key.created_at.as_micros(),
                    key: STANDARD.encode(*key.material),
                })
                .collect(),
        };
        let mut text = Zeroizing::new(Vec::with_capacity(128 + 256 * file.keys.len()));
        serde_json::to_writer_pretty(&mut *text, &file).map_err(Error::unavailable)?;
        Ok(text)
    }

    /// Reads back a key file.
    pub(crate) fn from_text(text: &[u8], environment: Environment, place: &str) -> Result<Self> {
        let corrupt = |problem: &str| Error::Corrupt { place: place.to_owned(), problem: problem.to_owned() };
        let file: KeyFile = serde_json::from_slice(text).map_err(|_| corrupt("it is not a key file"))?;
        if file.format != 1 || file.keys.is_empty() {
            return Err(corrupt("it holds no key, or is of a later release"));
        }
        if file.environment != environment {
            return Err(Error::Setup(format!(
                "the key file {place} belongs to the environment {}, this process to {environment}",
                file.environment
            )));
        }
        let keys = file
            .keys
            .iter()
            .map(|line| {
                let mut material = Zeroizing::new([0; 32]);
                let length = STANDARD.decode_slice(&line.key, &mut *material);
                if length != Ok(32) {
                    return Err(corrupt("a key is not 32 bytes of base64"));
                }
                let id = unhex(&line.id).ok_or_else(|| corrupt("a key's id is not 16 hexadecimal digits"))?;
                Ok(MasterKey::new(environment, id, Timestamp::from_micros(line.created_us), material))
            })
            .collect::<Result<_>>()?;
        Ok(Self { environment, keys })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    format: u32,
    environment: Environment,
    keys: Vec<KeyLine>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyLine {
    id: String,
    created_us: i64,
    key: String,
}

impl Drop for KeyLine {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |text, byte| text + &format!("{byte:02x}"))
}

fn unhex(text: &str) -> Option<[u8; ID_BYTES]> {
    if text.len() != 2 * ID_BYTES || !text.is_ascii() {
        return None;
    }
    u64::from_str_radix(text, 16).ok().map(u64::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(environment: Environment) -> KeyRing {
        KeyRing::generate(environment, &Clock::system(), &Entropy::seeded(5))
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let ring = ring(Environment::Dev);
        let sealed = ring.seal(b"a", b"text", &Entropy::seeded(1)).unwrap();
        assert_eq!(ring.open(b"a", &sealed).unwrap().expose(), b"text");
        assert!(matches!(ring.open(b"b", &sealed), Err(Error::DoesNotOpen)));
        for bit in 0..sealed.len() * 8 {
            let mut altered = sealed.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(ring.open(b"a", &altered), Err(Error::DoesNotOpen)), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(matches!(ring.open(b"a", &sealed[..length]), Err(Error::DoesNotOpen)), "length {length}");
        }
    }

    #[test]
    fn the_same_master_key_in_another_environment_opens_nothing() {
        let sealed = ring(Environment::Dev).seal(b"a", b"text", &Entropy::seeded(1)).unwrap();
        assert!(matches!(ring(Environment::Prod).open(b"a", &sealed), Err(Error::DoesNotOpen)));
    }

    #[test]
    fn a_key_file_reads_back_and_names_its_environment() {
        let mut ring = ring(Environment::Staging);
        ring.add(&Clock::system(), &Entropy::seeded(9));
        let text = ring.to_text().unwrap();
        let back = KeyRing::from_text(&text, Environment::Staging, "here").unwrap();
        assert_eq!(back.primary(), ring.primary());
        assert!(matches!(KeyRing::from_text(&text, Environment::Prod, "here"), Err(Error::Setup(_))));
    }
}
