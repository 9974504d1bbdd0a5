//! The shared runtime of every Gatehouse process: configuration, telemetry, lifecycle and drain, gRPC servers with
//! caller identity and permission checks, revocations, readiness, doorbells.
//!
//! Invariants:
//! - a gRPC server with a method that declares no access rule does not start;
//! - where TLS is on, no connection lives without a certificate of ours, and no method is called by a service that it
//!   does not name;
//! - no handler runs before its caller's token was verified here, for this service, against live revocations;
//! - the internal cause of an error is logged here, once, and leaves the process nowhere;
//! - nothing in this crate knows a database (the gateway uses it and has none).
//!
//! To extend: a new service builds a [`grpc::GrpcServer`] from its routes; a new kind of check at the door belongs
//! into [`access`], never into a handler.

pub mod access;
pub mod config;
pub mod doorbell;
pub mod grpc;
mod health;
pub mod identity;
mod incoming;
pub mod lifecycle;
pub mod probes;
pub mod readiness;
mod reflection;
pub mod reply;
pub mod revocations;
pub mod telemetry;
pub mod tls;
pub mod verifier;

pub use access::AccessLayer;
pub use doorbell::{Doorbell, RedisAddress};
pub use grpc::GrpcServer;
pub use identity::{Caller, Claims, Subject};
pub use lifecycle::Lifecycle;
pub use readiness::Readiness;
pub use reply::{reply, status};
pub use revocations::{RevocationFeed, Revocations};
pub use tls::{Peer, ServerTls};
pub use verifier::{KeySet, Verifier};
