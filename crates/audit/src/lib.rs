//! Proof of what happened: logs that nobody can change unseen, and their verification.
//!
//! Owns the logs (one for each retention class), the plain rows that people search, the keys that payloads are
//! sealed with, and the signing of checkpoints.
//!
//! Invariants:
//! - [`domain::leaf`] version 1 is frozen; nothing that names a person stands in a leaf; a stored leaf is never
//!   written again, and entries leave a log from its front only;
//! - numbers are contiguous and the chain has one end, however many replicas append;
//! - an event id is taken once; an answer means that it is durable;
//! - keys of subjects lie outside the database; one that was shredded never comes back;
//! - a second history gets no signature.
//!
//! To extend: a new fact about events goes into the sealed payload. A new member of the leaf is version 2 of it,
//! beside version 1, which must verify for ever. A new log is a line of configuration.

mod app;
mod config;
pub mod domain;
mod files;
mod grpc;
mod key_folder;
pub mod keys;
mod plain_rows;
mod sequencer;
mod server;
mod signed_states;
mod signing;
mod standing;
mod store;
pub mod verify_log;

pub use config::{Config, LogConfig};
pub use server::{Deps, MIGRATIONS, PACKAGE, build};
pub use signing::CheckpointSeed;

/// Every statement, for the test that prepares all of them on both engines.
#[must_use]
pub fn all_sql() -> Vec<gatehouse_db::Sql> {
    store::all_sql()
}
