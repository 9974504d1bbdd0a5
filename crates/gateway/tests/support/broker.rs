//! The token broker.

use tonic::{Request, Response, Status};

use gatehouse_proto::token_broker::v1::*;

use super::Fake;

#[tonic::async_trait]
impl token_broker_service_server::TokenBrokerService for Fake {
    async fn list_upstreams(
        &self,
        _request: Request<ListUpstreamsRequest>,
    ) -> Result<Response<ListUpstreamsResponse>, Status> {
        Ok(Response::new(ListUpstreamsResponse::default()))
    }

    async fn begin_connection(
        &self,
        _request: Request<BeginConnectionRequest>,
    ) -> Result<Response<BeginConnectionResponse>, Status> {
        Ok(Response::new(BeginConnectionResponse::default()))
    }

    async fn complete_connection(
        &self,
        request: Request<CompleteConnectionRequest>,
    ) -> Result<Response<CompleteConnectionResponse>, Status> {
        drop(request);
        Ok(Response::new(CompleteConnectionResponse { connection: Some(Connection::default()) }))
    }

    async fn list_connections(
        &self,
        _request: Request<ListConnectionsRequest>,
    ) -> Result<Response<ListConnectionsResponse>, Status> {
        Ok(Response::new(ListConnectionsResponse::default()))
    }

    async fn get_connection(
        &self,
        request: Request<GetConnectionRequest>,
    ) -> Result<Response<GetConnectionResponse>, Status> {
        drop(request);
        Ok(Response::new(GetConnectionResponse { connection: Some(Connection::default()) }))
    }

    async fn disconnect(
        &self,
        _request: Request<DisconnectRequest>,
    ) -> Result<Response<DisconnectResponse>, Status> {
        Ok(Response::new(DisconnectResponse::default()))
    }

    async fn get_access_token(
        &self,
        request: Request<GetAccessTokenRequest>,
    ) -> Result<Response<GetAccessTokenResponse>, Status> {
        drop(request);
        let access_token = "upstream-secret".to_owned();
        Ok(Response::new(GetAccessTokenResponse { access_token, ..GetAccessTokenResponse::default() }))
    }

    async fn create_offline_grant(
        &self,
        request: Request<CreateOfflineGrantRequest>,
    ) -> Result<Response<CreateOfflineGrantResponse>, Status> {
        drop(request);
        Ok(Response::new(CreateOfflineGrantResponse { grant: Some(OfflineGrant::default()) }))
    }

    async fn list_offline_grants(
        &self,
        _request: Request<ListOfflineGrantsRequest>,
    ) -> Result<Response<ListOfflineGrantsResponse>, Status> {
        Ok(Response::new(ListOfflineGrantsResponse::default()))
    }

    async fn revoke_offline_grant(
        &self,
        _request: Request<RevokeOfflineGrantRequest>,
    ) -> Result<Response<RevokeOfflineGrantResponse>, Status> {
        Ok(Response::new(RevokeOfflineGrantResponse::default()))
    }
}
