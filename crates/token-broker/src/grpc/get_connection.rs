//! `GetConnection`.

use gatehouse_core::Result;
use gatehouse_proto::token_broker::v1::{GetConnectionRequest, GetConnectionResponse};
use gatehouse_service::Caller;

use super::wire;
use crate::app::Broker;

pub(crate) async fn handle(
    broker: &Broker,
    caller: &Caller,
    request: GetConnectionRequest,
) -> Result<GetConnectionResponse> {
    let id = wire::id("connection_id", &request.connection_id)?;
    let connection = broker.get_connection(caller, id).await?;
    Ok(GetConnectionResponse { connection: Some(wire::connection(&connection)) })
}
