//! The entries of a log in the database, with their plain rows and the tiles that they fill.
//!
//! While one page is parsed, hashed and compared, by all cores at once, the next is read. What depends on the order
//! (links, tree, checkpoints) then takes little time, and is done in order.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::available_parallelism;

use gatehouse_core::ids::PersonId;
use gatehouse_core::{Error, Result};
use gatehouse_db::{Db, read_tx};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::domain::digest::Digest;
use crate::domain::leaf::Leaf;
use crate::domain::names::{LogId, Pseudonym};
use crate::domain::tiles::{TileId, Tiles};
use crate::domain::verify::{Fault, LogVerifier, ReadEntry, StoredEntry};
use crate::keys::{KeyIds, SubjectKeys};
use crate::plain_rows::{Compared, Comparison, Findings};
use crate::store::heads::Head;
use crate::store::plain::PlainRow;
use crate::store::{events, plain, tiles};

/// Entries read at once. Two pages are in memory; an entry, its row and its payload have some 1.5 kB, at most 25.
const PAGE: u32 = 1_000;
/// A thread is not worth the while for fewer.
const LEAST_ENTRIES_A_THREAD: usize = 64;

/// What one transaction read: all that stands at the places from one to before `end`.
struct Page {
    end: u64,
    entries: Vec<events::Found>,
    rows: Vec<plain::Found>,
    tiles: BTreeMap<TileId, Vec<u8>>,
}

/// The plain row that stands for an entry, if there is one. Whoever lists events is shown each, if there are several.
type Row = Result<Option<PlainRow>, Fault>;

/// An entry, and what the comparison with its row gave.
type Checked = (ReadEntry, Result<Compared, Fault>);

/// A run of entries in their order, and those whom their rows named and whose keys are at hand.
type Run = (Vec<Checked>, Vec<(Pseudonym, PersonId)>);

/// Feeds the verifier the entries below the head's size, and says what was found of the persons in their rows.
pub(super) async fn verify(
    db: &Db,
    log: &LogId,
    head: &Head,
    verifier: &mut LogVerifier,
    subjects: Option<&SubjectKeys>,
) -> Result<Findings> {
    let mut findings = Findings::new(subjects.is_some());
    let key_ids = KeyIds::of(subjects);
    let edge = read_tx!(db, "verify.edge", |tx| { tiles::load_right_edge(tx, log, head.first_seq).await })?;
    let mut tree = truncated(&edge, head.first_seq);
    let mut reading = read(db, log, head.first_seq, head.size);
    while let Some(page) = reading.take()
        && !verifier.is_broken()
    {
        let page = page.await.map_err(Error::internal)??;
        if page.entries.is_empty() {
            break;
        }
        reading = read(db, log, page.end, head.size);
        let mut changed = BTreeSet::new();
        for run in check(page.entries, page.rows, subjects, &key_ids) {
            let (entries, persons) = run.await.map_err(Error::internal)?;
            findings.learn(persons);
            for (entry, compared) in entries {
                verifier.push_read(&entry);
                if verifier.is_broken() {
                    return Ok(findings);
                }
                match compared {
                    Ok(found) => findings.add(entry.seq(), found),
                    Err(fault) => {
                        verifier.report(entry.seq(), fault);
                        return Ok(findings);
                    }
                }
                if tree.push(entry.seq(), entry.hash(), &mut changed).is_err() {
                    let id = TileId { level: 0, index: entry.seq() / 256 };
                    verifier.report(entry.seq(), tile_fault(id, entry.seq()));
                    return Ok(findings);
                }
            }
        }
        let done = verifier.size();
        compare_tiles(&page.tiles, &tree, &changed, done, verifier);
        tree.keep_right_edge(done);
    }
    Ok(findings)
}

/// Begins to read a page, if there is one: the places from `from` on, below `size`. All of it is of one snapshot, and
/// pages meet, so that whatever stands at a place is read, however often the place is taken.
fn read(db: &Db, log: &LogId, from: u64, size: u64) -> Option<JoinHandle<gatehouse_db::Result<Page>>> {
    let end = from.saturating_add(PAGE.into()).min(size);
    if from >= end {
        return None;
    }
    let (db, log) = (db.clone(), log.clone());
    Some(tokio::spawn(async move {
        read_tx!(db, "verify.entries", |tx| {
            // One more than there are places: a place that is taken twice shows.
            let entries = events::list_between(tx, &log, from, end, PAGE + 1).await?;
            let rows = plain::list_between(tx, &log, from, end, PAGE + 1).await?;
            let tiles = tiles::of_run(tx, &log, from, end - 1).await?;
            Ok(Page { end, entries, rows, tiles })
        })
    }))
}

/// Begins to check entries, each apart from the others; the answers are in their order.
fn check(
    entries: Vec<events::Found>,
    rows: Vec<plain::Found>,
    subjects: Option<&SubjectKeys>,
    key_ids: &KeyIds,
) -> Vec<JoinHandle<Run>> {
    let threads = available_parallelism().map_or(1, usize::from);
    let each = entries.len().div_ceil(threads).max(LEAST_ENTRIES_A_THREAD);
    let (mut entries, mut rows) = (entries.into_iter().peekable(), rows.into_iter().peekable());
    let mut checks = Vec::new();
    while entries.peek().is_some() {
        let pairs: Vec<(events::Found, Row)> = entries
            .by_ref()
            .take(each)
            .map(|entry| {
                // Both are in order. A row before the entry stands for one that is missing, which the verifier tells.
                while rows.next_if(|row| row.seq.is_none() || row.seq < entry.seq).is_some() {}
                let mut own = || rows.next_if(|row| row.seq == entry.seq);
                let found = match (own(), own()) {
                    (row, None) => Ok(row.and_then(|found| found.row)),
                    (_, Some(_)) => Err(Fault::PlainRowRepeated),
                };
                (entry, found)
            })
            .collect();
        let (subjects, key_ids) = (subjects.cloned(), key_ids.clone());
        checks.push(spawn_blocking(move || {
            let mut comparison = Comparison::new(subjects.as_ref(), &key_ids);
            let checked = pairs.iter().map(|(entry, row)| check_one(entry, row, &mut comparison)).collect();
            (checked, comparison.persons())
        }));
    }
    checks
}

fn check_one(entry: &events::Found, row: &Row, comparison: &mut Comparison<'_>) -> Checked {
    let leaf = entry.leaf.as_deref().unwrap_or_default();
    // A place that is no number is not the leaf's, which the comparison tells; until then the leaf says where it stands.
    let own_place = || Leaf::parse(leaf).map_or(u64::MAX, |leaf| leaf.seq);
    let read = ReadEntry::of(StoredEntry {
        seq: entry.seq.unwrap_or_else(own_place),
        leaf,
        payload_sha256: entry.payload.as_deref().map(Digest::of_payload),
    });
    let compared = match row {
        Ok(row) => comparison.compare(row.as_ref(), entry, read.leaf()),
        Err(fault) => Err(fault.clone()),
    };
    (read, compared)
}

/// A stored edge may be of a later, longer tree: the verifier needs that of the first entry kept.
fn truncated(tiles: &Tiles, size: u64) -> Tiles {
    let mut edge = Tiles::default();
    for level in 0..8 {
        let id = TileId { level, index: size.checked_shr(8 * level).unwrap_or(0) / 256 };
        let width = usize::try_from(id.width(size)).unwrap_or(0);
        if let Some(bytes) = tiles.bytes(id).filter(|_| width > 0)
            && let Some(bytes) = bytes.get(..32 * width)
        {
            edge.insert(id, bytes);
        }
    }
    edge
}

/// The stored tiles are what appending and signing go by: a wrong one would be found only later.
fn compare_tiles(
    stored: &BTreeMap<TileId, Vec<u8>>,
    tree: &Tiles,
    changed: &BTreeSet<TileId>,
    size: u64,
    verifier: &mut LogVerifier,
) {
    for id in changed {
        let ours = tree.bytes(*id).unwrap_or_default();
        // The stored one may be longer: more was appended since.
        if !stored.get(id).is_some_and(|stored| stored.starts_with(&ours)) {
            let first = id.index.saturating_mul(256).checked_shl(8 * id.level).unwrap_or(0);
            verifier.report(first, tile_fault(*id, size));
        }
    }
}

fn tile_fault(id: TileId, size: u64) -> Fault {
    Fault::TileChanged { path: id.path(id.width(size)) }
}
