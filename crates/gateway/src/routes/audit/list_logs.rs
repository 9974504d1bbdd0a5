//! `GET /v1/audit/logs`: the logs.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::audit::v1::ListLogsRequest;
use serde::Serialize;
use utoipa::ToSchema;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Audit),
        &["/gatehouse.audit.v1.AuditService/ListLogs"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// Audit logs.
#[derive(Serialize, ToSchema)]
pub(super) struct LogList {
    logs: Vec<LogView>,
}

/// An audit log.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditLog)]
pub(super) struct LogView {
    name: String,
    /// The C2SP origin line of its checkpoints.
    origin: String,
    /// First index still kept.
    first_index: i64,
    /// One past the last index.
    size: i64,
    retention_days: i32,
    /// The verifier key in the signed-note form.
    verifier_key: String,
}

/// The audit logs, one for each retention class.
#[utoipa::path(get, path = "/v1/audit/logs", operation_id = "listAuditLogs", tag = "audit", responses((status = 200, body = LogList, description = "The logs")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let answer =
        context.audit().await?.list_logs(ListLogsRequest {}).await.map_err(from_status)?.into_inner();
    let logs = answer.logs.into_iter().map(|log| LogView {
        name: log.name,
        origin: log.origin,
        first_index: log.first_index,
        size: log.size,
        retention_days: log.retention_days,
        verifier_key: log.verifier_key,
    });
    Ok(HttpResponse::Ok().json(LogList { logs: logs.collect() }))
}
