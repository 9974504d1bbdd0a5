//! The GCRA against a model that is not one: a bucket of fractional tokens that leaks.

use std::time::Duration;

use gatehouse_core::{Clock, Timestamp};
use gatehouse_ratelimit::{Bucket, Dimension, Limiter, Quota, SubjectKey};
use proptest::prelude::*;

/// The continuous-state leaky bucket, which ITU-T I.371, annex A, says decides the same. One token weighs its
/// emission interval; a microsecond leaks one.
struct Leaky {
    level: i128,
    at: i64,
}

impl Leaky {
    fn take(&mut self, quota: Quota, cost: u64, now: i64) -> bool {
        let token = i128::from(quota.emission_us());
        self.level = (self.level - i128::from(now - self.at)).max(0);
        self.at = now;
        let fits = self.level + token * i128::from(cost) <= token * i128::from(quota.capacity());
        if fits {
            self.level += token * i128::from(cost);
        }
        fits
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn it_decides_what_a_leaky_bucket_decides(
        capacity in 1_u64..2000,
        interval_ms in 20_u64..3_600_000,
        steps in prop::collection::vec((0_i64..5_000_000, 1_u64..50, 0_u8..2), 1..200),
    ) {
        let Ok(quota) = Quota::new(capacity, Duration::from_millis(interval_ms)) else {
            return Ok(());
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let clock = Clock::settable(Timestamp::from_seconds(1_700_000_000));
        let limiter = Limiter::memory(clock.clone(), SubjectKey::new([1]));
        let mut models = [Leaky { level: 0, at: 0 }, Leaky { level: 0, at: 0 }];
        for (gap, cost, subject) in steps {
            clock.advance(Duration::from_micros(u64::try_from(gap).unwrap()));
            let cost = cost.min(capacity);
            let bucket = Bucket::new(Dimension::Ip, subject.to_string(), quota).with_cost(cost).unwrap();
            let decision = runtime.block_on(limiter.check(std::slice::from_ref(&bucket)));
            let now = clock.now().as_micros();
            let expected = models[usize::from(subject)].take(quota, cost, now);
            prop_assert_eq!(decision.allowed, expected);
            if let Some(wait) = decision.retry_after {
                // One microsecond less is too early, and the whole is enough.
                clock.advance(wait.saturating_sub(Duration::from_micros(1)));
                prop_assert!(!runtime.block_on(limiter.check(std::slice::from_ref(&bucket))).allowed);
                clock.advance(Duration::from_micros(1));
                prop_assert!(runtime.block_on(limiter.check(std::slice::from_ref(&bucket))).allowed);
                let model = &mut models[usize::from(subject)];
                prop_assert!(model.take(quota, cost, clock.now().as_micros()));
            }
        }
    }
}
