//! What can go wrong, without ever carrying a value.

use std::io;
use std::path::PathBuf;

use gatehouse_core::shown_path;

use crate::{MAX_VERSIONS, VersionId};

/// The result of a call on a secrets backend.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// A failure of a secrets backend. No variant carries secret material.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key, token or version id outside its grammar.
    #[error("{what} is not valid: {problem}")]
    Grammar {
        /// What it should have been.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A value longer than the contract allows.
    #[error("a value of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// The idempotency token was used for another value before.
    #[error("the idempotency token was used before with another value")]
    TokenReused,
    /// Compare-and-set lost: the current version is not the expected one.
    #[error("the current version is {current:?}, not the expected one")]
    Conflict {
        /// The version that is current.
        current: Option<VersionId>,
    },
    /// No such version.
    #[error("no such version")]
    VersionNotFound,
    /// The current version can't be deleted alone; promote another first, or delete the secret.
    #[error("the current version can't be deleted alone")]
    IsCurrent,
    /// The secret holds as many versions as it may; delete some first.
    #[error("the secret holds {MAX_VERSIONS} versions, the most it may; delete some first")]
    TooManyVersions,
    /// Sealed by another key, environment, backend or for another purpose; or altered. It may open later: a backend can't
    /// tell for good from for now, such as Transit with a key whose `min_decryption_version` was raised.
    #[error("the sealed value does not open: another key, environment or associated data, or altered")]
    DoesNotOpen,
    /// Stored data that can't be read back as what was written.
    #[error("{place} is damaged: {problem}; restore it from its backup")]
    Corrupt {
        /// Which file or path.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The configuration does not fit what is there; the message says what to do.
    #[error("{0}")]
    Setup(String),
    /// Another process holds the store.
    #[error("another process uses the secrets store in {0}; stop it first")]
    Locked(PathBuf),
    /// The backend refused our credential.
    #[error("the secrets backend refused access: {0}")]
    Denied(String),
    /// The backend is away or failed; whether a write happened is not known, and repeating it is safe.
    #[error("the secrets backend is not available")]
    Unavailable(#[source] Source),
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: &std::path::Path, error: &io::Error) -> Self {
        let text = format!("{doing} {}: {error}", shown_path(path));
        Self::Unavailable(Box::new(io::Error::new(error.kind(), text)))
    }

    pub(crate) fn unavailable(source: impl Into<Source>) -> Self {
        Self::Unavailable(source.into())
    }
}

impl From<Error> for gatehouse_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Unavailable(_) | Error::Denied(_) | Error::Locked(_) | Error::Setup(_) => {
                Self::unavailable(
                    "SECRETS_UNAVAILABLE",
                    "The secrets store is not available. Try again in a moment.",
                )
                .caused_by(error)
            }
            Error::Conflict { .. } => {
                Self::aborted("SECRET_CHANGED", "The secret changed meanwhile. Read it again and retry.")
                    .caused_by(error)
            }
            other => Self::internal(other),
        }
    }
}
