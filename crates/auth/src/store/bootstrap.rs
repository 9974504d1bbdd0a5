//! Whether the first tenant was made.

use gatehouse_core::Timestamp;
use gatehouse_db::{Error, Tx, params, sql};

sql! {
    /// Claims the right to make the first tenant, once.
    pub CLAIM_BOOTSTRAP = "INSERT INTO bootstrap (id, done_at) VALUES (1, $1) ON CONFLICT (id) DO NOTHING";
    /// Whether somebody claimed it.
    pub COUNT_BOOTSTRAPS = "SELECT COUNT(id) AS claims FROM bootstrap";
}

/// Whether the first tenant was made.
pub async fn is_claimed(tx: &mut Tx) -> Result<bool, Error> {
    Ok(tx.fetch_one(&COUNT_BOOTSTRAPS, params![]).await?.get::<i64>("claims")? > 0)
}

/// Whether the caller is the one to make the first tenant.
pub async fn claim(tx: &mut Tx, now: Timestamp) -> Result<bool, Error> {
    Ok(tx.execute(&CLAIM_BOOTSTRAP, params![now]).await? == 1)
}
