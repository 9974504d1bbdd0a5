//! Table `job_events`: each job's log.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::{JobId, TenantId};
use gatehouse_db::{Result, Row, Tx, params, sql};

use crate::domain::{EventType, JobEvent};

sql! {
    pub(crate) INSERT_EVENT = "INSERT INTO job_events (tenant_id, job_id, sequence, type, occurred_at, attempt, data) \
        VALUES ($1, $2, $3, $4, $5, $6, $7)";
    pub(crate) READ_EVENTS = "SELECT sequence, type, occurred_at, attempt, data FROM job_events \
        WHERE tenant_id = $1 AND job_id = $2 AND sequence > $3 ORDER BY sequence LIMIT $4";
    pub(crate) DELETE_EVENTS = "DELETE FROM job_events WHERE tenant_id = $1 AND job_id = $2";
}

/// Appends an event. Its sequence comes from the job's row, which the same transaction has changed and so locked.
pub(crate) async fn add(
    tx: &mut Tx,
    (tenant, job): (TenantId, JobId),
    (sequence, event_type, attempt): (i64, EventType, u32),
    occurred_at: Timestamp,
    data: String,
) -> Result<JobEvent> {
    let values = params![tenant, job, sequence, event_type.as_str(), occurred_at, attempt, &data];
    tx.execute(&INSERT_EVENT, values).await?;
    Ok(JobEvent { sequence, event_type, occurred_at, attempt, data })
}

/// At most `limit` events after `after`, in order.
pub(crate) async fn list(
    tx: &mut Tx,
    tenant: TenantId,
    job: JobId,
    after: i64,
    limit: i64,
) -> Result<Vec<JobEvent>> {
    tx.fetch_all(&READ_EVENTS, params![tenant, job, after, limit]).await?.iter().map(read).collect()
}

/// Removes a job's whole log.
pub(crate) async fn delete(tx: &mut Tx, tenant: TenantId, job: JobId) -> Result<u64> {
    tx.execute(&DELETE_EVENTS, params![tenant, job]).await
}

fn read(row: &Row) -> Result<JobEvent> {
    Ok(JobEvent {
        sequence: row.get("sequence")?,
        event_type: row.parse("type")?,
        occurred_at: row.get("occurred_at")?,
        attempt: row.get("attempt")?,
        data: row.get("data")?,
    })
}
