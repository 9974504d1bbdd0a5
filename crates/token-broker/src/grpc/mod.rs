//! From the wire to the use cases and back: one file an RPC.

mod begin_connection;
mod complete_connection;
mod create_offline_grant;
mod disconnect;
mod get_access_token;
mod get_connection;
mod list_connections;
mod list_offline_grants;
mod list_upstreams;
mod revoke_offline_grant;
mod wire;

use gatehouse_proto::token_broker::v1 as pb;
use gatehouse_proto::token_broker::v1::token_broker_service_server::{
    TokenBrokerService, TokenBrokerServiceServer,
};
use gatehouse_service::{Caller, reply, status};
use tonic::{Request, Response, Status};

use crate::app::Broker;

/// The service's routes.
pub(crate) fn service(broker: Broker) -> TokenBrokerServiceServer<Service> {
    TokenBrokerServiceServer::new(Service(broker))
}

#[derive(Debug)]
pub(crate) struct Service(Broker);

macro_rules! methods {
    ($($method:ident: $request:ident -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl TokenBrokerService for Service {
            $(
                async fn $method(&self, request: Request<pb::$request>) -> Result<Response<pb::$response>, Status> {
                    let caller = Caller::of(&request).map_err(|error| status(&error))?.clone();
                    reply($method::handle(&self.0, &caller, request.into_inner()).await)
                }
            )*
        }
    };
}

methods! {
    list_upstreams: ListUpstreamsRequest -> ListUpstreamsResponse;
    begin_connection: BeginConnectionRequest -> BeginConnectionResponse;
    complete_connection: CompleteConnectionRequest -> CompleteConnectionResponse;
    list_connections: ListConnectionsRequest -> ListConnectionsResponse;
    get_connection: GetConnectionRequest -> GetConnectionResponse;
    disconnect: DisconnectRequest -> DisconnectResponse;
    get_access_token: GetAccessTokenRequest -> GetAccessTokenResponse;
    create_offline_grant: CreateOfflineGrantRequest -> CreateOfflineGrantResponse;
    list_offline_grants: ListOfflineGrantsRequest -> ListOfflineGrantsResponse;
    revoke_offline_grant: RevokeOfflineGrantRequest -> RevokeOfflineGrantResponse;
}
