//! `POST /v1/auth/password`: change the own password.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::auth::v1::ChangePasswordRequest;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Auth),
        &["/gatehouse.auth.v1.AccountService/ChangePassword"],
        LimitClass::SignIn,
        handler!(handle),
    )
}

/// The old password and the new one.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangePasswordBody {
    #[schema(format = Password)]
    current_password: String,
    /// 12 to 128 characters, none of the well-known ones.
    #[schema(format = Password)]
    new_password: String,
}

/// Change the caller's password. Every other session of theirs ends.
#[utoipa::path(post, path = "/v1/auth/password", operation_id = "changePassword", tag = "auth", request_body = ChangePasswordBody, responses((status = 204, description = "Changed")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let body: ChangePasswordBody = context.json().await?;
    let request =
        ChangePasswordRequest { current_password: body.current_password, new_password: body.new_password };
    context.accounts().await?.change_password(request).await.map_err(from_status)?;
    Ok(HttpResponse::NoContent().finish())
}
