//! `BeginConnection`.

use gatehouse_core::Result;
use gatehouse_proto::token_broker::v1::{BeginConnectionRequest, BeginConnectionResponse};
use gatehouse_service::Caller;

use crate::app::Broker;

pub(crate) async fn handle(
    broker: &Broker,
    caller: &Caller,
    request: BeginConnectionRequest,
) -> Result<BeginConnectionResponse> {
    let begun = broker.begin_connection(caller, &request.upstream, &request.scopes).await?;
    Ok(BeginConnectionResponse {
        authorization_url: begun.authorization_url.expose().clone(),
        expires_at: begun.expires_at.as_micros(),
    })
}
