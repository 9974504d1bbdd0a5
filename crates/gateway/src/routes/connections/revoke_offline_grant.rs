//! `DELETE /v1/offline-grants/{offline_grant_id}`: end an offline grant.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_core::ids::OfflineGrantId;
use gatehouse_proto::token_broker::v1::RevokeOfflineGrantRequest;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::TokenBroker),
        &["/gatehouse.token_broker.v1.TokenBrokerService/RevokeOfflineGrant"],
        LimitClass::Write,
        handler!(handle),
    )
}

/// End an offline grant at once.
#[utoipa::path(delete, path = "/v1/offline-grants/{offline_grant_id}", operation_id = "revokeOfflineGrant", tag = "connections", params(("offline_grant_id" = String, Path, format = Uuid)), responses((status = 204, description = "Ended")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    context.no_body().await?;
    let offline_grant_id = context.id::<OfflineGrantId>("offline_grant_id")?.to_string();
    let request = RevokeOfflineGrantRequest { offline_grant_id };
    context.broker().await?.revoke_offline_grant(request).await.map_err(from_status)?;
    Ok(HttpResponse::NoContent().finish())
}
