//! One suite, run unchanged on both stores.

#![expect(clippy::unwrap_used, reason = "a test stops where something is not as expected")]

use std::sync::Arc;
use std::time::Duration;

use gatehouse_core::{Clock, Timestamp};
use gatehouse_ratelimit::{
    Bucket, DecidedBy, Decision, Dimension, Limiter, MAX_CAPACITY, MAX_INTERVAL, Quota, QuotaConfig,
    RedisOptions, SubjectKey,
};
use gatehouse_testkit::redis::Redis;

/// A store with any number of replicas before it, and a clock that a test moves.
enum Bench {
    Memory { limiter: Limiter, clock: Clock },
    Redis { server: Redis, replicas: Vec<Limiter> },
}

const REPLICAS: usize = 3;

impl Bench {
    fn memory() -> Self {
        let clock = Clock::settable(Timestamp::from_seconds(1_700_000_000));
        Self::Memory { limiter: Limiter::memory(clock.clone(), SubjectKey::new([7; 32])), clock }
    }

    async fn redis() -> Self {
        let server = Redis::shared().unwrap();
        let mut replicas = Vec::new();
        for _ in 0..REPLICAS {
            // Patient, so that a busy machine does not turn into an outage.
            let options = RedisOptions {
                timeout: Duration::from_secs(20),
                ..RedisOptions::new(server.url(), server.tag())
            };
            replicas.push(Limiter::redis(options, SubjectKey::new([7; 32])).await.unwrap());
        }
        Self::Redis { server, replicas }
    }

    fn replica(&self, number: usize) -> &Limiter {
        match self {
            Self::Memory { limiter, .. } => limiter,
            Self::Redis { replicas, .. } => &replicas[number % REPLICAS],
        }
    }

    /// Moves the clock, backwards too.
    fn advance(&self, micros: i64) {
        match self {
            Self::Memory { clock, .. } => {
                clock.set(Timestamp::from_micros(clock.now().as_micros() + micros));
            }
            Self::Redis { replicas, .. } => {
                for limiter in replicas {
                    limiter.shift_store_clock_for_tests(micros);
                }
            }
        }
    }

    async fn check(&self, buckets: &[Bucket]) -> Decision {
        let decision = self.replica(0).check(buckets).await;
        assert_eq!(decision.decided_by, DecidedBy::Store);
        decision
    }

    async fn count_admitted(&self, tries: usize, buckets: &[Bucket]) -> usize {
        let mut admitted = 0;
        for number in 0..tries {
            admitted += usize::from(self.replica(number).check(buckets).await.allowed);
        }
        admitted
    }
}

/// An hour, so that what the real clock of Redis does during a test is far less than one token.
fn hourly(capacity: u64) -> Quota {
    QuotaConfig::new(capacity, 3600).checked().unwrap()
}

fn bucket(dimension: Dimension, quota: Quota) -> Bucket {
    Bucket::new(dimension, "somebody", quota)
}

macro_rules! contract {
    ($($name:ident)*) => {
        mod in_memory { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() { super::$name(super::Bench::memory()).await; }
        )* }
        mod on_redis { $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() { super::$name(super::Bench::redis().await).await; }
        )* }
    };
}

contract! {
    a_full_bucket_admits_its_capacity_at_once_and_no_more
    tokens_come_back_one_by_one
    concurrent_callers_on_all_replicas_get_exactly_the_limit
    nothing_is_charged_if_any_bucket_denies
    the_longest_wait_and_the_tightest_bucket_are_told
    costs_are_counted_in_full
    a_bucket_named_twice_is_charged_twice
    a_clock_that_goes_back_delays_by_one_interval_at_most
    a_changed_quota_takes_effect_on_live_buckets
    the_largest_numbers_stay_exact
    six_dimensions_and_two_subjects_do_not_meet
    no_bucket_at_all_is_allowed
}

async fn a_full_bucket_admits_its_capacity_at_once_and_no_more(bench: Bench) {
    let ip = [bucket(Dimension::Ip, hourly(100))];
    for left in (0..100).rev() {
        let decision = bench.check(&ip).await;
        assert!(decision.allowed);
        assert_eq!(decision.tightest.unwrap().remaining, left);
    }
    let decision = bench.check(&ip).await;
    assert!(!decision.allowed);
    assert_eq!(decision.denied_by, Some(Dimension::Ip));
    let wait = decision.retry_after.unwrap();
    assert!(wait <= Duration::from_secs(36) && wait > Duration::from_secs(10), "{wait:?}");
}

async fn tokens_come_back_one_by_one(bench: Bench) {
    let ip = [bucket(Dimension::Ip, hourly(10))];
    assert_eq!(bench.count_admitted(12, &ip).await, 10);
    bench.advance(361_000_000);
    assert_eq!(bench.count_admitted(3, &ip).await, 1);
    bench.advance(3 * 360_000_000);
    assert_eq!(bench.count_admitted(5, &ip).await, 3);
    // However long it rests, it holds no more than its capacity.
    bench.advance(100 * 3_600_000_000);
    assert_eq!(bench.count_admitted(12, &ip).await, 10);
}

async fn concurrent_callers_on_all_replicas_get_exactly_the_limit(bench: Bench) {
    let bench = Arc::new(bench);
    let callers: Vec<_> = (0..24)
        .map(|caller| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move {
                let both = [bucket(Dimension::Ip, hourly(200)), bucket(Dimension::Global, hourly(300))];
                let mut admitted = 0;
                for _ in 0..20 {
                    admitted += usize::from(bench.replica(caller).check(&both).await.allowed);
                }
                admitted
            })
        })
        .collect();
    let mut admitted = 0;
    for caller in callers {
        admitted += caller.await.unwrap();
    }
    assert_eq!(admitted, 200);
    // The 280 that the first bucket refused took nothing from the second.
    assert_eq!(bench.count_admitted(110, &[bucket(Dimension::Global, hourly(300))]).await, 100);
}

async fn nothing_is_charged_if_any_bucket_denies(bench: Bench) {
    let (small, large) = (bucket(Dimension::ApiKey, hourly(1)), bucket(Dimension::Tenant, hourly(5)));
    for both in [[large.clone(), small.clone()], [small.clone(), large.clone()]] {
        let _ = bench.check(&both).await;
        assert!(!bench.check(&both).await.allowed);
    }
    // One of those four passed.
    assert_eq!(bench.count_admitted(9, &[large]).await, 4);
}

async fn the_longest_wait_and_the_tightest_bucket_are_told(bench: Bench) {
    let (fast, slow) = (bucket(Dimension::Ip, hourly(2)), bucket(Dimension::Person, hourly(1)));
    let both = [fast, slow, bucket(Dimension::Global, hourly(1000))];
    let first = bench.check(&both).await;
    assert_eq!(first.tightest.unwrap().dimension, Dimension::Person);
    bench.check(&both[..1]).await;
    let denied = bench.check(&both).await;
    assert_eq!(denied.denied_by, Some(Dimension::Person));
    let wait = denied.retry_after.unwrap();
    assert!(wait > Duration::from_mins(50), "{wait:?}");
    // What it tells is enough, and not too much.
    bench.advance(i64::try_from(wait.as_micros()).unwrap() - 60_000_000);
    assert!(!bench.check(&both).await.allowed);
    bench.advance(60_000_000);
    assert!(bench.check(&both).await.allowed);
}

async fn costs_are_counted_in_full(bench: Bench) {
    let costly = [bucket(Dimension::Person, hourly(10)).with_cost(4).unwrap()];
    assert_eq!(bench.count_admitted(3, &costly).await, 2);
    assert_eq!(bench.count_admitted(3, &[bucket(Dimension::Person, hourly(10))]).await, 2);
    let whole = [bucket(Dimension::Route, hourly(10)).with_cost(10).unwrap()];
    assert_eq!(bench.count_admitted(2, &whole).await, 1);
}

async fn a_bucket_named_twice_is_charged_twice(bench: Bench) {
    let ip = bucket(Dimension::Ip, hourly(5));
    assert_eq!(bench.count_admitted(4, &[ip.clone(), ip.clone()]).await, 2);
    assert_eq!(bench.count_admitted(4, &[ip]).await, 1);
}

async fn a_clock_that_goes_back_delays_by_one_interval_at_most(bench: Bench) {
    let ip = [bucket(Dimension::Ip, hourly(10))];
    assert_eq!(bench.count_admitted(10, &ip).await, 10);
    bench.advance(-86_400_000_000);
    let denied = bench.check(&ip).await;
    assert!(!denied.allowed);
    assert!(denied.retry_after.unwrap() <= Duration::from_secs(361), "{denied:?}");
    bench.advance(3_601_000_000);
    assert_eq!(bench.count_admitted(12, &ip).await, 10);
}

async fn a_changed_quota_takes_effect_on_live_buckets(bench: Bench) {
    assert_eq!(bench.count_admitted(12, &[bucket(Dimension::Tenant, hourly(10))]).await, 10);
    // Fewer in less time: the old debt counts for one new interval at most.
    let short = [bucket(Dimension::Tenant, QuotaConfig::new(5, 60).checked().unwrap())];
    assert!(bench.check(&short).await.retry_after.unwrap() <= Duration::from_secs(12));
    bench.advance(61_000_000);
    assert!(bench.count_admitted(5, &short).await >= 5);
}

async fn the_largest_numbers_stay_exact(bench: Bench) {
    let quota = Quota::new(MAX_CAPACITY, MAX_INTERVAL).unwrap();
    let all_but_one = bucket(Dimension::Global, quota).with_cost(MAX_CAPACITY - 1).unwrap();
    let decision = bench.check(&[all_but_one]).await;
    assert!(decision.allowed);
    let one_a_month = [bucket(Dimension::Person, Quota::new(1, MAX_INTERVAL).unwrap())];
    assert_eq!(bench.count_admitted(3, &one_a_month).await, 1);
    bench.advance(i64::try_from(MAX_INTERVAL.as_micros()).unwrap() - 60_000_000);
    assert_eq!(bench.count_admitted(3, &one_a_month).await, 0);
    bench.advance(60_000_000);
    assert_eq!(bench.count_admitted(3, &one_a_month).await, 1);
}

async fn six_dimensions_and_two_subjects_do_not_meet(bench: Bench) {
    let all: Vec<_> = Dimension::ALL.map(|dimension| bucket(dimension, hourly(2))).into();
    assert_eq!(bench.count_admitted(4, &all).await, 2);
    let others: Vec<_> = Dimension::ALL.map(|dimension| Bucket::new(dimension, "another", hourly(2))).into();
    assert_eq!(bench.count_admitted(4, &others).await, 2);
    if let Bench::Redis { replicas, .. } = &bench {
        let calls: u64 = replicas.iter().map(|limiter| limiter.status().store_calls).sum();
        assert_eq!(calls, 8, "one round trip a check, whatever the number of buckets");
    }
}

async fn no_bucket_at_all_is_allowed(bench: Bench) {
    let decision = bench.replica(0).check(&[]).await;
    assert!(decision.allowed && decision.tightest.is_none());
}

#[tokio::test]
async fn keys_in_redis_share_a_slot_hide_their_subject_and_expire() {
    let bench = Bench::redis().await;
    let all: Vec<_> = Dimension::ALL.map(|d| Bucket::new(d, "ann@example.org", hourly(60))).into();
    assert!(bench.check(&all).await.allowed);
    let Bench::Redis { server, .. } = &bench else { unreachable!() };
    let mut connection =
        redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let pattern = format!("{{{}}}:*", server.tag());
    let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut connection).await.unwrap();
    assert_eq!(keys.len(), 6);
    for key in keys {
        assert!(!key.contains("ann"), "{key}");
        let left_ms: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut connection).await.unwrap();
        assert!((1..=60_000).contains(&left_ms), "{key} lives for {left_ms} ms");
    }
}

#[tokio::test]
async fn a_script_that_redis_forgot_is_loaded_again() {
    let mut server = Redis::start().unwrap();
    let options = RedisOptions { timeout: Duration::from_secs(20), ..RedisOptions::new(server.url(), "t") };
    let limiter = Limiter::redis(options, SubjectKey::new([7; 32])).await.unwrap();
    let ip = [bucket(Dimension::Ip, hourly(10))];
    assert!(limiter.check(&ip).await.allowed);
    let mut connection =
        redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut connection).await.unwrap();
    assert_eq!(limiter.check(&ip).await.decided_by, DecidedBy::Store);
    server.stop().unwrap();
}
