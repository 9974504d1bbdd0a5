//! `GET /v1/audit/logs/{log}/consistency`: that a later tree extends an earlier one.

use actix_web::HttpResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_proto::audit::v1::GetConsistencyProofRequest;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Audit),
        &["/gatehouse.audit.v1.AuditService/GetConsistencyProof"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// Between which trees.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ConsistencyQuery {
    from_size: i64,
    to_size: i64,
}

/// A consistency proof.
#[derive(Serialize, ToSchema)]
pub(super) struct ConsistencyProof {
    /// Base64.
    hashes: Vec<String>,
}

/// Proof that a later checkpoint extends an earlier one (RFC 9162, section 2.1.4).
#[utoipa::path(get, path = "/v1/audit/logs/{log}/consistency", operation_id = "getConsistencyProof", tag = "audit", params(("log" = String, Path), ConsistencyQuery), responses((status = 200, body = ConsistencyProof, description = "The proof")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let query: ConsistencyQuery = context.query()?;
    let request = GetConsistencyProofRequest {
        log: context.path("log")?.to_owned(),
        from_size: query.from_size,
        to_size: query.to_size,
    };
    let answer =
        context.audit().await?.get_consistency_proof(request).await.map_err(from_status)?.into_inner();
    let hashes = answer.hashes.iter().map(|hash| STANDARD.encode(hash));
    Ok(HttpResponse::Ok().json(ConsistencyProof { hashes: hashes.collect() }))
}
