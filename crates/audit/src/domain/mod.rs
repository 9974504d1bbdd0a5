//! What an audit log is, without a database, a network or a clock: entries, their hashes, the tree over them,
//! signed checkpoints, sealed payloads, and the verification of all that.
//!
//! `docs/audit-log.md` describes every format here for people who write another implementation, with test
//! vectors that the tests of this module hold.

pub mod checkpoint;
pub mod digest;
pub mod leaf;
pub mod merkle;
pub mod names;
pub mod note;
pub mod proof;
pub mod pruned;
pub mod seal;
pub mod tiles;
pub mod verify;
