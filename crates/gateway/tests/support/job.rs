//! The job service, as hostile as a test asks.

use std::pin::Pin;

use futures_util::Stream;
use tonic::{Request, Response, Status};

use gatehouse_proto::job::v1::*;

use super::Fake;

#[tonic::async_trait]
impl job_service_server::JobService for Fake {
    type WatchJobEventsStream = Pin<Box<dyn Stream<Item = Result<WatchJobEventsResponse, Status>> + Send>>;

    async fn submit_job(
        &self,
        request: Request<SubmitJobRequest>,
    ) -> Result<Response<SubmitJobResponse>, Status> {
        self.enter("SubmitJob").await?;
        let request = request.into_inner();
        let job = Job { job_id: super::JOB.into(), kind: request.kind.clone(), state: 1, ..Job::default() };
        self.0.lock().submitted.push(request);
        Ok(Response::new(SubmitJobResponse { job: Some(job), existed: false }))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        self.enter("GetJob").await?;
        let job_id = request.into_inner().job_id;
        let script = self.0.lock();
        let last_sequence = script.events.last().map_or(0, |event| event.sequence);
        let ended = script.events.last().is_some_and(|event| event.r#type() == JobEventType::End);
        let state = if ended { JobState::Succeeded } else { JobState::Running };
        drop(script);
        let job = Job { job_id, state: state as i32, last_sequence, ..Job::default() };
        Ok(Response::new(GetJobResponse { job: Some(job) }))
    }

    async fn list_jobs(
        &self,
        _request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        Ok(Response::new(ListJobsResponse::default()))
    }

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        self.enter("CancelJob").await?;
        drop(request);
        Ok(Response::new(CancelJobResponse { job: Some(Job::default()) }))
    }

    async fn retry_job(
        &self,
        request: Request<RetryJobRequest>,
    ) -> Result<Response<RetryJobResponse>, Status> {
        self.enter("RetryJob").await?;
        drop(request);
        Ok(Response::new(RetryJobResponse { job: Some(Job::default()) }))
    }

    async fn get_job_result(
        &self,
        request: Request<GetJobResultRequest>,
    ) -> Result<Response<GetJobResultResponse>, Status> {
        self.enter("GetJobResult").await?;
        drop(request);
        let result = self.0.lock().result.clone();
        let result_json = if result.is_empty() { r#"{"best":1}"#.to_owned() } else { result };
        Ok(Response::new(GetJobResultResponse { result_json }))
    }

    async fn watch_job_events(
        &self,
        request: Request<WatchJobEventsRequest>,
    ) -> Result<Response<Self::WatchJobEventsStream>, Status> {
        self.enter("WatchJobEvents").await?;
        self.watch(request)
    }
}
