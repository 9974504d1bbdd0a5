//! `audit_tiles`: the tree.

use std::collections::BTreeSet;

use gatehouse_db::{Result, Tx, params, sql};

use super::stored;
use crate::domain::names::LogId;
use crate::domain::tiles::{HEIGHT, TileId, Tiles, WIDTH};

sql! {
    /// A new tile, or a longer version of one.
    pub(crate) PUT_TILE = "INSERT INTO audit_tiles (log, level, tile, hashes) VALUES ($1, $2, $3, $4)
        ON CONFLICT (log, level, tile) DO UPDATE SET hashes = excluded.hashes";
    /// One tile.
    pub(crate) TILE = "SELECT hashes FROM audit_tiles WHERE log = $1 AND level = $2 AND tile = $3";
}

pub(crate) async fn put(tx: &mut Tx, log: &LogId, id: TileId, hashes: Vec<u8>) -> Result<()> {
    let values = params![log.as_str(), i64::from(id.level), stored(id.index), hashes];
    tx.execute(&PUT_TILE, values).await.map(drop)
}

pub(crate) async fn lookup(tx: &mut Tx, log: &LogId, id: TileId) -> Result<Option<Vec<u8>>> {
    let row = tx.fetch_optional(&TILE, params![log.as_str(), i64::from(id.level), stored(id.index)]).await?;
    row.map(|row| row.get("hashes")).transpose()
}

/// The tiles named, as far as they are there.
pub(crate) async fn load(tx: &mut Tx, log: &LogId, ids: &BTreeSet<TileId>) -> Result<Tiles> {
    let mut tiles = Tiles::default();
    for id in ids {
        if let Some(hashes) = lookup(tx, log, *id).await? {
            // A tile of a wrong length stays out, and whoever needs it is told that it is missing.
            tiles.insert(*id, &hashes);
        }
    }
    Ok(tiles)
}

/// What it takes to append to the tree of `size` entries.
pub(crate) async fn load_right_edge(tx: &mut Tx, log: &LogId, size: u64) -> Result<Tiles> {
    let ids = (0..8)
        .map(|level| TileId { level, index: size.checked_shr(HEIGHT * level).unwrap_or(0) / WIDTH })
        .filter(|id| id.width(size) > 0)
        .collect();
    load(tx, log, &ids).await
}
