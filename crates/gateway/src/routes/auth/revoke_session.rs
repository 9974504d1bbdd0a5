//! `DELETE /v1/auth/sessions/{session_id}`: end one of the own sessions.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_core::ids::SessionId;
use gatehouse_proto::auth::v1::RevokeSessionRequest;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Auth),
        &["/gatehouse.auth.v1.AccountService/RevokeSession"],
        LimitClass::Write,
        handler!(handle),
    )
}

/// End one of the caller's own sessions. Again is as good.
#[utoipa::path(delete, path = "/v1/auth/sessions/{session_id}", operation_id = "revokeSession", tag = "auth", params(("session_id" = String, Path, format = Uuid)), responses((status = 204, description = "Ended")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    context.no_body().await?;
    let session_id = context.id::<SessionId>("session_id")?.to_string();
    context
        .accounts()
        .await?
        .revoke_session(RevokeSessionRequest { session_id })
        .await
        .map_err(from_status)?;
    Ok(HttpResponse::NoContent().finish())
}
