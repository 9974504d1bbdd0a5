//! `POST /v1/auth/refresh`: the next tokens of a session.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::auth::v1::RefreshRequest;
use serde::Deserialize;
use utoipa::ToSchema;

use super::Tokens;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Public,
        &["/gatehouse.auth.v1.AccountService/Refresh"],
        LimitClass::Token,
        handler!(handle),
    )
}

/// The session's refresh token.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RefreshBody {
    #[schema(format = Password)]
    refresh_token: String,
}

/// Exchange a refresh token for its successor and a fresh access token.
///
/// If the answer was lost, the same token may be sent again for a short time. A token that was used up ends the session.
#[utoipa::path(post, path = "/v1/auth/refresh", operation_id = "refresh", tag = "auth", request_body = RefreshBody, responses((status = 200, body = Tokens, description = "Refreshed")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let body: RefreshBody = context.json().await?;
    let request = RefreshRequest { refresh_token: body.refresh_token, origin: Some(context.origin()) };
    let answer = context.accounts().await?.refresh(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Ok().json(Tokens::new(answer.tokens, &context)?))
}
