//! `ListOfflineGrants`.

use gatehouse_core::Result;
use gatehouse_proto::token_broker::v1::{ListOfflineGrantsRequest, ListOfflineGrantsResponse};
use gatehouse_service::Caller;

use super::wire;
use crate::app::Broker;

pub(crate) async fn handle(
    broker: &Broker,
    caller: &Caller,
    _: ListOfflineGrantsRequest,
) -> Result<ListOfflineGrantsResponse> {
    let grants = broker.list_offline_grants(caller).await?;
    Ok(ListOfflineGrantsResponse { grants: grants.iter().map(wire::grant).collect() })
}
