//! Why a rotation did not end in a token: cloneable, because many callers wait for one.

use std::sync::Arc;
use std::time::Duration;

use gatehouse_core::Error;

use crate::steps::Died;

#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The provider refused every token that we had.
    NeedsReauthorization,
    /// The connection is gone.
    Gone,
    /// Another replica is at it and was not done in time.
    Busy,
    /// The provider is away, unwell or refuses us.
    Upstream { reason: &'static str, wait: Duration },
    /// Something of ours failed.
    Ours(Arc<Error>),
    /// A test let us die.
    Died(Died),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Ours(Arc::new(error))
    }
}

impl From<gatehouse_db::Error> for Failure {
    fn from(error: gatehouse_db::Error) -> Self {
        Error::from(error).into()
    }
}

impl From<gatehouse_secrets::Error> for Failure {
    fn from(error: gatehouse_secrets::Error) -> Self {
        Error::from(error).into()
    }
}

impl From<Died> for Failure {
    fn from(died: Died) -> Self {
        Self::Died(died)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NeedsReauthorization => needs_reauthorization(),
            Failure::Gone => connection_not_found(),
            Failure::Busy => Self::unavailable(
                "UPSTREAM_UNAVAILABLE",
                "The token is being renewed and that takes longer than usual. Try again in a moment.",
            )
            .retry_after(Duration::from_secs(1)),
            Failure::Upstream { reason, wait } => Self::unavailable(
                "UPSTREAM_UNAVAILABLE",
                "The upstream did not renew its token. Try again later.",
            )
            .retry_after(wait)
            .caused_by(reason),
            Failure::Ours(error) => Self::new(error.code(), error.reason().to_owned(), error.message())
                .caused_by(format!("{error:?}")),
            Failure::Died(died) => Self::unavailable("INTERRUPTED", "The work was interrupted. Try again.")
                .caused_by(format!("{died:?}")),
        }
    }
}

pub(crate) fn needs_reauthorization() -> Error {
    Error::failed_precondition(
        "NEEDS_REAUTHORIZATION",
        "The upstream does not accept this connection any more. The person must connect again.",
    )
}

pub(crate) fn connection_not_found() -> Error {
    Error::not_found("CONNECTION_NOT_FOUND", "There is no such connection. Connect to the upstream first.")
}
