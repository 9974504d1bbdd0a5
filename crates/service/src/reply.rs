//! From a use case's result to a gRPC answer: the one place that logs causes.

use gatehouse_core::{Error, ErrorCode, Result};
use gatehouse_proto::codec;
use tonic::{Code, Response, Status};

/// The answer for `result`. A failure's cause is logged here and goes no further.
///
/// # Errors
/// The public face of the error, as a status with `ErrorInfo`.
pub fn reply<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| status(&error))
}

/// The status for `error`, after its cause was logged.
#[must_use]
pub fn status(error: &Error) -> Status {
    log(error);
    gatehouse_client::to_status(error)
}

/// The refusal of a message that could not be decoded, if `status` tells of one.
pub(crate) fn undecodable(status: &Status) -> Option<Error> {
    let message = "The message can't be decoded as the request of this method.";
    let cause = codec::undecodable(status)?;
    Some(Error::invalid_argument("MESSAGE_INVALID", message).caused_by(cause.clone()))
}

/// The refusal of a message of a stream that was not read because of what it is, if `status`, with which reading ended,
/// tells of one. Where a request is one message, the door refuses it before its handler runs.
#[must_use]
pub fn unreadable(status: &Status) -> Option<Error> {
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => {
            let message = "The message is longer than this method takes.";
            Some(Error::resource_exhausted("MESSAGE_TOO_LARGE", message).caused_by(status.clone()))
        }
        _ => undecodable(status),
    }
}

/// Logs a failure once: ours as errors, dependencies' as warnings, callers' as information.
pub fn log(error: &Error) {
    let (code, reason) = (error.code().as_str(), error.reason());
    match error.code() {
        ErrorCode::Internal => tracing::error!(code, reason, cause = ?error, "request failed"),
        ErrorCode::Unavailable | ErrorCode::DeadlineExceeded => {
            tracing::warn!(code, reason, cause = ?error, "request failed");
        }
        _ => tracing::info!(code, reason, cause = ?error, "request refused"),
    }
}
