//! The table `access_tokens`.

use gatehouse_core::Timestamp;
use gatehouse_db::{Result, Tx, params, sql};

use crate::domain::connection::ConnectionKey;
use crate::domain::scopes::Scopes;
use crate::domain::wish::Life;

sql! {
    /// The newest generation's token stays, whoever writes last.
    PUT_ACCESS_TOKEN = "INSERT INTO access_tokens (tenant_id, connection_id, scopes, generation, sealed, token_type, \
        granted, issued_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (tenant_id, connection_id, scopes) \
        DO UPDATE SET generation = excluded.generation, sealed = excluded.sealed, token_type = excluded.token_type, \
        granted = excluded.granted, issued_at = excluded.issued_at, expires_at = excluded.expires_at \
        WHERE access_tokens.generation <= excluded.generation";
    GET_ACCESS_TOKEN = "SELECT generation, sealed, token_type, granted, issued_at, expires_at FROM access_tokens \
        WHERE tenant_id = $1 AND connection_id = $2 AND scopes = $3";
    DELETE_ACCESS_TOKENS = "DELETE FROM access_tokens WHERE tenant_id = $1 AND connection_id = $2";
    /// Maintenance.
    PURGE_ACCESS_TOKENS = "DELETE FROM access_tokens WHERE expires_at <= $1";
}

/// A cached token, sealed.
#[derive(Clone, Debug)]
pub(crate) struct Cached {
    pub(crate) generation: i64,
    pub(crate) sealed: Vec<u8>,
    pub(crate) token_type: String,
    pub(crate) granted: Scopes,
    pub(crate) life: Life,
}

pub(crate) async fn put(tx: &mut Tx, key: ConnectionKey, scopes: &Scopes, token: &Cached) -> Result<()> {
    let values = params![
        key.tenant,
        key.connection,
        scopes.to_string(),
        token.generation,
        &token.sealed,
        &token.token_type,
        token.granted.to_string(),
        token.life.issued_at,
        token.life.expires_at
    ];
    tx.execute(&PUT_ACCESS_TOKEN, values).await.map(drop)
}

pub(crate) async fn lookup(tx: &mut Tx, key: ConnectionKey, scopes: &Scopes) -> Result<Option<Cached>> {
    let values = params![key.tenant, key.connection, scopes.to_string()];
    let Some(row) = tx.fetch_optional(&GET_ACCESS_TOKEN, values).await? else { return Ok(None) };
    Ok(Some(Cached {
        generation: row.get("generation")?,
        sealed: row.get("sealed")?,
        token_type: row.get("token_type")?,
        granted: Scopes::parse(&row.get::<String>("granted")?),
        life: Life { issued_at: row.get("issued_at")?, expires_at: row.get("expires_at")? },
    }))
}

pub(crate) async fn delete_all(tx: &mut Tx, key: ConnectionKey) -> Result<()> {
    tx.execute(&DELETE_ACCESS_TOKENS, params![key.tenant, key.connection]).await.map(drop)
}

pub(crate) async fn purge(tx: &mut Tx, now: Timestamp) -> Result<u64> {
    tx.execute(&PURGE_ACCESS_TOKENS, params![now]).await
}

/// What a cached token is sealed for: moved to another row, it does not open.
pub(crate) fn purpose(key: ConnectionKey, scopes: &Scopes, generation: i64) -> String {
    format!("token-broker/access/{}/{}/{generation}/{scopes}", key.tenant, key.connection)
}
