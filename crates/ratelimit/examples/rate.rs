//! Prints decisions a second: `cargo run -p gatehouse-ratelimit --example rate [--release]`.

use std::time::{Duration, Instant};

use gatehouse_core::Clock;
use gatehouse_ratelimit::{Bucket, Dimension, LeaseOptions, Limiter, QuotaConfig, RedisOptions, SubjectKey};
use gatehouse_testkit::redis::Redis;

const CALLERS: u64 = 64;
const FOR: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Redis::start()?;
    let quota = QuotaConfig::new(1_000_000, 60).checked()?;
    let six: Vec<Bucket> =
        Dimension::ALL.into_iter().map(|dimension| Bucket::new(dimension, "somebody", quota)).collect();
    let options = RedisOptions { timeout: Duration::from_secs(1), ..RedisOptions::new(server.url(), "rate") };
    let leased = RedisOptions { leases: Some(LeaseOptions::default()), ..options.clone() };
    let key = || SubjectKey::new([7; 32]);
    for (name, limiter) in [
        ("in process", Limiter::memory(Clock::system(), key())),
        ("Redis", Limiter::redis(options, key()).await?),
        ("Redis, leased", Limiter::redis(leased, key()).await?),
    ] {
        for buckets in [&six[5..], &six[..]] {
            let decisions = measure(&limiter, buckets).await?;
            println!("{name:14} {} bucket(s): {decisions} decisions/s", buckets.len());
        }
        println!("{name:14} {:?}", limiter.status());
    }
    Ok(())
}

async fn measure(limiter: &Limiter, buckets: &[Bucket]) -> Result<u64, Box<dyn std::error::Error>> {
    let started = Instant::now();
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (limiter, buckets) = (limiter.clone(), buckets.to_vec());
            tokio::spawn(async move {
                let mut decisions = 0_u64;
                while started.elapsed() < FOR {
                    limiter.check(&buckets).await;
                    decisions += 1;
                    tokio::task::yield_now().await;
                }
                decisions
            })
        })
        .collect();
    let mut decisions = 0;
    for caller in callers {
        decisions += caller.await?;
    }
    Ok(decisions / FOR.as_secs())
}
