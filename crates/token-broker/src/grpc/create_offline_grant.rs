//! `CreateOfflineGrant`.

use gatehouse_core::Result;
use gatehouse_proto::token_broker::v1::{CreateOfflineGrantRequest, CreateOfflineGrantResponse};
use gatehouse_service::Caller;

use super::wire;
use crate::app::Broker;

pub(crate) async fn handle(
    broker: &Broker,
    caller: &Caller,
    request: CreateOfflineGrantRequest,
) -> Result<CreateOfflineGrantResponse> {
    let id = wire::id("connection_id", &request.connection_id)?;
    let CreateOfflineGrantRequest { client_id, scopes, lifetime_seconds, .. } = request;
    let grant = broker.create_offline_grant(caller, id, &client_id, &scopes, lifetime_seconds).await?;
    Ok(CreateOfflineGrantResponse { grant: Some(wire::grant(&grant)) })
}
