//! Whose bucket, and its name in the store.

use std::fmt::{self, Write as _};

use gatehouse_core::Secret;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::quota::Quota;

/// What a limit counts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dimension {
    /// The address a request came from.
    Ip,
    /// The person acting.
    Person,
    /// The API key presented.
    ApiKey,
    /// The tenant acted in.
    Tenant,
    /// The route called, over all callers.
    Route,
    /// Everything.
    Global,
}

impl Dimension {
    /// All six.
    pub const ALL: [Self; 6] =
        [Self::Ip, Self::Person, Self::ApiKey, Self::Tenant, Self::Route, Self::Global];

    /// The name in keys, headers, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Person => "person",
            Self::ApiKey => "api-key",
            Self::Tenant => "tenant",
            Self::Route => "route",
            Self::Global => "global",
        }
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A request for `cost` tokens of one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    dimension: Dimension,
    subject: String,
    quota: Quota,
    cost: u64,
}

/// Why a bucket can't be asked for these tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCost {
    /// Nothing was asked for.
    #[error("a request costs at least 1 token")]
    Zero,
    /// No waiting could ever make it pass.
    #[error("a cost of {cost} can never pass a bucket of {capacity}")]
    AboveCapacity {
        /// The tokens asked for.
        cost: u64,
        /// The tokens of a full bucket.
        capacity: u64,
    },
}

impl Bucket {
    /// One token of `subject`'s bucket. The subject may be personal data: it never reaches the store.
    #[must_use]
    pub fn new(dimension: Dimension, subject: impl Into<String>, quota: Quota) -> Self {
        Self { dimension, subject: subject.into(), quota, cost: 1 }
    }

    /// The same bucket at another price.
    ///
    /// # Errors
    /// `cost` is 0 or above the bucket's capacity, which no waiting could make pass.
    pub fn with_cost(mut self, cost: u64) -> Result<Self, InvalidCost> {
        let capacity = self.quota.capacity();
        match cost {
            0 => Err(InvalidCost::Zero),
            cost if cost > capacity => Err(InvalidCost::AboveCapacity { cost, capacity }),
            cost => {
                self.cost = cost;
                Ok(self)
            }
        }
    }

    /// What it counts by.
    #[must_use]
    pub const fn dimension(&self) -> Dimension {
        self.dimension
    }

    /// Its limit.
    #[must_use]
    pub const fn quota(&self) -> Quota {
        self.quota
    }

    /// The tokens asked for: 1 to the quota's capacity.
    #[must_use]
    pub const fn cost(&self) -> u64 {
        self.cost
    }

    /// This bucket where each of `replicas` counts alone.
    pub(crate) fn share(&self, replicas: u32) -> Self {
        let quota = self.quota.share(replicas);
        Self { quota, cost: self.cost.min(quota.capacity()), ..self.clone() }
    }
}

/// The key under which subjects are digested, the same on every replica. Addresses are few enough to try them
/// all against a plain SHA-256; without this key nobody can.
#[derive(Clone, Debug)]
pub struct SubjectKey(Secret<Vec<u8>>);

impl SubjectKey {
    /// Any bytes; 32 random ones are right.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Secret::new(bytes.into()))
    }

    /// The first 16 bytes of HMAC-SHA-256 (RFC 2104) over the dimension and the subject.
    pub(crate) fn digest(&self, bucket: &Bucket) -> Key {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.expose())
            .expect("HMAC takes a key of any length (RFC 2104, section 2)");
        mac.update(bucket.dimension.as_str().as_bytes());
        mac.update(&[0]);
        mac.update(bucket.subject.as_bytes());
        let full = mac.finalize().into_bytes();
        let mut digest = [0; 16];
        digest.copy_from_slice(&full[..16]);
        Key { dimension: bucket.dimension, digest }
    }
}

/// A bucket's name: no personal data, the same on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    dimension: Dimension,
    digest: [u8; 16],
}

impl Key {
    /// The key in Redis. The braces put all keys of one tag into one slot of a cluster, which one script over
    /// several keys needs (Redis Cluster specification, "Hash tags").
    pub(crate) fn redis(&self, tag: &str) -> String {
        let mut text = format!("{{{tag}}}:{}:", self.dimension);
        for byte in self.digest {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::QuotaConfig;

    fn bucket(dimension: Dimension, subject: &str) -> Bucket {
        Bucket::new(dimension, subject, QuotaConfig::new(5, 1).checked().unwrap())
    }

    #[test]
    fn a_cost_that_can_never_pass_is_refused() {
        assert_eq!(bucket(Dimension::Ip, "a").with_cost(0), Err(InvalidCost::Zero));
        assert_eq!(
            bucket(Dimension::Ip, "a").with_cost(6),
            Err(InvalidCost::AboveCapacity { cost: 6, capacity: 5 })
        );
        assert!(bucket(Dimension::Ip, "a").with_cost(5).is_ok());
    }

    #[test]
    fn keys_hide_the_subject_and_share_a_tag() {
        let key = SubjectKey::new([1; 32]);
        let name = key.digest(&bucket(Dimension::Person, "ann@example.org")).redis("rl");
        assert!(name.starts_with("{rl}:person:"), "{name}");
        assert!(!name.contains("ann"));
        assert_eq!(name.len(), "{rl}:person:".len() + 32);
        let other =
            SubjectKey::new([2; 32]).digest(&bucket(Dimension::Person, "ann@example.org")).redis("rl");
        assert_ne!(name, other);
        let elsewhere = key.digest(&bucket(Dimension::Tenant, "ann@example.org")).redis("rl");
        assert_ne!(name.rsplit(':').next(), elsewhere.rsplit(':').next());
    }
}
