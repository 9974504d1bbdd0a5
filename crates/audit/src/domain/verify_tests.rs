//! Small logs altered in every way there is, larger ones at random: whatever differs must be found.

use gatehouse_core::ids::EventId;
use gatehouse_core::{Entropy, Timestamp};
use proptest::prelude::*;
use uuid::Uuid;

use super::super::names::{Action, Actor, Outcome, Service};
use super::super::note::SignerKey;
use super::super::proof::{consistency_ranges, hashes};
use super::super::tiles::Tiles;
use super::*;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    seq: u64,
    leaf: Vec<u8>,
    payload: Vec<u8>,
}

/// A log as a database holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Log {
    rows: Vec<Row>,
    size: u64,
    chain: Digest,
}

fn log_id() -> LogId {
    LogId::new("default").expect("valid")
}

fn class() -> RetentionClass {
    RetentionClass::new("default").expect("valid")
}

fn leaf(seq: u64, prev_chain: Digest, payload: &[u8]) -> Leaf {
    Leaf {
        action: Action::new("job.jobs.submit").expect("valid"),
        actor: Actor::Anonymous,
        delegate: None,
        event_id: EventId::from_uuid(Uuid::from_u128(u128::from(seq))),
        log: log_id(),
        occurred: Timestamp::from_seconds(1),
        outcome: Outcome::Success,
        payload_sha256: Digest::of_payload(payload),
        prev_chain,
        reason: None,
        recorded: Timestamp::from_seconds(2),
        request_id: None,
        retention: class(),
        seq,
        service: Service::new("job").expect("valid"),
        target: None,
        tenant: None,
    }
}

fn build(size: u64) -> Log {
    let mut log = Log { rows: Vec::new(), size: 0, chain: Digest::of_genesis(&log_id()) };
    for seq in 0..size {
        append(&mut log, format!("payload {seq}").into_bytes());
    }
    log
}

fn append(log: &mut Log, payload: Vec<u8>) {
    let leaf = leaf(log.size, log.chain, &payload).encode();
    log.chain = Digest::of_chain(&leaf);
    log.rows.push(Row { seq: log.size, leaf, payload });
    log.size += 1;
}

/// What a forger with access to everything does: makes all links and the head fit again from `from` on.
fn rechain(log: &mut Log, from: usize) {
    for place in from..log.rows.len() {
        let prev = match place.checked_sub(1) {
            Some(before) => Digest::of_chain(&log.rows[before].leaf),
            None => Digest::of_genesis(&log_id()),
        };
        let mut leaf = Leaf::parse(&log.rows[place].leaf).expect("the forger writes valid leaves");
        leaf.prev_chain = prev;
        leaf.seq = place as u64;
        leaf.payload_sha256 = Digest::of_payload(&log.rows[place].payload);
        log.rows[place].leaf = leaf.encode();
        log.rows[place].seq = place as u64;
    }
    log.size = log.rows.len() as u64;
    log.chain =
        log.rows.last().map_or_else(|| Digest::of_genesis(&log_id()), |row| Digest::of_chain(&row.leaf));
}

fn checkpoint(log: &Log, size: usize) -> Checkpoint {
    let mut frontier = Frontier::empty();
    log.rows[..size].iter().for_each(|row| frontier.push(leaf_hash(&row.leaf)));
    Checkpoint { origin: "example.com/log".into(), size: size as u64, root: frontier.root() }
}

fn feed(mut verifier: LogVerifier, log: &Log) -> Report {
    for row in &log.rows {
        verifier.push(StoredEntry {
            seq: row.seq,
            leaf: &row.leaf,
            payload_sha256: Some(Digest::of_payload(&row.payload)),
        });
    }
    verifier.finish(Some(StoredHead { size: log.size, chain: log.chain }))
}

fn verify(log: &Log, trusted: &[Checkpoint]) -> Verdict {
    let mut verifier = LogVerifier::new(log_id(), class(), None);
    for checkpoint in trusted {
        verifier.trust(checkpoint, None);
    }
    feed(verifier, log).verdict
}

fn first_bad(verdict: &Verdict) -> Option<(u64, u64)> {
    match verdict {
        Verdict::Broken { entry, up_to, .. } => Some((*entry, up_to.unwrap_or(*entry))),
        _ => None,
    }
}

#[test]
fn an_untouched_log_verifies_and_says_what_it_can_not_know() {
    for size in 0..20 {
        let log = build(size);
        assert_eq!(verify(&log, &[]), Verdict::TailNotProven);
        for proven in 0..=size {
            let checkpoint = checkpoint(&log, usize::try_from(proven).expect("small"));
            let nothing = proven == 0 && size > 0;
            let expected = if nothing { Verdict::TailNotProven } else { Verdict::Verified { proven } };
            assert_eq!(verify(&log, &[checkpoint]), expected);
        }
    }
}

#[test]
fn every_single_byte_change_is_found_at_its_entry_with_and_without_a_checkpoint() {
    let log = build(4);
    for entry in 0..log.rows.len() {
        for in_payload in [false, true] {
            let length = if in_payload { log.rows[entry].payload.len() } else { log.rows[entry].leaf.len() };
            for place in 0..length {
                for flip in [1, 2, 4, 8, 16, 32, 64, 128, 0xff] {
                    let mut changed = log.clone();
                    let row = &mut changed.rows[entry];
                    let bytes = if in_payload { &mut row.payload } else { &mut row.leaf };
                    bytes[place] ^= flip;
                    for trusted in [vec![], vec![checkpoint(&log, 4)], vec![checkpoint(&log, entry + 1)]] {
                        let bad = first_bad(&verify(&changed, &trusted));
                        let entry = entry as u64;
                        assert_eq!(bad, Some((entry, entry)), "byte {place} of entry {entry} ^ {flip}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_changed_head_or_place_is_found() {
    let log = build(4);
    for flip in 0..32 {
        let mut changed = log.clone();
        let mut chain = *changed.chain.as_bytes();
        chain[flip] ^= 1;
        changed.chain = Digest::from_bytes(chain);
        assert_eq!(first_bad(&verify(&changed, &[])), Some((3, 3)));
    }
    for size in [0, 3, 5, u64::MAX] {
        let changed = Log { size, ..log.clone() };
        assert!(first_bad(&verify(&changed, &[])).is_some(), "size {size}");
    }
    for place in 0..4 {
        let mut changed = log.clone();
        changed.rows[place].seq += 1;
        assert_eq!(first_bad(&verify(&changed, &[])), Some((place as u64, place as u64)));
    }
}

#[test]
fn every_deletion_is_found_at_its_place() {
    let log = build(6);
    let whole = checkpoint(&log, 6);
    for from in 0..6 {
        for to in from + 1..=6 {
            let mut cut = log.clone();
            cut.rows.drain(from..to);
            let place = from as u64;
            assert_eq!(first_bad(&verify(&cut, &[])), Some((place, place)), "{from}..{to}");
            // The same by a forger who mends the rest: only the checkpoint knows.
            rechain(&mut cut, from);
            assert_eq!(verify(&cut, &[]), Verdict::TailNotProven);
            let (entry, up_to) = first_bad(&verify(&cut, std::slice::from_ref(&whole))).expect("found");
            // The mended log is shorter than the checkpoint says; what is missing for certain is its end.
            assert!(entry <= cut.size && up_to <= 6, "{entry}..={up_to}");
        }
    }
}

#[test]
fn a_truncation_with_a_mended_head_is_found_with_the_checkpoint_at_its_place() {
    let log = build(6);
    for size in 0..6_u64 {
        let mut cut = log.clone();
        cut.rows.truncate(usize::try_from(size).expect("small"));
        rechain(&mut cut, usize::try_from(size).expect("small"));
        assert_eq!(verify(&cut, &[]), Verdict::TailNotProven);
        assert_eq!(first_bad(&verify(&cut, &[checkpoint(&log, 6)])), Some((size, size)));
    }
}

#[test]
fn every_insertion_is_found() {
    let log = build(5);
    for place in 0..=5 {
        for source in 0..5 {
            let mut grown = log.clone();
            grown.rows.insert(place, log.rows[source].clone());
            let bad = first_bad(&verify(&grown, &[])).expect("found");
            // A copy of an entry beside itself: which of the two is the copy can't be told.
            assert!(
                bad.0 == place as u64 || (bad.0 == place as u64 + 1 && source == place),
                "{place} {source} {bad:?}"
            );
            for row in place..grown.rows.len() {
                grown.rows[row].seq = row as u64;
            }
            assert!(first_bad(&verify(&grown, &[])).is_some());
            rechain(&mut grown, place);
            assert_eq!(verify(&grown, &[]), Verdict::TailNotProven);
            let found = first_bad(&verify(&grown, &[checkpoint(&log, 5)]));
            // Past the checkpoint's end an entry can be added: that is what appending is. A mended copy of the last
            // entry before the last is just that.
            assert_eq!(found.is_some(), place < 5 && (place, source) != (4, 4), "{place} {source}");
        }
    }
}

#[test]
fn every_swap_is_found_at_its_first_entry() {
    let log = build(6);
    for a in 0..6 {
        for b in a + 1..6 {
            let mut swapped = log.clone();
            swapped.rows.swap(a, b);
            assert_eq!(first_bad(&verify(&swapped, &[])), Some((a as u64, a as u64)));
            // With the places exchanged too.
            let mut swapped = log.clone();
            let (left, right) = swapped.rows.split_at_mut(b);
            std::mem::swap(&mut left[a].leaf, &mut right[0].leaf);
            assert_eq!(first_bad(&verify(&swapped, &[])), Some((a as u64, a as u64)));
            // Only the payloads exchanged.
            let mut swapped = log.clone();
            let (left, right) = swapped.rows.split_at_mut(b);
            std::mem::swap(&mut left[a].payload, &mut right[0].payload);
            assert_eq!(first_bad(&verify(&swapped, &[])), Some((a as u64, a as u64)));
        }
    }
}

#[test]
fn a_whole_rewrite_is_found_with_a_checkpoint_and_narrowed_down_by_others() {
    let log = build(12);
    for place in 0..12 {
        let mut rewritten = log.clone();
        rewritten.rows[place].payload = b"nothing happened".to_vec();
        rechain(&mut rewritten, place);
        assert_eq!(verify(&rewritten, &[]), Verdict::TailNotProven);
        let bad = first_bad(&verify(&rewritten, &[checkpoint(&log, 12)]));
        assert_eq!(bad, Some((0, 11)));
        let many: Vec<Checkpoint> = (0..=12).map(|size| checkpoint(&log, size)).collect();
        assert_eq!(first_bad(&verify(&rewritten, &many)), Some((place as u64, place as u64)));
    }
}

#[test]
fn entries_of_another_log_are_found() {
    let log = build(3);
    let other = LogId::new("other").expect("valid");
    let report = feed(LogVerifier::new(other, class(), None), &log);
    assert_eq!(first_bad(&report.verdict), Some((0, 0)));
    let other = RetentionClass::new("other").expect("valid");
    let report = feed(LogVerifier::new(log_id(), other, None), &log);
    assert_eq!(first_bad(&report.verdict), Some((0, 0)));
}

#[test]
fn a_checkpoint_of_nothing_proves_nothing_of_something() {
    let log = build(7);
    let empty = checkpoint(&log, 0);
    assert_eq!(verify(&log, std::slice::from_ref(&empty)), Verdict::TailNotProven);
    assert_eq!(verify(&log, &[empty.clone(), checkpoint(&log, 5)]), Verdict::Verified { proven: 5 });
    assert_eq!(verify(&build(0), std::slice::from_ref(&empty)), Verdict::Verified { proven: 0 });
    // Nor of what was pruned, though every log extends an empty one.
    let mut frontier = Frontier::empty();
    log.rows[..3].iter().for_each(|row| frontier.push(leaf_hash(&row.leaf)));
    let chain = Digest::of_chain(&log.rows[2].leaf);
    let kept = Log { rows: log.rows[3..].to_vec(), ..log.clone() };
    for (signed, expected) in
        [(true, Verdict::TailNotProven), (false, Verdict::PrefixNotProven { proven: None })]
    {
        let pruned = PrunedPrefix { chain, frontier: frontier.clone(), signed };
        let mut verifier = LogVerifier::new(log_id(), class(), Some(pruned));
        verifier.trust(&empty, Some(&[]));
        assert_eq!(feed(verifier, &kept).verdict, expected);
    }
}

#[test]
fn a_pruned_log_verifies_from_its_first_entry_and_against_older_checkpoints() {
    let log = build(20);
    let mut tiles = Tiles::default();
    for row in &log.rows {
        tiles.push(row.seq, leaf_hash(&row.leaf), &mut std::collections::BTreeSet::new()).expect("no gap");
    }
    for cut in 0..=20_usize {
        let size = cut as u64;
        let chain = match cut.checked_sub(1) {
            Some(before) => Digest::of_chain(&log.rows[before].leaf),
            None => Digest::of_genesis(&log_id()),
        };
        let pruned = PrunedPrefix { chain, frontier: tiles.frontier(size).expect("loaded"), signed: true };
        let kept = Log { rows: log.rows[cut..].to_vec(), ..log.clone() };
        let verifier = || LogVerifier::new(log_id(), class(), Some(pruned.clone()));
        assert_eq!(feed(verifier(), &kept).verdict, Verdict::TailNotProven);
        let unsigned = PrunedPrefix { signed: false, ..pruned.clone() };
        let unsigned = || LogVerifier::new(log_id(), class(), Some(unsigned.clone()));
        let none = Verdict::PrefixNotProven { proven: None };
        assert_eq!(feed(unsigned(), &kept).verdict, if cut == 0 { Verdict::TailNotProven } else { none });
        for at in 0..=20_usize {
            let proof =
                consistency_ranges(at as u64, size).map(|ranges| hashes(&tiles, &ranges).expect("loaded"));
            let mut trusting = verifier();
            trusting.trust(&checkpoint(&log, at), proof.as_deref());
            let proven = size.max(at as u64);
            let expected = if at == 0 { Verdict::TailNotProven } else { Verdict::Verified { proven } };
            assert_eq!(feed(trusting, &kept).verdict, expected, "cut {cut}, checkpoint {at}");
            // The same checkpoint of another log.
            let mut trusting = verifier();
            let other = Checkpoint { root: Digest::of(&[b"other"]), ..checkpoint(&log, at) };
            trusting.trust(&other, proof.as_deref());
            assert!(at == 0 && cut > 0 || first_bad(&feed(trusting, &kept).verdict).is_some(), "{cut} {at}");
        }
        // More was cut away than the prefix says.
        if cut < 20 {
            let shorter = Log { rows: log.rows[cut + 1..].to_vec(), ..log.clone() };
            assert_eq!(first_bad(&feed(verifier(), &shorter).verdict), Some((size, size)));
        }
        // The prefix was forged.
        let mut forged = pruned.clone();
        forged.chain = Digest::of(&[b"forged"]);
        assert!(first_bad(&feed(LogVerifier::new(log_id(), class(), Some(forged)), &kept).verdict).is_some());
    }
}

/// One way to alter a stored log.
#[derive(Clone, Debug)]
enum Tampering {
    Byte { row: usize, place: usize, flip: u8 },
    Payload { row: usize, place: usize, flip: u8 },
    Delete { row: usize },
    Duplicate { row: usize, to: usize },
    Swap { a: usize, b: usize },
    Truncate { to: usize },
    Forge { row: usize },
    Rechain { from: usize },
}

fn tampering() -> impl Strategy<Value = Tampering> {
    let any = 0_usize..1000;
    prop_oneof![
        (any.clone(), any.clone(), 1_u8..).prop_map(|(row, place, flip)| Tampering::Byte {
            row,
            place,
            flip
        }),
        (any.clone(), any.clone(), 1_u8..).prop_map(|(row, place, flip)| Tampering::Payload {
            row,
            place,
            flip
        }),
        any.clone().prop_map(|row| Tampering::Delete { row }),
        (any.clone(), any.clone()).prop_map(|(row, to)| Tampering::Duplicate { row, to }),
        (any.clone(), any.clone()).prop_map(|(a, b)| Tampering::Swap { a, b }),
        any.clone().prop_map(|to| Tampering::Truncate { to }),
        any.clone().prop_map(|row| Tampering::Forge { row }),
        any.prop_map(|from| Tampering::Rechain { from }),
    ]
}

fn apply(log: &mut Log, tampering: &Tampering) {
    let rows = log.rows.len();
    if rows == 0 {
        return;
    }
    match *tampering {
        Tampering::Byte { row, place, flip } => {
            let leaf = &mut log.rows[row % rows].leaf;
            let place = place % leaf.len();
            leaf[place] ^= flip;
        }
        Tampering::Payload { row, place, flip } => {
            let payload = &mut log.rows[row % rows].payload;
            let place = place % payload.len();
            payload[place] ^= flip;
        }
        Tampering::Delete { row } => drop(log.rows.remove(row % rows)),
        Tampering::Duplicate { row, to } => {
            let copy = log.rows[row % rows].clone();
            log.rows.insert(to % (rows + 1), copy);
        }
        Tampering::Swap { a, b } => log.rows.swap(a % rows, b % rows),
        Tampering::Truncate { to } => {
            log.rows.truncate(to % (rows + 1));
            log.size = log.rows.len() as u64;
        }
        Tampering::Forge { row } => log.rows[row % rows].payload = b"forged".to_vec(),
        Tampering::Rechain { from } => {
            if log.rows.iter().all(|row| Leaf::parse(&row.leaf).is_ok()) {
                rechain(log, from % rows);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever was done to the log: if anything within the checkpoint differs, it is found.
    #[test]
    fn any_tampering_is_found_with_a_checkpoint(
        size in 1_u64..60,
        steps in proptest::collection::vec(tampering(), 1..6),
        known in 0_usize..8,
    ) {
        let original = build(size);
        let whole = original.rows.len();
        let trusted = [checkpoint(&original, whole), checkpoint(&original, known.min(whole))];
        let mut log = original.clone();
        for step in &steps {
            apply(&mut log, step);
        }
        let same = log.rows.get(..whole) == Some(&original.rows[..]);
        let first = (0..whole).find(|place| log.rows.get(*place) != original.rows.get(*place));
        let verdict = verify(&log, &trusted);
        match (first_bad(&verdict), first) {
            (Some((entry, up_to)), Some(first)) => {
                let first = first as u64;
                // A checkpoint gives a range that holds the first change. A fault that shows on its own names an entry that
                // does not fit its neighbours; a mended change before it shows by the checkpoint only.
                let named = match verdict {
                    Verdict::Broken { fault: Fault::Rewritten { .. }, .. } => entry <= first && first <= up_to,
                    _ => first <= entry + 1,
                };
                prop_assert!(named, "{verdict:?}, really {first}");
            }
            (None, Some(first)) => prop_assert!(false, "entry {first} differs and was not found"),
            // Whatever stands after the checkpoint, or the head, may be bad too.
            (Some((entry, _)), None) => prop_assert!(entry + 1 >= size, "{verdict:?}"),
            (None, None) => prop_assert!(same),
        }
    }

    /// Without a checkpoint, whatever does not mend the links is found as well.
    #[test]
    fn one_tampering_that_mends_nothing_is_found_without_a_checkpoint(
        size in 1_u64..60,
        step in tampering().prop_filter("mends", |step| {
            !matches!(step, Tampering::Rechain { .. } | Tampering::Truncate { .. })
        }),
    ) {
        let original = build(size);
        let mut log = original.clone();
        apply(&mut log, &step);
        prop_assert_eq!(first_bad(&verify(&log, &[])).is_some(), log != original);
    }

    #[test]
    fn random_rows_never_panic(rows in proptest::collection::vec(any::<(u64, Vec<u8>, Vec<u8>)>(), 1..5)) {
        let rows = rows.into_iter().map(|(seq, leaf, payload)| Row { seq, leaf, payload }).collect();
        let log = Log { rows, ..build(0) };
        prop_assert!(first_bad(&verify(&log, &[])).is_some());
    }
}

#[test]
fn reports_are_written_and_read_as_json() {
    let key = SignerKey::generate("example.com/log", &Entropy::seeded(1)).expect("a valid name");
    let mut log = build(3);
    let note = checkpoint(&log, 3).sign(&key).expect("signs");
    let trusted = Checkpoint::open(&note, &key.verifier()).expect("opens");
    log.rows[1].payload.push(b'!');
    let mut verifier = LogVerifier::new(log_id(), class(), None);
    verifier.trust(&trusted, None);
    let report = feed(verifier, &log);
    let json = serde_json::to_string(&report).expect("serialises");
    assert!(json.contains(r#""verdict":"broken","entry":1,"fault":{"kind":"payload_changed"}"#), "{json}");
    assert_eq!(serde_json::from_str::<Report>(&json).expect("reads back"), report);
}
