//! API keys of a tenant.

use gatehouse_core::{Error, Result};
use gatehouse_proto::auth::v1::ApiKey;
use serde::Serialize;
use utoipa::ToSchema;

use crate::route::Route;
use crate::time;

mod create;
mod list;
mod revoke;
mod rotate;

pub(super) fn routes() -> Vec<Route> {
    vec![create::route(), list::route(), rotate::route(), revoke::route()]
}

/// An API key without its text.
#[derive(Serialize, ToSchema)]
#[schema(as = ApiKey)]
struct ApiKeyView {
    api_key_id: String,
    name: String,
    permissions: Vec<String>,
    #[schema(format = DateTime)]
    created_at: Option<String>,
    /// Every key has an end.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    #[schema(format = DateTime)]
    last_used_at: Option<String>,
    #[schema(format = DateTime)]
    revoked_at: Option<String>,
    /// To tell keys and their texts apart: the prefix of the text, `…`, the last 4 digits of the id, `:` and the first 8
    /// hexadecimal digits of SHA-256 over the whole text. Another after each rotation.
    hint: String,
    /// Whole days since its text was made. Rotate before 90.
    age_days: i32,
}

impl ApiKeyView {
    fn new(key: Option<ApiKey>) -> Result<Self> {
        let key = key.ok_or_else(|| Error::internal("auth answered without a key"))?;
        Ok(Self {
            api_key_id: key.api_key_id,
            name: key.name,
            permissions: key.permissions,
            created_at: time::text(key.created_at),
            expires_at: time::text(key.expires_at),
            last_used_at: time::text(key.last_used_at),
            revoked_at: time::text(key.revoked_at),
            hint: key.hint,
            age_days: key.age_days,
        })
    }
}

/// An API key with its text, which is a secret.
#[derive(Serialize, ToSchema)]
struct ApiKeyWithText {
    api_key: ApiKeyView,
    /// Keep it: it is shown this once.
    text: String,
}

impl ApiKeyWithText {
    fn new(key: Option<ApiKey>, text: String) -> Result<Self> {
        Ok(Self { api_key: ApiKeyView::new(key)?, text })
    }
}
