//! The way of audit events from a service's own transaction to the audit service: none lost, none doubled.
//!
//! Owns the tables `audit_outbox` and `audit_outbox_relay` in the database of each service that emits events
//! ([`MIGRATION`] is their text), the shape of an event ([`AuditEvent`]) and the [`Relay`].
//!
//! Invariants:
//! - an event is committed with the change that it tells of, or neither is: audited means committed here;
//! - an event leaves its table only after the audit service said that it is durable in the log;
//! - events carry their id from the start, and the audit service takes an id once: sending again is harmless;
//! - one replica relays at a time, in the order in which events were made, but for those that the audit service refuses
//!   or fails on alone: the others pass them;
//! - an event that is refused arrives all the same, without the field that was refused.
//!
//! ```no_run
//! # async fn example(db: gatehouse_db::Db, outbox: gatehouse_outbox::Outbox, caller: &gatehouse_service::Caller,
//! #     job: gatehouse_core::ids::JobId) -> gatehouse_core::Result<()> {
//! use gatehouse_db::run_tx;
//! use serde_json::json;
//!
//! let event = outbox.event("job.jobs.submit").by(caller).target("job", job.as_uuid()).payload(json!({"kind": "optimize"}));
//! run_tx!(db, "job.submit", |tx| {
//!     // … the change itself …
//!     outbox.emit(tx, &event).await?;
//!     Ok(())
//! })?;
//! # Ok(()) }
//! ```
//!
//! To extend: a new kind of event is a new action name at its call; a new field goes into `audit.proto` and
//! [`AuditEvent`].

mod config;
mod event;
mod metrics;
mod relay;
mod replacement;
mod store;
mod stuck;
pub mod words;

pub use config::Config;
pub use event::{AuditEvent, Outbox, Outcome};
pub use relay::{Relay, Status};

/// The tables of the outbox, for the first migration of each service that emits events (the text must stand in
/// the service's own file; a test of that service may compare). One text for both engines.
pub const MIGRATION: &str = include_str!("../migration.sql");

/// Every statement, for the test that prepares all of them on both engines.
#[must_use]
pub fn all_sql() -> Vec<gatehouse_db::Sql> {
    store::ALL.to_vec()
}
