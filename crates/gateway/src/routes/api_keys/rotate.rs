//! `POST /v1/api-keys/{api_key_id}/rotate`: give a key a new text.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_core::ids::CredentialId;
use gatehouse_proto::auth::v1::RotateApiKeyRequest;
use serde::Deserialize;
use utoipa::ToSchema;

use super::ApiKeyWithText;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Auth),
        &["/gatehouse.auth.v1.ApiKeyService/RotateApiKey"],
        LimitClass::Write,
        handler!(handle),
    )
}

/// How to rotate.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RotateApiKeyBody {
    /// How long the old text keeps working, at most 7 days; 0 or absent ends it at once. Whatever was obtained by it ends
    /// within a second of that, streams that are open too.
    #[serde(default)]
    overlap_seconds: i64,
    /// For a rotation whose answer was lost: while an overlap runs, ends the text of the rotation before in place of the
    /// old one, which works on until its end, or for `overlap_seconds` from now if that is sooner. Without an overlap it
    /// changes nothing.
    #[serde(default)]
    replace_new_text: bool,
}

/// Give a key a new text. The old one works until the overlap ends. A key that is past its end stays ended.
///
/// Send it again only with `replace_new_text`: while an overlap runs, another rotation is refused (409
/// `API_KEY_IN_OVERLAP`), so that none ends the text in use by mistake.
#[utoipa::path(post, path = "/v1/api-keys/{api_key_id}/rotate", operation_id = "rotateApiKey", tag = "api keys", params(("api_key_id" = String, Path, format = Uuid)), request_body = RotateApiKeyBody, responses((status = 200, body = ApiKeyWithText, description = "Rotated")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let api_key_id = context.id::<CredentialId>("api_key_id")?.to_string();
    let body: RotateApiKeyBody = context.json().await?;
    let request = RotateApiKeyRequest {
        api_key_id,
        overlap_seconds: body.overlap_seconds,
        replace_new_text: body.replace_new_text,
    };
    let answer = context.api_keys().await?.rotate_api_key(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Ok().json(ApiKeyWithText::new(answer.api_key, answer.text)?))
}
