//! [`gatehouse_core::Error`] on the gRPC wire and back (google.rpc error model: `ErrorInfo`, `BadRequest`, `RetryInfo`).

use gatehouse_core::{Error, ErrorCode};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The `ErrorInfo.domain` of our reasons.
pub const DOMAIN: &str = "gatehouse";

/// The status that tells a caller of `error`: its public face only.
#[must_use]
pub fn to_status(error: &Error) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(error.reason(), DOMAIN, []);
    for violation in error.violations() {
        details.add_bad_request_violation(&violation.field, &violation.description);
    }
    if let Some(wait) = error.retry_after_hint() {
        details.set_retry_info(Some(wait));
    }
    Status::with_error_details(Code::from_i32(error.code().grpc_code()), error.message(), details)
}

/// The error that a status tells of.
///
/// A status of ours keeps its code, reason, message, violations and wait. Any other (a broken connection, a proxy,
/// a server that is no Gatehouse) keeps its words as the internal cause only.
#[must_use]
pub fn from_status(status: Status) -> Error {
    let Some(info) = status.get_details_error_info().filter(|info| info.domain == DOMAIN) else {
        return foreign(status);
    };
    let Some(code) = ErrorCode::ALL.into_iter().find(|code| code.grpc_code() == status.code() as i32) else {
        return foreign(status);
    };
    let mut error = Error::new(code, info.reason, status.message());
    for violation in
        status.get_details_bad_request().map(|request| request.field_violations).unwrap_or_default()
    {
        error = error.with_violation(violation.field, violation.description);
    }
    match status.get_details_retry_info().and_then(|info| info.retry_delay) {
        Some(wait) => error.retry_after(wait),
        None => error,
    }
}

fn foreign(status: Status) -> Error {
    let error = match status.code() {
        Code::DeadlineExceeded | Code::Cancelled => Error::deadline_exceeded(
            "DEADLINE_EXCEEDED",
            "The service did not answer in time. Whether it acted is not known; read before you try again.",
        ),
        Code::Unavailable | Code::Unknown => Error::unavailable(
            "SERVICE_UNAVAILABLE",
            "A service that this needs is away. Try again in a moment.",
        ),
        Code::ResourceExhausted => Error::resource_exhausted(
            "SERVICE_BUSY",
            "A service that this needs is at its limit. Try again in a moment.",
        ),
        Code::Unauthenticated => {
            Error::unauthenticated("UNAUTHENTICATED", "The credential was not accepted.")
        }
        Code::PermissionDenied => Error::permission_denied("PERMISSION_DENIED", "This is not allowed."),
        _ => return Error::internal(status),
    };
    error.caused_by(status)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_error_survives_the_wire() {
        for code in ErrorCode::ALL {
            let sent = Error::new(code, "SOME_REASON", "What to do.")
                .with_violation("a.b[0]", "must be smaller")
                .retry_after(Duration::from_millis(1500))
                .caused_by("the secret cause");
            let status = to_status(&sent);
            assert!(!format!("{status:?}").contains("secret"), "the cause left the process");
            let received = from_status(status);
            assert_eq!(received.code(), code);
            assert_eq!(received.reason(), "SOME_REASON");
            assert_eq!(received.message(), "What to do.");
            assert_eq!(received.violations(), sent.violations());
            assert_eq!(received.retry_after_hint(), Some(Duration::from_millis(1500)));
        }
    }

    #[test]
    fn another_systems_words_stay_inside() {
        let error = from_status(Status::unknown("connect to 10.0.0.7 refused"));
        assert_eq!(error.code(), ErrorCode::Unavailable);
        assert!(!error.to_string().contains("10.0.0.7"));
    }
}
