//! `POST /v1/api-keys`: make a key.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::auth::v1::CreateApiKeyRequest;
use serde::Deserialize;
use utoipa::ToSchema;

use super::ApiKeyWithText;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};
use crate::routes::{chosen, lifetime};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Auth),
        &["/gatehouse.auth.v1.ApiKeyService/CreateApiKey"],
        LimitClass::Write,
        handler!(handle),
    )
}

/// A new key.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateApiKeyBody {
    /// 1 to 100 characters.
    name: String,
    /// Permission names; absent takes those of the role `member` that the caller also holds. What only a signed-in person
    /// can do, such as `auth.members.manage` and `auth.api_keys.manage`, is refused.
    permissions: Option<Vec<String>>,
    /// At most a year; absent takes 90 days.
    lifetime_seconds: Option<i64>,
}

/// Make an API key. Its text is in this answer and never again.
#[utoipa::path(post, path = "/v1/api-keys", operation_id = "createApiKey", tag = "api keys", request_body = CreateApiKeyBody, responses((status = 201, body = ApiKeyWithText, description = "Made")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let body: CreateApiKeyBody = context.json().await?;
    let request = CreateApiKeyRequest {
        name: body.name,
        permissions: chosen("permissions", body.permissions)?,
        lifetime_seconds: lifetime(body.lifetime_seconds)?,
    };
    let made = context.api_keys().await?.create_api_key(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Created().json(ApiKeyWithText::new(made.api_key, made.text)?))
}
