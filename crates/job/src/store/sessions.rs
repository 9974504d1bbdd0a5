//! Table `worker_sessions`: connected workers.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::WorkerId;
use gatehouse_db::{Result, Tx, params, sql};

sql! {
    pub(crate) INSERT_SESSION = "INSERT INTO worker_sessions (id, subject, name, stream, created_at, expires_at) \
        VALUES ($1, $2, $3, 1, $4, $5)";
    pub(crate) RESUME_SESSION = "UPDATE worker_sessions SET stream = stream + 1, name = $3, expires_at = $5 \
        WHERE id = $1 AND subject = $2 AND expires_at > $4 RETURNING stream";
    pub(crate) EXTEND_SESSION = "UPDATE worker_sessions SET expires_at = $4 \
        WHERE id = $1 AND stream = $2 AND expires_at > $3";
    pub(crate) LIST_EXPIRED_SESSIONS = "SELECT id FROM worker_sessions WHERE expires_at <= $1 ORDER BY expires_at LIMIT 100";
    pub(crate) DELETE_EXPIRED_SESSION = "DELETE FROM worker_sessions WHERE id = $1 AND expires_at <= $2";
    pub(crate) DELETE_SESSION = "DELETE FROM worker_sessions WHERE id = $1 AND stream = $2";
}

/// One stream of one worker's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) id: WorkerId,
    pub(crate) stream: i64,
}

pub(crate) async fn add(
    tx: &mut Tx,
    id: WorkerId,
    subject: &str,
    name: &str,
    now: Timestamp,
    expires_at: Timestamp,
) -> Result<Session> {
    tx.execute(&INSERT_SESSION, params![id, subject, name, now, expires_at]).await?;
    Ok(Session { id, stream: 1 })
}

/// Takes a session up again, if it still lives and belongs to `subject`. Older streams of it no longer count.
pub(crate) async fn resume(
    tx: &mut Tx,
    id: WorkerId,
    subject: &str,
    name: &str,
    now: Timestamp,
    expires_at: Timestamp,
) -> Result<Option<Session>> {
    let row = tx.fetch_optional(&RESUME_SESSION, params![id, subject, name, now, expires_at]).await?;
    row.map(|row| Ok(Session { id, stream: row.get("stream")? })).transpose()
}

/// Keeps a session alive, and locks its row until the end of the transaction; `false` if it is over.
pub(crate) async fn extend(
    tx: &mut Tx,
    session: Session,
    now: Timestamp,
    expires_at: Timestamp,
) -> Result<bool> {
    let values = params![session.id, session.stream, now, expires_at];
    Ok(tx.execute(&EXTEND_SESSION, values).await? == 1)
}

pub(crate) async fn list_expired(tx: &mut Tx, now: Timestamp) -> Result<Vec<WorkerId>> {
    tx.fetch_all(&LIST_EXPIRED_SESSIONS, params![now]).await?.iter().map(|row| row.get("id")).collect()
}

/// Ends a session whose heartbeat was lost; `false` if it was taken up again or another replica was first.
pub(crate) async fn delete_expired(tx: &mut Tx, id: WorkerId, now: Timestamp) -> Result<bool> {
    Ok(tx.execute(&DELETE_EXPIRED_SESSION, params![id, now]).await? == 1)
}

/// Ends a session whose worker said goodbye.
pub(crate) async fn delete(tx: &mut Tx, session: Session) -> Result<bool> {
    Ok(tx.execute(&DELETE_SESSION, params![session.id, session.stream]).await? == 1)
}
