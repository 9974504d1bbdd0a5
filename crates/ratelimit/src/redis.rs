//! The shared store: Redis, and what happens while it is away.
//!
//! A circuit breaker stands before it: a broken connection, or three answers in a row later than the timeout,
//! count as "away". From then on no request waits: each is decided by this node's share of the limit
//! (`limit / replicas`), while one background task tries the store again and again until it answers. Being away
//! is said in the log when it starts, each 30 s, and when it ends, and can be read from [`Limiter::status`].
//!
//! [`Limiter::status`]: crate::Limiter::status

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use gatehouse_core::{Clock, Secret};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, RedisError, Script, TlsCertificates};

use crate::bucket::{Bucket, Key, SubjectKey};
use crate::decision::{DecidedBy, Decision};
use crate::gcra::{Charge, Slot, Verdict};
use crate::lease::{LeaseBook, LeaseOptions, Plan};
use crate::memory::Memory;
use crate::{Mode, Status};

/// Answers later than the timeout, in a row, that open the breaker.
const TIMEOUTS_TO_OPEN: u32 = 3;
/// Between two tries of the background task: from this, doubling...
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// ...up to this.
const LAST_RETRY: Duration = Duration::from_secs(1);
/// A connection that takes longer is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two warnings that the store is still away.
const WARN_EVERY: Duration = Duration::from_secs(30);

/// How to use Redis.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// `redis://` or `rediss://`, with its password.
    pub url: Secret<String>,
    /// PEM file with the authorities that vouch for a `rediss://` server, read at each connection; without it the
    /// system's.
    pub ca_file: Option<PathBuf>,
    /// The hash tag of all keys: limiters with the same tag share their buckets. It should name the environment.
    pub tag: String,
    /// An answer later than this is none. Default 50 ms.
    pub timeout: Duration,
    /// Replicas that share the limits: while Redis is away each gets its part. At least 1.
    pub replicas: u32,
    /// Whether large buckets are leased in batches, and how. `None`: every check asks Redis.
    pub leases: Option<LeaseOptions>,
}

impl RedisOptions {
    /// One replica, 50 ms, no leases.
    #[must_use]
    pub fn new(url: impl Into<String>, tag: impl Into<String>) -> Self {
        Self {
            url: Secret::new(url.into()),
            ca_file: None,
            tag: tag.into(),
            timeout: Duration::from_millis(50),
            replicas: 1,
            leases: None,
        }
    }

    fn client(&self) -> Result<Client, RedisError> {
        let url = self.url.expose().as_str();
        match &self.ca_file {
            None => Client::open(url),
            Some(file) => {
                let root_cert = Some(std::fs::read(file)?);
                Client::build_with_tls(url, TlsCertificates { client_tls: None, root_cert })
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Redis {
    options: RedisOptions,
    tag: String,
    timeout: Duration,
    replicas: u32,
    script: Script,
    subject_key: SubjectKey,
    leases: Option<LeaseBook>,
    local: Memory,
    link: RwLock<Link>,
    timeouts: AtomicU32,
    started: Instant,
    /// Added to the store's clock; moved by tests only.
    pub(crate) clock_offset_us: AtomicI64,
    decisions: AtomicU64,
    local_decisions: AtomicU64,
    store_calls: AtomicU64,
    outages: AtomicU64,
}

/// The connection; none while the store is away. The generation tells a failure of this connection from a late
/// one of its predecessor.
#[derive(Debug)]
struct Link {
    manager: Option<ConnectionManager>,
    generation: u64,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Redis(#[from] RedisError),
    #[error("the answer has another shape than the script's")]
    Shape,
}

impl Redis {
    pub(crate) async fn start(
        options: RedisOptions,
        subject_key: SubjectKey,
    ) -> Result<Arc<Self>, RedisError> {
        // An address that can't be read is told at once; a server that is away is waited for.
        options.client()?;
        let redis = Arc::new(Self {
            options: options.clone(),
            tag: options.tag,
            timeout: options.timeout,
            replicas: options.replicas.max(1),
            script: Script::new(include_str!("script.lua")),
            subject_key,
            leases: options.leases.map(|leases| LeaseBook::new(leases, options.replicas)),
            local: Memory::new(Clock::system()),
            link: RwLock::new(Link { manager: None, generation: 0 }),
            timeouts: AtomicU32::new(0),
            started: Instant::now(),
            clock_offset_us: AtomicI64::new(0),
            decisions: AtomicU64::new(0),
            local_decisions: AtomicU64::new(0),
            store_calls: AtomicU64::new(0),
            outages: AtomicU64::new(0),
        });
        if let Err(error) = redis.connect().await {
            redis.announce_away(&error);
        }
        Ok(redis)
    }

    pub(crate) async fn check(self: &Arc<Self>, buckets: &[Bucket]) -> Decision {
        self.decisions.fetch_add(1, Ordering::Relaxed);
        let keys: Vec<Key> = buckets.iter().map(|bucket| self.subject_key.digest(bucket)).collect();
        let Some((manager, generation)) = self.manager() else { return self.check_alone(buckets, &keys) };
        let plan = match &self.leases {
            Some(book) => book.plan(buckets, &keys, self.elapsed_us()),
            None => Plan::without_leases(buckets, &keys),
        };
        if plan.charges.is_empty() {
            let nothing = Verdict { denied: None, slots: Vec::new() };
            return plan.settle(buckets, &keys, &nothing, self.elapsed_us());
        }
        match self.call(manager, &plan.charges).await {
            Ok(verdict) => {
                self.timeouts.store(0, Ordering::Relaxed);
                plan.settle(buckets, &keys, &verdict, self.elapsed_us())
            }
            Err(failure) => {
                drop(plan);
                self.failed(&failure, generation);
                self.check_alone(buckets, &keys)
            }
        }
    }

    pub(crate) async fn return_leases(&self) {
        let (Some(book), Some((manager, _))) = (&self.leases, self.manager()) else { return };
        let charges = book.drain();
        if !charges.is_empty()
            && let Err(error) = self.call(manager, &charges).await
        {
            tracing::debug!(%error, "leased tokens were not given back; they come back by themselves");
        }
    }

    pub(crate) fn status(&self) -> Status {
        Status {
            mode: if self.manager().is_some() { Mode::Shared } else { Mode::LocalShare },
            decisions: self.decisions.load(Ordering::Relaxed),
            local_decisions: self.local_decisions.load(Ordering::Relaxed),
            store_calls: self.store_calls.load(Ordering::Relaxed),
            outages: self.outages.load(Ordering::Relaxed),
            buckets_in_memory: self.local.len(),
        }
    }

    fn check_alone(&self, buckets: &[Bucket], keys: &[Key]) -> Decision {
        self.local_decisions.fetch_add(1, Ordering::Relaxed);
        let shares: Vec<Bucket> = buckets.iter().map(|bucket| bucket.share(self.replicas)).collect();
        let plan = Plan::without_leases(&shares, keys);
        Decision::from_verdict(&shares, &self.local.apply(&plan.charges), DecidedBy::LocalShare)
    }

    async fn call(&self, mut manager: ConnectionManager, charges: &[Charge]) -> Result<Verdict, Failure> {
        self.store_calls.fetch_add(1, Ordering::Relaxed);
        let mut invocation = self.script.prepare_invoke();
        invocation.arg(self.clock_offset_us.load(Ordering::Relaxed));
        for Charge { key, quota, least, most, back } in charges {
            invocation.key(key.redis(&self.tag));
            invocation.arg(quota.emission_us()).arg(quota.capacity()).arg(least).arg(most).arg(back);
        }
        let answer: Vec<i64> = tokio::time::timeout(self.timeout, invocation.invoke_async(&mut manager))
            .await
            .map_err(|_| Failure::Timeout(self.timeout))??;
        read_verdict(&answer, charges.len()).ok_or(Failure::Shape)
    }

    fn manager(&self) -> Option<(ConnectionManager, u64)> {
        let link = self.link.read().unwrap_or_else(PoisonError::into_inner);
        link.manager.clone().map(|manager| (manager, link.generation))
    }

    fn elapsed_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn failed(self: &Arc<Self>, failure: &Failure, generation: u64) {
        let timed_out = match failure {
            Failure::Timeout(_) => true,
            Failure::Redis(error) => error.is_timeout(),
            Failure::Shape => false,
        };
        if timed_out && self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 < TIMEOUTS_TO_OPEN {
            tracing::debug!(%failure, "one rate limit decision was made locally");
            return;
        }
        {
            let mut link = self.link.write().unwrap_or_else(PoisonError::into_inner);
            if link.generation != generation || link.manager.is_none() {
                return;
            }
            link.manager = None;
        }
        self.announce_away(failure);
    }

    fn announce_away(self: &Arc<Self>, failure: &Failure) {
        self.outages.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            cause = %failure,
            replicas = self.replicas,
            "the rate limit store is away: each replica now enforces its own share of every limit"
        );
        tokio::spawn(find_again(Arc::downgrade(self)));
    }

    /// Makes a new connection, tries it, and closes the breaker.
    async fn connect(&self) -> Result<(), Failure> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.timeout))
            .set_number_of_retries(0)
            .set_pipeline_buffer_size(1024);
        let connecting = ConnectionManager::new_with_config(self.options.client()?, config);
        let mut manager = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| Failure::Timeout(CONNECT_TIMEOUT))??;
        // Also proves that the store answers in time, and saves the first request a round trip.
        tokio::time::timeout(self.timeout, self.script.load_async(&mut manager))
            .await
            .map_err(|_| Failure::Timeout(self.timeout))??;
        let mut link = self.link.write().unwrap_or_else(PoisonError::into_inner);
        link.generation += 1;
        link.manager = Some(manager);
        self.timeouts.store(0, Ordering::Relaxed);
        Ok(())
    }
}

/// Tries the store until it answers or its limiter is gone.
async fn find_again(redis: Weak<Redis>) {
    let since = Instant::now();
    let mut warned = since;
    let mut pause = FIRST_RETRY;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_RETRY);
        let Some(redis) = redis.upgrade() else { return };
        let away_s = since.elapsed().as_secs();
        let local_decisions = redis.local_decisions.load(Ordering::Relaxed);
        match redis.connect().await {
            Ok(()) => {
                tracing::warn!(
                    away_s,
                    local_decisions,
                    "the rate limit store is back: limits are shared again"
                );
                return;
            }
            Err(cause) if warned.elapsed() >= WARN_EVERY => {
                warned = Instant::now();
                tracing::warn!(%cause, away_s, local_decisions, "the rate limit store is still away");
            }
            Err(_) => {}
        }
    }
}

fn read_verdict(answer: &[i64], charges: usize) -> Option<Verdict> {
    let [denied, wait_us, slots @ ..] = answer else { return None };
    if slots.len() != charges * 2 {
        return None;
    }
    let number = |value: &i64| u64::try_from(*value).ok();
    let denied = match usize::try_from(*denied).ok()? {
        0 => None,
        index if index <= charges => Some((index - 1, number(wait_us)?)),
        _ => return None,
    };
    let slots = slots
        .chunks_exact(2)
        .map(|slot| Some(Slot { granted: number(&slot[0])?, level_us: number(&slot[1])? }))
        .collect::<Option<_>>()?;
    Some(Verdict { denied, slots })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_shape_is_none() {
        assert!(read_verdict(&[], 1).is_none());
        assert!(read_verdict(&[0, 0, 1], 1).is_none());
        assert!(read_verdict(&[2, 0, 1, 1], 1).is_none());
        assert!(read_verdict(&[0, 0, -1, 1], 1).is_none());
        assert_eq!(read_verdict(&[1, 7, 0, 9], 1).unwrap().denied, Some((0, 7)));
    }
}
