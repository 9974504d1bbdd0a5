//! `GET /v1/audit/logs/{log}/checkpoint`: the newest signed checkpoint.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::audit::v1::GetCheckpointRequest;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Audit),
        &["/gatehouse.audit.v1.AuditService/GetCheckpoint"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// Which checkpoint.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CheckpointQuery {
    /// If true, one is signed for the present size first.
    #[serde(default)]
    fresh: bool,
}

/// A signed checkpoint.
#[derive(Serialize, ToSchema)]
pub(super) struct SignedCheckpoint {
    /// A C2SP tlog-checkpoint in a signed note.
    checkpoint: String,
    size: i64,
    verifier_key: String,
}

/// The newest signed checkpoint of a log. Keep it elsewhere: it is what proves the log later.
#[utoipa::path(get, path = "/v1/audit/logs/{log}/checkpoint", operation_id = "getAuditCheckpoint", tag = "audit", params(("log" = String, Path), CheckpointQuery), responses((status = 200, body = SignedCheckpoint, description = "The checkpoint")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let query: CheckpointQuery = context.query()?;
    let request = GetCheckpointRequest { log: context.path("log")?.to_owned(), fresh: query.fresh };
    let answer = context.audit().await?.get_checkpoint(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Ok().json(SignedCheckpoint {
        checkpoint: answer.checkpoint,
        size: answer.size,
        verifier_key: answer.verifier_key,
    }))
}
