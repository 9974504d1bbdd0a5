//! `POST /v1/offline-grants`: let a service act for the caller.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::token_broker::v1::CreateOfflineGrantRequest;
use serde::Deserialize;
use utoipa::ToSchema;

use super::OfflineGrantView;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};
use crate::routes::{chosen, lifetime};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::TokenBroker),
        &["/gatehouse.token_broker.v1.TokenBrokerService/CreateOfflineGrant"],
        LimitClass::Write,
        handler!(handle),
    )
}

/// Who may act, how.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OfflineGrantBody {
    connection_id: String,
    /// The internal service that may act.
    client_id: String,
    /// Absent means all of the connection's that the service may have. Where the upstream's tokens can't be narrowed, all
    /// of the connection's and no fewer.
    scopes: Option<Vec<String>>,
    /// At most a year; absent takes 30 days.
    lifetime_seconds: Option<i64>,
}

/// Let one internal service act for the caller while they are away.
#[utoipa::path(post, path = "/v1/offline-grants", operation_id = "createOfflineGrant", tag = "connections", request_body = OfflineGrantBody, responses((status = 201, body = OfflineGrantView, description = "Granted")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    let body: OfflineGrantBody = context.json().await?;
    let request = CreateOfflineGrantRequest {
        connection_id: body.connection_id,
        client_id: body.client_id,
        scopes: chosen("scopes", body.scopes)?,
        lifetime_seconds: lifetime(body.lifetime_seconds)?,
    };
    let made = context.broker().await?.create_offline_grant(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Created().json(OfflineGrantView::new(made.grant)?))
}
