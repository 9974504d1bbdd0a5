//! A person's connection to an upstream.

use std::fmt;
use std::str::FromStr;

use gatehouse_core::Timestamp;
use gatehouse_core::ids::{ConnectionId, OfflineGrantId, PersonId, TenantId};

use super::scopes::Scopes;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// The code is being exchanged for the first refresh token.
    Connecting,
    /// It can be used.
    Active,
    /// The upstream refused every refresh token that we had; the person must connect again.
    NeedsReauthorization,
    /// Over; its secrets are or will be shredded.
    Disconnected,
}

impl ConnectionState {
    /// As stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Active => "active",
            Self::NeedsReauthorization => "needs_reauthorization",
            Self::Disconnected => "disconnected",
        }
    }
}

/// The text was none of the states.
#[derive(Debug, thiserror::Error)]
#[error("unknown state {0:?}")]
pub struct UnknownState(String);

impl FromStr for ConnectionState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Connecting, Self::Active, Self::NeedsReauthorization, Self::Disconnected]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which connection: the tenant leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    /// Whose data it is.
    pub tenant: TenantId,
    /// The connection.
    pub connection: ConnectionId,
}

/// A connection as stored.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Which.
    pub key: ConnectionKey,
    /// Whose.
    pub person: PersonId,
    /// To which upstream.
    pub upstream: String,
    /// Scopes that the person consented to.
    pub scopes: Scopes,
    /// Where it stands.
    pub state: ConnectionState,
    /// Fencing number.
    pub generation: i64,
    /// Rotations so far.
    pub rotations: i64,
    /// Until when a holder works on it, if one does.
    pub lease_until: Option<Timestamp>,
    /// Failures since the last success.
    pub failures: i64,
    /// No new attempt before this, after failures.
    pub retry_at: Option<Timestamp>,
    /// When it was begun.
    pub created_at: Timestamp,
    /// Last rotation.
    pub rotated_at: Option<Timestamp>,
    /// Last issue of a token.
    pub last_used_at: Option<Timestamp>,
}

impl Connection {
    /// Whether someone holds its lease at `now`.
    #[must_use]
    pub fn is_leased(&self, now: Timestamp) -> bool {
        self.lease_until.is_some_and(|until| now < until)
    }
}

/// A person's grant to an internal service to act while they are away.
#[derive(Clone, Debug)]
pub struct OfflineGrant {
    /// Its id.
    pub id: OfflineGrantId,
    /// The connection that it opens.
    pub key: ConnectionKey,
    /// Who gave it.
    pub person: PersonId,
    /// Who may act.
    pub client: String,
    /// For which scopes.
    pub scopes: Scopes,
    /// Given.
    pub created_at: Timestamp,
    /// Its end.
    pub expires_at: Timestamp,
    /// Taken back, if it was.
    pub revoked_at: Option<Timestamp>,
}

impl OfflineGrant {
    /// Whether it holds at `now`.
    #[must_use]
    pub fn holds(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && now < self.expires_at
    }
}
