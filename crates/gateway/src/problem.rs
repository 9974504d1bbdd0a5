//! The one error format at the edge: RFC 9457 problem documents, made from [`gatehouse_core::Error`] here and
//! nowhere else. Internal causes stay behind; they are logged once, with the request id.

use actix_web::http::StatusCode;
use actix_web::http::header;
use actix_web::{HttpResponse, HttpResponseBuilder};
use gatehouse_core::{Error, ErrorCode};
use serde::Serialize;
use utoipa::ToSchema;

/// The media type of every error answer.
pub(crate) const MEDIA_TYPE: &str = "application/problem+json";

/// What went wrong (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// Names the problem: `urn:gatehouse:problem:` and the reason in lower case with hyphens.
    #[schema(example = "urn:gatehouse:problem:invalid-field")]
    r#type: String,
    /// The kind of problem in words.
    title: &'static str,
    /// The HTTP status.
    #[schema(example = 400)]
    status: u16,
    /// What is wrong with this request and what to do.
    detail: String,
    /// This occurrence: `urn:gatehouse:request:` and the request id.
    instance: String,
    /// Stable name for programs.
    #[schema(example = "INVALID_FIELD")]
    reason: String,
    /// Also in the `X-Request-ID` header; quote it when you report a fault.
    request_id: String,
    /// The wrong fields, if the problem lies in fields.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ProblemField>,
}

/// A wrong field.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProblemField {
    /// Path of the field, such as `variables[0].lower`.
    field: String,
    /// What is wrong with it.
    detail: String,
}

/// The answer for `error`, with what its status calls for: `WWW-Authenticate`, `Retry-After`.
#[must_use]
pub(crate) fn response(error: &Error, request_id: &str, credential_shown: bool) -> HttpResponse {
    let status = status(error);
    let problem = Problem {
        r#type: format!("urn:gatehouse:problem:{}", error.reason().to_ascii_lowercase().replace('_', "-")),
        title: title(error.code(), status),
        status: status.as_u16(),
        detail: error.message().to_owned(),
        instance: format!("urn:gatehouse:request:{request_id}"),
        reason: error.reason().to_owned(),
        request_id: request_id.to_owned(),
        errors: error
            .violations()
            .iter()
            .map(|one| ProblemField { field: one.field.clone(), detail: one.description.clone() })
            .collect(),
    };
    let mut builder = HttpResponse::build(status);
    add_headers(&mut builder, error, status, credential_shown);
    let body = serde_json::to_string(&problem).unwrap_or_default();
    builder.content_type(MEDIA_TYPE).insert_header((header::CACHE_CONTROL, "no-store")).body(body)
}

/// The HTTP status of an error.
#[must_use]
pub(crate) fn status(error: &Error) -> StatusCode {
    StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Headers that an error's status calls for, whatever the format of its body.
pub(crate) fn add_headers(
    builder: &mut HttpResponseBuilder,
    error: &Error,
    status: StatusCode,
    credential_shown: bool,
) {
    if status == StatusCode::UNAUTHORIZED {
        // RFC 6750, section 3: the error code only if a credential was shown.
        let challenge = if credential_shown {
            r#"Bearer realm="gatehouse", error="invalid_token""#
        } else {
            r#"Bearer realm="gatehouse""#
        };
        builder.insert_header((header::WWW_AUTHENTICATE, challenge));
    }
    if let Some(wait) = error.retry_after_hint() {
        let seconds = wait.as_millis().div_ceil(1000).max(1);
        builder.insert_header((header::RETRY_AFTER, seconds.to_string()));
    } else if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        builder.insert_header((header::RETRY_AFTER, "1"));
    }
    if status == StatusCode::PAYLOAD_TOO_LARGE || status == StatusCode::REQUEST_TIMEOUT {
        // The rest of the body is not going to be read.
        builder.force_close();
    }
}

fn title(code: ErrorCode, status: StatusCode) -> &'static str {
    match status.as_u16() {
        405 | 406 | 408 | 410 | 413 | 414 | 415 => status.canonical_reason().unwrap_or("Request refused"),
        _ => match code {
            ErrorCode::InvalidArgument => "The request is wrong",
            ErrorCode::Unauthenticated => "A valid credential is needed",
            ErrorCode::PermissionDenied => "Not allowed",
            ErrorCode::NotFound => "Not found",
            ErrorCode::AlreadyExists => "It exists already",
            ErrorCode::FailedPrecondition => "Not possible in this state",
            ErrorCode::Aborted => "Overtaken by another request",
            ErrorCode::ResourceExhausted => "Too much at once",
            ErrorCode::Unavailable => "Unavailable for the moment",
            ErrorCode::DeadlineExceeded => "It took too long",
            ErrorCode::Unimplemented => "Not offered by the service behind this",
            ErrorCode::Internal => "A fault on our side",
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn headers_follow_the_status() {
        let refused = response(&Error::unauthenticated("TOKEN_INVALID", "No."), "r1", true);
        assert_eq!(refused.status(), 401);
        assert!(
            refused
                .headers()
                .get("www-authenticate")
                .expect("there")
                .to_str()
                .expect("text")
                .contains("error=\"invalid_token\"")
        );
        let wait =
            Error::resource_exhausted("RATE_LIMITED", "Wait.").retry_after(Duration::from_millis(1200));
        assert_eq!(response(&wait, "r1", false).headers().get("retry-after").expect("there"), "2");
    }
}
