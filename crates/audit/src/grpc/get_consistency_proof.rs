//! `GetConsistencyProof`.

use gatehouse_core::Result;
use gatehouse_proto::audit::v1::{GetConsistencyProofRequest, GetConsistencyProofResponse};

use super::count;
use crate::app::App;

/// That one size of a log extends another. Reasons: `LOG_NOT_FOUND`, `INVALID_FIELD`.
pub(super) async fn handle(
    app: &App,
    request: GetConsistencyProofRequest,
) -> Result<GetConsistencyProofResponse> {
    let log = app.log(&request.log)?;
    let (from, to) = (count("from_size", request.from_size)?, count("to_size", request.to_size)?);
    let hashes = app.prove_consistency(log, from, to).await?;
    Ok(GetConsistencyProofResponse {
        hashes: hashes.iter().map(|hash| hash.as_bytes().to_vec().into()).collect(),
    })
}
