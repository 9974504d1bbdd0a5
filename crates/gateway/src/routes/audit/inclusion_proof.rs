//! `GET /v1/audit/events/{event_id}/proof`: that an event is in the log.

use actix_web::HttpResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_core::ids::EventId;
use gatehouse_proto::audit::v1::GetInclusionProofRequest;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Audit),
        &["/gatehouse.audit.v1.AuditService/GetInclusionProof"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// Against which tree.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct InclusionQuery {
    /// Tree size to prove against; absent takes the newest checkpoint's.
    #[serde(default)]
    size: i64,
}

/// An inclusion proof.
#[derive(Serialize, ToSchema)]
pub(super) struct InclusionProof {
    log: String,
    index: i64,
    size: i64,
    /// Base64, leaf side first.
    hashes: Vec<String>,
    /// Base64.
    leaf: String,
    checkpoint: String,
}

/// Proof that an event is in the log (RFC 9162, section 2.1.3).
#[utoipa::path(get, path = "/v1/audit/events/{event_id}/proof", operation_id = "getInclusionProof", tag = "audit", params(("event_id" = String, Path, format = Uuid), InclusionQuery), responses((status = 200, body = InclusionProof, description = "The proof")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let query: InclusionQuery = context.query()?;
    let event_id = context.id::<EventId>("event_id")?.to_string();
    let request = GetInclusionProofRequest { event_id, size: query.size };
    let answer = context.audit().await?.get_inclusion_proof(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Ok().json(InclusionProof {
        log: answer.log,
        index: answer.index,
        size: answer.size,
        hashes: answer.hashes.iter().map(|hash| STANDARD.encode(hash)).collect(),
        leaf: STANDARD.encode(&answer.leaf),
        checkpoint: answer.checkpoint,
    }))
}
