//! The service over real sockets, on both databases.
#![expect(clippy::unwrap_used, reason = "tests")]

mod api_keys;
mod audit;
mod bootstrap;
mod dump;
mod figures;
mod many_sessions;
mod members;
mod purge;
mod refresh;
mod revocations;
mod sign_in;
mod signing;
mod sql;
mod support;
mod tokens;
