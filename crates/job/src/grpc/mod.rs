//! gRPC: proto <-> domain, one file an RPC.

mod cancel_job;
mod convert;
mod get_job;
mod get_job_result;
mod list_jobs;
mod retry_job;
mod submit_job;
mod watch_job_events;
mod work;

use gatehouse_proto::job::v1::job_service_server::JobService;
use gatehouse_proto::job::v1::worker_service_server::WorkerService;
use gatehouse_proto::job::v1::{
    CancelJobRequest, CancelJobResponse, GetJobRequest, GetJobResponse, GetJobResultRequest,
    GetJobResultResponse, ListJobsRequest, ListJobsResponse, RetryJobRequest, RetryJobResponse,
    SubmitJobRequest, SubmitJobResponse, WatchJobEventsRequest, WorkRequest,
};
use gatehouse_service::{reply, status};
use tonic::{Request, Response, Status, Streaming};

use crate::App;

/// For those who want work done.
#[derive(Clone, Debug)]
pub(crate) struct Jobs(pub(crate) App);

/// For those who do the work.
#[derive(Clone, Debug)]
pub(crate) struct Workers(pub(crate) App);

#[tonic::async_trait]
impl JobService for Jobs {
    async fn submit_job(
        &self,
        request: Request<SubmitJobRequest>,
    ) -> Result<Response<SubmitJobResponse>, Status> {
        reply(submit_job::handle(&self.0, request).await)
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        reply(get_job::handle(&self.0, request).await)
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        reply(list_jobs::handle(&self.0, request).await)
    }

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        reply(cancel_job::handle(&self.0, request).await)
    }

    async fn retry_job(
        &self,
        request: Request<RetryJobRequest>,
    ) -> Result<Response<RetryJobResponse>, Status> {
        reply(retry_job::handle(&self.0, request).await)
    }

    async fn get_job_result(
        &self,
        request: Request<GetJobResultRequest>,
    ) -> Result<Response<GetJobResultResponse>, Status> {
        reply(get_job_result::handle(&self.0, request).await)
    }

    type WatchJobEventsStream = watch_job_events::Events;

    async fn watch_job_events(
        &self,
        request: Request<WatchJobEventsRequest>,
    ) -> Result<Response<Self::WatchJobEventsStream>, Status> {
        reply(watch_job_events::handle(&self.0, request).await)
    }
}

#[tonic::async_trait]
impl WorkerService for Workers {
    type WorkStream = work::Answers;

    async fn work(
        &self,
        request: Request<Streaming<WorkRequest>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        work::handle(&self.0, request).await.map(Response::new).map_err(|error| status(&error))
    }
}
