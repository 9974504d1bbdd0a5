//! Accounts and sessions of people.

use gatehouse_core::{Error, Result, Timestamp};
use gatehouse_proto::auth::v1::TokenPair;
use serde::Serialize;
use utoipa::ToSchema;

use crate::context::Context;
use crate::route::Route;
use crate::time;

mod change_password;
mod list_sessions;
mod me;
mod refresh;
mod register;
mod revoke_session;
mod sign_in;
mod sign_out;

pub(super) fn routes() -> Vec<Route> {
    vec![
        register::route(),
        sign_in::route(),
        refresh::route(),
        sign_out::route(),
        list_sessions::route(),
        revoke_session::route(),
        change_password::route(),
        me::route(),
    ]
}

/// A session's tokens. Both are secrets.
#[derive(Serialize, ToSchema)]
struct Tokens {
    /// Show it as `Authorization: Bearer …`.
    access_token: String,
    /// `Bearer`.
    token_type: &'static str,
    /// Seconds until the access token ends.
    expires_in: i64,
    /// Single use: exchange it at `/v1/auth/refresh`.
    refresh_token: String,
    /// When the session ends whatever happens.
    #[schema(format = DateTime)]
    session_expires_at: Option<String>,
    session_id: String,
    person_id: String,
    /// Absent for a person who is in no tenant.
    #[serde(skip_serializing_if = "String::is_empty")]
    tenant_id: String,
}

impl Tokens {
    fn new(pair: Option<TokenPair>, context: &Context) -> Result<Self> {
        let pair = pair.ok_or_else(|| Error::internal("auth answered without tokens"))?;
        let end = Timestamp::from_micros(pair.access_token_expires_at);
        Ok(Self {
            access_token: pair.access_token,
            token_type: "Bearer",
            expires_in: (end.as_seconds() - context.gateway.clock.now().as_seconds()).max(0),
            refresh_token: pair.refresh_token,
            session_expires_at: time::text(pair.session_expires_at),
            session_id: pair.session_id,
            person_id: pair.person_id,
            tenant_id: pair.tenant_id,
        })
    }
}
