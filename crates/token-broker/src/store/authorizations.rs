//! The table `authorizations`.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::{PersonId, SessionId, TenantId};
use gatehouse_db::{Result, Tx, params, sql};
use uuid::Uuid;

use crate::domain::scopes::Scopes;

sql! {
    ADD_AUTHORIZATION = "INSERT INTO authorizations (tenant_id, state_digest, person_id, session_id, authorization_id, \
        upstream, scopes, verifier, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    /// Single use: whoever deletes the row has it. Only the person, and the session, that began it.
    CONSUME_AUTHORIZATION = "DELETE FROM authorizations WHERE tenant_id = $1 AND state_digest = $2 AND person_id = $3 \
        AND (session_id IS NULL OR session_id = $4) AND expires_at > $5 \
        RETURNING authorization_id, upstream, scopes, verifier";
    /// Keeps one person from filling the table.
    COUNT_AUTHORIZATIONS = "SELECT COUNT(*) AS pending FROM authorizations WHERE tenant_id = $1 AND person_id = $2 \
        AND expires_at > $3";
    /// Maintenance.
    PURGE_AUTHORIZATIONS = "DELETE FROM authorizations WHERE expires_at <= $1";
}

/// An authorization that a person began.
#[derive(Clone, Debug)]
pub(crate) struct Authorization {
    pub(crate) tenant: TenantId,
    pub(crate) state_digest: [u8; 32],
    pub(crate) person: PersonId,
    pub(crate) session: Option<SessionId>,
    pub(crate) id: Uuid,
    pub(crate) upstream: String,
    pub(crate) scopes: Scopes,
    /// The PKCE verifier, sealed.
    pub(crate) verifier: Vec<u8>,
    pub(crate) expires_at: Timestamp,
}

pub(crate) async fn add(tx: &mut Tx, authorization: &Authorization) -> Result<()> {
    let values = params![
        authorization.tenant,
        authorization.state_digest,
        authorization.person,
        authorization.session,
        authorization.id,
        &authorization.upstream,
        authorization.scopes.to_string(),
        &authorization.verifier,
        authorization.expires_at
    ];
    tx.execute(&ADD_AUTHORIZATION, values).await.map(drop)
}

pub(crate) async fn consume(
    tx: &mut Tx,
    tenant: TenantId,
    state_digest: [u8; 32],
    person: PersonId,
    session: Option<SessionId>,
    now: Timestamp,
) -> Result<Option<Authorization>> {
    let values = params![tenant, state_digest, person, session, now];
    let Some(row) = tx.fetch_optional(&CONSUME_AUTHORIZATION, values).await? else { return Ok(None) };
    Ok(Some(Authorization {
        tenant,
        state_digest,
        person,
        session,
        id: row.get("authorization_id")?,
        upstream: row.get("upstream")?,
        scopes: Scopes::parse(&row.get::<String>("scopes")?),
        verifier: row.get("verifier")?,
        expires_at: now,
    }))
}

pub(crate) async fn count(tx: &mut Tx, tenant: TenantId, person: PersonId, now: Timestamp) -> Result<i64> {
    tx.fetch_one(&COUNT_AUTHORIZATIONS, params![tenant, person, now]).await?.get("pending")
}

pub(crate) async fn purge(tx: &mut Tx, now: Timestamp) -> Result<u64> {
    tx.execute(&PURGE_AUTHORIZATIONS, params![now]).await
}
