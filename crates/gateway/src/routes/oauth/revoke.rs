//! `POST /oauth2/revoke`: end a token that one holds (RFC 7009).

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::auth::v1::RevokeTokenRequest;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::context::Context;
use crate::oauth_error::OAuthProblem;
use crate::route::{Access, LimitClass, Route, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Public,
        &["/gatehouse.auth.v1.TokenService/RevokeToken"],
        LimitClass::Token,
        handler!(handle),
    )
    .with_oauth_errors()
}

/// The token to end.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "the form's shape, for the documentation; it is read field by field")]
struct RevokeForm {
    /// A refresh token, access token or API key.
    #[schema(format = Password)]
    token: String,
    /// Not needed.
    token_type_hint: Option<String>,
}

/// End a refresh token, access token or API key. Holding it is the proof; unknown ones succeed too.
#[utoipa::path(
    post, path = "/oauth2/revoke", operation_id = "oauthRevoke", tag = "oauth",
    request_body(content = RevokeForm, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, description = "It is live no more"),
        (status = 400, body = OAuthProblem, description = "Refused"),
        (status = 415, body = OAuthProblem, description = "The body is no form"),
    )
)]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let form = context.form().await?;
    let token = form.require("token")?.to_owned();
    context.tokens().await?.revoke_token(RevokeTokenRequest { token }).await.map_err(from_status)?;
    Ok(HttpResponse::Ok().finish())
}
