//! The limiter: decisions over all six limits.

use std::time::Duration;

use anyhow::{Result, ensure};
use gatehouse_ratelimit::{Bucket, Dimension, LeaseOptions, Limiter, QuotaConfig, RedisOptions, SubjectKey};

use super::held;
use crate::figure::{Run, Sample};
use crate::load::{Caller, drive};
use crate::session::Session;

/// A limit that is never reached.
const QUOTA: QuotaConfig = QuotaConfig::new(1_000_000_000, 1_000);

pub(crate) async fn measure(session: &Session, run: &mut Run) -> Result<()> {
    held(session, run, "ratelimit.redis", decisions(session, None)).await?;
    held(session, run, "ratelimit.leased", decisions(session, Some(LeaseOptions::default()))).await
}

struct Asker(Limiter, Vec<Bucket>);

impl Caller for Asker {
    async fn call(&mut self) -> Result<u64> {
        let decision = self.0.check(&self.1).await;
        ensure!(decision.allowed, "the limiter refused");
        // A leased decision waits for nobody.
        tokio::task::yield_now().await;
        Ok(1)
    }
}

async fn decisions(session: &Session, leases: Option<LeaseOptions>) -> Result<Sample> {
    let options = RedisOptions {
        timeout: Duration::from_secs(1),
        leases,
        ..RedisOptions::new(session.redis_url()?, "bench")
    };
    let limiter = Limiter::redis(options, SubjectKey::new([7; 32])).await?;
    let quota = QUOTA.checked()?;
    // Sixteen people behind one address, of one tenant.
    let buckets = |person: usize| {
        Dimension::ALL
            .into_iter()
            .map(|dimension| {
                let own = matches!(dimension, Dimension::Person | Dimension::ApiKey);
                let subject = if own { format!("person {}", person % 16) } else { "all".to_owned() };
                Bucket::new(dimension, &subject, quota)
            })
            .collect::<Vec<_>>()
    };
    let callers = (0..session.callers).map(|place| Asker(limiter.clone(), buckets(place))).collect();
    let (sample, _) = drive(callers, session.times, session.processes()).await?;
    let status = limiter.status();
    ensure!(status.local_decisions == 0, "Redis was away: {status:?}");
    Ok(sample)
}
