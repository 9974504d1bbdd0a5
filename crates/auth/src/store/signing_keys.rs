//! Sealed signing keys.

use gatehouse_core::Timestamp;
use gatehouse_db::{Error, Tx, params, sql};

use super::key_id;
use crate::domain::keys::KeyId;

sql! {
    /// Adds the next key, unless another replica did.
    pub ADD_SIGNING_KEY = "INSERT INTO signing_keys (sequence, kid, created_at, signs_from, sealed_kid, sealed) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
    /// All keys, oldest first. There are two or three.
    pub LIST_SIGNING_KEYS = "SELECT sequence, kid, signs_from, sealed_kid, sealed FROM signing_keys ORDER BY sequence LIMIT 100";
    /// Forgets a key.
    pub REMOVE_SIGNING_KEY = "DELETE FROM signing_keys WHERE sequence = $1";
}

/// A signing key as stored.
#[derive(Clone, Debug)]
pub struct SealedKey {
    /// Its place in the row of keys.
    pub sequence: i64,
    /// Its name.
    pub kid: String,
    /// From when on it signs.
    pub signs_from: Timestamp,
    /// The key that sealed it.
    pub sealed_kid: KeyId,
    /// Its private half.
    pub sealed: Vec<u8>,
}

/// Adds a key; `false` if another replica added one of that place.
pub async fn add(tx: &mut Tx, key: &SealedKey, now: Timestamp) -> Result<bool, Error> {
    let (sealed_kid, sealed) = (key.sealed_kid.as_str(), key.sealed.as_slice());
    let params = params![key.sequence, &key.kid, now, key.signs_from, sealed_kid, sealed];
    Ok(tx.execute(&ADD_SIGNING_KEY, params).await? == 1)
}

/// All keys, oldest first.
pub async fn list(tx: &mut Tx) -> Result<Vec<SealedKey>, Error> {
    let rows = tx.fetch_all(&LIST_SIGNING_KEYS, params![]).await?;
    rows.iter()
        .map(|row| {
            Ok(SealedKey {
                sequence: row.get("sequence")?,
                kid: row.get("kid")?,
                signs_from: row.get("signs_from")?,
                sealed_kid: key_id("sealed_kid", &row.get::<String>("sealed_kid")?)?,
                sealed: row.get("sealed")?,
            })
        })
        .collect()
}

/// Forgets the key in place `sequence`.
pub async fn remove(tx: &mut Tx, sequence: i64) -> Result<(), Error> {
    tx.execute(&REMOVE_SIGNING_KEY, params![sequence]).await?;
    Ok(())
}
