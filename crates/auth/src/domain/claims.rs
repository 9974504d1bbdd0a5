//! What an access token says (RFC 9068; requirement B4).

use serde::{Deserialize, Serialize};

/// Who acts, where someone acts for another (RFC 8693, section 4.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// `client:<name>`.
    pub sub: String,
    /// Who acts through that client in turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act: Option<Box<Actor>>,
}

/// The claims of an access token. Times are whole seconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessClaims {
    /// `https://{issuer host}/{environment}`.
    pub iss: String,
    /// The one service that it is for, or `gatehouse` for what a person's client shows the gateway.
    pub aud: String,
    /// The person's id, or `client:<name>`.
    pub sub: String,
    /// When it ends.
    pub exp: i64,
    /// When it was made.
    pub iat: i64,
    /// From when on it holds.
    pub nbf: i64,
    /// Its id.
    pub jti: String,
    /// When whoever it speaks for last proved who they are.
    pub auth_time: i64,
    /// `access`.
    pub token_use: String,
    /// Its permissions once more, separated by spaces, as OAuth wants it.
    pub scope: String,
    /// The person's or client's name.
    pub username: String,
    /// The person's e-mail address; absent for clients and API keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Whether that address was shown to be theirs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email_verified: Option<bool>,
    /// Tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tid: Option<String>,
    /// Session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sid: Option<String>,
    /// Credential, such as an API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cid: Option<String>,
    /// The OAuth client that it was issued to (RFC 9068, section 2.2).
    pub client_id: String,
    /// Who acts for `sub`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act: Option<Actor>,
    /// Roles in the tenant.
    pub roles: Vec<String>,
    /// Permissions at the audience.
    pub permissions: Vec<String>,
}

/// The value of `token_use`.
pub const TOKEN_USE_ACCESS: &str = "access";
