//! Redis goes away, is slow, and comes back, under load.

#![expect(clippy::unwrap_used, reason = "a test stops where something is not as expected")]

use std::time::{Duration, Instant};

use gatehouse_ratelimit::{
    Bucket, DecidedBy, Dimension, LeaseOptions, Limiter, Mode, QuotaConfig, RedisOptions, SubjectKey,
};
use gatehouse_testkit::eventually;
use gatehouse_testkit::redis::Redis;

async fn limiter(server: &Redis, timeout: Duration, replicas: u32) -> Limiter {
    let options = RedisOptions { timeout, replicas, ..RedisOptions::new(server.url(), server.tag()) };
    Limiter::redis(options, SubjectKey::new([7; 32])).await.unwrap()
}

fn hourly(dimension: Dimension, capacity: u64) -> [Bucket; 1] {
    [Bucket::new(dimension, "somebody", QuotaConfig::new(capacity, 3600).checked().unwrap())]
}

async fn until(limiter: &Limiter, mode: Mode) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while limiter.status().mode != mode {
        assert!(Instant::now() < deadline, "never became {mode:?}: {:?}", limiter.status());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_killed_redis_leaves_each_replica_its_share_and_comes_back_by_itself() {
    let mut server = Redis::start().unwrap();
    let limiter = limiter(&server, Duration::from_secs(2), 3).await;
    let global = hourly(Dimension::Global, 3000);
    assert_eq!(limiter.check(&global).await.decided_by, DecidedBy::Store);

    let load: Vec<_> = (0..8)
        .map(|_| {
            let limiter = limiter.clone();
            tokio::spawn(async move {
                let deadline = Instant::now() + Duration::from_mins(1);
                let (mut local, mut admitted_locally) = (0_u64, 0_u64);
                // Ends when it has seen the store go away and come back.
                loop {
                    let decision = limiter.check(&hourly(Dimension::Global, 3000)).await;
                    if decision.decided_by == DecidedBy::LocalShare {
                        local += 1;
                        admitted_locally += u64::from(decision.allowed);
                    } else if local > 0 {
                        return (local, admitted_locally);
                    }
                    assert!(Instant::now() < deadline, "the store never came back");
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let away = Instant::now();
    server.stop().unwrap();
    until(&limiter, Mode::LocalShare).await;
    // Every caller meets the outage before it ends.
    let deadline = Instant::now() + Duration::from_secs(20);
    while limiter.status().local_decisions < 3000 {
        assert!(Instant::now() < deadline, "{:?}", limiter.status());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.start_again().unwrap();
    let mut admitted = 0;
    for caller in load {
        let (local, admitted_locally) = caller.await.unwrap();
        assert!(local > 0);
        admitted += admitted_locally;
    }
    // An hour's refill of the share, for as long as the store was away.
    let refilled = away.elapsed().as_secs() * 1000 / 3600 + 1;
    assert!(
        (1000..=1000 + refilled).contains(&admitted),
        "{admitted}: a third of the limit is never unlimited, never nothing"
    );
    assert_eq!(limiter.status().mode, Mode::Shared);
    assert_eq!(limiter.status().outages, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_redis_delays_only_the_first_requests() {
    let mut server = Redis::start().unwrap();
    let timeout = Duration::from_millis(200);
    let limiter = limiter(&server, timeout, 1).await;
    let ip = hourly(Dimension::Ip, 100_000);
    assert!(limiter.check(&ip).await.allowed);
    server.pause().unwrap();
    let asked = limiter.status().store_calls;
    for _ in 0..500 {
        assert!(limiter.check(&ip).await.allowed);
    }
    // Whoever asks the store waits for it: three times in vain, then nobody does.
    let slow = limiter.status().store_calls - asked;
    assert!(slow <= 3, "{slow} requests waited");
    assert_eq!(limiter.status().mode, Mode::LocalShare);
    server.resume().unwrap();
    until(&limiter, Mode::Shared).await;
    // On a busy machine one answer or another may still come too late to count.
    eventually(Duration::from_secs(30), || async { limiter.check(&ip).await.decided_by == DecidedBy::Store })
        .await;
}

#[tokio::test]
async fn a_redis_that_is_away_at_the_start_is_found_later() {
    let mut server = Redis::start().unwrap();
    server.stop().unwrap();
    let limiter = limiter(&server, Duration::from_secs(2), 2).await;
    let decision = limiter.check(&hourly(Dimension::Ip, 100)).await;
    assert!(decision.allowed);
    assert_eq!(decision.decided_by, DecidedBy::LocalShare);
    assert_eq!(decision.tightest.unwrap().limit, 50);
    server.start_again().unwrap();
    until(&limiter, Mode::Shared).await;
}

#[tokio::test]
async fn an_address_that_is_none_is_refused() {
    let refused = Limiter::redis(RedisOptions::new("http://nowhere", "t"), SubjectKey::new([7; 32])).await;
    assert_eq!(refused.unwrap_err().reason(), "RATE_LIMIT_REDIS_URL_INVALID");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leases_save_calls_and_stay_within_their_bound() {
    const CAPACITY: u64 = 6000;
    let server = Redis::start().unwrap();
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let options = RedisOptions {
            timeout: Duration::from_secs(20),
            replicas: 3,
            leases: Some(LeaseOptions { lifetime: Duration::from_mins(10), ..LeaseOptions::default() }),
            ..RedisOptions::new(server.url(), server.tag())
        };
        nodes.push(Limiter::redis(options, SubjectKey::new([7; 32])).await.unwrap());
    }
    let callers: Vec<_> = (0..12)
        .map(|caller: usize| {
            let limiter = nodes[caller % 3].clone();
            tokio::spawn(async move {
                let mut admitted = 0_u64;
                for _ in 0..700 {
                    admitted += u64::from(limiter.check(&hourly(Dimension::Global, CAPACITY)).await.allowed);
                }
                admitted
            })
        })
        .collect();
    let mut admitted = 0;
    for caller in callers {
        admitted += caller.await.unwrap();
    }
    // 8400 asked; an hour's refill is 1.7 tokens a second.
    assert!((CAPACITY * 9 / 10..=CAPACITY + CAPACITY / 10).contains(&admitted), "{admitted}");
    let calls: u64 = nodes.iter().map(|limiter| limiter.status().store_calls).sum();
    assert!(calls < 1500, "{calls} calls");
    for node in &nodes {
        node.return_leases().await;
    }
}
