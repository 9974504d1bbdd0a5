//! Distributed token buckets: who may do how much, decided the same by every replica.
//!
//! What it owns: the algorithm ([`Limiter::check`]: any buckets, all charged or none, in one script and one round
//! trip; a request's are one for each of the six [`Dimension`]s that it has, and may be two for a person), its two
//! stores (in-process and Redis), prepaid leases for large buckets, the rules that say how much ([`Rules`]), and what
//! happens while Redis is away.
//!
//! Invariants:
//! - The algorithm is the GCRA in integer microseconds on the store's clock; a bucket is one number. The Rust and
//!   the Lua text of it are held together by one contract suite.
//! - A check never fails and never waits longer than the configured timeout. Without Redis it is stricter or
//!   equal (a share of each limit a replica), never unlimited.
//! - With leases, all replicas together admit at most `burst + rate * window + burst / 10` in any window.
//! - No personal data reaches a store: subjects are keyed digests. Every key expires once its bucket is full.
//!
//! To extend: another thing to count by is a [`Dimension`], a field of [`Subjects`] and a line in
//! `Rules::buckets`; another store is a variant of [`Limiter`] that passes `tests/contract.rs`.

mod bucket;
mod decision;
mod gcra;
mod lease;
mod limiter;
mod memory;
mod quota;
mod redis;
mod rules;
mod written;

pub use bucket::{Bucket, Dimension, InvalidCost, SubjectKey};
pub use decision::{DecidedBy, Decision, Standing};
pub use lease::LeaseOptions;
pub use limiter::{InProcess, Limiter, Mode, Shared, Status};
pub use quota::{InvalidQuota, MAX_CAPACITY, MAX_INTERVAL, MIN_INTERVAL, Quota, QuotaConfig};
pub use redis::RedisOptions;
pub use rules::{ClassRules, Config, RateLimits, Rules, Subjects, TenantRules};
