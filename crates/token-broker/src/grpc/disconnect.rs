//! `Disconnect`.

use gatehouse_core::Result;
use gatehouse_proto::token_broker::v1::{DisconnectRequest, DisconnectResponse};
use gatehouse_service::Caller;

use super::wire;
use crate::app::Broker;

pub(crate) async fn handle(
    broker: &Broker,
    caller: &Caller,
    request: DisconnectRequest,
) -> Result<DisconnectResponse> {
    let id = wire::id("connection_id", &request.connection_id)?;
    Ok(DisconnectResponse { revoked_upstream: broker.disconnect(caller, id).await? })
}
