//! `ListUpstreams`.

use gatehouse_core::Result;
use gatehouse_proto::token_broker::v1::{ListUpstreamsRequest, ListUpstreamsResponse, Upstream};
use gatehouse_service::Caller;

use crate::app::Broker;

#[expect(clippy::unused_async, reason = "every handler has one shape")]
pub(crate) async fn handle(
    broker: &Broker,
    _: &Caller,
    _: ListUpstreamsRequest,
) -> Result<ListUpstreamsResponse> {
    let upstreams = broker
        .list_upstreams()
        .into_iter()
        .map(|upstream| Upstream {
            name: upstream.name,
            display_name: upstream.display_name,
            scopes: upstream.scopes.to_vec(),
        })
        .collect();
    Ok(ListUpstreamsResponse { upstreams })
}
