//! Table `jobs`. Each rule of a job's life is the condition of one statement.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::{JobId, TenantId, WorkerId};
use gatehouse_db::{Result, Row, Tx, params, sql};

use crate::domain::{Failure, IdempotencyKey, Job, JobState, Lease};

macro_rules! columns {
    () => {
        "tenant_id, id, kind, state, submitted_by, created_at, started_at, finished_at, expires_at, attempt, \
         max_attempts, cancel_requested, last_sequence, stalled, failure_reason, failure_message"
    };
}

/// The condition of every write of a worker: it still holds this job under this epoch.
macro_rules! holds {
    () => {
        "tenant_id = $1 AND id = $2 AND epoch = $3 AND holder = $4 AND state = 'running'"
    };
}

macro_rules! claim {
    ($which:literal, $lock:literal) => {
        concat!(
            "WITH picked AS MATERIALIZED (SELECT tenant_id, id FROM jobs WHERE ",
            $which,
            " AND state = 'queued' AND available_at <= $3 ORDER BY turn, id LIMIT $4",
            $lock,
            ") UPDATE jobs SET state = 'running', holder = $5, epoch = epoch + 1, attempt = attempt + 1, last_write = 0, \
             last_sequence = last_sequence + 1, started_at = COALESCE(started_at, $3), attempt_started_at = $3, \
             progressed_at = $3, stalled = FALSE WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM picked) \
             RETURNING tenant_id, id, kind, epoch, attempt, input, checkpoint, cancel_requested, traceparent, \
             last_sequence, last_write, turn"
        )
    };
}

sql! {
    pub(crate) INSERT_JOB = "INSERT INTO jobs (tenant_id, id, kind, state, input, submitted_by, traceparent, \
        idempotency_key, request_digest, created_at, available_at, turn, attempt, max_attempts, epoch, \
        cancel_requested, last_sequence, last_write, stalled) VALUES ($1, $2, $3, 'queued', $4, $5, $6, $7, $8, $9, \
        $9, $10, 0, $11, 0, FALSE, 1, 0, FALSE) ON CONFLICT DO NOTHING";
    pub(crate) FIND_BY_KEY = concat!("SELECT request_digest, ", columns!(), " FROM jobs \
        WHERE tenant_id = $1 AND submitted_by = $2 AND idempotency_key = $3");
    pub(crate) QUEUE_OF_TENANT = "SELECT COUNT(*) AS waiting, MAX(turn) AS last_turn FROM jobs \
        WHERE tenant_id = $1 AND kind = $2 AND state = 'queued'";
    pub(crate) FIND_JOB = concat!("SELECT ", columns!(), " FROM jobs WHERE tenant_id = $1 AND id = $2");
    pub(crate) FIND_RESULT = concat!("SELECT result, ", columns!(), " FROM jobs WHERE tenant_id = $1 AND id = $2");
    pub(crate) LIST_JOBS = concat!("SELECT ", columns!(), " FROM jobs WHERE tenant_id = $1 AND id < $2 \
        AND ($3 = '' OR kind = $3) AND ($4 = '' OR state = $4) ORDER BY id DESC LIMIT $5");
    /// A job that waits ends at once.
    pub(crate) CANCEL_QUEUED = concat!("UPDATE jobs SET state = 'cancelled', cancel_requested = TRUE, finished_at = $3, \
        expires_at = $4, last_sequence = last_sequence + 1 WHERE tenant_id = $1 AND id = $2 AND state = 'queued' \
        RETURNING ", columns!());
    /// A job that runs is asked, once.
    pub(crate) REQUEST_CANCEL = concat!("UPDATE jobs SET cancel_requested = TRUE, last_sequence = last_sequence + 1 \
        WHERE tenant_id = $1 AND id = $2 AND state = 'running' AND NOT cancel_requested RETURNING holder, ", columns!());
    pub(crate) RETRY = concat!("UPDATE jobs SET state = 'queued', available_at = $3, turn = $4, \
        max_attempts = attempt + $5, finished_at = NULL, expires_at = NULL, cancel_requested = FALSE, \
        failure_reason = NULL, failure_message = NULL, last_sequence = last_sequence + 1 \
        WHERE tenant_id = $1 AND id = $2 AND state IN ('failed', 'cancelled') RETURNING ", columns!());
    /// $1 is not used by the text that looks across tenants, yet keeps both alike.
    pub(crate) CLAIM_ANY_TENANT = claim!("CAST($1 AS TEXT) IS NOT NULL AND kind = $2", " FOR UPDATE SKIP LOCKED"),
        sqlite: claim!("CAST($1 AS TEXT) IS NOT NULL AND kind = $2", "");
    pub(crate) CLAIM_OF_TENANT = claim!("tenant_id = $1 AND kind = $2", " FOR UPDATE SKIP LOCKED"),
        sqlite: claim!("tenant_id = $1 AND kind = $2", "");
    pub(crate) WRITE_EVENT = concat!("UPDATE jobs SET last_sequence = last_sequence + 1, last_write = $5, \
        progressed_at = $6, stalled = FALSE, checkpoint = COALESCE($7, checkpoint) WHERE ", holds!(), " AND last_write + 1 = $5 \
        RETURNING last_sequence, attempt, cancel_requested");
    pub(crate) WRITE_CHECKPOINT = concat!("UPDATE jobs SET last_write = $5, checkpoint = $6 WHERE ", holds!(), " \
        AND last_write + 1 = $5 RETURNING last_sequence, attempt, cancel_requested");
    pub(crate) FINISH = concat!("UPDATE jobs SET state = $5, finished_at = $6, expires_at = $7, result = $8, \
        failure_reason = $9, failure_message = $10, holder = NULL, stalled = FALSE, last_sequence = last_sequence + 1, \
        ended_epoch = epoch, ended_digest = $11 \
        WHERE ", holds!(), " RETURNING last_sequence, attempt, cancel_requested");
    /// $6 is how many attempts are given back.
    pub(crate) REQUEUE = concat!("UPDATE jobs SET state = 'queued', holder = NULL, available_at = $5, \
        attempt = attempt - $6, stalled = FALSE, last_sequence = last_sequence + 1, ended_epoch = epoch, ended_digest = $7 \
        WHERE ", holds!(), " \
        RETURNING last_sequence, attempt, cancel_requested");
    pub(crate) MARK_STALLED = concat!("UPDATE jobs SET stalled = TRUE, last_sequence = last_sequence + 1 WHERE ", holds!(), " \
        AND NOT stalled AND progressed_at <= $5 RETURNING last_sequence, attempt, cancel_requested");
    pub(crate) FIND_LEASE = "SELECT last_write, max_attempts, kind, attempt, cancel_requested, last_sequence FROM jobs \
        WHERE tenant_id = $1 AND id = $2 AND epoch = $3 AND holder = $4 AND state = 'running'";
    /// Whether a lease of the job was ended by exactly this. Whoever can say it has held the lease.
    pub(crate) FIND_ENDING = "SELECT tenant_id FROM jobs WHERE id = $1 AND ended_epoch = $2 AND ended_digest = $3";
    pub(crate) DELETE_JOB = "DELETE FROM jobs WHERE tenant_id = $1 AND id = $2 AND expires_at <= $3";
}

/// A bug for the fault harness to find: [`WRITE_EVENT`] without its fence, so whoever once held a job writes to it.
#[cfg(feature = "planted-bugs")]
mod planted {
    gatehouse_db::sql! {
        pub(super) WRITE_ANYWAY = "UPDATE jobs SET last_sequence = last_sequence + 1, last_write = $3, \
            progressed_at = $4, stalled = FALSE, checkpoint = COALESCE($5, checkpoint) WHERE tenant_id = $1 AND id = $2 \
            AND state = 'running' AND last_write < $3 RETURNING last_sequence, attempt, cancel_requested";
    }
}

/// A job on its way in.
#[derive(Clone, Debug)]
pub(crate) struct NewJob {
    pub(crate) tenant: TenantId,
    pub(crate) id: JobId,
    pub(crate) kind: String,
    pub(crate) input: String,
    pub(crate) submitted_by: String,
    pub(crate) traceparent: String,
    pub(crate) key: Option<(IdempotencyKey, [u8; 32])>,
    pub(crate) max_attempts: u32,
}

/// Who writes to which job, under which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) tenant: TenantId,
    pub(crate) job: JobId,
    pub(crate) epoch: i64,
    pub(crate) holder: WorkerId,
}

/// What a write left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) sequence: i64,
    pub(crate) attempt: u32,
    pub(crate) cancel_requested: bool,
}

/// `false` if the idempotency key is taken.
pub(crate) async fn add(tx: &mut Tx, job: &NewJob, now: Timestamp, turn: Timestamp) -> Result<bool> {
    let (key, digest) = match &job.key {
        Some((key, digest)) => (Some(key.as_str()), Some(*digest)),
        None => (None, None),
    };
    let values = params![
        job.tenant,
        job.id,
        &job.kind,
        &job.input,
        &job.submitted_by,
        &job.traceparent,
        key,
        digest,
        now,
        turn,
        job.max_attempts,
    ];
    Ok(tx.execute(&INSERT_JOB, values).await? == 1)
}

/// The job that an idempotency key made, and the digest of the request that did.
pub(crate) async fn lookup_by_key(
    tx: &mut Tx,
    tenant: TenantId,
    submitted_by: &str,
    key: &IdempotencyKey,
) -> Result<Option<(Job, [u8; 32])>> {
    let row = tx.fetch_optional(&FIND_BY_KEY, params![tenant, submitted_by, key.as_str()]).await?;
    row.map(|row| Ok((read(&row)?, row.get("request_digest")?))).transpose()
}

/// How many jobs of a kind a tenant has waiting, and the last one's turn.
pub(crate) async fn queue_of(tx: &mut Tx, tenant: TenantId, kind: &str) -> Result<(i64, Option<Timestamp>)> {
    let row = tx.fetch_one(&QUEUE_OF_TENANT, params![tenant, kind]).await?;
    Ok((row.get("waiting")?, row.get("last_turn")?))
}

pub(crate) async fn lookup(tx: &mut Tx, tenant: TenantId, id: JobId) -> Result<Option<Job>> {
    tx.fetch_optional(&FIND_JOB, params![tenant, id]).await?.as_ref().map(read).transpose()
}

pub(crate) async fn lookup_result(
    tx: &mut Tx,
    tenant: TenantId,
    id: JobId,
) -> Result<Option<(Job, Option<String>)>> {
    let row = tx.fetch_optional(&FIND_RESULT, params![tenant, id]).await?;
    row.map(|row| Ok((read(&row)?, row.get("result")?))).transpose()
}

/// Newest first, those older than `before`. An empty kind or no state means any.
pub(crate) async fn list(
    tx: &mut Tx,
    tenant: TenantId,
    before: JobId,
    kind: &str,
    state: Option<JobState>,
    limit: i64,
) -> Result<Vec<Job>> {
    let state = state.map_or("", JobState::as_str);
    tx.fetch_all(&LIST_JOBS, params![tenant, before, kind, state, limit]).await?.iter().map(read).collect()
}

pub(crate) async fn cancel_queued(
    tx: &mut Tx,
    tenant: TenantId,
    id: JobId,
    now: Timestamp,
    expires_at: Timestamp,
) -> Result<Option<Job>> {
    let row = tx.fetch_optional(&CANCEL_QUEUED, params![tenant, id, now, expires_at]).await?;
    row.as_ref().map(read).transpose()
}

/// The job and who holds it, unless it does not run or was asked before.
pub(crate) async fn request_cancel(
    tx: &mut Tx,
    tenant: TenantId,
    id: JobId,
) -> Result<Option<(Job, Option<WorkerId>)>> {
    let row = tx.fetch_optional(&REQUEST_CANCEL, params![tenant, id]).await?;
    row.map(|row| Ok((read(&row)?, row.get("holder")?))).transpose()
}

pub(crate) async fn retry(
    tx: &mut Tx,
    tenant: TenantId,
    id: JobId,
    now: Timestamp,
    turn: Timestamp,
    more_attempts: u32,
) -> Result<Option<Job>> {
    let row = tx.fetch_optional(&RETRY, params![tenant, id, now, turn, more_attempts]).await?;
    row.as_ref().map(read).transpose()
}

/// Leases at most `limit` waiting jobs of a kind to `holder`, in order of their turn. No tenant means any.
pub(crate) async fn claim(
    tx: &mut Tx,
    tenant: Option<TenantId>,
    kind: &str,
    holder: WorkerId,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<Lease>> {
    let rows = match tenant {
        Some(tenant) => tx.fetch_all(&CLAIM_OF_TENANT, params![tenant, kind, now, limit, holder]).await?,
        None => tx.fetch_all(&CLAIM_ANY_TENANT, params!["any", kind, now, limit, holder]).await?,
    };
    // RETURNING promises no order.
    let mut leases =
        rows.iter().map(|row| Ok((row.get::<i64>("turn")?, read_lease(row)?))).collect::<Result<Vec<_>>>()?;
    leases.sort_by_key(|(turn, lease)| (*turn, lease.job));
    Ok(leases.into_iter().map(|(_, lease)| lease).collect())
}

/// `None` if the writer no longer holds the job, this write was stored before, or the one before it was not.
pub(crate) async fn write_event(
    tx: &mut Tx,
    holding: Holding,
    write_number: i64,
    now: Timestamp,
    checkpoint: Option<Vec<u8>>,
) -> Result<Option<Written>> {
    let Holding { tenant, job, epoch, holder } = holding;
    #[cfg(feature = "planted-bugs")]
    if gatehouse_core::planted::is(gatehouse_core::planted::Bug::UnfencedWrite) {
        let values = params![tenant, job, write_number, now, checkpoint];
        return written(tx.fetch_optional(&planted::WRITE_ANYWAY, values).await?);
    }
    written(
        tx.fetch_optional(&WRITE_EVENT, params![tenant, job, epoch, holder, write_number, now, checkpoint])
            .await?,
    )
}

/// As [`write_event`].
pub(crate) async fn write_checkpoint(
    tx: &mut Tx,
    holding: Holding,
    write_number: i64,
    checkpoint: Vec<u8>,
) -> Result<Option<Written>> {
    let Holding { tenant, job, epoch, holder } = holding;
    written(
        tx.fetch_optional(&WRITE_CHECKPOINT, params![tenant, job, epoch, holder, write_number, checkpoint])
            .await?,
    )
}

/// Digest of what a worker said when it ended a lease.
pub(crate) type Said = [u8; 32];

/// Whether the lease of `job` under `epoch` was ended by exactly what was `said`.
pub(crate) async fn was_ended_by(tx: &mut Tx, job: JobId, epoch: i64, said: Said) -> Result<bool> {
    Ok(tx.fetch_optional(&FIND_ENDING, params![job, epoch, said]).await?.is_some())
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Succeeded(String),
    Failed(Failure),
    Cancelled,
}

impl Ending {
    pub(crate) fn state(&self) -> JobState {
        match self {
            Self::Succeeded(_) => JobState::Succeeded,
            Self::Failed(_) => JobState::Failed,
            Self::Cancelled => JobState::Cancelled,
        }
    }
}

/// `None` if the writer no longer holds the job.
pub(crate) async fn finish(
    tx: &mut Tx,
    holding: Holding,
    ending: &Ending,
    said: Option<Said>,
    now: Timestamp,
    expires_at: Timestamp,
) -> Result<Option<Written>> {
    let Holding { tenant, job, epoch, holder } = holding;
    let state = ending.state().as_str();
    let (result, reason, message) = match ending {
        Ending::Succeeded(result) => (Some(result.as_str()), None, None),
        Ending::Failed(failure) => (None, Some(failure.reason.as_str()), Some(failure.message.as_str())),
        Ending::Cancelled => (None, None, None),
    };
    let values = params![tenant, job, epoch, holder, state, now, expires_at, result, reason, message, said];
    written(tx.fetch_optional(&FINISH, values).await?)
}

/// Puts a running job back into the queue; `None` if `holding` is no longer true.
pub(crate) async fn requeue(
    tx: &mut Tx,
    holding: Holding,
    said: Option<Said>,
    available_at: Timestamp,
    attempts_given_back: u32,
) -> Result<Option<Written>> {
    let Holding { tenant, job, epoch, holder } = holding;
    let values = params![tenant, job, epoch, holder, available_at, attempts_given_back, said];
    written(tx.fetch_optional(&REQUEUE, values).await?)
}

pub(crate) async fn mark_stalled(tx: &mut Tx, holding: Holding, since: Timestamp) -> Result<Option<Written>> {
    let Holding { tenant, job, epoch, holder } = holding;
    written(tx.fetch_optional(&MARK_STALLED, params![tenant, job, epoch, holder, since]).await?)
}

/// A lease as the row has it, if `holding` is true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaseRow {
    pub(crate) kind: String,
    pub(crate) attempt: u32,
    pub(crate) max_attempts: u32,
    pub(crate) cancel_requested: bool,
    pub(crate) last_write: i64,
}

pub(crate) async fn lookup_lease(tx: &mut Tx, holding: Holding) -> Result<Option<LeaseRow>> {
    let Holding { tenant, job, epoch, holder } = holding;
    let row = tx.fetch_optional(&FIND_LEASE, params![tenant, job, epoch, holder]).await?;
    row.map(|row| {
        Ok(LeaseRow {
            kind: row.get("kind")?,
            attempt: row.get("attempt")?,
            max_attempts: row.get("max_attempts")?,
            cancel_requested: row.get("cancel_requested")?,
            last_write: row.get("last_write")?,
        })
    })
    .transpose()
}

/// `false` if the job is gone or was queued again meanwhile.
pub(crate) async fn delete(tx: &mut Tx, tenant: TenantId, id: JobId, now: Timestamp) -> Result<bool> {
    Ok(tx.execute(&DELETE_JOB, params![tenant, id, now]).await? == 1)
}

fn written(row: Option<Row>) -> Result<Option<Written>> {
    row.map(|row| {
        Ok(Written {
            sequence: row.get("last_sequence")?,
            attempt: row.get("attempt")?,
            cancel_requested: row.get("cancel_requested")?,
        })
    })
    .transpose()
}

fn read(row: &Row) -> Result<Job> {
    let failure =
        match (row.get::<Option<String>>("failure_reason")?, row.get::<Option<String>>("failure_message")?) {
            (Some(reason), message) => Some(Failure { reason, message: message.unwrap_or_default() }),
            (None, _) => None,
        };
    Ok(Job {
        tenant: row.get("tenant_id")?,
        id: row.get("id")?,
        kind: row.get("kind")?,
        state: row.parse("state")?,
        submitted_by: row.get("submitted_by")?,
        created_at: row.get("created_at")?,
        started_at: row.get("started_at")?,
        finished_at: row.get("finished_at")?,
        expires_at: row.get("expires_at")?,
        attempt: row.get("attempt")?,
        max_attempts: row.get("max_attempts")?,
        cancel_requested: row.get("cancel_requested")?,
        last_sequence: row.get("last_sequence")?,
        stalled: row.get("stalled")?,
        failure,
    })
}

fn read_lease(row: &Row) -> Result<Lease> {
    Ok(Lease {
        tenant: row.get("tenant_id")?,
        job: row.get("id")?,
        kind: row.get("kind")?,
        epoch: row.get("epoch")?,
        attempt: row.get("attempt")?,
        input: row.get("input")?,
        checkpoint: row.get::<Option<Vec<u8>>>("checkpoint")?.unwrap_or_default(),
        cancel_requested: row.get("cancel_requested")?,
        traceparent: row.get("traceparent")?,
        started_sequence: row.get("last_sequence")?,
        last_write: row.get("last_write")?,
    })
}
