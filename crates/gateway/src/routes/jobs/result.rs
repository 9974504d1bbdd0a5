//! `GET /v1/jobs/{job_id}/result`: what a job came to.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::Result;
use gatehouse_core::ids::JobId;
use gatehouse_proto::job::v1::GetJobResultRequest;

use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Job),
        &["/gatehouse.job.v1.JobService/GetJobResult"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// The result of a job that succeeded: the JSON value that its worker made.
#[utoipa::path(get, path = "/v1/jobs/{job_id}/result", operation_id = "getJobResult", tag = "jobs", params(("job_id" = String, Path, format = Uuid)), responses((status = 200, body = Value, description = "The result")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let job_id = context.id::<JobId>("job_id")?.to_string();
    let request = GetJobResultRequest { job_id };
    let answer = context.jobs().await?.get_job_result(request).await.map_err(from_status)?.into_inner();
    Ok(HttpResponse::Ok().content_type("application/json").body(answer.result_json))
}
