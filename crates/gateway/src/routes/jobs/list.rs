//! `GET /v1/jobs`: the jobs of the tenant.

use actix_web::HttpResponse;
use gatehouse_client::from_status;
use gatehouse_core::{Error, Result};
use gatehouse_proto::job::v1::{JobState, ListJobsRequest};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{JobView, STATES};
use crate::context::Context;
use crate::route::{Access, LimitClass, Route, Service, handler};

pub(super) fn route() -> Route {
    Route::new::<__path_handle>(
        Access::Caller(Service::Job),
        &["/gatehouse.job.v1.JobService/ListJobs"],
        LimitClass::Read,
        handler!(handle),
    )
}

/// Which jobs.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListJobsQuery {
    /// 1 to 200; absent takes 50.
    #[serde(default)]
    page_size: i32,
    /// From the page before.
    #[serde(default)]
    page_token: String,
    /// Only this kind: 1 to 64 of `a-z`, `0-9`, `-` and `_`.
    #[serde(default)]
    kind: String,
    /// Only this state: `queued`, `running`, `succeeded`, `failed` or `cancelled`.
    #[serde(default)]
    state: String,
}

/// One page of jobs.
#[derive(Serialize, ToSchema)]
pub(super) struct JobList {
    jobs: Vec<JobView>,
    /// Absent at the end.
    #[serde(skip_serializing_if = "String::is_empty")]
    next_page_token: String,
}

/// The tenant's jobs, newest first.
#[utoipa::path(get, path = "/v1/jobs", operation_id = "listJobs", tag = "jobs", params(ListJobsQuery), responses((status = 200, body = JobList, description = "The jobs")))]
async fn handle(context: Context) -> Result<HttpResponse> {
    let query: ListJobsQuery = context.query()?;
    let state = match STATES.iter().find(|(_, name)| *name == query.state) {
        Some((state, _)) => *state,
        None if query.state.is_empty() => JobState::Unspecified,
        None => {
            return Err(Error::invalid_field(
                "state",
                "must be queued, running, succeeded, failed or cancelled",
            ));
        }
    };
    let is_kind = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    if query.kind.len() > 64 || !query.kind.bytes().all(is_kind) {
        return Err(Error::invalid_field("kind", "a kind is 1 to 64 of a-z, 0-9, - and _"));
    }
    let request = ListJobsRequest {
        page_size: query.page_size,
        page_token: query.page_token,
        kind: query.kind,
        state: state as i32,
    };
    let answer = context.jobs().await?.list_jobs(request).await.map_err(from_status)?.into_inner();
    let jobs = answer.jobs.into_iter().map(|job| JobView::new(Some(job)));
    Ok(HttpResponse::Ok()
        .json(JobList { jobs: jobs.collect::<Result<_>>()?, next_page_token: answer.next_page_token }))
}
