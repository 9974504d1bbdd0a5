//! `POST /v1/auth/sign-out`: end the own session.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::auth::v1::SignOutRequest;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Auth),
        &["/gatehouse.auth.v1.AccountService/SignOut"],
        LimitClass::Write,
        handler!(handle),
    )
}

/// End the session that the access token belongs to. Its tokens stop working everywhere within a second.
#[utoipa::path(post, path = "/v1/auth/sign-out", operation_id = "signOut", tag = "auth", responses((status = 204, description = "Signed out")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    context.no_body().await?;
    context.accounts().await?.sign_out(SignOutRequest {}).await.map_err(from_status)?;
    Ok(HttpResponse::NoContent().finish())
}
