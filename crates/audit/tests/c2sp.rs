//! Verifiers that others wrote (Cloudflare's ports of the Go implementations) accept what we write, and we what they
//! write.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use gatehouse_audit::domain::checkpoint::Checkpoint;
use gatehouse_audit::domain::digest::Digest;
use gatehouse_audit::domain::merkle::leaf_hash;
use gatehouse_audit::domain::note::{SignerKey, VerifierKey};
use gatehouse_audit::domain::proof::{consistency_ranges, hashes, inclusion_ranges};
use gatehouse_audit::domain::tiles::Tiles;
use gatehouse_core::Entropy;
use signed_note::{Note, StandardSigner, StandardVerifier, VerifierList};
use tlog_tiles::{Hash, check_record, check_tree, record_hash};

const ORIGIN: &str = "gatehouse.test/dev/audit/default";
const SIZE: u64 = 600;

fn theirs(digest: Digest) -> Hash {
    Hash(*digest.as_bytes())
}

fn entry(seq: u64) -> Vec<u8> {
    format!("entry {seq}").into_bytes()
}

fn tree() -> Tiles {
    let mut tiles = Tiles::default();
    for seq in 0..SIZE {
        tiles.push(seq, leaf_hash(&entry(seq)), &mut BTreeSet::new()).unwrap();
    }
    tiles
}

#[test]
fn they_accept_our_checkpoints() {
    let key = SignerKey::generate(ORIGIN, &Entropy::seeded(1)).unwrap();
    let root = tree().range(0, SIZE).unwrap();
    let ours = Checkpoint { origin: ORIGIN.into(), size: SIZE, root };
    let note = ours.sign(&key).unwrap();
    let verifier = StandardVerifier::new(&key.verifier().to_string()).unwrap();
    let parsed = Note::from_bytes(note.as_bytes()).unwrap();
    let (good, ignored) = parsed.verify(&VerifierList::new(vec![Box::new(verifier)])).unwrap();
    assert_eq!((good.len(), ignored.len()), (1, 0));
    let checkpoint = tlog_tiles::Checkpoint::from_bytes(parsed.text()).unwrap();
    assert_eq!((checkpoint.origin(), checkpoint.size()), (ORIGIN, SIZE));
    assert_eq!(checkpoint.hash().0, *root.as_bytes());
}

#[test]
fn we_accept_their_checkpoints() {
    // Their key generator wants a generator of random numbers of its own; a key as text does as well.
    let key = SignerKey::generate(ORIGIN, &Entropy::seeded(2)).unwrap().verifier();
    let checkpoint = tlog_tiles::Checkpoint::new(ORIGIN, 7, record_hash(b"root"), "").unwrap();
    let skey = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
    let vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    let mut note = Note::new(&checkpoint.to_bytes(), &[]).unwrap();
    note.add_sigs(&[&StandardSigner::new(skey).unwrap()]).unwrap();
    let text = String::from_utf8(note.to_bytes()).unwrap();
    let opened: Checkpoint = vkey.parse::<VerifierKey>().unwrap().open(&text).unwrap().parse().unwrap();
    assert_eq!((opened.origin.as_str(), opened.size), (ORIGIN, 7));
    assert!(key.open(&text).is_err());
}

#[test]
fn they_accept_our_proofs() {
    let tree = tree();
    let root = theirs(tree.range(0, SIZE).unwrap());
    for index in (0..SIZE).step_by(7).chain([255, 256, 511, 512, SIZE - 1]) {
        let proof = hashes(&tree, &inclusion_ranges(index, SIZE).unwrap()).unwrap();
        let proof: Vec<Hash> = proof.into_iter().map(theirs).collect();
        check_record(&proof, SIZE, root, index, record_hash(&entry(index))).unwrap();
        assert!(check_record(&proof, SIZE, root, index, record_hash(b"another entry")).is_err());
    }
    for old in (1..=SIZE).step_by(11).chain([255, 256, 257, 512, SIZE]) {
        let proof = hashes(&tree, &consistency_ranges(old, SIZE).unwrap()).unwrap();
        let proof: Vec<Hash> = proof.into_iter().map(theirs).collect();
        check_tree(&proof, SIZE, root, old, theirs(tree.range(0, old).unwrap())).unwrap();
        assert!(check_tree(&proof, SIZE, root, old, record_hash(b"another root")).is_err());
    }
}
