//! `GetAccessToken`.

use gatehouse_core::Result;
use gatehouse_proto::token_broker::v1::{GetAccessTokenRequest, GetAccessTokenResponse};
use gatehouse_service::Caller;

use super::wire;
use crate::app::{Broker, TokenRequest};

pub(crate) async fn handle(
    broker: &Broker,
    caller: &Caller,
    request: GetAccessTokenRequest,
) -> Result<GetAccessTokenResponse> {
    let offline_grant = match request.offline_grant_id.as_str() {
        "" => None,
        text => Some(wire::id("offline_grant_id", text)?),
    };
    let request = TokenRequest {
        upstream: request.upstream,
        scopes: request.scopes,
        min_remaining_seconds: request.min_remaining_seconds,
        offline_grant,
    };
    let issued = broker.get_access_token(caller, &request).await?;
    Ok(GetAccessTokenResponse {
        access_token: issued.token.expose().clone(),
        expires_at: issued.expires_at.as_micros(),
        token_type: issued.token_type,
        scopes: issued.scopes.to_vec(),
        connection_id: issued
            .connection
            .map(|connection| connection.key.connection.to_string())
            .unwrap_or_default(),
    })
}
