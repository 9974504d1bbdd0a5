//! What a check answers.

use std::time::Duration;

use crate::bucket::{Bucket, Dimension};
use crate::gcra::Verdict;

/// Who decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// The one store that all replicas share (or the only process there is).
    Store,
    /// This node alone, from tokens that the store had granted it beforehand.
    Lease,
    /// This node alone, by its share of the limit, because the store is away.
    LocalShare,
}

/// Where one bucket stands after a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What it counts by.
    pub dimension: Dimension,
    /// Tokens of a full bucket.
    pub limit: u64,
    /// The time in which an empty bucket becomes full.
    pub interval: Duration,
    /// Tokens left.
    pub remaining: u64,
    /// The time until it is full, if nobody takes more.
    pub reset: Duration,
}

/// The answer to one check. Either every bucket was charged or none was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request may pass.
    pub allowed: bool,
    /// The bucket that refused it; where several did, the one that has to wait longest.
    pub denied_by: Option<Dimension>,
    /// How long until the same request would pass, if nobody took more meanwhile.
    pub retry_after: Option<Duration>,
    /// The bucket with the fewest tokens left, or the one that refused; `None` only if no bucket was asked.
    pub tightest: Option<Standing>,
    /// Who decided.
    pub decided_by: DecidedBy,
}

impl Decision {
    pub(crate) fn from_verdict(buckets: &[Bucket], verdict: &Verdict, decided_by: DecidedBy) -> Self {
        let standings =
            buckets.iter().zip(&verdict.slots).map(|(bucket, slot)| standing(bucket, slot.level_us));
        Self::assemble(standings, verdict.denied, decided_by)
    }

    pub(crate) fn assemble(
        mut standings: impl Iterator<Item = Standing>,
        denied: Option<(usize, u64)>,
        decided_by: DecidedBy,
    ) -> Self {
        let tightest = match denied {
            Some((index, _)) => standings.nth(index),
            None => standings.min_by_key(|standing| (standing.remaining, std::cmp::Reverse(standing.reset))),
        };
        Self {
            allowed: denied.is_none(),
            denied_by: denied.and(tightest).map(|standing| standing.dimension),
            retry_after: denied.map(|(_, wait_us)| Duration::from_micros(wait_us)),
            tightest,
            decided_by,
        }
    }

    /// Value of `Retry-After` (RFC 9110, section 10.2.3): whole seconds, rounded up, at least 1.
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after.map(|wait| seconds_up(wait).max(1))
    }

    /// Value of the `RateLimit` field (draft-ietf-httpapi-ratelimit-headers, section 4): `"ip";r=50;t=30`.
    #[must_use]
    pub fn rate_limit_field(&self) -> Option<String> {
        self.tightest.map(|Standing { dimension, remaining, reset, .. }| {
            format!("\"{dimension}\";r={remaining};t={}", seconds_up(reset))
        })
    }

    /// Value of the `RateLimit-Policy` field (the same draft, section 3): `"ip";q=100;w=60`.
    #[must_use]
    pub fn rate_limit_policy_field(&self) -> Option<String> {
        self.tightest.map(|Standing { dimension, limit, interval, .. }| {
            format!("\"{dimension}\";q={limit};w={}", seconds_up(interval))
        })
    }
}

pub(crate) fn standing(bucket: &Bucket, level_us: u64) -> Standing {
    let quota = bucket.quota();
    let full_us = quota.emission_us().saturating_mul(quota.capacity());
    Standing {
        dimension: bucket.dimension(),
        limit: quota.capacity(),
        interval: quota.interval(),
        remaining: full_us.saturating_sub(level_us) / quota.emission_us(),
        reset: Duration::from_micros(level_us),
    }
}

fn seconds_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::QuotaConfig;
    use crate::gcra::Slot;

    #[test]
    fn fields_read_as_the_draft_spells_them() {
        let buckets = [
            Bucket::new(Dimension::Global, "", QuotaConfig::new(1000, 60).checked().unwrap()),
            Bucket::new(Dimension::Ip, "a", QuotaConfig::new(10, 20).checked().unwrap()),
        ];
        let slots = vec![Slot { granted: 1, level_us: 60_000 }, Slot { granted: 1, level_us: 2_000_000 }];
        let allowed = Decision::from_verdict(
            &buckets,
            &Verdict { denied: None, slots: slots.clone() },
            DecidedBy::Store,
        );
        assert_eq!(allowed.rate_limit_field().unwrap(), "\"ip\";r=9;t=2");
        assert_eq!(allowed.rate_limit_policy_field().unwrap(), "\"ip\";q=10;w=20");
        assert_eq!(allowed.retry_after_seconds(), None);
        let denied = Decision::from_verdict(
            &buckets,
            &Verdict { denied: Some((0, 1_000_001)), slots },
            DecidedBy::Store,
        );
        assert_eq!(denied.denied_by, Some(Dimension::Global));
        assert_eq!(denied.retry_after_seconds(), Some(2));
    }
}
