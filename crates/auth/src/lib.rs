//! Who is calling: people, sessions, API keys, internal clients, and the tokens that say so.
//!
//! Owned here: accounts and their Argon2id hashes, tenants and memberships, refresh token families, API keys, the
//! keys that sign access tokens, and the revocation table that every verifier watches.
//!
//! Invariants:
//! - No token, password or private key stands in the database: only keyed digests, peppered hashes and sealed keys,
//!   each with the id of its key. The key ring lives outside the database ([`key_file`]).
//! - A refresh token never has two different successors, on any number of replicas ([`domain::refresh`]).
//! - A token is for one audience and one environment, and an exchange never widens what its subject may do.
//! - What changes who may do what writes a revocation and an audit event in the same transaction.
//! - Whatever a token says was read in one transaction, and the token is dated before that began; so a change that
//!   the transaction did not see kills the token ([`store::revocations::MARGIN`]).
//!
//! To extend: a permission is a line in [`domain::roles`]; a credential is a module in [`domain`], a table with its
//! file in [`store`], and a branch of the token exchange ([`app::tokens`]).

pub mod app;
pub mod clients;
pub mod config;
pub mod domain;
mod grpc;
pub mod hashing;
pub mod key_file;
pub mod revocation_log;
pub mod server;
pub mod signing_keys;
pub mod store;

pub use config::Config;
pub use server::{Deps, MIGRATIONS, Server, build};
pub use store::all_sql;
