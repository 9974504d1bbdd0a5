//! How much, and how fast.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The largest burst: a thousand million tokens.
pub const MAX_CAPACITY: u64 = 1_000_000_000;
/// The longest interval: 30 days.
pub const MAX_INTERVAL: Duration = Duration::from_hours(30 * 24);
/// The shortest interval: 1 ms.
pub const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// A quota: `capacity` requests each `interval_s` seconds. In the rules, either alone takes the other from the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QuotaConfig {
    /// Requests that may come at once, and that come back over one interval. 1 to 1000000000.
    pub capacity: u64,
    /// Seconds in which a used-up bucket is full again. 1 to 2592000 (30 days).
    pub interval_s: u64,
}

impl QuotaConfig {
    /// `capacity` requests each `interval_s` seconds.
    #[must_use]
    pub const fn new(capacity: u64, interval_s: u64) -> Self {
        Self { capacity, interval_s }
    }

    /// Whether `other` lets through whatever this does: no more at once, and none of it comes back sooner.
    #[must_use]
    pub fn is_within(self, other: Self) -> bool {
        self.capacity <= other.capacity
            && u128::from(self.capacity) * u128::from(other.interval_s)
                <= u128::from(other.capacity) * u128::from(self.interval_s)
    }

    /// The checked quota.
    ///
    /// # Errors
    /// A number is out of its bounds; see [`Quota::new`].
    pub fn checked(self) -> Result<Quota, InvalidQuota> {
        Quota::new(self.capacity, Duration::from_secs(self.interval_s))
    }
}

/// A checked quota: a burst of `capacity` tokens, one coming back each emission interval `T`, a whole number of
/// microseconds.
///
/// `T` is the interval divided by the capacity, rounded up: the rate is never above what was asked, and at most
/// 1 % below it ([`Quota::new`] refuses the rest). Every number that a decision works with then stays below
/// 2^53, so that Redis's Lua, which has only doubles, computes exactly what Rust does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    capacity: u64,
    emission_us: u64,
}

/// Why a quota can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuota {
    /// The capacity is 0 or above [`MAX_CAPACITY`].
    #[error("capacity must be from 1 to {MAX_CAPACITY}")]
    Capacity(u64),
    /// The interval is outside [`MIN_INTERVAL`] to [`MAX_INTERVAL`].
    #[error("the interval must be from 1 ms to 30 days")]
    Interval(Duration),
    /// One token would take a fraction of a microsecond that rounding would change by more than 1 %.
    #[error(
        "{capacity} in {interval_us} microseconds is no whole number of microseconds each, and rounding it would \
         lose over 1 %: an interval of {better_us} microseconds would do"
    )]
    Rate {
        /// The capacity asked for.
        capacity: u64,
        /// The interval asked for.
        interval_us: u64,
        /// The next longer interval that works with this capacity.
        better_us: u64,
    },
}

impl Quota {
    /// `capacity` tokens each `interval`.
    ///
    /// # Errors
    /// A number is out of its bounds, or the rate can't be kept to within 1 % in whole microseconds (possible
    /// only above 10000 tokens a second).
    pub fn new(capacity: u64, interval: Duration) -> Result<Self, InvalidQuota> {
        if !(1..=MAX_CAPACITY).contains(&capacity) {
            return Err(InvalidQuota::Capacity(capacity));
        }
        if !(MIN_INTERVAL..=MAX_INTERVAL).contains(&interval) {
            return Err(InvalidQuota::Interval(interval));
        }
        let interval_us =
            u64::try_from(interval.as_micros()).map_err(|_| InvalidQuota::Interval(interval))?;
        let emission_us = interval_us.div_ceil(capacity);
        let better_us = emission_us * capacity;
        if better_us - interval_us > interval_us / 100 {
            return Err(InvalidQuota::Rate { capacity, interval_us, better_us });
        }
        Ok(Self { capacity, emission_us })
    }

    /// The burst: tokens in a full bucket.
    #[must_use]
    pub const fn capacity(self) -> u64 {
        self.capacity
    }

    /// Microseconds in which one token comes back (`T` of the GCRA).
    #[must_use]
    pub const fn emission_us(self) -> u64 {
        self.emission_us
    }

    /// The time in which an empty bucket becomes full.
    #[must_use]
    pub const fn interval(self) -> Duration {
        Duration::from_micros(self.emission_us * self.capacity)
    }

    /// One replica's part where `replicas` can't ask each other: the rate divided exactly, the burst rounded
    /// down, but to no less than one token.
    #[must_use]
    pub fn share(self, replicas: u32) -> Self {
        let replicas = u64::from(replicas.max(1));
        Self {
            capacity: (self.capacity / replicas).max(1),
            emission_us: self.emission_us.saturating_mul(replicas).min(MAX_EMISSION_US),
        }
    }
}

/// Keeps the sum of a present-day timestamp and a full bucket below 2^53.
const MAX_EMISSION_US: u64 = 1 << 52;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_of_the_requirements_are_exact() {
        assert_eq!(QuotaConfig::new(100_000, 60).checked().unwrap().emission_us(), 600);
        assert_eq!(QuotaConfig::new(10, 1).checked().unwrap().emission_us(), 100_000);
    }

    #[test]
    fn rounding_never_raises_the_rate() {
        let quota = QuotaConfig::new(7, 1).checked().unwrap();
        assert_eq!(quota.emission_us(), 142_858);
        assert!(quota.interval() >= Duration::from_secs(1));
    }

    #[test]
    fn bounds_are_refused_with_their_reason() {
        assert_eq!(QuotaConfig::new(0, 1).checked(), Err(InvalidQuota::Capacity(0)));
        assert_eq!(
            QuotaConfig::new(MAX_CAPACITY + 1, 1).checked(),
            Err(InvalidQuota::Capacity(MAX_CAPACITY + 1))
        );
        assert!(matches!(QuotaConfig::new(1, 0).checked(), Err(InvalidQuota::Interval(_))));
        assert!(matches!(QuotaConfig::new(1, u64::MAX).checked(), Err(InvalidQuota::Interval(_))));
        let refused = QuotaConfig::new(30_000, 1).checked().unwrap_err();
        assert_eq!(
            refused,
            InvalidQuota::Rate { capacity: 30_000, interval_us: 1_000_000, better_us: 1_020_000 }
        );
        assert!(Quota::new(30_000, Duration::from_millis(1020)).is_ok());
        assert!(QuotaConfig::new(MAX_CAPACITY, 2_592_000).checked().is_ok());
    }

    #[test]
    fn shares_add_up_to_no_more_than_the_whole_rate() {
        let whole = QuotaConfig::new(100, 60).checked().unwrap();
        let share = whole.share(3);
        assert_eq!((share.capacity(), share.emission_us()), (33, whole.emission_us() * 3));
        assert_eq!(QuotaConfig::new(1, 60).checked().unwrap().share(3).capacity(), 1);
    }
}
