//! `audit_checkpoints`: what was signed.

use gatehouse_core::Timestamp;
use gatehouse_db::{Result, Row, Tx, params, sql};

use super::{find, read, stored};
use crate::domain::names::LogId;

sql! {
    /// A checkpoint; nothing if this size has one.
    pub(crate) ADD_CHECKPOINT = "INSERT INTO audit_checkpoints (log, size, signed_at, note) VALUES ($1, $2, $3, $4)
        ON CONFLICT (log, size) DO NOTHING";
    /// The same checkpoint with one more signature, unless somebody else changed it since.
    pub(crate) COUNTERSIGN = "UPDATE audit_checkpoints SET note = $4 WHERE log = $1 AND size = $2 AND note = $3";
    /// The newest.
    pub(crate) NEWEST = "SELECT size, note FROM audit_checkpoints WHERE log = $1 ORDER BY size DESC LIMIT 1";
    /// That of one size.
    pub(crate) OF_SIZE = "SELECT size, note FROM audit_checkpoints WHERE log = $1 AND size = $2";
    /// A run of them.
    pub(crate) CHECKPOINTS_FROM = "SELECT size, note FROM audit_checkpoints WHERE log = $1 AND size >= $2 ORDER BY size LIMIT $3";
}

fn checkpoint(row: &Row) -> Result<(u64, String)> {
    Ok((read(row, "size")?, row.get("note")?))
}

pub(crate) async fn add(tx: &mut Tx, log: &LogId, size: u64, at: Timestamp, note: &str) -> Result<()> {
    tx.execute(&ADD_CHECKPOINT, params![log.as_str(), stored(size), at, note]).await.map(drop)
}

/// Puts `countersigned` in the place of `note`, unless that is there no more.
pub(crate) async fn countersign(
    tx: &mut Tx,
    log: &LogId,
    size: u64,
    note: &str,
    countersigned: &str,
) -> Result<()> {
    tx.execute(&COUNTERSIGN, params![log.as_str(), stored(size), note, countersigned]).await.map(drop)
}

/// Size and note of the newest.
pub(crate) async fn lookup_newest(tx: &mut Tx, log: &LogId) -> Result<Option<(u64, String)>> {
    tx.fetch_optional(&NEWEST, params![log.as_str()]).await?.as_ref().map(checkpoint).transpose()
}

pub(crate) async fn lookup(tx: &mut Tx, log: &LogId, size: u64) -> Result<Option<(u64, String)>> {
    tx.fetch_optional(&OF_SIZE, params![log.as_str(), stored(size)])
        .await?
        .as_ref()
        .map(checkpoint)
        .transpose()
}

/// Up to `most`, from the size `from` on, for verification: a size or a note that is none is left out.
pub(crate) async fn list(
    tx: &mut Tx,
    log: &LogId,
    from: u64,
    most: u32,
) -> Result<Vec<(Option<u64>, Option<String>)>> {
    let rows = tx.fetch_all(&CHECKPOINTS_FROM, params![log.as_str(), stored(from), most]).await?;
    Ok(rows.iter().map(|row| (find(row, "size"), row.get("note").ok())).collect())
}
