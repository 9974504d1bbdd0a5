//! Names: of a secret, of a version, of an attempt to write one.

use std::fmt;

use crate::{Error, Result};

const MAX_KEY_BYTES: usize = 255;
const MAX_SEGMENTS: usize = 8;
const MAX_SEGMENT_BYTES: usize = 64;

/// The path-like name of a secret: 1 to 8 segments of 1 to 64 of `a-z 0-9 _ -`, the first of each a letter or
/// digit, joined by `/`, 255 bytes at most. The same on every file system, in every URL and in every backend, and
/// no spelling of it climbs out of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretKey(String);

impl SecretKey {
    /// Checks `text` against the grammar.
    ///
    /// # Errors
    /// [`Error::Grammar`] if it does not fit.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let refuse =
            |problem: &str| Err(Error::Grammar { what: "the secret's key", problem: problem.to_owned() });
        if text.len() > MAX_KEY_BYTES {
            return refuse("it is longer than 255 bytes");
        }
        if text.split('/').count() > MAX_SEGMENTS {
            return refuse("it has more than 8 segments");
        }
        for segment in text.split('/') {
            if segment.len() > MAX_SEGMENT_BYTES {
                return refuse("a segment is longer than 64 bytes");
            }
            if !segment.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) {
                return refuse("each segment begins with a lower-case letter or a digit");
            }
            if !segment
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
            {
                return refuse("only a-z, 0-9, _ and - may stand in a segment");
            }
        }
        Ok(Self(text))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_token(what: &'static str, text: &str) -> Result<()> {
    if !(32..=64).contains(&text.len()) {
        return Err(Error::Grammar { what, problem: "32 to 64 characters are expected".to_owned() });
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(Error::Grammar {
            what,
            problem: "only letters, digits and - may stand in it".to_owned(),
        });
    }
    Ok(())
}

/// What makes a write repeatable: 32 to 64 letters, digits or `-` (a UUID is one), chosen once for each value to
/// be written. AWS Secrets Manager's `ClientRequestToken` has the same grammar.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyToken(String);

impl IdempotencyToken {
    /// Checks `text` against the grammar.
    ///
    /// # Errors
    /// [`Error::Grammar`] if it does not fit.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        check_token("the idempotency token", &text)?;
        Ok(Self(text))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of one version of a secret. Opaque: a backend may choose it or use the idempotency token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VersionId(String);

impl VersionId {
    /// Reads back what [`VersionId::as_str`] gave.
    ///
    /// # Errors
    /// [`Error::Grammar`] if no backend could have given it.
    pub fn parse(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        check_token("the version id", &text)?;
        Ok(Self(text))
    }

    pub(crate) fn of(token: &IdempotencyToken) -> Self {
        Self(token.0.clone())
    }

    /// The text, to be stored; not secret.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_climb_or_confuse_are_refused() {
        for right in ["a", "token-broker/connections/0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e", "0/1/2/3/4/5/6/7"]
        {
            assert!(SecretKey::new(right).is_ok(), "{right:?} was refused");
        }
        let wrong =
            ["", "/", "a/", "/a", "a//b", "..", "a/../b", ".a", "a.b", "A", "a b", "ä", "a\0", "-a", "_a"];
        for wrong in wrong.into_iter().map(str::to_owned).chain(["a".repeat(65), "a/".repeat(8) + "a"]) {
            assert!(SecretKey::new(wrong.clone()).is_err(), "{wrong:?} was accepted");
        }
        assert!(SecretKey::new(["a".repeat(64).as_str(); 4].join("/")).is_err(), "259 bytes were accepted");
    }

    #[test]
    fn tokens_have_a_uuids_shape_at_least() {
        assert!(IdempotencyToken::new("0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e").is_ok());
        for wrong in [String::new(), "a".repeat(31), "a".repeat(65), "_".repeat(36)] {
            assert!(IdempotencyToken::new(wrong.clone()).is_err(), "{wrong:?} was accepted");
            assert!(VersionId::parse(wrong).is_err());
        }
    }
}
