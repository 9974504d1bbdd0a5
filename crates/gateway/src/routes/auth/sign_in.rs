//! `POST /v1/auth/sign-in`: a session for a password.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::auth::v1::SignInRequest;
use serde::Deserialize;
use utoipa::ToSchema;

use super::Tokens;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Public,
        &["/gatehouse.auth.v1.AccountService/SignIn"],
        LimitClass::SignIn,
        handler!(handle),
    )
}

/// Who signs in.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SignInBody {
    #[schema(example = "ada@example.org")]
    email: String,
    #[schema(format = Password)]
    password: String,
    /// The tenant to act in; may be absent for a person in one tenant or none.
    #[serde(default)]
    tenant_id: String,
}

/// Sign in with a password and start a session.
///
/// Unknown address, wrong password and disabled account give one and the same answer.
#[utoipa::path(post, path = "/v1/auth/sign-in", operation_id = "signIn", tag = "auth", request_body = SignInBody, responses((status = 200, body = Tokens, description = "Signed in")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let body: SignInBody = context.json().await?;
    let request = SignInRequest {
        email: body.email,
        password: body.password,
        tenant_id: body.tenant_id,
        origin: Some(context.origin()),
    };
    let answer = context.accounts().await?.sign_in(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Ok().json(Tokens::new(answer.tokens, &context)?))
}
