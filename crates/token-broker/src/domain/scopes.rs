//! Sets of scopes (RFC 6749, section 3.3).

use std::collections::BTreeSet;
use std::fmt;

/// A set of scopes; as text, sorted and joined by spaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scopes(BTreeSet<String>);

impl Scopes {
    /// The scopes of a space-separated list.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        text.split_whitespace().collect()
    }

    /// Whether each of these is among `others`.
    #[must_use]
    pub fn are_within(&self, others: &Self) -> bool {
        self.0.is_subset(&others.0)
    }

    /// Those that are in both.
    #[must_use]
    pub fn common(&self, others: &Self) -> Self {
        Self(self.0.intersection(&others.0).cloned().collect())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `scope` is one of them.
    #[must_use]
    pub fn contains(&self, scope: &str) -> bool {
        self.0.contains(scope)
    }

    /// As a list, sorted.
    #[must_use]
    pub fn to_vec(&self) -> Vec<String> {
        self.0.iter().cloned().collect()
    }

    /// The first that is no `scope-token`: printable ASCII without space, quote and backslash, up to 128 of them.
    #[must_use]
    pub fn first_malformed(&self) -> Option<&str> {
        let fits = |scope: &str| {
            !scope.is_empty()
                && scope.len() <= 128
                && scope.bytes().all(|b| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
        };
        self.0.iter().map(String::as_str).find(|scope| !fits(scope))
    }
}

impl<S: Into<String>> FromIterator<S> for Scopes {
    fn from_iter<I: IntoIterator<Item = S>>(scopes: I) -> Self {
        Self(scopes.into_iter().map(Into::into).collect())
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, scope) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str(" ")?;
            }
            f.write_str(scope)?;
        }
        Ok(())
    }
}
