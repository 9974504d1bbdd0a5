//! `GetInclusionProof`.

use gatehouse_core::Result;
use gatehouse_proto::audit::v1::{GetInclusionProofRequest, GetInclusionProofResponse};
use gatehouse_service::Caller;
use tonic::Request;

use super::count;
use crate::app::App;
use crate::app::read::not_found;
use crate::store::stored;

/// That an event is in its log; a caller that acts in a tenant sees that tenant's only. Reasons: `EVENT_NOT_FOUND`,
/// `INVALID_FIELD`.
pub(super) async fn handle(
    app: &App,
    request: Request<GetInclusionProofRequest>,
) -> Result<GetInclusionProofResponse> {
    let tenant = Caller::of(&request)?.claims().tid;
    let request = request.into_inner();
    let id = request.event_id.parse().map_err(|_| not_found())?;
    let proof = app.prove_inclusion(tenant, id, count("size", request.size)?).await?;
    Ok(GetInclusionProofResponse {
        log: proof.log,
        index: stored(proof.seq),
        size: stored(proof.size),
        hashes: proof.hashes.iter().map(|hash| hash.as_bytes().to_vec().into()).collect(),
        leaf: proof.leaf.into(),
        checkpoint: proof.checkpoint,
    })
}
