//! Types and rules of jobs: no SQL, no gRPC, no async.

mod event;
mod idempotency;
mod job;
mod lease;
mod queue;
mod scope;

pub use event::{EventType, JobEvent};
pub use idempotency::{IdempotencyKey, request_digest};
pub use job::{Failure, Job, JobState, not_found};
pub use lease::{Lease, Write, WriteOutcome};
pub use queue::{fair_turn, retry_pause};
pub use scope::WorkScope;
