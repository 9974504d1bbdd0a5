//! The tree cut into tiles of up to 256 hashes, as C2SP tlog-tiles lays them out: tile `n` of level `l` holds
//! the hashes of level `8 l` from index `256 n` on. A tile is a row in the database and a file for a verifier.

use std::collections::{BTreeMap, BTreeSet};

use super::digest::Digest;
use super::merkle::{Frontier, empty_root, join, node_hash};

/// How many levels of the tree one tile spans.
pub const HEIGHT: u32 = 8;
/// How many hashes a full tile holds.
pub const WIDTH: u64 = 1 << HEIGHT;

/// Which tile: its level (each spans eight levels of the tree) and its place in that level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileId {
    /// 0 for hashes of entries, 1 for roots of 256 entries, and so on; at most 7.
    pub level: u32,
    /// From 0, left to right.
    pub index: u64,
}

impl TileId {
    /// How many hashes this tile has in a tree of `size` entries: 0 to 256.
    #[must_use]
    pub fn width(self, size: u64) -> u64 {
        let hashes = size.checked_shr(HEIGHT * self.level).unwrap_or(0);
        hashes.saturating_sub(self.index.saturating_mul(WIDTH)).min(WIDTH)
    }

    /// Where C2SP tlog-tiles puts this tile, with `width` hashes of it: `tile/0/x001/067` or, partial,
    /// `tile/0/x001/067.p/17`.
    #[must_use]
    pub fn path(self, width: u64) -> String {
        format!("tile/{}/{}", self.level, index_path(self.index, width))
    }
}

/// Where C2SP tlog-tiles puts the bundle of entries `256 index` on: `tile/entries/x001/067`.
#[must_use]
pub fn bundle_path(index: u64, width: u64) -> String {
    format!("tile/entries/{}", index_path(index, width))
}

/// Three digits an element, all but the last marked by `x`; a partial tile's width after `.p/`.
fn index_path(index: u64, width: u64) -> String {
    let mut path = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        path = format!("x{:03}/{path}", rest % 1000);
        rest /= 1000;
    }
    if width < WIDTH { format!("{path}.p/{width}") } else { path }
}

/// Entries as tlog-tiles bundles them: each behind its length, 16 bits, big-endian. `None` if one is longer.
#[must_use]
pub fn bundle<'a>(entries: impl IntoIterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for entry in entries {
        out.extend_from_slice(&u16::try_from(entry.len()).ok()?.to_be_bytes());
        out.extend_from_slice(entry);
    }
    Some(out)
}

/// A perfect subtree: the one over the entries `index << level .. (index + 1) << level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// The height of the subtree: it has `1 << level` entries.
    pub level: u32,
    /// From 0, left to right.
    pub index: u64,
}

impl Node {
    /// The tile that knows this subtree's hash, the place of the first hash that it is made of, and how many.
    fn place(self) -> (TileId, usize, usize) {
        let within = self.level % HEIGHT;
        let first = self.index << within;
        let offset = usize::try_from(first % WIDTH).expect("a number below 256 fits");
        let count = 1_usize << within;
        (TileId { level: self.level / HEIGHT, index: first / WIDTH }, offset, count)
    }
}

/// The perfect subtrees that the entries `from..to` consist of, largest first. `from` must be a multiple of the
/// smallest power of two that is no smaller than `to - from`, as in every subtree of RFC 9162.
#[must_use]
pub fn nodes_of(from: u64, to: u64) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut at = from;
    while at < to {
        let level = (to - at).ilog2();
        nodes.push(Node { level, index: at >> level });
        at += 1 << level;
    }
    nodes
}

/// Tiles by id, as many as were loaded. The right edge is all that appending takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tiles(BTreeMap<TileId, Vec<Digest>>);

/// A tile that a computation needs was not loaded or is too short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tile {}/{} is missing or too short", .0.level, .0.index)]
pub struct MissingTile(pub TileId);

impl Tiles {
    /// Adds a tile from its stored bytes: 32 for each hash. False, and nothing added, if it is not of that form.
    pub fn insert(&mut self, id: TileId, stored: &[u8]) -> bool {
        if !stored.len().is_multiple_of(32) || stored.len() > 32 * 256 {
            return false;
        }
        self.0.insert(id, stored.chunks_exact(32).filter_map(Digest::from_slice).collect());
        true
    }

    /// The stored bytes of a tile: 32 for each hash.
    #[must_use]
    pub fn bytes(&self, id: TileId) -> Option<Vec<u8>> {
        self.0.get(&id).map(|hashes| hashes.iter().flat_map(|hash| *hash.as_bytes()).collect())
    }

    /// Adds the entry number `seq` by its leaf hash, given the right edge of the tree of `seq` entries, and notes
    /// in `changed` which tiles to store.
    pub fn push(
        &mut self,
        seq: u64,
        hash: Digest,
        changed: &mut BTreeSet<TileId>,
    ) -> Result<(), MissingTile> {
        let (mut hash, mut index) = (hash, seq);
        for level in 0.. {
            let id = TileId { level, index: index / WIDTH };
            let tile = self.0.entry(id).or_default();
            if tile.len() as u64 != index % WIDTH {
                return Err(MissingTile(id));
            }
            tile.push(hash);
            changed.insert(id);
            if tile.len() as u64 != WIDTH {
                return Ok(());
            }
            hash = perfect(tile);
            index /= WIDTH;
        }
        Ok(())
    }

    /// Forgets the tiles that appending to a tree of `size` entries does not need.
    pub fn keep_right_edge(&mut self, size: u64) {
        self.0.retain(|id, _| {
            let width = id.width(size);
            width > 0 && width < WIDTH
        });
    }

    /// The hash of a perfect subtree.
    pub fn node(&self, node: Node) -> Result<Digest, MissingTile> {
        let (id, offset, count) = node.place();
        self.0.get(&id).and_then(|tile| tile.get(offset..offset + count)).map(perfect).ok_or(MissingTile(id))
    }

    /// The hash of the entries `from..to` (see [`nodes_of`] for what they may be).
    pub fn range(&self, from: u64, to: u64) -> Result<Digest, MissingTile> {
        let hashes =
            nodes_of(from, to).into_iter().map(|node| self.node(node)).collect::<Result<Vec<_>, _>>()?;
        Ok(join(&hashes).unwrap_or_else(empty_root))
    }

    /// The right edge of the tree of `size` entries.
    pub fn frontier(&self, size: u64) -> Result<Frontier, MissingTile> {
        let hashes =
            nodes_of(0, size).into_iter().map(|node| self.node(node)).collect::<Result<Vec<_>, _>>()?;
        Ok(Frontier::from_parts(size, hashes).unwrap_or_default())
    }
}

/// Which tiles the hashes of these ranges are in.
#[must_use]
pub fn tiles_of(ranges: impl IntoIterator<Item = (u64, u64)>) -> BTreeSet<TileId> {
    ranges.into_iter().flat_map(|(from, to)| nodes_of(from, to)).map(|node| node.place().0).collect()
}

/// The root over a power of two of hashes.
fn perfect(hashes: &[Digest]) -> Digest {
    let mut level = hashes.to_vec();
    while level.len() > 1 {
        level = level.chunks_exact(2).map(|pair| node_hash(pair[0], pair[1])).collect();
    }
    level.first().copied().unwrap_or_else(empty_root)
}

#[cfg(test)]
mod tests {
    use super::super::merkle::leaf_hash;
    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        // The examples of C2SP tlog-tiles.
        assert_eq!(TileId { level: 0, index: 1_234_067 }.path(256), "tile/0/x001/x234/067");
        assert_eq!(TileId { level: 1, index: 0 }.path(17), "tile/1/000.p/17");
        assert_eq!(bundle_path(999, 256), "tile/entries/999");
        assert_eq!(bundle_path(1000, 1), "tile/entries/x001/000.p/1");
        assert_eq!(bundle([b"ab".as_slice(), b""]), Some(vec![0, 2, b'a', b'b', 0, 0]));
    }

    #[test]
    fn tiles_give_the_same_roots_as_the_frontier_from_the_right_edge_alone() {
        let mut frontier = Frontier::empty();
        let mut all = Tiles::default();
        let mut edge = Tiles::default();
        for seq in 0..70_000_u64 {
            let hash = leaf_hash(&seq.to_be_bytes());
            frontier.push(hash);
            let mut changed = BTreeSet::new();
            all.push(seq, hash, &mut changed).expect("no gap");
            edge.push(seq, hash, &mut BTreeSet::new()).expect("the edge is all it takes");
            edge.keep_right_edge(seq + 1);
            if seq % 251 == 0 || seq > 65_530 && seq < 65_540 {
                assert_eq!(edge.frontier(seq + 1).expect("loaded"), frontier);
                assert_eq!(all.range(0, seq + 1).expect("loaded"), frontier.root());
            }
            for id in changed {
                assert_eq!(all.bytes(id).map(|bytes| bytes.len() as u64 / 32), Some(id.width(seq + 1)));
            }
        }
    }

    #[test]
    fn a_tile_of_another_form_is_refused() {
        let id = TileId { level: 0, index: 0 };
        let mut tiles = Tiles::default();
        assert!(!tiles.insert(id, &[0; 31]));
        assert!(!tiles.insert(id, &[0; 32 * 257]));
        assert!(tiles.insert(id, &[0; 64]));
        assert_eq!(tiles.push(3, empty_root(), &mut BTreeSet::new()), Err(MissingTile(id)));
    }
}
