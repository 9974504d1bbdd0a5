//! Acts upstream for people without holding their keys: connects them to OAuth providers, keeps and rotates the
//! refresh tokens, and gives short-lived access tokens to whoever may have them.
//!
//! Owns: connections, rotations, consents under way, offline grants, and the refresh tokens in the secrets backend.
//!
//! # Invariants
//! - A refresh token stands in the secrets backend and nowhere else: not in a row, a log line, an error, a message.
//!   While its rotation is under way it stands, sealed under a key of that backend, in `rotations.escrow`.
//! - A refresh token is shown to its provider once an attempt, never repeated blindly; that it will be is written
//!   down before, and what came of it is stored, unread, before anything else happens.
//! - Of all processes, the one with the newest generation moves the pointer to the current token; any may leave a
//!   candidate. The pointer moves only from the version that its holder saw under its lease, so that a holder which
//!   stood still can't undo what came after it. A new consent raises the generation before it stores anything. A crash between any two [`Step`]s loses no token, unless the provider forgets the old one at once and
//!   the answer itself was lost.
//! - For whom a token is: the subject of the caller's own token, or the giver of an offline grant made out to the
//!   caller. No field of a request names a person.
//! - Every token given or refused, every rotation and its failure is an audit event, committed with the change.
//!
//! # To extend
//! Another provider is configuration. Another way in which providers treat used refresh tokens is a variant of
//! [`domain::class::RotationClass`]. Another RPC is a use case in `app` and a file in `grpc`.

pub mod app;
pub mod config;
pub mod domain;
mod grpc;
mod provider;
mod server;
mod steps;
mod store;

pub use app::{Broker, Deps};
pub use config::Config;
pub use server::{PACKAGE, build};
pub use steps::{Died, Step, Steps};

use gatehouse_db::{Migrations, Sql, migrations};

/// The tables of this service.
pub const MIGRATIONS: Migrations = migrations![
    "0001_init" => include_str!("../../../migrations/token_broker/0001_init.sql"),
    "0002_expected_version" => include_str!("../../../migrations/token_broker/0002_expected_version.sql"),
    "0003_person_locks" => include_str!("../../../migrations/token_broker/0003_person_locks.sql"),
    "0004_token_age" => include_str!("../../../migrations/token_broker/0004_token_age.sql"),
];

/// Every statement of this service, for the tests that prepare and inspect them.
#[must_use]
pub fn all_sql() -> Vec<Sql> {
    store::all()
}
