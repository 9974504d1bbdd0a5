//! Where long-lived secrets live: refresh tokens, upstream API keys, data keys. One contract, [`Secrets`], and
//! several implementations of it that a `[secrets]` section chooses between.
//!
//! # The contract
//! A secret is a set of *versions* under a path-like [`SecretKey`]. At most one version is *current*; the others
//! are *pending* (not yet promoted, or superseded and not yet shredded).
//! - [`Secrets::put_pending`] adds a version under an idempotency token. The same token with the same value is
//!   the same version, however often it is sent; with another value it is refused.
//! - [`Secrets::promote`] moves "current" by compare-and-set: of two writers that saw the same current version,
//!   one wins. Promoting what is current already succeeds, so that an interrupted promotion can be repeated.
//! - [`Secrets::delete_version`] and [`Secrets::delete`] remove for good; deleting what is gone succeeds.
//! - [`Secrets::seal`] and [`Secrets::unseal`] encrypt small values under a key that only the backend holds. The
//!   ciphertext names its key; [`Secrets::rotate_sealing_key`] adds a key and everything sealed before still
//!   opens. The environment is part of the associated data: what `dev` sealed does not open in `prod`.
//!
//! # Invariants
//! - A call that returned `Ok` has been made durable; a crash at any point leaves the state before or after a
//!   call, never between.
//! - No value appears in an error, a log line or a `Debug` text.
//! - Keys, tokens and sizes are checked here, before any implementation sees them, so all refuse alike.
//! - A failed call may have happened ([`Error::Unavailable`]); every call may be repeated with the same arguments.
//!
//! # To extend
//! An implementation is a module with the methods of [`Secrets`] and a variant of its private enum, a section of
//! [`Config`], and a line in `tests/contract.rs`. A store that keeps whole documents with compare-and-set
//! (Kubernetes Secrets by `resourceVersion`) reuses `document`; one that knows versions itself (AWS Secrets
//! Manager: client request token = version id = our idempotency token, staging label = current) need not.

mod backend;
mod config;
mod document;
mod embedded;
mod error;
mod key;
mod memory;
mod vault;

pub use backend::{Health, SealingKey, Secrets};
pub use config::{BackendKind, Config, EmbeddedConfig, VaultConfig};
pub use document::{SecretVersion, VersionInfo};
pub use embedded::create_key_file;
pub use error::{Error, Result};
pub use key::{IdempotencyToken, SecretKey, VersionId};

/// The longest value of one version, in bytes. AWS Secrets Manager takes 64 KiB; half of it leaves room for the
/// encoding.
pub const MAX_VALUE_BYTES: usize = 32 * 1024;

/// The most versions that one secret holds at a time, the current one included.
pub const MAX_VERSIONS: usize = 8;

/// The longest plaintext that [`Secrets::seal`] takes, in bytes.
pub const MAX_SEALED_BYTES: usize = 256 * 1024;
