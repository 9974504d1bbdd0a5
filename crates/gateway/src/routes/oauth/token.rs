//! `POST /oauth2/token`: tokens by client credentials or refresh token (RFC 6749).

use actix_web::HttpResponse;
use actix_web::http::header;
use gatehouse_client::from_status;
use gatehouse_core::{Error, ErrorCode, Result, Timestamp};
use gatehouse_proto::auth::v1::{IssueTokenRequest, RefreshRequest};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::client;
use crate::context::{Context, Form};
use crate::oauth_error::OAuthProblem;
use crate::route::{Access, LimitClass, Route, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::OAuthClient,
        &["/gatehouse.auth.v1.TokenService/IssueToken", "/gatehouse.auth.v1.AccountService/Refresh"],
        LimitClass::Token,
        handler!(handle),
    )
    .with_oauth_errors()
    .refusing(&[(ErrorCode::InvalidArgument, "UNSUPPORTED_GRANT_TYPE")])
}

/// A token request. Unknown parameters are ignored (RFC 6749, section 3.2).
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "the form's shape, for the documentation; it is read field by field")]
struct TokenForm {
    /// `client_credentials` or `refresh_token`.
    grant_type: String,
    /// With `client_credentials`: the service that the token is for, such as `gatehouse.job`. `resource` does too.
    audience: Option<String>,
    /// With `client_credentials`: permissions to narrow to, separated by spaces.
    scope: Option<String>,
    /// With `refresh_token`.
    #[schema(format = Password)]
    refresh_token: Option<String>,
    /// Unless sent by HTTP Basic.
    client_id: Option<String>,
    /// Unless sent by HTTP Basic.
    #[schema(format = Password)]
    client_secret: Option<String>,
}

/// A token: a secret.
#[derive(Serialize, ToSchema)]
struct OAuthToken {
    access_token: String,
    /// `Bearer`.
    token_type: &'static str,
    /// Seconds until it ends.
    expires_in: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
}

/// Get a token: a service by its client credentials, a person's client by refresh token.
#[utoipa::path(
    post, path = "/oauth2/token", operation_id = "oauthToken", tag = "oauth",
    request_body(content = TokenForm, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, body = OAuthToken, description = "The token"),
        (status = 400, body = OAuthProblem, description = "Refused"),
        (status = 401, body = OAuthProblem, description = "The client is not known"),
        (status = 415, body = OAuthProblem, description = "The body is no form"),
    )
)]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let form = context.form().await?;
    let token = match form.require("grant_type")? {
        "client_credentials" => client_credentials(&context, &form).await?,
        "refresh_token" => refresh_token(&context, &form).await?,
        _ => {
            return Err(Error::invalid_argument(
                "UNSUPPORTED_GRANT_TYPE",
                "grant_type must be client_credentials or refresh_token.",
            ));
        }
    };
    Ok(HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::PRAGMA, "no-cache"))
        .json(token))
}

async fn client_credentials(context: &Context, form: &Form) -> Result<OAuthToken> {
    let (client_id, client_secret) = client(context, form)?;
    let audience = match form.get("audience") {
        Some(audience) => audience,
        None => form.require("resource")?,
    };
    let request = IssueTokenRequest {
        client_id,
        client_secret,
        audience: audience.to_owned(),
        scope: form.get("scope").unwrap_or_default().to_owned(),
    };
    let token = context.tokens().await?.issue_token(request).await.map_err(from_status)?.into_inner();
    Ok(OAuthToken {
        access_token: token.access_token,
        token_type: "Bearer",
        expires_in: remaining(context, token.expires_at),
        refresh_token: None,
        scope: Some(token.scope),
    })
}

async fn refresh_token(context: &Context, form: &Form) -> Result<OAuthToken> {
    let request = RefreshRequest {
        refresh_token: form.require("refresh_token")?.to_owned(),
        origin: Some(context.origin()),
    };
    let answer = context.accounts().await?.refresh(request).await.map_err(from_status)?.into_inner();
    let pair = answer.tokens.ok_or_else(|| Error::internal("auth answered without tokens"))?;
    Ok(OAuthToken {
        access_token: pair.access_token,
        token_type: "Bearer",
        expires_in: remaining(context, pair.access_token_expires_at),
        refresh_token: Some(pair.refresh_token),
        scope: None,
    })
}

fn remaining(context: &Context, expires_at: i64) -> i64 {
    (Timestamp::from_micros(expires_at).as_seconds() - context.gateway.clock.now().as_seconds()).max(0)
}
