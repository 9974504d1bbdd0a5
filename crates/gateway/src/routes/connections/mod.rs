//! Connections to upstreams: acting there for a person without holding that person's keys.

use gatehouse_core::{Error, Result};
use gatehouse_proto::token_broker::v1::{Connection, ConnectionState, OfflineGrant};
use serde::Serialize;
use utoipa::ToSchema;

use crate::route::Route;
use crate::time;

mod begin;
mod callback;
mod create_offline_grant;
mod disconnect;
mod get;
mod list;
mod list_offline_grants;
mod list_upstreams;
mod revoke_offline_grant;
mod token;

pub(super) fn routes() -> Vec<Route> {
    vec![
        list_upstreams::route(),
        list::route(),
        begin::route(),
        // Before the template that would also match it.
        callback::route(),
        get::route(),
        disconnect::route(),
        token::route(),
        list_offline_grants::route(),
        create_offline_grant::route(),
        revoke_offline_grant::route(),
    ]
}

/// A connection of a person to an upstream.
#[derive(Serialize, ToSchema)]
#[schema(as = Connection)]
struct ConnectionView {
    connection_id: String,
    upstream: String,
    scopes: Vec<String>,
    /// `active`, `needs_reauthorization` or `disconnected`.
    state: &'static str,
    #[schema(format = DateTime)]
    created_at: Option<String>,
    /// When the upstream last gave a new refresh token for the old one; null if never.
    #[schema(format = DateTime)]
    rotated_at: Option<String>,
    /// Last issue of an access token.
    #[schema(format = DateTime)]
    last_used_at: Option<String>,
    /// Rotations so far.
    generation: i64,
}

impl ConnectionView {
    fn new(connection: Option<Connection>) -> Result<Self> {
        let connection =
            connection.ok_or_else(|| Error::internal("the token broker answered without a connection"))?;
        let state = match connection.state() {
            ConnectionState::Active => "active",
            ConnectionState::NeedsReauthorization => "needs_reauthorization",
            ConnectionState::Disconnected => "disconnected",
            ConnectionState::Unspecified => "unknown",
        };
        Ok(Self {
            state,
            connection_id: connection.connection_id,
            upstream: connection.upstream,
            scopes: connection.scopes,
            created_at: time::text(connection.created_at),
            rotated_at: time::text(connection.rotated_at),
            last_used_at: time::text(connection.last_used_at),
            generation: connection.generation,
        })
    }
}

/// A person's leave for a service to act for them.
#[derive(Serialize, ToSchema)]
#[schema(as = OfflineGrant)]
struct OfflineGrantView {
    offline_grant_id: String,
    client_id: String,
    connection_id: String,
    scopes: Vec<String>,
    #[schema(format = DateTime)]
    created_at: Option<String>,
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    #[schema(format = DateTime)]
    revoked_at: Option<String>,
}

impl OfflineGrantView {
    fn new(grant: Option<OfflineGrant>) -> Result<Self> {
        let grant = grant.ok_or_else(|| Error::internal("the token broker answered without a grant"))?;
        Ok(Self {
            offline_grant_id: grant.offline_grant_id,
            client_id: grant.client_id,
            connection_id: grant.connection_id,
            scopes: grant.scopes,
            created_at: time::text(grant.created_at),
            expires_at: time::text(grant.expires_at),
            revoked_at: time::text(grant.revoked_at),
        })
    }
}
