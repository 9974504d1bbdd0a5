//! Inclusion and consistency proofs (RFC 9162, sections 2.1.3 and 2.1.4), and the C2SP tlog-proof file.

use super::digest::Digest;
use super::merkle::{empty_root, node_hash};
use super::tiles::{MissingTile, Tiles};

/// The runs of entries whose hashes prove that entry `index` is in the tree of `size` entries, in the proof's
/// order; `None` if it is not.
#[must_use]
pub fn inclusion_ranges(index: u64, size: u64) -> Option<Vec<(u64, u64)>> {
    if index >= size {
        return None;
    }
    let (mut from, mut to) = (0, size);
    let mut ranges = Vec::new();
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            ranges.push((middle, to));
            to = middle;
        } else {
            ranges.push((from, middle));
            from = middle;
        }
    }
    ranges.reverse();
    Some(ranges)
}

/// The runs of entries whose hashes prove that the tree of `new` entries extends that of `old`, in the proof's
/// order; `None` if `old > new`. Empty if either is trivial.
#[must_use]
pub fn consistency_ranges(old: u64, new: u64) -> Option<Vec<(u64, u64)>> {
    if old > new {
        return None;
    }
    let mut ranges = Vec::new();
    if old == 0 || old == new {
        return Some(ranges);
    }
    let (mut from, mut to, mut whole) = (0, new, true);
    while old != to {
        let middle = from + split(to - from);
        if old <= middle {
            ranges.push((middle, to));
            to = middle;
        } else {
            ranges.push((from, middle));
            from = middle;
            whole = false;
        }
    }
    if !whole {
        ranges.push((from, to));
    }
    ranges.reverse();
    Some(ranges)
}

/// The largest power of two below `size`, for 2 and more.
fn split(size: u64) -> u64 {
    1 << (size - 1).ilog2()
}

/// The hashes of `ranges`.
pub fn hashes(tiles: &Tiles, ranges: &[(u64, u64)]) -> Result<Vec<Digest>, MissingTile> {
    ranges.iter().map(|(from, to)| tiles.range(*from, *to)).collect()
}

/// Whether `proof` proves that the entry with this leaf hash is number `index` of the tree with this size and
/// root (RFC 9162, section 2.1.3.2).
#[must_use]
pub fn proves_inclusion(leaf: Digest, index: u64, size: u64, root: Digest, proof: &[Digest]) -> bool {
    if index >= size {
        return false;
    }
    let (mut place, mut last, mut hash) = (index, size - 1, leaf);
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if place & 1 == 1 || place == last {
            hash = node_hash(*sibling, hash);
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(hash, *sibling);
        }
        place >>= 1;
        last >>= 1;
    }
    last == 0 && hash == root
}

/// Whether `proof` proves that the tree (`new`, `new_root`) extends the tree (`old`, `old_root`) (RFC 9162,
/// section 2.1.4.2).
#[must_use]
pub fn proves_consistency(old: u64, old_root: Digest, new: u64, new_root: Digest, proof: &[Digest]) -> bool {
    if old == new {
        return proof.is_empty() && old_root == new_root;
    }
    if old == 0 {
        return proof.is_empty() && old_root == empty_root();
    }
    if old > new {
        return false;
    }
    let (first, rest) = match (old.is_power_of_two(), proof.split_first()) {
        (true, _) => (old_root, proof),
        (false, Some((first, rest))) => (*first, rest),
        (false, None) => return false,
    };
    let shift = (old - 1).trailing_ones();
    let (mut place, mut last) = ((old - 1) >> shift, (new - 1) >> shift);
    let (mut old_hash, mut new_hash) = (first, first);
    for sibling in rest {
        if last == 0 {
            return false;
        }
        if place & 1 == 1 || place == last {
            old_hash = node_hash(*sibling, old_hash);
            new_hash = node_hash(*sibling, new_hash);
            while place & 1 == 0 && place != 0 {
                place >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node_hash(new_hash, *sibling);
        }
        place >>= 1;
        last >>= 1;
    }
    last == 0 && old_hash == old_root && new_hash == new_root
}

/// The file that proves one entry offline (C2SP tlog-proof, version 1): index, inclusion proof, checkpoint.
#[must_use]
pub fn to_tlog_proof(index: u64, proof: &[Digest], checkpoint: &str) -> String {
    let hashes: String = proof.iter().map(|hash| hash.to_base64() + "\n").collect();
    format!("c2sp.org/tlog-proof@v1\nindex {index}\n{hashes}\n{checkpoint}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::merkle::{leaf_hash, tests::definition};
    use super::super::tiles::tiles_of;
    use super::*;

    fn tree(size: u64) -> (Vec<Vec<u8>>, Tiles) {
        let entries: Vec<Vec<u8>> = (0..size).map(|i| i.to_be_bytes().to_vec()).collect();
        let mut tiles = Tiles::default();
        for (seq, entry) in entries.iter().enumerate() {
            tiles.push(seq as u64, leaf_hash(entry), &mut BTreeSet::new()).expect("no gap");
        }
        (entries, tiles)
    }

    fn one_bit_off(hash: Digest) -> Digest {
        let mut bytes = *hash.as_bytes();
        bytes[7] ^= 1;
        Digest::from_bytes(bytes)
    }

    #[test]
    fn every_inclusion_proof_of_small_trees_holds_and_no_altered_one_does() {
        let (entries, tiles) = tree(40);
        for size in 1..=40_u64 {
            let root = definition(&entries[..usize::try_from(size).expect("small")]);
            for index in 0..size {
                let leaf = leaf_hash(&index.to_be_bytes());
                let proof = hashes(&tiles, &inclusion_ranges(index, size).expect("inside")).expect("loaded");
                assert!(proves_inclusion(leaf, index, size, root, &proof), "{index} of {size}");
                assert!(!proves_inclusion(one_bit_off(leaf), index, size, root, &proof));
                assert!(!proves_inclusion(leaf, index, size, one_bit_off(root), &proof));
                assert!(!proves_inclusion(leaf, index + size, size, root, &proof));
                for place in 0..proof.len() {
                    let mut altered = proof.clone();
                    altered[place] = one_bit_off(altered[place]);
                    assert!(!proves_inclusion(leaf, index, size, root, &altered));
                    altered.remove(place);
                    assert!(!proves_inclusion(leaf, index, size, root, &altered));
                }
                let mut longer = proof;
                longer.push(root);
                assert!(!proves_inclusion(leaf, index, size, root, &longer));
            }
            assert_eq!(inclusion_ranges(size, size), None);
        }
    }

    #[test]
    fn every_consistency_proof_of_small_trees_holds_and_no_altered_one_does() {
        let (entries, tiles) = tree(40);
        let roots: Vec<Digest> = (0..=40).map(|size| definition(&entries[..size])).collect();
        for new in 0..=40_u64 {
            for old in 0..=new {
                let proof =
                    hashes(&tiles, &consistency_ranges(old, new).expect("old <= new")).expect("loaded");
                let root = |size: u64| roots[usize::try_from(size).expect("small")];
                assert!(proves_consistency(old, root(old), new, root(new), &proof), "{old} to {new}");
                assert!(!proves_consistency(old, one_bit_off(root(old)), new, root(new), &proof));
                if old > 0 {
                    assert!(!proves_consistency(old, root(old), new, one_bit_off(root(new)), &proof));
                }
                for place in 0..proof.len() {
                    let mut altered = proof.clone();
                    altered[place] = one_bit_off(altered[place]);
                    assert!(!proves_consistency(old, root(old), new, root(new), &altered));
                    altered.remove(place);
                    assert!(!proves_consistency(old, root(old), new, root(new), &altered));
                }
            }
        }
        assert_eq!(consistency_ranges(2, 1), None);
    }

    #[test]
    fn proofs_in_a_tree_of_several_tile_levels_take_few_tiles() {
        let (_, tiles) = tree(66_000);
        let root = tiles.range(0, 66_000).expect("loaded");
        for index in [0, 255, 256, 65_535, 65_536, 65_999] {
            let ranges = inclusion_ranges(index, 66_000).expect("inside");
            assert!(tiles_of(ranges.clone()).len() <= 6, "{:?}", tiles_of(ranges));
            let proof = hashes(&tiles, &ranges).expect("loaded");
            assert!(proves_inclusion(leaf_hash(&index.to_be_bytes()), index, 66_000, root, &proof));
        }
        for old in [1, 256, 65_535, 65_536, 65_537] {
            let proof = hashes(&tiles, &consistency_ranges(old, 66_000).expect("fits")).expect("loaded");
            assert!(proves_consistency(old, tiles.range(0, old).expect("loaded"), 66_000, root, &proof));
        }
    }

    #[test]
    fn a_proof_file_has_the_lines_of_the_specification() {
        let hash = Digest::of(&[b"x"]);
        let text = to_tlog_proof(5, &[hash], "origin\n6\nroot\n\n- sig\n");
        assert_eq!(
            text,
            format!("c2sp.org/tlog-proof@v1\nindex 5\n{}\n\norigin\n6\nroot\n\n- sig\n", hash.to_base64())
        );
    }
}
