//! `audit_heads`: one row a log; its lock is the log's.

use std::collections::BTreeSet;

use gatehouse_db::{Result, Row, Sql, Tx, params, sql};

use super::{read, read_digest, stored};
use crate::domain::digest::Digest;
use crate::domain::names::LogId;

sql! {
    /// A log's beginning, if it has none.
    pub(crate) ADD_HEAD = "INSERT INTO audit_heads (log, size, chain, epoch, first_seq, first_chain)
        VALUES ($1, 0, $2, 0, 0, $2) ON CONFLICT (log) DO NOTHING";
    /// Takes the log's lock until the transaction ends, and the next epoch.
    pub(crate) LOCK_HEAD = "UPDATE audit_heads SET epoch = epoch + 1 WHERE log = $1
        RETURNING size, chain, epoch, first_seq, first_chain, pruned_note";
    /// The head without its lock.
    pub(crate) HEAD = "SELECT size, chain, epoch, first_seq, first_chain, pruned_note FROM audit_heads WHERE log = $1";
    /// How many rows say it: more than one, if the primary key was dropped.
    pub(crate) COUNT_HEADS = "SELECT COUNT(*) AS heads FROM audit_heads WHERE log = $1";
    /// Every log that has a head.
    pub(crate) HEADS = "SELECT log FROM audit_heads ORDER BY log";
    /// Whether any log has an entry, or had one.
    pub(crate) COUNT_BEGUN = "SELECT COUNT(*) AS begun FROM audit_heads WHERE size > 0";
    /// Every log that a table knows of: whoever deletes its head leaves rows, or has to find all of them.
    pub(crate) NAMES_IN_HEADS = "SELECT DISTINCT log FROM audit_heads";
    /// See [`NAMES_IN_HEADS`].
    pub(crate) NAMES_IN_EVENTS = "SELECT DISTINCT log FROM audit_events";
    /// See [`NAMES_IN_HEADS`].
    pub(crate) NAMES_IN_ROWS = "SELECT DISTINCT log FROM audit_logs";
    /// See [`NAMES_IN_HEADS`].
    pub(crate) NAMES_IN_TILES = "SELECT DISTINCT log FROM audit_tiles";
    /// See [`NAMES_IN_HEADS`].
    pub(crate) NAMES_IN_CHECKPOINTS = "SELECT DISTINCT log FROM audit_checkpoints";
    /// Moves the end on, unless someone else did since.
    pub(crate) ADVANCE_HEAD = "UPDATE audit_heads SET size = $4, chain = $5
        WHERE log = $1 AND epoch = $2 AND size = $3";
    /// Moves the beginning on, unless someone else did since.
    pub(crate) PRUNE_HEAD = "UPDATE audit_heads SET first_seq = $4, first_chain = $5, pruned_note = $6
        WHERE log = $1 AND epoch = $2 AND first_seq = $3";
}

/// What names the logs, a table each.
pub(crate) const NAMES: [&Sql; 5] =
    [&NAMES_IN_HEADS, &NAMES_IN_EVENTS, &NAMES_IN_ROWS, &NAMES_IN_TILES, &NAMES_IN_CHECKPOINTS];
/// Stands for a name that is no text: no log has this one.
const NOT_TEXT: &str = "(not text)";

/// What the row of a log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) size: u64,
    pub(crate) chain: Digest,
    pub(crate) epoch: i64,
    pub(crate) first_seq: u64,
    pub(crate) first_chain: Digest,
    pub(crate) pruned_note: Option<String>,
}

fn head(row: &Row) -> Result<Head> {
    Ok(Head {
        size: read(row, "size")?,
        chain: read_digest(row, "chain")?,
        epoch: row.get("epoch")?,
        first_seq: read(row, "first_seq")?,
        first_chain: read_digest(row, "first_chain")?,
        pruned_note: row.get("pruned_note")?,
    })
}

pub(crate) async fn add(tx: &mut Tx, log: &LogId) -> Result<()> {
    let genesis = Digest::of_genesis(log);
    tx.execute(&ADD_HEAD, params![log.as_str(), *genesis.as_bytes()]).await.map(drop)
}

/// Takes the lock of `log`.
pub(crate) async fn lock(tx: &mut Tx, log: &LogId) -> Result<Head> {
    head(&tx.fetch_one(&LOCK_HEAD, params![log.as_str()]).await?)
}

pub(crate) async fn lookup(tx: &mut Tx, log: &LogId) -> Result<Option<Head>> {
    tx.fetch_optional(&HEAD, params![log.as_str()]).await?.as_ref().map(head).transpose()
}

/// As [`lookup`], for verification: an error inside where a column does not hold what it must.
pub(crate) async fn find(tx: &mut Tx, log: &LogId) -> Result<Option<Result<Head>>> {
    Ok(tx.fetch_optional(&HEAD, params![log.as_str()]).await?.as_ref().map(head))
}

/// How many heads `log` has.
pub(crate) async fn count(tx: &mut Tx, log: &LogId) -> Result<i64> {
    tx.fetch_one(&COUNT_HEADS, params![log.as_str()]).await?.get("heads")
}

/// The names of all logs that have a head, whether or not this process serves them.
pub(crate) async fn names(tx: &mut Tx) -> Result<Vec<String>> {
    tx.fetch_all(&HEADS, params![]).await?.iter().map(|row| row.get("log")).collect()
}

/// Whether any log has an entry, or had one.
pub(crate) async fn any_begun(tx: &mut Tx) -> Result<bool> {
    Ok(tx.fetch_one(&COUNT_BEGUN, params![]).await?.get::<i64>("begun")? > 0)
}

/// The names of all logs that one of [`NAMES`] finds.
pub(crate) async fn names_by(tx: &mut Tx, sql: &Sql) -> Result<BTreeSet<String>> {
    let rows = tx.fetch_all(sql, params![]).await?;
    Ok(rows.iter().map(|row| row.get("log").unwrap_or_else(|_| NOT_TEXT.to_owned())).collect())
}

/// The names of all logs that have a head or a row in any other table.
pub(crate) async fn names_anywhere(tx: &mut Tx) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for sql in NAMES {
        names.extend(names_by(tx, sql).await?);
    }
    Ok(names)
}

/// Whether the end was moved: false means that the lock was lost, and nothing may be committed.
pub(crate) async fn advance(
    tx: &mut Tx,
    log: &LogId,
    locked: &Head,
    size: u64,
    chain: Digest,
) -> Result<bool> {
    let values = params![log.as_str(), locked.epoch, stored(locked.size), stored(size), *chain.as_bytes()];
    Ok(tx.execute(&ADVANCE_HEAD, values).await? == 1)
}

/// Whether the beginning was moved; as for [`advance`].
pub(crate) async fn prune(
    tx: &mut Tx,
    log: &LogId,
    locked: &Head,
    first: u64,
    chain: Digest,
    note: &str,
) -> Result<bool> {
    let values =
        params![log.as_str(), locked.epoch, stored(locked.first_seq), stored(first), *chain.as_bytes(), note];
    Ok(tx.execute(&PRUNE_HEAD, values).await? == 1)
}
