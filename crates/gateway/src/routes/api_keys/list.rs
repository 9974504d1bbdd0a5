//! `GET /v1/api-keys`: the keys of the tenant.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::auth::v1::ListApiKeysRequest;
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiKeyView;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Auth),
        &["/gatehouse.auth.v1.ApiKeyService/ListApiKeys"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// API keys.
#[derive(Serialize, ToSchema)]
pub(super) struct ApiKeyList {
    api_keys: Vec<ApiKeyView>,
}

/// The tenant's keys without their texts, newest first.
#[utoipa::path(get, path = "/v1/api-keys", operation_id = "listApiKeys", tag = "api keys", responses((status = 200, body = ApiKeyList, description = "The keys")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let answer = context
        .api_keys()
        .await?
        .list_api_keys(ListApiKeysRequest {})
        .await
        .map_err(from_status)?
        .into_inner();
    let api_keys = answer.api_keys.into_iter().map(|key| ApiKeyView::new(Some(key)));
    Ok(HttpResponse::Ok().json(ApiKeyList { api_keys: api_keys.collect::<Result<_>>()? }))
}
