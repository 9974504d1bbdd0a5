//! The Merkle tree of RFC 9162, section 2.1 (the same as RFC 6962's), and its right edge.

use super::digest::Digest;

/// The hash of an entry: SHA-256 over 0x00 and its bytes (RFC 9162, section 2.1.1).
#[must_use]
pub fn leaf_hash(entry: &[u8]) -> Digest {
    Digest::of(&[&[0], entry])
}

/// The hash of an inner node: SHA-256 over 0x01 and both children.
#[must_use]
pub fn node_hash(left: Digest, right: Digest) -> Digest {
    Digest::of(&[&[1], left.as_bytes(), right.as_bytes()])
}

/// The root of the tree with no entries: SHA-256 over nothing.
#[must_use]
pub fn empty_root() -> Digest {
    Digest::of(&[])
}

/// The hash of a run of subtrees, largest first, as the tree joins them: from the right.
#[must_use]
pub fn join(subtrees: &[Digest]) -> Option<Digest> {
    let (last, rest) = subtrees.split_last()?;
    Some(rest.iter().rev().fold(*last, |right, left| node_hash(*left, right)))
}

/// The roots of the perfect subtrees that a tree of some size consists of, largest first: one for each bit set
/// in the size. It is all that adding entries takes, and at most 64 hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    subtrees: Vec<Digest>,
}

impl Default for Frontier {
    fn default() -> Self {
        Self::empty()
    }
}

impl Frontier {
    /// The tree with no entries.
    #[must_use]
    pub const fn empty() -> Self {
        Self { size: 0, subtrees: Vec::new() }
    }

    /// The right edge of a tree of `size` entries; `None` unless there is one subtree for each bit set in it.
    #[must_use]
    pub fn from_parts(size: u64, subtrees: Vec<Digest>) -> Option<Self> {
        (usize::try_from(size.count_ones()).ok()? == subtrees.len()).then_some(Self { size, subtrees })
    }

    /// How many entries the tree has.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The subtrees, largest first.
    #[must_use]
    pub fn subtrees(&self) -> &[Digest] {
        &self.subtrees
    }

    /// Adds an entry by its [`leaf_hash`].
    pub fn push(&mut self, hash: Digest) {
        let mut hash = hash;
        // As in a binary counter: each trailing one of the size is a subtree that the new entry completes.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.subtrees.pop() {
                hash = node_hash(left, hash);
            }
        }
        self.subtrees.push(hash);
        self.size += 1;
    }

    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> Digest {
        join(&self.subtrees).unwrap_or_else(empty_root)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The definition of RFC 9162, section 2.1.1, word for word: what everything here is held against.
    pub(in crate::domain) fn definition(entries: &[Vec<u8>]) -> Digest {
        match entries {
            [] => empty_root(),
            [one] => leaf_hash(one),
            many => {
                let split = 1 << (many.len() - 1).ilog2();
                node_hash(definition(&many[..split]), definition(&many[split..]))
            }
        }
    }

    /// The entries and roots that Certificate Transparency's own tests use (certificate-transparency-go).
    #[test]
    fn the_test_vectors_of_certificate_transparency_hold() {
        let entries: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut frontier = Frontier::empty();
        assert_eq!(
            frontier.root().to_string(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        for (entry, root) in entries.iter().zip(roots) {
            frontier.push(leaf_hash(entry));
            assert_eq!(frontier.root().to_string(), root);
        }
    }

    #[test]
    fn the_frontier_agrees_with_the_definition() {
        let entries: Vec<Vec<u8>> = (0..300_u32).map(|i| i.to_be_bytes().to_vec()).collect();
        let mut frontier = Frontier::empty();
        for size in 0..entries.len() {
            assert_eq!(frontier.root(), definition(&entries[..size]), "at {size}");
            let again = Frontier::from_parts(frontier.size(), frontier.subtrees().to_vec());
            assert_eq!(again.as_ref(), Some(&frontier));
            frontier.push(leaf_hash(&entries[size]));
        }
        assert_eq!(Frontier::from_parts(3, vec![empty_root()]), None);
    }
}
