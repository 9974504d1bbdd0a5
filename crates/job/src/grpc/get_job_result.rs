//! `GetJobResult`.

use gatehouse_core::Result;
use gatehouse_proto::job::v1::{GetJobResultRequest, GetJobResultResponse};
use gatehouse_service::Caller;
use tonic::Request;

use super::convert;
use crate::App;

pub(super) async fn handle(app: &App, request: Request<GetJobResultRequest>) -> Result<GetJobResultResponse> {
    let caller = Caller::of(&request)?.clone();
    let request = request.into_inner();
    let result_json = app.result(&caller, convert::job_id(&request.job_id)?).await?;
    Ok(GetJobResultResponse { result_json })
}
