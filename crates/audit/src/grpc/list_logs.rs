//! `ListLogs`.

use gatehouse_core::Result;
use gatehouse_proto::audit::v1::{ListLogsResponse, Log as WireLog};

use crate::app::App;
use crate::store::stored;

/// Every log.
pub(super) async fn handle(app: &App) -> Result<ListLogsResponse> {
    let logs = app
        .heads()
        .await?
        .into_iter()
        .map(|(log, head)| WireLog {
            name: log.id.to_string(),
            origin: log.origin.clone(),
            first_index: stored(head.first_seq),
            size: stored(head.size),
            retention_days: i32::try_from(log.days).unwrap_or(i32::MAX),
            verifier_key: log.signer.verifier().to_string(),
        })
        .collect();
    Ok(ListLogsResponse { logs })
}
