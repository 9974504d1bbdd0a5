//! `GET /v1/jobs/{job_id}`: one job.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_core::ids::JobId;
use gatehouse_proto::job::v1::GetJobRequest;

use super::JobView;
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Job),
        &["/gatehouse.job.v1.JobService/GetJob"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// One job.
#[utoipa::path(get, path = "/v1/jobs/{job_id}", operation_id = "getJob", tag = "jobs", params(("job_id" = String, Path, format = Uuid)), responses((status = 200, body = JobView, description = "The job")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let job_id = context.id::<JobId>("job_id")?.to_string();
    let answer =
        context.jobs().await?.get_job(GetJobRequest { job_id }).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Ok().json(JobView::new(answer.job)?))
}
