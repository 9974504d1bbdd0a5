//! The audit service.

use std::pin::Pin;

use futures_util::Stream;
use tonic::{Request, Response, Status};

use gatehouse_proto::audit::v1::*;

use super::Fake;

#[tonic::async_trait]
impl audit_service_server::AuditService for Fake {
    type ExportLeavesStream = Pin<Box<dyn Stream<Item = Result<ExportLeavesResponse, Status>> + Send>>;

    async fn append_events(
        &self,
        _request: Request<AppendEventsRequest>,
    ) -> Result<Response<AppendEventsResponse>, Status> {
        Ok(Response::new(AppendEventsResponse::default()))
    }

    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        self.0.lock().listed_events.push(request.into_inner());
        Ok(Response::new(ListEventsResponse::default()))
    }

    async fn get_event(
        &self,
        request: Request<GetEventRequest>,
    ) -> Result<Response<GetEventResponse>, Status> {
        drop(request);
        Ok(Response::new(GetEventResponse { event: Some(Event::default()), leaf: b"leaf".to_vec().into() }))
    }

    async fn list_logs(
        &self,
        _request: Request<ListLogsRequest>,
    ) -> Result<Response<ListLogsResponse>, Status> {
        Ok(Response::new(ListLogsResponse::default()))
    }

    async fn get_checkpoint(
        &self,
        _request: Request<GetCheckpointRequest>,
    ) -> Result<Response<GetCheckpointResponse>, Status> {
        Ok(Response::new(GetCheckpointResponse::default()))
    }

    async fn get_inclusion_proof(
        &self,
        _request: Request<GetInclusionProofRequest>,
    ) -> Result<Response<GetInclusionProofResponse>, Status> {
        Ok(Response::new(GetInclusionProofResponse::default()))
    }

    async fn get_consistency_proof(
        &self,
        _request: Request<GetConsistencyProofRequest>,
    ) -> Result<Response<GetConsistencyProofResponse>, Status> {
        Ok(Response::new(GetConsistencyProofResponse::default()))
    }

    async fn export_leaves(
        &self,
        _request: Request<ExportLeavesRequest>,
    ) -> Result<Response<Self::ExportLeavesStream>, Status> {
        Err(Status::unimplemented("not in this fake"))
    }

    async fn erase_subject(
        &self,
        _request: Request<EraseSubjectRequest>,
    ) -> Result<Response<EraseSubjectResponse>, Status> {
        Ok(Response::new(EraseSubjectResponse::default()))
    }
}
