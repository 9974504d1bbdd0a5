//! SHA-256 digests and the three purposes that they are taken for.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::names::LogId;

/// Set before a leaf to hash it into the chain. A digest for one purpose is worthless for another.
const CHAIN_DOMAIN: &[u8] = b"gatehouse/audit/chain/v1\n";
/// Set before a log's id to make the link that its first entry carries.
const GENESIS_DOMAIN: &[u8] = b"gatehouse/audit/genesis/v1\n";

/// A SHA-256 digest (FIPS 180-4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest whose bytes these are.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest in a stored column; `None` unless it is 32 bytes long.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// SHA-256 over `parts`, one after the other.
    #[must_use]
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }

    /// What a leaf says of its payload: plain SHA-256 over the stored bytes, so that `sha256sum` can check it.
    #[must_use]
    pub fn of_payload(stored: &[u8]) -> Self {
        Self::of(&[stored])
    }

    /// The link from the entry with these leaf bytes to the next one.
    #[must_use]
    pub fn of_chain(leaf: &[u8]) -> Self {
        Self::of(&[CHAIN_DOMAIN, leaf])
    }

    /// The link that the first entry of `log` carries: entries can't move from one log to another.
    #[must_use]
    pub fn of_genesis(log: &LogId) -> Self {
        Self::of(&[GENESIS_DOMAIN, log.as_str().as_bytes()])
    }

    /// Reads 64 lower-case hexadecimal digits; `None` for anything else.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// Standard base64 with padding (RFC 4648, section 4), as the C2SP formats write hashes.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// Reads what [`Digest::to_base64`] writes; `None` for anything else.
    #[must_use]
    pub fn from_base64(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok().as_deref().and_then(Self::from_slice)
    }
}

/// Lower-case hexadecimal.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(&text)
            .ok_or_else(|| serde::de::Error::custom("64 lower-case hexadecimal digits are expected"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_read_back_and_others_do_not() {
        let digest = Digest::of(&[b"abc"]);
        // FIPS 180-4, the first example of SHA-256.
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Digest::from_hex(&digest.to_string()), Some(digest));
        assert_eq!(Digest::from_base64(&digest.to_base64()), Some(digest));
        assert_eq!(Digest::from_hex(&digest.to_string().to_uppercase()), None);
        assert_eq!(Digest::from_hex("00"), None);
        assert_eq!(Digest::from_base64("AAAA"), None);
    }

    #[test]
    fn purposes_do_not_share_digests() {
        let log = LogId::new("standard").expect("a valid name");
        let all = [Digest::of_payload(b"standard"), Digest::of_chain(b"standard"), Digest::of_genesis(&log)];
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2]);
    }
}
