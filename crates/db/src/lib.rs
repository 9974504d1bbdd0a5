//! One database seam for PostgreSQL and SQLite: connections, named transactions, one SQL text, migrations.
//!
//! Owns: everything that names a database driver. No other crate depends on `sqlx`.
//!
//! Invariants:
//! - Every statement runs inside a named transaction ([`run_tx!`], [`read_tx!`]); there is no way around it.
//! - A transaction whose future is dropped, or in which a statement failed, never commits.
//! - Writes run at READ COMMITTED on PostgreSQL and under `BEGIN IMMEDIATE` on SQLite, so each invariant of a
//!   service must be one conditional statement. Reads see one snapshot on both.
//! - Values have five types (BIGINT, BOOLEAN, TEXT, UUID, BYTEA), and both engines take and give the same.
//!
//! To extend: a new column type is a variant of [`Value`] with its [`Param`] and [`FromColumn`]; a statement that
//! truly can't be written once is a `sql!` entry with a second text for SQLite.
//!
//! ```
//! use gatehouse_core::{Timestamp, ids::JobId};
//! use gatehouse_db::{Db, Error, params, run_tx, sql};
//!
//! sql! {
//!     /// Starts a job unless someone else did: the condition is the invariant.
//!     pub START_JOB = "UPDATE jobs SET started_at = $2 WHERE id = $1 AND started_at IS NULL";
//! }
//!
//! async fn start(db: &Db, id: JobId, now: Timestamp) -> Result<bool, Error> {
//!     run_tx!(db, "job.start", |tx| { Ok(tx.execute(&START_JOB, params![id, now]).await? == 1) })
//! }
//! ```

mod config;
mod connect;
mod error;
mod insert;
mod migrate;
mod row;
mod sql;
mod tx;
mod value;

pub use config::{Config, DatabaseUrl, has_sign_behind_host};
pub use connect::{Db, Engine};
pub use error::{Error, Result};
pub use insert::Insert;
pub use migrate::{MigrationState, MigrationStatus, Migrations};
pub use row::{FromColumn, ReadColumn, Row};
pub use sql::Sql;
pub use tx::Tx;
pub use value::{Param, Value};

/// What the macros expand to; no part of the API.
#[doc(hidden)]
pub mod private {
    pub use crate::insert::{as_str as insert_str, length as insert_length, text as insert_text};
    pub use crate::tx::{Attempts, block};
    pub use tracing::Instrument;
}
