//! `GetCheckpoint`.

use gatehouse_core::Result;
use gatehouse_proto::audit::v1::{GetCheckpointRequest, GetCheckpointResponse};

use crate::app::App;
use crate::domain::checkpoint::Checkpoint;
use crate::store::stored;

/// The newest checkpoint of a log. Reasons: `LOG_NOT_FOUND`.
pub(super) async fn handle(app: &App, request: GetCheckpointRequest) -> Result<GetCheckpointResponse> {
    let log = app.log(&request.log)?;
    let signed =
        if request.fresh { app.sign_checkpoint(log).await? } else { app.newest_checkpoint(log).await? };
    // After a change of the key the newest may be signed with the one before.
    let by = Checkpoint::open_by_any(&signed.note, &log.accepted).map_or(&log.accepted[0], |(_, key)| key);
    Ok(GetCheckpointResponse {
        checkpoint: signed.note,
        size: stored(signed.size),
        verifier_key: by.to_string(),
    })
}
