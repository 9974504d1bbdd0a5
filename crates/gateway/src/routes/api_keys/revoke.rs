//! `DELETE /v1/api-keys/{api_key_id}`: end a key.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_core::ids::CredentialId;
use gatehouse_proto::auth::v1::RevokeApiKeyRequest;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Auth),
        &["/gatehouse.auth.v1.ApiKeyService/RevokeApiKey"],
        LimitClass::Write,
        handler!(handle),
    )
}

/// End a key, everywhere within a second.
#[utoipa::path(delete, path = "/v1/api-keys/{api_key_id}", operation_id = "revokeApiKey", tag = "api keys", params(("api_key_id" = String, Path, format = Uuid)), responses((status = 204, description = "Ended")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    context.no_body().await?;
    let api_key_id = context.id::<CredentialId>("api_key_id")?.to_string();
    context
        .api_keys()
        .await?
        .revoke_api_key(RevokeApiKeyRequest { api_key_id })
        .await
        .map_err(from_status)?;
    Ok(HttpResponse::NoContent().finish())
}
