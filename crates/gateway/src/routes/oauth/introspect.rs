//! `POST /oauth2/introspect`: whether a token is live (RFC 7662).

use actix_web::HttpResponse;
use gatehouse_client::{audience, from_status};
use gatehouse_core::{Error, Result};
use gatehouse_proto::auth::v1::{IntrospectTokenRequest, IssueTokenRequest};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::client;
use crate::context::Context;
use crate::oauth_error::OAuthProblem;
use crate::route::{Access, LimitClass, Route, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::OAuthClient,
        &["/gatehouse.auth.v1.TokenService/IssueToken", "/gatehouse.auth.v1.TokenService/IntrospectToken"],
        LimitClass::Token,
        handler!(handle),
    )
    .with_oauth_errors()
}

/// The token asked about, and the client that asks.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "the form's shape, for the documentation; it is read field by field")]
struct IntrospectForm {
    #[schema(format = Password)]
    token: String,
    /// Unless sent by HTTP Basic.
    client_id: Option<String>,
    /// Unless sent by HTTP Basic.
    #[schema(format = Password)]
    client_secret: Option<String>,
}

/// Whether a token is live, and what it says. For clients that hold `auth.tokens.introspect`.
///
/// Unknown, ended and revoked tokens give `{"active": false}`.
#[utoipa::path(
    post, path = "/oauth2/introspect", operation_id = "oauthIntrospect", tag = "oauth",
    request_body(content = IntrospectForm, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, body = Value, description = "`active`, and the claims if it is"),
        (status = 400, body = OAuthProblem, description = "Refused"),
        (status = 401, body = OAuthProblem, description = "The client is not known"),
        (status = 403, body = OAuthProblem, description = "The client may not introspect tokens (`unauthorized_client`)"),
        (status = 415, body = OAuthProblem, description = "The body is no form"),
    )
)]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let form = context.form().await?;
    let (client_id, client_secret) = client(&context, &form)?;
    let token = form.require("token")?.to_owned();
    let request = IssueTokenRequest {
        client_id,
        client_secret,
        audience: audience::AUTH.to_owned(),
        scope: "auth.tokens.introspect".to_owned(),
    };
    let own = context.tokens().await?.issue_token(request).await.map_err(from_status).map_err(|error| {
        match error.reason() {
            // The scope is of our asking, not the client's.
            "INVALID_SCOPE" => Error::permission_denied(
                "PERMISSION_DENIED",
                "This client may not introspect tokens: that needs the permission auth.tokens.introspect.",
            ),
            _ => error,
        }
    })?;
    let own = own.into_inner();
    let answer = context
        .tokens_as(own.access_token)
        .introspect_token(IntrospectTokenRequest { token })
        .await
        .map_err(from_status)?
        .into_inner();
    let mut claims: Map<String, Value> = if answer.active && !answer.claims_json.is_empty() {
        serde_json::from_str(&answer.claims_json).map_err(Error::internal)?
    } else {
        Map::new()
    };
    claims.insert("active".to_owned(), answer.active.into());
    Ok(HttpResponse::Ok().json(claims))
}
