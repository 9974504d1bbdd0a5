//! `GetJob`.

use gatehouse_core::Result;
use gatehouse_proto::job::v1::{GetJobRequest, GetJobResponse};
use gatehouse_service::Caller;
use tonic::Request;

use super::convert;
use crate::App;

pub(super) async fn handle(app: &App, request: Request<GetJobRequest>) -> Result<GetJobResponse> {
    let caller = Caller::of(&request)?.clone();
    let request = request.into_inner();
    let job = app.get(&caller, convert::job_id(&request.job_id)?).await?;
    Ok(GetJobResponse { job: Some(convert::job(job)) })
}
