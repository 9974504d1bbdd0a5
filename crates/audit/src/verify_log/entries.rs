//! The entries of a log in the database, with their plain rows and the tiles that they fill.
//!
//! While one page is parsed, hashed and compared, by all cores at once, the next is read. What depends on the order
//! (links, tree, checkpoints) then takes little time, and is done in order.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::available_parallelism;

use gatehouse_core::{Error, Result};
use gatehouse_db::{Db, read_tx};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::domain::digest::Digest;
use crate::domain::names::LogId;
use crate::domain::tiles::{TileId, Tiles};
use crate::domain::verify::{Fault, LogVerifier, ReadEntry, StoredEntry};
use crate::keys::SubjectKeys;
use crate::plain_rows::{Compared, Comparison, Findings};
use crate::store::events::Stored;
use crate::store::heads::Head;
use crate::store::plain::PlainRow;
use crate::store::{events, plain, tiles};

/// Entries read at once. Two pages are in memory; an entry, its row and its payload have some 1.5 kB, at most 25.
const PAGE: u32 = 1_000;
/// A thread is not worth the while for fewer.
const LEAST_ENTRIES_A_THREAD: usize = 64;

/// What one transaction read.
struct Page {
    entries: Vec<Stored>,
    rows: Vec<PlainRow>,
    tiles: BTreeMap<TileId, Vec<u8>>,
}

/// An entry, and what the comparison with its row gave.
type Checked = (ReadEntry, Result<Compared, Fault>);

/// Feeds the verifier the entries below the head's size, and says what was found of the persons in their rows.
pub(super) async fn verify(
    db: &Db,
    log: &LogId,
    head: &Head,
    verifier: &mut LogVerifier,
    subjects: Option<&SubjectKeys>,
) -> Result<Findings> {
    let mut findings = Findings::new(subjects.is_some());
    let edge = read_tx!(db, "verify.edge", |tx| { tiles::load_right_edge(tx, log, head.first_seq).await })?;
    let mut tree = truncated(&edge, head.first_seq);
    let mut reading = Some(read(db, log, head.first_seq));
    while let Some(page) = reading.take()
        && !verifier.is_broken()
    {
        let page = page.await.map_err(Error::internal)??;
        let Some(next) = page.entries.last().map(|last| last.seq.saturating_add(1)) else { break };
        if next < head.size {
            reading = Some(read(db, log, next));
        }
        let mut changed = BTreeSet::new();
        for entries in check(page.entries, page.rows, head.size, subjects) {
            for (entry, compared) in entries.await.map_err(Error::internal)? {
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
        let done = next.min(head.size);
        compare_tiles(&page.tiles, &tree, &changed, done, verifier);
        tree.keep_right_edge(done);
    }
    Ok(findings)
}

/// Begins to read a page. All of it is of one snapshot.
fn read(db: &Db, log: &LogId, from: u64) -> JoinHandle<gatehouse_db::Result<Page>> {
    let (db, log) = (db.clone(), log.clone());
    tokio::spawn(async move {
        read_tx!(db, "verify.entries", |tx| {
            let entries = events::list(tx, &log, from, PAGE).await?;
            let rows = plain::run(tx, &log, from, PAGE).await?;
            let tiles = match entries.last() {
                // An entry that was moved to the far end is not followed there.
                Some(last) => {
                    let last = last.seq.min(from.saturating_add(PAGE.into()));
                    tiles::of_run(tx, &log, from, last).await?
                }
                None => BTreeMap::new(),
            };
            Ok(Page { entries, rows, tiles })
        })
    })
}

/// Begins to check entries, each apart from the others; the answers are in their order.
fn check(
    mut entries: Vec<Stored>,
    rows: Vec<PlainRow>,
    size: u64,
    subjects: Option<&SubjectKeys>,
) -> Vec<JoinHandle<Vec<Checked>>> {
    entries.retain(|entry| entry.seq < size);
    let threads = available_parallelism().map_or(1, usize::from);
    let each = entries.len().div_ceil(threads).max(LEAST_ENTRIES_A_THREAD);
    let (mut entries, mut rows) = (entries.into_iter().peekable(), rows.into_iter().peekable());
    let mut checks = Vec::new();
    while entries.peek().is_some() {
        let pairs: Vec<(Stored, Option<PlainRow>)> = entries
            .by_ref()
            .take(each)
            .map(|entry| {
                // Both are in order, and no number stands twice.
                while rows.next_if(|row| row.seq < entry.seq).is_some() {}
                let row = rows.next_if(|row| row.seq == entry.seq);
                (entry, row)
            })
            .collect();
        let subjects = subjects.cloned();
        checks.push(spawn_blocking(move || {
            let mut comparison = Comparison::new(subjects.as_ref());
            pairs.iter().map(|(entry, row)| check_one(entry, row.as_ref(), &mut comparison)).collect()
        }));
    }
    checks
}

fn check_one(entry: &Stored, row: Option<&PlainRow>, comparison: &mut Comparison<'_>) -> Checked {
    let read = ReadEntry::of(StoredEntry {
        seq: entry.seq,
        leaf: &entry.leaf,
        payload_sha256: Some(Digest::of_payload(&entry.payload)),
    });
    let compared = comparison.compare(row, entry, read.leaf());
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
