//! Durable jobs with live progress.
//!
//! Owns the tables `jobs`, `job_events` and `worker_sessions`, the queue, the leases and the log of each job.
//!
//! Invariants:
//! - a job is held by at most one worker; each lease raises the job's epoch, and a write that names an older one
//!   changes nothing;
//! - the events of a job are numbered from 1 without gaps, and an event is never changed;
//! - an event and the checkpoint that came with it are stored together, so that the next attempt neither repeats nor
//!   skips anything;
//! - every change of state is audited in its own transaction;
//! - what a caller reads or changes belongs to the tenant of their token.
//!
//! To extend: a new kind of job is an entry in the configuration and a worker that does it; a new event type is a
//! variant of [`domain::EventType`] and of the proto enum; a new rule of a job's life is the condition of a
//! statement in `store/jobs.rs`.

mod app;
mod config;
pub mod domain;
mod grpc;
mod metrics;
mod server;
mod store;

pub use app::App;
pub use config::{Config, KindConfig};
pub use server::{Deps, start};
pub use store::all_sql;

/// The tables of this service, oldest first.
pub const MIGRATIONS: gatehouse_db::Migrations = gatehouse_db::migrations![
    "0001_init" => include_str!("../../../migrations/job/0001_init.sql"),
    "0002_endings" => include_str!("../../../migrations/job/0002_endings.sql"),
    "0003_queue_locks" => include_str!("../../../migrations/job/0003_queue_locks.sql"),
];
