//! `audit_logs`: the plain rows that people search.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::{EventId, PersonId, TenantId};
use gatehouse_db::{Result, Row, Tx, Value, insert, params, sql};
use uuid::Uuid;

use super::{find, read, stored};
use crate::domain::names::LogId;

/// The tenant of the platform's own events.
pub(crate) const PLATFORM: TenantId = TenantId::from_uuid(Uuid::nil());

macro_rules! columns {
    () => {
        "tenant_id, occurred_at, event_id, log, seq, recorded_at, service, action, outcome, reason, actor, delegate, \
         subject_id, target, request_id, trace_id"
    };
}

sql! {
    /// A tenant's rows, newest first, that lie before a place in that order and fit the filters; NULL filters nothing.
    /// None that stand for what lies outside of the log, as its head states it. A prefix is compared with substr, for LIKE and text order differ between the engines.
    pub(crate) LIST_ROWS = concat!("SELECT ", columns!(), " FROM audit_logs l
        WHERE tenant_id = $1 AND (occurred_at < $2 OR (occurred_at = $2 AND event_id < $3))
        AND occurred_at >= $4
        AND (CAST($5 AS TEXT) IS NULL OR action = $5)
        AND (CAST($6 AS TEXT) IS NULL OR substr(action, 1, length($6)) = $6)
        AND (CAST($7 AS TEXT) IS NULL OR actor = $7)
        AND (CAST($8 AS TEXT) IS NULL OR target = $8)
        AND (CAST($9 AS TEXT) IS NULL OR request_id = $9)
        AND EXISTS (SELECT 1 FROM audit_heads h WHERE h.log = l.log AND l.seq >= h.first_seq AND l.seq < h.size)
        ORDER BY occurred_at DESC, event_id DESC LIMIT $10");
    /// One row of a tenant.
    pub(crate) ROW = concat!("SELECT ", columns!(), " FROM audit_logs WHERE tenant_id = $1 AND log = $2 AND seq = $3");
    /// The rows of a run of entries, for verification: more than there are places, if one is taken twice.
    pub(crate) ROWS_BETWEEN = concat!("SELECT ", columns!(), " FROM audit_logs
        WHERE log = $1 AND seq >= $2 AND seq < $3 ORDER BY seq LIMIT $4");
    /// The first row for which there is no entry, in one statement: both go and come in one transaction.
    pub(crate) ROW_WITHOUT_ENTRY = "SELECT CAST(l.seq AS BIGINT) AS seq FROM audit_logs l WHERE l.log = $1
        AND NOT EXISTS (SELECT 1 FROM audit_events e WHERE e.log = l.log AND e.seq = l.seq) ORDER BY l.seq LIMIT 1";
    /// The rows of entries that were pruned.
    pub(crate) PRUNE_ROWS = "DELETE FROM audit_logs WHERE log = $1 AND seq < $2";
    /// A person who acted becomes a pseudonym.
    pub(crate) ERASE_ACTOR = "UPDATE audit_logs SET actor = $2 WHERE actor = $1";
    /// A person who was acted upon does.
    pub(crate) ERASE_TARGET = "UPDATE audit_logs SET target = $2 WHERE target = $1";
    /// A person whom events were about is not named any more.
    pub(crate) ERASE_SUBJECT = "UPDATE audit_logs SET subject_id = NULL WHERE subject_id = $1";
}

insert! {
    /// Rows.
    pub(crate) ADD_ROWS = "INSERT INTO audit_logs"(
        tenant_id, occurred_at, event_id, log, seq, recorded_at, service, action, outcome, reason, actor, delegate,
        subject_id, target, request_id, trace_id
    );
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlainRow {
    pub(crate) tenant: TenantId,
    pub(crate) occurred: Timestamp,
    pub(crate) event_id: EventId,
    pub(crate) log: String,
    pub(crate) seq: u64,
    pub(crate) recorded: Timestamp,
    pub(crate) service: String,
    pub(crate) action: String,
    pub(crate) outcome: String,
    pub(crate) reason: Option<String>,
    pub(crate) actor: String,
    pub(crate) delegate: Option<String>,
    pub(crate) subject: Option<PersonId>,
    pub(crate) target: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) trace_id: Option<String>,
}

/// A row as it is found, for verification: nothing of it where any column does not hold what it must.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) seq: Option<u64>,
    pub(crate) row: Option<PlainRow>,
}

/// What to list.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    /// Only rows before this place: time and id of the last row seen.
    pub(crate) before: (Timestamp, Uuid),
    pub(crate) from: Timestamp,
    pub(crate) action: Option<String>,
    pub(crate) action_prefix: Option<String>,
    pub(crate) actor: Option<String>,
    pub(crate) target: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) most: u32,
}

fn row(row: &Row) -> Result<PlainRow> {
    Ok(PlainRow {
        tenant: row.get("tenant_id")?,
        occurred: row.get("occurred_at")?,
        event_id: row.get("event_id")?,
        log: row.get("log")?,
        seq: read(row, "seq")?,
        recorded: row.get("recorded_at")?,
        service: row.get("service")?,
        action: row.get("action")?,
        outcome: row.get("outcome")?,
        reason: row.get("reason")?,
        actor: row.get("actor")?,
        delegate: row.get("delegate")?,
        subject: row.get("subject_id")?,
        target: row.get("target")?,
        request_id: row.get("request_id")?,
        trace_id: row.get("trace_id")?,
    })
}

/// Adds rows.
pub(crate) async fn add(tx: &mut Tx, rows: Vec<PlainRow>) -> Result<()> {
    tx.insert(&ADD_ROWS, rows.into_iter().map(values).collect()).await.map(drop)
}

fn values(row: PlainRow) -> Vec<Value> {
    params![
        row.tenant,
        row.occurred,
        row.event_id,
        row.log,
        stored(row.seq),
        row.recorded,
        row.service,
        row.action,
        row.outcome,
        row.reason,
        row.actor,
        row.delegate,
        row.subject,
        row.target,
        row.request_id,
        row.trace_id,
    ]
}

pub(crate) async fn list(tx: &mut Tx, tenant: TenantId, filter: &Filter) -> Result<Vec<PlainRow>> {
    let values = params![
        tenant,
        filter.before.0,
        filter.before.1,
        filter.from,
        &filter.action,
        &filter.action_prefix,
        &filter.actor,
        &filter.target,
        &filter.request_id,
        filter.most,
    ];
    tx.fetch_all(&LIST_ROWS, values).await?.iter().map(row).collect()
}

pub(crate) async fn lookup(tx: &mut Tx, tenant: TenantId, log: &str, seq: u64) -> Result<Option<PlainRow>> {
    tx.fetch_optional(&ROW, params![tenant, log, stored(seq)]).await?.as_ref().map(row).transpose()
}

/// The place of the first row that shows an entry which is not there; it may be one that no entry can have.
pub(crate) async fn lookup_without_entry(tx: &mut Tx, log: &LogId) -> Result<Option<i64>> {
    let row = tx.fetch_optional(&ROW_WITHOUT_ENTRY, params![log.as_str()]).await?;
    Ok(row.map(|row| row.get("seq").unwrap_or(0)))
}

/// All rows for the places from `from` to before `end`, but at most `most`.
pub(crate) async fn list_between(
    tx: &mut Tx,
    log: &LogId,
    from: u64,
    end: u64,
    most: u32,
) -> Result<Vec<Found>> {
    let values = params![log.as_str(), stored(from), stored(end), most];
    let rows = tx.fetch_all(&ROWS_BETWEEN, values).await?;
    Ok(rows.iter().map(|found| Found { seq: find(found, "seq"), row: row(found).ok() }).collect())
}

pub(crate) async fn prune(tx: &mut Tx, log: &LogId, before: u64) -> Result<()> {
    tx.execute(&PRUNE_ROWS, params![log.as_str(), stored(before)]).await.map(drop)
}

/// Puts `pseudonym` wherever `person` stands.
pub(crate) async fn erase(tx: &mut Tx, person: PersonId, pseudonym: &str) -> Result<()> {
    tx.execute(&ERASE_ACTOR, params![person.to_string(), format!("person:{pseudonym}")]).await?;
    tx.execute(&ERASE_TARGET, params![format!("person/{person}"), format!("person/{pseudonym}")]).await?;
    tx.execute(&ERASE_SUBJECT, params![person]).await.map(drop)
}
