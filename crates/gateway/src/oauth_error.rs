//! Failures of the OAuth endpoints, in the format of RFC 6749, section 5.2.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header;
use gatehouse_core::{Error, ErrorCode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::problem;

/// What went wrong (RFC 6749, section 5.2).
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OAuthProblem {
    /// `invalid_request`, `invalid_client`, `invalid_grant`, `invalid_scope`, `invalid_target`,
    /// `unsupported_grant_type`, `unauthorized_client`, `temporarily_unavailable` or `server_error`.
    #[schema(example = "invalid_grant")]
    error: &'static str,
    /// What to do.
    error_description: String,
}

/// The status and the `error` that tell of `error`.
pub(crate) fn shown(error: &Error) -> (StatusCode, &'static str) {
    let name = name(error);
    let status = match name {
        "invalid_client" => StatusCode::UNAUTHORIZED,
        "invalid_request" if error.code() == ErrorCode::InvalidArgument => problem::status(error),
        "invalid_request"
        | "invalid_grant"
        | "invalid_scope"
        | "invalid_target"
        | "unsupported_grant_type" => StatusCode::BAD_REQUEST,
        _ => problem::status(error),
    };
    (status, name)
}

/// The answer for `error`.
pub(crate) fn response(error: &Error) -> HttpResponse {
    let (status, name) = shown(error);
    let mut builder = HttpResponse::build(status);
    problem::add_headers(&mut builder, error, status, true);
    if status == StatusCode::UNAUTHORIZED {
        builder.insert_header((header::WWW_AUTHENTICATE, r#"Basic realm="gatehouse""#));
    }
    // The characters that section 5.2 allows.
    let description = error
        .message()
        .chars()
        .map(|c| if matches!(c, '"' | '\\') || !(' '..='~').contains(&c) { '\'' } else { c })
        .collect();
    builder
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::PRAGMA, "no-cache"))
        .json(OAuthProblem { error: name, error_description: description })
}

fn name(error: &Error) -> &'static str {
    match (error.reason(), error.code()) {
        ("INVALID_CLIENT" | "CLIENT_MISSING", _) => "invalid_client",
        ("INVALID_SCOPE", _) => "invalid_scope",
        ("INVALID_TARGET", _) => "invalid_target",
        ("UNSUPPORTED_GRANT_TYPE", _) => "unsupported_grant_type",
        ("REFRESH_TOKEN_INVALID" | "REFRESH_TOKEN_REUSED" | "SESSION_EXPIRED", _) => "invalid_grant",
        (_, ErrorCode::Unavailable | ErrorCode::ResourceExhausted | ErrorCode::DeadlineExceeded) => {
            "temporarily_unavailable"
        }
        (_, ErrorCode::Internal | ErrorCode::Unimplemented) => "server_error",
        (_, ErrorCode::PermissionDenied) => "unauthorized_client",
        _ => "invalid_request",
    }
}
