//! `SubmitJob`.

use gatehouse_core::Result;
use gatehouse_proto::job::v1::{SubmitJobRequest, SubmitJobResponse};
use gatehouse_service::Caller;
use tonic::Request;

use super::convert;
use crate::App;

pub(super) async fn handle(app: &App, request: Request<SubmitJobRequest>) -> Result<SubmitJobResponse> {
    let caller = Caller::of(&request)?.clone();
    let request = request.into_inner();
    let (job, existed) =
        app.submit(&caller, request.kind, request.input_json, &request.idempotency_key).await?;
    Ok(SubmitJobResponse { job: Some(convert::job(job)), existed })
}
