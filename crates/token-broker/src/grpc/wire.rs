//! Domain types as messages.

use std::str::FromStr;

use gatehouse_core::{Error, Result, Timestamp};
use gatehouse_proto::token_broker::v1 as pb;

use crate::domain::connection::{Connection, ConnectionState, OfflineGrant};

pub(crate) fn id<T: FromStr>(field: &str, text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::invalid_field(field, "must be an id as this service gave it"))
}

pub(crate) fn connection(connection: &Connection) -> pb::Connection {
    let state = match connection.state {
        ConnectionState::Connecting => pb::ConnectionState::Unspecified,
        ConnectionState::Active => pb::ConnectionState::Active,
        ConnectionState::NeedsReauthorization => pb::ConnectionState::NeedsReauthorization,
        ConnectionState::Disconnected => pb::ConnectionState::Disconnected,
    };
    pb::Connection {
        connection_id: connection.key.connection.to_string(),
        upstream: connection.upstream.clone(),
        scopes: connection.scopes.to_vec(),
        state: state.into(),
        created_at: connection.created_at.as_micros(),
        rotated_at: or_zero(connection.rotated_at),
        last_used_at: or_zero(connection.last_used_at),
        generation: connection.rotations,
    }
}

pub(crate) fn grant(grant: &OfflineGrant) -> pb::OfflineGrant {
    pb::OfflineGrant {
        offline_grant_id: grant.id.to_string(),
        client_id: grant.client.clone(),
        connection_id: grant.key.connection.to_string(),
        scopes: grant.scopes.to_vec(),
        created_at: grant.created_at.as_micros(),
        expires_at: grant.expires_at.as_micros(),
        revoked_at: or_zero(grant.revoked_at),
    }
}

fn or_zero(time: Option<Timestamp>) -> i64 {
    time.map_or(0, Timestamp::as_micros)
}
