//! Why a route refuses: what its gRPC methods declare beside themselves in `proto/`, and what the gateway itself refuses
//! for, which follows from what the route declares. The API's documentation lists it, and [`as_listed`] holds the routes
//! to it.

use std::sync::LazyLock;

use gatehouse_core::{Error, ErrorCode};
use gatehouse_proto::access::{self, Declared, Refusal};
use utoipa::openapi::RefOr;

use crate::oauth_error;
use crate::route::{Access, ErrorFormat, Route, declared};

type List = &'static [(ErrorCode, &'static str)];

/// Before a request is routed: always a problem document (RFC 9457).
const BEFORE_ROUTING: List = &[
    (ErrorCode::InvalidArgument, "URI_TOO_LONG"),
    (ErrorCode::InvalidArgument, "INVALID_HOST"),
    (ErrorCode::InvalidArgument, "CONNECTION_CLOSING"),
    (ErrorCode::ResourceExhausted, "TOO_MANY_REQUESTS"),
];
/// The same, where something may change.
const BEFORE_A_CHANGE: List = &[(ErrorCode::PermissionDenied, "CROSS_SITE_REQUEST")];
const ANY_ROUTE: List = &[(ErrorCode::Internal, "INTERNAL")];
const WITH_LIMITS: List = &[(ErrorCode::ResourceExhausted, "RATE_LIMITED")];
/// Where a caller shows a credential.
const WITH_A_CALLER: List = &[
    (ErrorCode::InvalidArgument, "AMBIGUOUS_CREDENTIAL"),
    (ErrorCode::Unauthenticated, "CREDENTIAL_MISSING"),
    (ErrorCode::Unauthenticated, "CREDENTIAL_MALFORMED"),
    (ErrorCode::Unauthenticated, "CREDENTIAL_INVALID"),
    (ErrorCode::Unauthenticated, "UNSUPPORTED_SCHEME"),
    (ErrorCode::Unauthenticated, "WRONG_ENVIRONMENT"),
];
/// Where an OAuth client shows its secret.
const WITH_A_CLIENT: List =
    &[(ErrorCode::InvalidArgument, "AMBIGUOUS_CREDENTIAL"), (ErrorCode::Unauthenticated, "CLIENT_MISSING")];
/// Where a service is called: what `gatehouse_client` makes of one that is away or is no Gatehouse; one of an earlier
/// version may not have the method.
const WITH_A_CALL: List = &[
    (ErrorCode::Unauthenticated, "UNAUTHENTICATED"),
    (ErrorCode::PermissionDenied, "PERMISSION_DENIED"),
    (ErrorCode::Unimplemented, "METHOD_NOT_FOUND"),
    (ErrorCode::ResourceExhausted, "SERVICE_BUSY"),
    (ErrorCode::Unavailable, "SERVICE_UNAVAILABLE"),
    (ErrorCode::Unavailable, "CONNECTION_LOST"),
    (ErrorCode::DeadlineExceeded, "DEADLINE_EXCEEDED"),
];
/// The gateway's own calls on the way to any other.
const ON_THE_WAY: &[&str] =
    &["/gatehouse.auth.v1.TokenService/IssueToken", "/gatehouse.auth.v1.TokenService/ExchangeToken"];
/// Where parameters are read, if only to see that there are none.
const WITH_A_QUERY: List = &[(ErrorCode::InvalidArgument, "INVALID_FIELD")];
/// Where a body is read, if only to see that there is none.
const READING_A_BODY: List = &[
    (ErrorCode::InvalidArgument, "PAYLOAD_TOO_LARGE"),
    (ErrorCode::InvalidArgument, "BODY_BROKEN"),
    (ErrorCode::DeadlineExceeded, "BODY_TIMEOUT"),
];
const WITH_A_BODY: List = &[
    (ErrorCode::InvalidArgument, "INVALID_FIELD"),
    (ErrorCode::InvalidArgument, "DUPLICATE_HEADER"),
    (ErrorCode::InvalidArgument, "UNSUPPORTED_MEDIA_TYPE"),
    (ErrorCode::InvalidArgument, "BODY_NOT_UTF8"),
];
const WITH_JSON: List = &[(ErrorCode::InvalidArgument, "MALFORMED_JSON")];
const WITHOUT_A_BODY: List = &[(ErrorCode::InvalidArgument, "BODY_NOT_EXPECTED")];

/// Everything that `route` may refuse for, sorted by code.
pub(crate) fn of(route: &Route) -> Vec<Refusal> {
    let mut all: Vec<Refusal> = declared(route.calls).flat_map(Declared::refusals).collect();
    let mut add = |list: List| all.extend(list.iter().map(|(code, reason)| (*code, (*reason).to_owned())));
    add(ANY_ROUTE);
    add(route.own_refusals);
    if route.access != Access::Probe {
        add(WITH_LIMITS);
    }
    match route.access {
        Access::Caller(_) => add(WITH_A_CALLER),
        Access::OAuthClient => add(WITH_A_CLIENT),
        Access::Public | Access::Probe => {}
    }
    if route.access != Access::Probe {
        add(WITH_A_QUERY);
    }
    match &route.operation.request_body {
        Some(body) => {
            add(READING_A_BODY);
            add(WITH_A_BODY);
            if matches!(body, RefOr::T(body) if body.content.contains_key("application/json")) {
                add(WITH_JSON);
            }
        }
        None if route.method.is_safe() => {}
        None => {
            add(READING_A_BODY);
            add(WITHOUT_A_BODY);
        }
    }
    if !route.calls.is_empty() {
        add(WITH_A_CALL);
        // That auth refuses the gateway is told as a service that is away, unless trying again may help.
        let on_the_way = declared(ON_THE_WAY).flat_map(Declared::refusals);
        all.extend(on_the_way.filter(|(code, _)| code.is_retryable()));
    }
    access::sort(&mut all);
    all
}

/// What `route` answers when it refuses: status, name, and the format that the name stands in (`reason` of a problem, `error`
/// of RFC 6749). Sorted, each once.
pub(crate) fn answers(route: &Route) -> Vec<(u16, ErrorFormat, String)> {
    let problem = |(code, reason): (ErrorCode, String)| {
        (Error::new(code, reason.clone(), "").http_status(), ErrorFormat::Problem, reason)
    };
    let of_a_change: List = if route.method.is_safe() { &[] } else { BEFORE_A_CHANGE };
    let before =
        BEFORE_ROUTING.iter().chain(of_a_change).map(|(code, reason)| problem((*code, (*reason).to_owned())));
    let routed = route.refusals().iter().map(|refusal| match route.errors {
        ErrorFormat::Problem => problem(refusal.clone()),
        ErrorFormat::OAuth => {
            let (status, name) = oauth_error::shown(&Error::new(refusal.0, refusal.1.clone(), ""));
            (status.as_u16(), ErrorFormat::OAuth, name.to_owned())
        }
    });
    let mut all: Vec<_> = before.chain(routed).collect();
    all.sort_by(|a, b| (a.0, a.1 as u8, &a.2).cmp(&(b.0, b.1 as u8, &b.2)));
    all.dedup();
    all
}

/// `error`, if the documentation of `route` lists it. Any other is a fault of ours: callers get it all the same, and the log
/// says so; under test a development build answers `INTERNAL`, which no test overlooks.
pub(crate) fn as_listed(route: &Route, error: Error) -> Error {
    static UNDER_TEST: LazyLock<bool> = LazyLock::new(|| std::env::var_os("GATEHOUSE_TEST_STRICT").is_some());
    judged(route, error, cfg!(debug_assertions) && *UNDER_TEST)
}

fn judged(route: &Route, error: Error, is_strict: bool) -> Error {
    if route.refusals().iter().any(|(code, reason)| *code == error.code() && reason == error.reason()) {
        return error;
    }
    tracing::error!(
        route = route.name,
        code = error.code().as_str(),
        reason = error.reason(),
        "a route refused for a reason that its documentation does not list"
    );
    if is_strict {
        return Error::internal(format!("{} lists no {} {}", route.name, error.code(), error.reason()));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::{docs, routes};

    fn reasons(name: &str) -> Vec<(u16, String)> {
        let table = routes::table();
        let route = table.iter().find(|route| route.name == name).expect("a route");
        answers(route).into_iter().map(|(status, _, reason)| (status, reason)).collect()
    }

    fn lists(name: &str, status: u16, reason: &str) -> bool {
        reasons(name).contains(&(status, reason.to_owned()))
    }

    #[test]
    fn a_route_refuses_for_what_stands_behind_it_and_before_it() {
        for (route, status, reason) in [
            ("POST /v1/jobs", 404, "KIND_NOT_FOUND"),
            ("POST /v1/jobs", 429, "RATE_LIMITED"),
            ("POST /v1/jobs", 401, "CREDENTIAL_MISSING"),
            ("POST /v1/jobs", 413, "PAYLOAD_TOO_LARGE"),
            ("POST /v1/jobs", 400, "MALFORMED_JSON"),
            ("POST /v1/jobs", 403, "PERMISSION_DENIED"),
            ("POST /v1/jobs", 503, "SERVICE_UNAVAILABLE"),
            // As the door of every service answers, and as it comes over the wire.
            ("POST /v1/jobs", 501, "METHOD_NOT_FOUND"),
            ("POST /v1/jobs/{job_id}/cancel", 400, "BODY_NOT_EXPECTED"),
            ("GET /v1/jobs/{job_id}/result", 409, "JOB_NOT_FINISHED"),
            ("GET /v1/jobs/{job_id}/events", 429, "TOO_MANY_STREAMS"),
            ("GET /v1/connections", 403, "PERSON_REQUIRED"),
            ("GET /readyz", 503, "DRAINING"),
            ("POST /oauth2/token", 400, "unsupported_grant_type"),
            ("POST /oauth2/token", 401, "invalid_client"),
            ("POST /oauth2/token", 414, "URI_TOO_LONG"),
            ("POST /oauth2/token", 403, "CROSS_SITE_REQUEST"),
        ] {
            assert!(lists(route, status, reason), "{route}: {status} {reason}: {:?}", reasons(route));
        }
        for (route, reason) in [
            ("GET /healthz", "RATE_LIMITED"),
            ("GET /healthz", "INVALID_FIELD"),
            ("GET /v1/jobs", "CROSS_SITE_REQUEST"),
            ("GET /v1/jobs", "MALFORMED_JSON"),
            ("POST /v1/auth/sign-in", "CREDENTIAL_MISSING"),
            ("POST /oauth2/token", "UNSUPPORTED_GRANT_TYPE"),
        ] {
            assert!(!reasons(route).iter().any(|(_, listed)| listed == reason), "{route}: {reason}");
        }
    }

    #[test]
    fn the_document_and_the_page_show_every_reason() {
        let table = routes::table();
        let document = docs::document(&table, &Config::default());
        let page = docs::Documents::new(&table, &Config::default()).page;
        let mut shown = 0;
        for route in &table {
            let operation = &document["paths"][&route.path][route.method.as_str().to_ascii_lowercase()];
            for (status, format, name) in answers(route) {
                let response = &operation["responses"][status.to_string()];
                let listed = response[format.names()].as_array().expect("a list");
                assert_eq!(listed.iter().filter(|one| **one == name).count(), 1, "{}: {name}", route.name);
                let media = match format {
                    ErrorFormat::Problem => "application/problem+json",
                    ErrorFormat::OAuth => "application/json",
                };
                assert!(response["content"][media]["schema"].is_object(), "{}: {status}", route.name);
                assert!(response["description"].is_string(), "{}: {status}", route.name);
                assert!(page.contains(&format!("<code>{name}</code>")), "{name}");
                shown += 1;
            }
        }
        assert!(shown > 1000, "{shown}");
    }

    #[test]
    fn a_reason_that_is_not_listed_is_a_fault() {
        let table = routes::table();
        let route = table.iter().find(|route| route.name == "GET /v1/jobs/{job_id}").expect("a route");
        let listed = as_listed(route, Error::not_found("JOB_NOT_FOUND", "None."));
        assert_eq!(listed.reason(), "JOB_NOT_FOUND");
        // Nobody outside a test pays for what the documentation lacks.
        let unlisted = judged(route, Error::not_found("NO_SUCH_REASON", "None."), false);
        assert_eq!(unlisted.reason(), "NO_SUCH_REASON");
        for unlisted in
            [Error::not_found("NO_SUCH_REASON", "None."), Error::aborted("JOB_NOT_FOUND", "None.")]
        {
            let reason = unlisted.reason().to_owned();
            assert_eq!(judged(route, unlisted, true).reason(), "INTERNAL", "{reason}");
        }
    }
}
