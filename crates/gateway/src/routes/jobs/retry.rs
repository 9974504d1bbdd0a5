//! `POST /v1/jobs/{job_id}/retry`: queue a failed or cancelled job again.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_core::ids::JobId;
use gatehouse_proto::job::v1::RetryJobRequest;

use super::JobView;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Job),
        &["/gatehouse.job.v1.JobService/RetryJob"],
        LimitClass::Submit,
        handler!(handle),
    )
}

/// Queue a failed or cancelled job again, if the queue has room. Its events are kept: more follow its last `end`, and another `end`.
#[utoipa::path(post, path = "/v1/jobs/{job_id}/retry", operation_id = "retryJob", tag = "jobs", params(("job_id" = String, Path, format = Uuid)), responses((status = 202, body = JobView, description = "The job")))]
async fn handle(mut context: Context) -> Result<HttpResponse> {
    context.no_body().await?;
    let job_id = context.id::<JobId>("job_id")?.to_string();
    let answer =
        context.jobs().await?.retry_job(RetryJobRequest { job_id }).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Accepted().json(JobView::new(answer.job)?))
}
