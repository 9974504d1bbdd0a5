//! One error for every use case, whatever carries it out of the process.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// What kind of failure it is. The table to gRPC codes and HTTP statuses stands in `docs/errors.md`, generated
/// from [`ErrorCode::ALL`] and the two columns here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The request itself is wrong; sending it again unchanged can't help.
    InvalidArgument,
    /// No credential, or one that does not hold.
    Unauthenticated,
    /// A known caller who may not do this.
    PermissionDenied,
    /// No such thing, or none that this caller may know of.
    NotFound,
    /// It exists already, or an idempotency key was used for something else.
    AlreadyExists,
    /// Right request, wrong state: it may work after something else changes.
    FailedPrecondition,
    /// Lost a race; read again and try again.
    Aborted,
    /// Over a limit; wait for `retry_after` and try again.
    ResourceExhausted,
    /// A dependency is away; try again with backoff.
    Unavailable,
    /// The time allowed ran out; whether it was done is not known.
    DeadlineExceeded,
    /// The server has no such method.
    Unimplemented,
    /// Our fault.
    Internal,
}

impl ErrorCode {
    /// Every code, in the order of the documentation.
    pub const ALL: [Self; 12] = [
        Self::InvalidArgument,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::NotFound,
        Self::AlreadyExists,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::ResourceExhausted,
        Self::Unavailable,
        Self::DeadlineExceeded,
        Self::Unimplemented,
        Self::Internal,
    ];

    /// The name on the wire and in logs, as gRPC spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::NotFound => "NOT_FOUND",
            Self::AlreadyExists => "ALREADY_EXISTS",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::Unavailable => "UNAVAILABLE",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
        }
    }

    /// The gRPC status code (`google.rpc.Code`).
    #[must_use]
    pub const fn grpc_code(self) -> i32 {
        match self {
            Self::InvalidArgument => 3,
            Self::DeadlineExceeded => 4,
            Self::NotFound => 5,
            Self::AlreadyExists => 6,
            Self::PermissionDenied => 7,
            Self::ResourceExhausted => 8,
            Self::FailedPrecondition => 9,
            Self::Aborted => 10,
            Self::Unimplemented => 12,
            Self::Internal => 13,
            Self::Unavailable => 14,
            Self::Unauthenticated => 16,
        }
    }

    /// The HTTP status (RFC 9110, section 15). [`Error::http_status`] refines it for a few reasons.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::InvalidArgument => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::FailedPrecondition | Self::Aborted => 409,
            Self::ResourceExhausted => 429,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
            Self::Internal => 500,
            Self::Unimplemented => 501,
        }
    }

    /// Whether the same request may succeed later without anyone changing anything else.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(self, Self::Aborted | Self::ResourceExhausted | Self::Unavailable)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One wrong field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field, such as `variables[0].lower`.
    pub field: String,
    /// What is wrong with it and what would be right; shown to the caller.
    pub description: String,
}

/// A failure with two faces: what the caller may read (`code`, `reason`, `message`, `violations`,
/// `retry_after`) and what only our log may (`source`). Transports send the first and log the second, once.
pub struct Error {
    code: ErrorCode,
    reason: Cow<'static, str>,
    message: String,
    violations: Vec<FieldViolation>,
    retry_after: Option<Duration>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result of a use case.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $code:ident;)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $name(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
            Self::new(ErrorCode::$code, reason, message)
        }
    )*};
}

impl Error {
    /// A failure of kind `code`.
    ///
    /// `reason`: stable `UPPER_SNAKE_CASE`, the name that programs match on (`ErrorInfo.reason`). `message`:
    /// one sentence for the caller that says what to do; never a secret, a path or another system's words.
    #[must_use]
    pub fn new(code: ErrorCode, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            message: message.into(),
            violations: Vec::new(),
            retry_after: None,
            source: None,
        }
    }

    constructors! {
        /// See [`ErrorCode::InvalidArgument`].
        invalid_argument => InvalidArgument;
        /// See [`ErrorCode::Unauthenticated`].
        unauthenticated => Unauthenticated;
        /// See [`ErrorCode::PermissionDenied`].
        permission_denied => PermissionDenied;
        /// See [`ErrorCode::NotFound`].
        not_found => NotFound;
        /// See [`ErrorCode::AlreadyExists`].
        already_exists => AlreadyExists;
        /// See [`ErrorCode::FailedPrecondition`].
        failed_precondition => FailedPrecondition;
        /// See [`ErrorCode::Aborted`].
        aborted => Aborted;
        /// See [`ErrorCode::ResourceExhausted`].
        resource_exhausted => ResourceExhausted;
        /// See [`ErrorCode::Unavailable`].
        unavailable => Unavailable;
        /// See [`ErrorCode::DeadlineExceeded`].
        deadline_exceeded => DeadlineExceeded;
        /// See [`ErrorCode::Unimplemented`].
        unimplemented => Unimplemented;
    }

    /// A fault of ours: the caller reads a fixed sentence, the log reads `source`.
    #[must_use]
    pub fn internal(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(
            ErrorCode::Internal,
            "INTERNAL",
            "Something went wrong on our side. Try again; if it stays, report the request id.",
        )
        .caused_by(source)
    }

    /// A wrong field, as [`ErrorCode::InvalidArgument`] with the reason `INVALID_FIELD`.
    #[must_use]
    pub fn invalid_field(field: impl Into<String>, description: impl Into<String>) -> Self {
        let (field, description) = (field.into(), description.into());
        let message = format!("{field}: {description}");
        Self::invalid_argument("INVALID_FIELD", message).with_violation(field, description)
    }

    /// Adds the cause that only our log may read.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds a wrong field.
    #[must_use]
    pub fn with_violation(mut self, field: impl Into<String>, description: impl Into<String>) -> Self {
        self.violations.push(FieldViolation { field: field.into(), description: description.into() });
        self
    }

    /// Adds how long the caller should wait before it tries again.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The kind of failure.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        self.code
    }

    /// The stable name of this failure.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What the caller may read.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The wrong fields.
    #[must_use]
    pub fn violations(&self) -> &[FieldViolation] {
        &self.violations
    }

    /// How long to wait before trying again, where known.
    #[must_use]
    pub const fn retry_after_hint(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The cause that only our log may read.
    #[must_use]
    pub fn cause(&self) -> Option<&(dyn StdError + Send + Sync + 'static)> {
        self.source.as_deref()
    }

    /// The HTTP status: that of the code, refined for the reasons that HTTP has its own number for.
    #[must_use]
    pub fn http_status(&self) -> u16 {
        match self.reason.as_ref() {
            "PAYLOAD_TOO_LARGE" => 413,
            "URI_TOO_LONG" => 414,
            "UNSUPPORTED_MEDIA_TYPE" => 415,
            "METHOD_NOT_ALLOWED" => 405,
            "BODY_TIMEOUT" => 408,
            _ => self.code.http_status(),
        }
    }
}

/// The public face only: safe to show anyone.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code, self.reason, self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut cause = self.source.as_deref().map(|source| source as &dyn StdError);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_face_hides_the_cause() {
        let error = Error::internal("password of the database was wrong");
        assert!(!error.to_string().contains("password"));
        assert!(format!("{error:?}").contains("password"));
        assert_eq!(error.http_status(), 500);
    }

    #[test]
    fn every_code_has_its_own_grpc_number_and_name() {
        let mut numbers: Vec<_> = ErrorCode::ALL.iter().map(|code| code.grpc_code()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), ErrorCode::ALL.len());
    }
}
