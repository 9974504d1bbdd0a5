//! `CompleteConnection`.

use gatehouse_core::{Result, Secret};
use gatehouse_proto::token_broker::v1::{CompleteConnectionRequest, CompleteConnectionResponse};
use gatehouse_service::Caller;

use super::wire;
use crate::app::{Broker, Callback};

pub(crate) async fn handle(
    broker: &Broker,
    caller: &Caller,
    request: CompleteConnectionRequest,
) -> Result<CompleteConnectionResponse> {
    let callback = Callback {
        state: Secret::new(request.state),
        code: Secret::new(request.code),
        error: request.error,
        issuer: request.issuer,
    };
    let connection = broker.complete_connection(caller, callback).await?;
    Ok(CompleteConnectionResponse { connection: Some(wire::connection(&connection)) })
}
