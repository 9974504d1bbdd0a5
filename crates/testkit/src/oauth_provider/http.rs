//! The endpoints.

use std::time::Instant;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, ContentType};
use actix_web::{HttpRequest, HttpResponse, web};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use url::Url;

use super::state::{Asked, Issued, Refusal};
use super::{Consent, Fault, Shared};

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/.well-known/oauth-authorization-server", web::get().to(metadata))
        .route("/authorize", web::get().to(authorize))
        .route("/authorize/decision", web::post().to(decide))
        .route("/token", web::post().to(token))
        .route("/revoke", web::post().to(revoke))
        .route("/api/me", web::get().to(me));
}

async fn metadata(shared: web::Data<Shared>) -> HttpResponse {
    let base = shared.lock().base_url.clone();
    HttpResponse::Ok().json(json!({
        "issuer": base,
        "authorization_endpoint": format!("{base}/authorize"),
        "token_endpoint": format!("{base}/token"),
        "revocation_endpoint": format!("{base}/revoke"),
        "response_types_supported": ["code"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "authorization_response_iss_parameter_supported": true,
    }))
}

#[derive(Deserialize)]
struct AuthorizeQuery {
    response_type: Option<String>,
    client_id: Option<String>,
    redirect_uri: Option<String>,
    scope: Option<String>,
    state: Option<String>,
    code_challenge: Option<String>,
    code_challenge_method: Option<String>,
}

async fn authorize(shared: web::Data<Shared>, query: web::Query<AuthorizeQuery>) -> HttpResponse {
    let mut state = shared.lock();
    let query = query.into_inner();
    if query.client_id.as_deref() != Some(state.options.client_id.as_str()) {
        return page(StatusCode::BAD_REQUEST, "<h1>Unknown client</h1>");
    }
    // Where the redirect URI is wrong the person must not be sent there (RFC 6749, section 4.1.2.1).
    let Some(redirect_uri) =
        query.redirect_uri.filter(|uri| is_redirect_uri(uri, &state.options.redirect_uris))
    else {
        return page(StatusCode::BAD_REQUEST, "<h1>Unknown redirect URI</h1>");
    };
    let base = state.base_url.clone();
    let refuse = |error| send_back(&base, &redirect_uri, query.state.as_deref(), ("error", error));
    if query.response_type.as_deref() != Some("code") {
        return refuse("unsupported_response_type");
    }
    let challenge = query.code_challenge.filter(|challenge| challenge.len() == 43);
    let (Some(challenge), Some("S256")) = (challenge, query.code_challenge_method.as_deref()) else {
        return refuse("invalid_request");
    };
    let consent = state.options.consent;
    if consent == Consent::Deny {
        return refuse("access_denied");
    }
    let asked = Asked { redirect_uri, state: query.state, scope: query.scope.unwrap_or_default(), challenge };
    if consent == Consent::Auto {
        let code = state.issue_code(asked.clone());
        return send_back(&base, &asked.redirect_uri, asked.state.as_deref(), ("code", &code));
    }
    let scope = escape(&asked.scope);
    let subject = escape(&state.options.subject);
    let ticket = state.wait_for_person(asked);
    page(
        StatusCode::OK,
        &format!(
            "<h1>Connect Gatehouse?</h1><p>Signed in as {subject}. It asks for: {scope}</p>\
             <form method=\"post\" action=\"/authorize/decision\">\
             <input type=\"hidden\" name=\"ticket\" value=\"{ticket}\">\
             <button name=\"decision\" value=\"allow\">Allow</button> \
             <button name=\"decision\" value=\"deny\">Deny</button></form>"
        ),
    )
}

#[derive(Deserialize)]
struct DecisionForm {
    ticket: String,
    decision: String,
}

async fn decide(shared: web::Data<Shared>, form: web::Form<DecisionForm>) -> HttpResponse {
    let mut state = shared.lock();
    let Some(asked) = state.answer_of_person(&form.ticket) else {
        return page(StatusCode::BAD_REQUEST, "<h1>This request was answered before</h1>");
    };
    let base = state.base_url.clone();
    if form.decision != "allow" {
        return send_back(&base, &asked.redirect_uri, asked.state.as_deref(), ("error", "access_denied"));
    }
    let code = state.issue_code(asked.clone());
    send_back(&base, &asked.redirect_uri, asked.state.as_deref(), ("code", &code))
}

#[derive(Deserialize)]
struct TokenForm {
    grant_type: Option<String>,
    code: Option<String>,
    redirect_uri: Option<String>,
    code_verifier: Option<String>,
    refresh_token: Option<String>,
    client_id: Option<String>,
    client_secret: Option<String>,
}

async fn token(shared: web::Data<Shared>, request: HttpRequest, form: web::Form<TokenForm>) -> HttpResponse {
    let (fault, answer, presented) = {
        let mut state = shared.lock();
        let fault = state.next_fault();
        let mut presented = None;
        if form.grant_type.as_deref() == Some("refresh_token") {
            state.counters.refresh_attempts += 1;
            let token = form.refresh_token.as_deref().unwrap_or_default();
            presented = Some(state.note_presented(token, request.query_string(), fault.clone()));
        }
        match &fault {
            Some(Fault::ServerError) => return HttpResponse::InternalServerError().body("try later"),
            Some(Fault::InvalidGrant) => return refusal(Refusal("invalid_grant")),
            Some(Fault::TooManyRequests) => {
                return HttpResponse::TooManyRequests().insert_header((header::RETRY_AFTER, "1")).finish();
            }
            _ => {}
        }
        let (id, secret) = credentials(&request, form.client_id.as_deref(), form.client_secret.as_deref());
        if !state.is_client(&id, &secret) {
            return refusal(Refusal("invalid_client"));
        }
        let done = match (form.grant_type.as_deref(), &form.refresh_token, &form.code) {
            (Some("authorization_code"), _, Some(code)) => {
                let text = |field: &Option<String>| field.clone().unwrap_or_default();
                state.exchange_code(code, &text(&form.redirect_uri), &text(&form.code_verifier))
            }
            (Some("refresh_token"), Some(token), _) => state.refresh(token),
            (Some("authorization_code" | "refresh_token"), ..) => Err(Refusal("invalid_request")),
            _ => Err(Refusal("unsupported_grant_type")),
        };
        let answer = match done {
            Ok(issued) => {
                if let Some(presented) = presented.and_then(|place| state.presented.get_mut(place)) {
                    presented.accepted = true;
                    presented.successor.clone_from(&issued.refresh_token);
                }
                granted(&issued, state.options.access_token_lifetime.as_secs(), state.scope_of(issued.grant))
            }
            Err(error) => return refusal(error),
        };
        (fault, answer, presented)
    };
    let answer = answer_with(fault, answer).await;
    if let Some(presented) = presented
        && let Some(presented) = shared.lock().presented.get_mut(presented)
    {
        presented.answered_at = Some(Instant::now());
    }
    answer
}

async fn answer_with(fault: Option<Fault>, answer: serde_json::Value) -> HttpResponse {
    match fault {
        Some(Fault::DropAnswer) => {
            // A body that fails before its first byte: the server closes the connection.
            let broken = futures_util::stream::once(async {
                Err::<Bytes, std::io::Error>(std::io::Error::other("dropped"))
            });
            return HttpResponse::Ok().insert_header(ContentType::json()).streaming(broken);
        }
        Some(Fault::Delay(wait)) => actix_web::rt::time::sleep(wait).await,
        Some(Fault::ServerErrorAfter) => return HttpResponse::InternalServerError().body("try later"),
        Some(Fault::Garbage) => {
            return HttpResponse::Ok().insert_header(ContentType::json()).body("<html>\u{fffd}{\"access");
        }
        Some(Fault::Oversized(bytes)) => {
            let filler = serde_json::to_string(&answer).unwrap_or_default().replacen('{', "", 1);
            let body = format!("{{\"filler\":\"{}\",{filler}", "x".repeat(bytes));
            return HttpResponse::Ok().insert_header(ContentType::json()).body(body);
        }
        _ => {}
    }
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::PRAGMA, "no-cache"))
        .json(answer)
}

fn granted(issued: &Issued, expires_in: u64, scope: &str) -> serde_json::Value {
    let mut answer = json!({
        "access_token": issued.access_token,
        "token_type": "Bearer",
        "expires_in": expires_in,
        "scope": scope,
    });
    if let Some(refresh_token) = &issued.refresh_token {
        answer["refresh_token"] = json!(refresh_token);
    }
    answer
}

#[derive(Deserialize)]
struct RevokeForm {
    token: String,
    client_id: Option<String>,
    client_secret: Option<String>,
}

async fn revoke(
    shared: web::Data<Shared>,
    request: HttpRequest,
    form: web::Form<RevokeForm>,
) -> HttpResponse {
    let mut state = shared.lock();
    let (id, secret) = credentials(&request, form.client_id.as_deref(), form.client_secret.as_deref());
    if !state.is_client(&id, &secret) {
        return refusal(Refusal("invalid_client"));
    }
    state.revoke(&form.token);
    HttpResponse::Ok().finish()
}

async fn me(shared: web::Data<Shared>, request: HttpRequest) -> HttpResponse {
    let token = authorization(&request).and_then(|value| value.strip_prefix("Bearer "));
    let mut state = shared.lock();
    match state.use_access_token(token.unwrap_or_default()) {
        Some(scope) => HttpResponse::Ok().json(json!({ "sub": state.options.subject, "scope": scope })),
        None => HttpResponse::Unauthorized()
            .insert_header((header::WWW_AUTHENTICATE, "Bearer error=\"invalid_token\""))
            .finish(),
    }
}

/// The status that RFC 6749, section 5.2, gives each error.
fn refusal(Refusal(error): Refusal) -> HttpResponse {
    let mut answer = if error == "invalid_client" {
        let mut unauthorized = HttpResponse::Unauthorized();
        unauthorized.insert_header((header::WWW_AUTHENTICATE, "Basic realm=\"token\""));
        unauthorized
    } else {
        HttpResponse::BadRequest()
    };
    answer.insert_header((header::CACHE_CONTROL, "no-store")).json(json!({ "error": error }))
}

fn authorization(request: &HttpRequest) -> Option<&str> {
    request.headers().get(header::AUTHORIZATION)?.to_str().ok()
}

/// The client's name and secret, from the header (both form-encoded: RFC 6749, section 2.3.1) or else the body.
fn credentials(request: &HttpRequest, id: Option<&str>, secret: Option<&str>) -> (String, String) {
    let basic = authorization(request)
        .and_then(|value| value.strip_prefix("Basic "))
        .and_then(|encoded| STANDARD.decode(encoded).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok());
    match basic.as_deref().and_then(|pair| pair.split_once(':')) {
        Some((id, secret)) => (form_decoded(id), form_decoded(secret)),
        None => (id.unwrap_or_default().to_owned(), secret.unwrap_or_default().to_owned()),
    }
}

fn form_decoded(text: &str) -> String {
    let pair = format!("v={text}");
    url::form_urlencoded::parse(pair.as_bytes())
        .next()
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

fn is_redirect_uri(uri: &str, known: &[String]) -> bool {
    if !known.is_empty() {
        return known.iter().any(|one| one == uri);
    }
    Url::parse(uri).is_ok_and(|url| {
        matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]")) && url.fragment().is_none()
    })
}

fn send_back(issuer: &str, redirect_uri: &str, state: Option<&str>, answer: (&str, &str)) -> HttpResponse {
    let Ok(mut url) = Url::parse(redirect_uri) else {
        return page(StatusCode::BAD_REQUEST, "<h1>Unknown redirect URI</h1>");
    };
    url.query_pairs_mut().append_pair(answer.0, answer.1).append_pair("iss", issuer);
    if let Some(state) = state {
        url.query_pairs_mut().append_pair("state", state);
    }
    HttpResponse::Found().insert_header((header::LOCATION, url.as_str())).finish()
}

fn page(status: StatusCode, body: &str) -> HttpResponse {
    HttpResponse::build(status)
        .insert_header(ContentType::html())
        .body(format!("<!doctype html><title>Test provider</title>{body}"))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
