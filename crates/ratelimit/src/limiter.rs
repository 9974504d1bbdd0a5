//! One face over both stores.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gatehouse_core::{Clock, Error};

use crate::bucket::{Bucket, Key, SubjectKey};
use crate::decision::{DecidedBy, Decision};
use crate::lease::Plan;
use crate::memory::Memory;
use crate::redis::{Redis, RedisOptions};

/// Decides whether requests may pass. Cheap to clone; clones share their buckets.
#[derive(Clone, Debug)]
pub enum Limiter {
    /// All buckets in this process.
    Memory(InProcess),
    /// All buckets in Redis, shared by every replica.
    Redis(Shared),
}

/// See [`Limiter::memory`].
#[derive(Clone, Debug)]
pub struct InProcess(Arc<MemoryParts>);

#[derive(Debug)]
struct MemoryParts {
    memory: Memory,
    subject_key: SubjectKey,
    decisions: AtomicU64,
}

/// See [`Limiter::redis`].
#[derive(Clone, Debug)]
pub struct Shared(pub(crate) Arc<Redis>);

/// Where decisions are made at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the only process there is.
    InProcess,
    /// In the store that all replicas share.
    Shared,
    /// By this replica's share of each limit, because the store is away. Ready, but worth an alert.
    LocalShare,
}

/// What readiness and metrics read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where decisions are made at this moment.
    pub mode: Mode,
    /// Checks answered since the start.
    pub decisions: u64,
    /// Those answered by this replica's share, because the store was away.
    pub local_decisions: u64,
    /// Round trips to the store.
    pub store_calls: u64,
    /// How often the store went away.
    pub outages: u64,
    /// Buckets held in this process.
    pub buckets_in_memory: usize,
}

impl Limiter {
    /// All buckets in this process, on `clock`.
    #[must_use]
    pub fn memory(clock: Clock, subject_key: SubjectKey) -> Self {
        Self::Memory(InProcess(Arc::new(MemoryParts {
            memory: Memory::new(clock),
            subject_key,
            decisions: AtomicU64::new(0),
        })))
    }

    /// All buckets in Redis. Waits for a connection for 2 s at most; a Redis that is away then is found later.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `FailedPrecondition`, reason `RATE_LIMIT_REDIS_URL_INVALID`: the address can't be understood.
    pub async fn redis(options: RedisOptions, subject_key: SubjectKey) -> gatehouse_core::Result<Self> {
        match Redis::start(options, subject_key).await {
            Ok(redis) => Ok(Self::Redis(Shared(redis))),
            Err(error) => Err(Error::failed_precondition(
                "RATE_LIMIT_REDIS_URL_INVALID",
                "The Redis address is not understood: write redis://[user:password@]host:port/ (or rediss:// for TLS).",
            )
            .caused_by(error)),
        }
    }

    /// Takes from all `buckets` or from none, in one step and at most one round trip. It never fails: while
    /// Redis is away the decision is this replica's own ([`DecidedBy::LocalShare`]).
    pub async fn check(&self, buckets: &[Bucket]) -> Decision {
        match self {
            Self::Memory(InProcess(parts)) => {
                parts.decisions.fetch_add(1, Ordering::Relaxed);
                let keys: Vec<Key> = buckets.iter().map(|bucket| parts.subject_key.digest(bucket)).collect();
                let plan = Plan::without_leases(buckets, &keys);
                Decision::from_verdict(buckets, &parts.memory.apply(&plan.charges), DecidedBy::Store)
            }
            Self::Redis(Shared(redis)) => redis.check(buckets).await,
        }
    }

    /// Gives unspent leased tokens back to the store; for the end of a process, after its last check.
    pub async fn return_leases(&self) {
        if let Self::Redis(Shared(redis)) = self {
            redis.return_leases().await;
        }
    }

    /// Where decisions are made, and the counters for metrics.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Memory(InProcess(parts)) => Status {
                mode: Mode::InProcess,
                decisions: parts.decisions.load(Ordering::Relaxed),
                local_decisions: 0,
                store_calls: 0,
                outages: 0,
                buckets_in_memory: parts.memory.len(),
            },
            Self::Redis(Shared(redis)) => redis.status(),
        }
    }

    /// Moves this limiter's view of Redis's clock by `micros`, so that tests need not wait. Does nothing to an
    /// in-process limiter, which has a [`Clock`] for that.
    #[doc(hidden)]
    pub fn shift_store_clock_for_tests(&self, micros: i64) {
        if let Self::Redis(Shared(redis)) = self {
            redis.clock_offset_us.fetch_add(micros, Ordering::Relaxed);
        }
    }
}
