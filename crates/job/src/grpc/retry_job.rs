//! `RetryJob`.

use gatehouse_core::Result;
use gatehouse_proto::job::v1::{RetryJobRequest, RetryJobResponse};
use gatehouse_service::Caller;
use tonic::Request;

use super::convert;
use crate::App;

pub(super) async fn handle(app: &App, request: Request<RetryJobRequest>) -> Result<RetryJobResponse> {
    let caller = Caller::of(&request)?.clone();
    let request = request.into_inner();
    let job = app.retry(&caller, convert::job_id(&request.job_id)?).await?;
    Ok(RetryJobResponse { job: Some(convert::job(job)) })
}
