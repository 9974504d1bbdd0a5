//! `GetCheckpoint`.

use gatehouse_core::Result;
use gatehouse_proto::audit::v1::{GetCheckpointRequest, GetCheckpointResponse};

use crate::app::App;
use crate::store::stored;

/// The newest checkpoint of a log. Reasons: `LOG_NOT_FOUND`.
pub(super) async fn handle(app: &App, request: GetCheckpointRequest) -> Result<GetCheckpointResponse> {
    let log = app.log(&request.log)?;
    let signed =
        if request.fresh { app.sign_checkpoint(log).await? } else { app.newest_checkpoint(log).await? };
    Ok(GetCheckpointResponse {
        checkpoint: signed.note,
        size: stored(signed.size),
        verifier_key: log.signer.verifier().to_string(),
    })
}
