//! `ExportLeaves`.

use gatehouse_core::Result;
use gatehouse_proto::audit::v1::{ExportLeavesRequest, ExportLeavesResponse};
use gatehouse_service::status;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::Instrument as _;

use super::count;
use crate::app::App;

type Items = ReceiverStream<std::result::Result<ExportLeavesResponse, Status>>;

/// Streams a log. Reasons: `LOG_NOT_FOUND`, `INVALID_FIELD`.
pub(super) fn handle(app: &App, request: ExportLeavesRequest) -> Result<Items> {
    app.log(&request.log)?;
    let from = count("from_index", request.from_index)?;
    let (out, pages) = mpsc::channel(2);
    let (answers, stream) = mpsc::channel(2);
    let app = app.clone();
    let stopping = app.lifecycle.stopping();
    // Ends with the receiver or with the process: reading a log is nothing that must finish.
    let export = async move {
        tokio::select! {
            result = app.export(&request.log, from, out) => result,
            () = stopping.cancelled() => Err(gatehouse_core::Error::unavailable(
                "STOPPING",
                "The service stops. Ask again, from the last index.",
            )),
        }
    };
    tokio::spawn(relay(export, pages, answers).in_current_span());
    Ok(ReceiverStream::new(stream))
}

/// Passes pages on and, last, the error if there was one.
async fn relay(
    export: impl Future<Output = Result<()>>,
    mut pages: mpsc::Receiver<Result<ExportLeavesResponse>>,
    answers: mpsc::Sender<std::result::Result<ExportLeavesResponse, Status>>,
) {
    let forward = async {
        while let Some(page) = pages.recv().await {
            if answers.send(page.map_err(|error| status(&error))).await.is_err() {
                // Dropping our end tells the export that nobody listens any more.
                pages.close();
            }
        }
    };
    let (exported, ()) = tokio::join!(export, forward);
    if let Err(error) = exported {
        let _ = answers.send(Err(status(&error))).await;
    }
}
