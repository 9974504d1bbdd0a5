//! Submitting twice and getting one job.

use gatehouse_core::Error;
use sha2::{Digest, Sha256};

/// A submitter's own name for a request; it belongs to the submitter within the tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Longest key, in characters.
    pub const MAX_LENGTH: usize = 128;

    /// Reads a key; `None` from empty text.
    ///
    /// # Errors
    /// `INVALID_FIELD` unless it is visible ASCII of at most [`IdempotencyKey::MAX_LENGTH`] characters.
    pub fn parse(text: &str) -> Result<Option<Self>, Error> {
        if text.is_empty() {
            return Ok(None);
        }
        if text.len() > Self::MAX_LENGTH || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let problem = format!("it must be 1 to {} visible ASCII characters", Self::MAX_LENGTH);
            return Err(Error::invalid_field("idempotency_key", problem));
        }
        Ok(Some(Self(text.to_owned())))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What tells two requests under one key apart: SHA-256 over kind and input, each with its length before it. It has no key:
/// the input itself stands in the same row, and both are deleted together (decision 0098).
#[must_use]
pub fn request_digest(kind: &str, input: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [kind, input] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_visible_ascii_is_a_key() {
        assert!(IdempotencyKey::parse("").unwrap().is_none());
        assert_eq!(IdempotencyKey::parse("a-1/~").unwrap().unwrap().as_str(), "a-1/~");
        for wrong in [" ", "a b", "a\n", "é", &"a".repeat(129)] {
            assert!(IdempotencyKey::parse(wrong).is_err(), "{wrong:?} was accepted");
        }
    }

    #[test]
    fn the_digest_tells_kind_from_input() {
        assert_eq!(request_digest("a", "b"), request_digest("a", "b"));
        assert_ne!(request_digest("ab", "c"), request_digest("a", "bc"));
    }
}
