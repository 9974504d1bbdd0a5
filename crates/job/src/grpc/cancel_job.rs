//! `CancelJob`.

use gatehouse_core::Result;
use gatehouse_proto::job::v1::{CancelJobRequest, CancelJobResponse};
use gatehouse_service::Caller;
use tonic::Request;

use super::convert;
use crate::App;

pub(super) async fn handle(app: &App, request: Request<CancelJobRequest>) -> Result<CancelJobResponse> {
    let caller = Caller::of(&request)?.clone();
    let request = request.into_inner();
    let job = app.cancel(&caller, convert::job_id(&request.job_id)?).await?;
    Ok(CancelJobResponse { job: Some(convert::job(job)) })
}
