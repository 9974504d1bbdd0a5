//! `ListConnections`.

use gatehouse_core::Result;
use gatehouse_proto::token_broker::v1::{ListConnectionsRequest, ListConnectionsResponse};
use gatehouse_service::Caller;

use super::wire;
use crate::app::Broker;

pub(crate) async fn handle(
    broker: &Broker,
    caller: &Caller,
    _: ListConnectionsRequest,
) -> Result<ListConnectionsResponse> {
    let connections = broker.list_connections(caller).await?;
    Ok(ListConnectionsResponse { connections: connections.iter().map(wire::connection).collect() })
}
