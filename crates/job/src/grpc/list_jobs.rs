//! `ListJobs`.

use gatehouse_core::Result;
use gatehouse_proto::job::v1::{ListJobsRequest, ListJobsResponse};
use gatehouse_service::Caller;
use tonic::Request;

use super::convert;
use crate::App;

pub(super) async fn handle(app: &App, request: Request<ListJobsRequest>) -> Result<ListJobsResponse> {
    let caller = Caller::of(&request)?.clone();
    let request = request.into_inner();
    let state = convert::state_filter(request.state)?;
    let page = app.list(&caller, request.page_size, &request.page_token, &request.kind, state).await?;
    Ok(ListJobsResponse {
        jobs: page.jobs.into_iter().map(convert::job).collect(),
        next_page_token: page.next,
    })
}
