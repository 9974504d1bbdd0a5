//! `audit_tiles`: the tree.

use std::collections::{BTreeMap, BTreeSet};

use gatehouse_db::{Result, Tx, params, sql};

use super::{find, stored};
use crate::domain::names::LogId;
use crate::domain::tiles::{HEIGHT, TileId, Tiles, WIDTH};

sql! {
    /// A new tile, or a longer version of one.
    pub(crate) PUT_TILE = "INSERT INTO audit_tiles (log, level, tile, hashes) VALUES ($1, $2, $3, $4)
        ON CONFLICT (log, level, tile) DO UPDATE SET hashes = excluded.hashes";
    /// One tile.
    pub(crate) TILE = "SELECT hashes FROM audit_tiles WHERE log = $1 AND level = $2 AND tile = $3";
    /// A run of tiles of one level.
    pub(crate) TILES = "SELECT tile, hashes FROM audit_tiles WHERE log = $1 AND level = $2 AND tile BETWEEN $3 AND $4";
}

pub(crate) async fn put(tx: &mut Tx, log: &LogId, id: TileId, hashes: Vec<u8>) -> Result<()> {
    let values = params![log.as_str(), i64::from(id.level), stored(id.index), hashes];
    tx.execute(&PUT_TILE, values).await.map(drop)
}

pub(crate) async fn lookup(tx: &mut Tx, log: &LogId, id: TileId) -> Result<Option<Vec<u8>>> {
    let row = tx.fetch_optional(&TILE, params![log.as_str(), i64::from(id.level), stored(id.index)]).await?;
    // What is no tile stays out, and whoever needs it is told that it is missing.
    Ok(row.and_then(|row| row.get("hashes").ok()))
}

/// The bytes of every tile that holds a hash of the entries `first..=last` or of a subtree that one of them completes.
pub(crate) async fn of_run(
    tx: &mut Tx,
    log: &LogId,
    first: u64,
    last: u64,
) -> Result<BTreeMap<TileId, Vec<u8>>> {
    let mut tiles = BTreeMap::new();
    let end = last.saturating_add(1);
    for level in 0..=7 {
        let (from, to) = (first >> (HEIGHT * level), end >> (HEIGHT * level));
        if from >= to {
            break;
        }
        let (from, to) = (from / WIDTH, (to - 1) / WIDTH);
        let values = params![log.as_str(), i64::from(level), stored(from), stored(to)];
        for row in tx.fetch_all(&TILES, values).await? {
            let Some(index) = find(&row, "tile") else { continue };
            let hashes: Vec<u8> = row.get("hashes").unwrap_or_default();
            // Of two versions of a tile neither is the one.
            tiles
                .entry(TileId { level, index })
                .and_modify(|other: &mut Vec<u8>| {
                    if *other != hashes {
                        other.clear();
                    }
                })
                .or_insert(hashes);
        }
    }
    Ok(tiles)
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
