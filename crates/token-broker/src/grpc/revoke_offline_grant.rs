//! `RevokeOfflineGrant`.

use gatehouse_core::Result;
use gatehouse_proto::token_broker::v1::{RevokeOfflineGrantRequest, RevokeOfflineGrantResponse};
use gatehouse_service::Caller;

use super::wire;
use crate::app::Broker;

pub(crate) async fn handle(
    broker: &Broker,
    caller: &Caller,
    request: RevokeOfflineGrantRequest,
) -> Result<RevokeOfflineGrantResponse> {
    broker.revoke_offline_grant(caller, wire::id("offline_grant_id", &request.offline_grant_id)?).await?;
    Ok(RevokeOfflineGrantResponse {})
}
