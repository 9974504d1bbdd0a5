//! The words that every Gatehouse crate shares: ids, time, chance, secrets, errors, environments, redaction.
//!
//! Invariants: nothing here does I/O (but [`shown_path`] and [`file_problem`], which ask whether a path is there), blocks, or
//! reads configuration; nothing here knows a transport or a database. Time and chance are values that a caller passes in
//! ([`Clock`], [`Entropy`]), so that every test can settle both.
//!
//! To extend: a new id is one line in [`ids`]; a new kind of failure is a stable `reason` on an existing
//! [`ErrorCode`], not a new code.

pub mod clock;
pub mod configured_file;
pub mod entropy;
pub mod environment;
pub mod error;
pub mod ids;
#[cfg(feature = "planted-bugs")]
pub mod planted;
pub mod redact;
pub mod secret;
pub mod shown_path;

pub use clock::{Clock, Timestamp};
pub use configured_file::file_problem;
pub use entropy::Entropy;
pub use environment::Environment;
pub use error::{Error, ErrorCode, FieldViolation, Result};
pub use redact::redact;
pub use secret::Secret;
pub use shown_path::shown_path;
