//! Sessions, each a refresh token family.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::{PersonId, SessionId, TenantId};
use gatehouse_db::{Error, Row, Tx, params, sql};

use super::{digest, optional_digest};
use crate::domain::keys::KeyedDigest;
use crate::domain::refresh::{Consumed, Family, Salt};

sql! {
    /// Starts a session.
    pub ADD_SESSION = "INSERT INTO sessions (session_id, person_id, tenant_id, user_agent, authenticated_at, created_at, last_used_at, ends_at, generation, digest_kid, digest) VALUES ($1, $2, $3, $4, $5, $5, $5, $6, 0, $7, $8)";
    /// A session.
    pub LOOKUP_SESSION = "SELECT session_id, person_id, tenant_id, user_agent, authenticated_at, created_at, last_used_at, ends_at, ended_at, generation, digest_kid, digest, parent_digest_kid, parent_digest, salt, consumed_at FROM sessions WHERE session_id = $1";
    /// Consumes the token that is alive, if it still is. Whoever loses finds what the winner stored.
    pub CONSUME = "UPDATE sessions SET generation = generation + 1, parent_digest_kid = digest_kid, parent_digest = digest, digest_kid = $4, digest = $5, salt = $6, consumed_at = $7, last_used_at = $7 WHERE session_id = $1 AND generation = $2 AND digest = $3 AND ended_at IS NULL AND ends_at > $7";
    /// Ends a session that has not ended.
    pub END_SESSION = "UPDATE sessions SET ended_at = $2, end_reason = $3 WHERE session_id = $1 AND ended_at IS NULL AND ends_at > $2 RETURNING person_id, tenant_id";
    /// Ends one of a person's own.
    pub END_OWN_SESSION = "UPDATE sessions SET ended_at = $3, end_reason = $4 WHERE session_id = $1 AND person_id = $2 AND ended_at IS NULL AND ends_at > $3";
    /// Ends all of a person's but one.
    pub END_OTHER_SESSIONS = "UPDATE sessions SET ended_at = $3, end_reason = $4 WHERE person_id = $1 AND session_id <> $2 AND ended_at IS NULL AND ends_at > $3 RETURNING session_id";
    /// Ends those of a person's that, but for one, were unused for longest, beyond so many that stay; no more than so many at once.
    pub END_SURPLUS_SESSIONS = "UPDATE sessions SET ended_at = $3, end_reason = $4 WHERE session_id IN (SELECT session_id FROM (SELECT session_id, ROW_NUMBER() OVER (ORDER BY last_used_at DESC, created_at DESC, session_id DESC) AS place FROM sessions WHERE person_id = $1 AND session_id <> $2 AND ended_at IS NULL AND ends_at > $3) AS ranked WHERE place > $5 ORDER BY place DESC LIMIT $6) AND ended_at IS NULL RETURNING session_id";
    /// Ends all of a person's.
    pub END_ALL_SESSIONS = "UPDATE sessions SET ended_at = $2, end_reason = $3 WHERE person_id = $1 AND ended_at IS NULL AND ends_at > $2";
    /// Ends all of a person's in a tenant.
    pub END_SESSIONS_IN_TENANT = "UPDATE sessions SET ended_at = $3, end_reason = $4 WHERE tenant_id = $1 AND person_id = $2 AND ended_at IS NULL AND ends_at > $3";
    /// A person's live sessions, newest first.
    pub LIST_SESSIONS = "SELECT session_id, person_id, tenant_id, user_agent, authenticated_at, created_at, last_used_at, ends_at, ended_at, generation, digest_kid, digest, parent_digest_kid, parent_digest, salt, consumed_at FROM sessions WHERE person_id = $1 AND ended_at IS NULL AND ends_at > $2 ORDER BY created_at DESC, session_id DESC LIMIT 1000";
    /// Forgets sessions that ended before.
    pub PURGE_SESSIONS = "DELETE FROM sessions WHERE ends_at < $1";
}

/// A bug for the fault harness to find: what was read before is taken to hold still.
#[cfg(feature = "planted-bugs")]
mod planted {
    gatehouse_db::sql! {
        pub(super) CONSUME_ANYHOW = "UPDATE sessions SET generation = generation + 1, parent_digest_kid = digest_kid, parent_digest = digest, digest_kid = $2, digest = $3, salt = $4, consumed_at = $5, last_used_at = $5 WHERE session_id = $1 AND ended_at IS NULL";
    }
}

/// A session as stored.
#[derive(Clone, Debug)]
pub struct Session {
    /// Its refresh token family.
    pub family: Family,
    /// Whose it is.
    pub person: PersonId,
    /// The tenant that it acts in.
    pub tenant: Option<TenantId>,
    /// The browser or program that began it.
    pub user_agent: String,
    /// When the person proved who they are.
    pub authenticated_at: Timestamp,
    /// When it began.
    pub created_at: Timestamp,
    /// When it was last refreshed.
    pub last_used_at: Timestamp,
}

impl Session {
    fn from_row(row: &Row) -> Result<Self, Error> {
        let parent = match optional_digest(row, "parent_digest_kid", "parent_digest")? {
            None => None,
            Some(digest) => Some(Consumed { digest, salt: row.get("salt")?, at: row.get("consumed_at")? }),
        };
        let family = Family {
            id: row.get("session_id")?,
            generation: row.get("generation")?,
            current: digest(row, "digest_kid", "digest")?,
            parent,
            ends_at: row.get("ends_at")?,
            ended: row.get::<Option<Timestamp>>("ended_at")?.is_some(),
        };
        Ok(Self {
            family,
            person: row.get("person_id")?,
            tenant: row.get("tenant_id")?,
            user_agent: row.get("user_agent")?,
            authenticated_at: row.get("authenticated_at")?,
            created_at: row.get("created_at")?,
            last_used_at: row.get("last_used_at")?,
        })
    }
}

/// Why a session ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Its person signed out.
    SignedOut,
    /// Its person, or a holder of its token, revoked it.
    Revoked,
    /// A consumed refresh token was presented again.
    RefreshReused,
    /// Its person began others, and it was unused for longest.
    Surplus,
    /// The password was changed elsewhere.
    PasswordChanged,
    /// The person is no longer a member of its tenant.
    MembershipEnded,
}

impl EndReason {
    /// The name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SignedOut => "signed_out",
            Self::Revoked => "revoked",
            Self::RefreshReused => "refresh_reused",
            Self::Surplus => "surplus",
            Self::PasswordChanged => "password_changed",
            Self::MembershipEnded => "membership_ended",
        }
    }
}

/// A session to start.
#[derive(Debug)]
pub struct NewSession<'a> {
    /// Its id.
    pub id: SessionId,
    /// Whose.
    pub person: PersonId,
    /// In which tenant.
    pub tenant: Option<TenantId>,
    /// From which browser or program.
    pub user_agent: &'a str,
    /// Now.
    pub now: Timestamp,
    /// When it ends whatever happens.
    pub ends_at: Timestamp,
    /// Digest of the first token.
    pub digest: &'a KeyedDigest,
}

/// Starts a session.
pub async fn add(tx: &mut Tx, new: &NewSession<'_>) -> Result<(), Error> {
    let (kid, bytes) = (new.digest.kid.as_str(), new.digest.bytes);
    let params = params![new.id, new.person, new.tenant, new.user_agent, new.now, new.ends_at, kid, bytes];
    tx.execute(&ADD_SESSION, params).await?;
    Ok(())
}

/// The session `id`.
pub async fn lookup(tx: &mut Tx, id: SessionId) -> Result<Option<Session>, Error> {
    let row = tx.fetch_optional(&LOOKUP_SESSION, params![id]).await?;
    row.as_ref().map(Session::from_row).transpose()
}

/// Consumes the live token `seen` of `family` and puts `next`, made with `salt`, in its place; `false` if it was
/// consumed or the session ended meanwhile.
pub async fn consume(
    tx: &mut Tx,
    family: &Family,
    next: &KeyedDigest,
    salt: &Salt,
    now: Timestamp,
) -> Result<bool, Error> {
    #[cfg(feature = "planted-bugs")]
    if gatehouse_core::planted::is(gatehouse_core::planted::Bug::SelectThenUpdate) {
        let params = params![family.id, next.kid.as_str(), next.bytes, *salt, now];
        return Ok(tx.execute(&planted::CONSUME_ANYHOW, params).await? == 1);
    }
    let params = params![
        family.id,
        family.generation,
        family.current.bytes,
        next.kid.as_str(),
        next.bytes,
        *salt,
        now
    ];
    Ok(tx.execute(&CONSUME, params).await? == 1)
}

/// Ends a session; whose it was, or `None` if it was over.
pub async fn end(
    tx: &mut Tx,
    id: SessionId,
    reason: EndReason,
    now: Timestamp,
) -> Result<Option<(PersonId, Option<TenantId>)>, Error> {
    let row = tx.fetch_optional(&END_SESSION, params![id, now, reason.as_str()]).await?;
    row.map(|row| Ok((row.get("person_id")?, row.get("tenant_id")?))).transpose()
}

/// Ends one of `person`'s own; `false` if they have no such live session.
pub async fn end_own(
    tx: &mut Tx,
    id: SessionId,
    person: PersonId,
    reason: EndReason,
    now: Timestamp,
) -> Result<bool, Error> {
    Ok(tx.execute(&END_OWN_SESSION, params![id, person, now, reason.as_str()]).await? == 1)
}

/// Ends all of `person`'s but `keep`; the ids of those that it ended.
pub async fn end_others(
    tx: &mut Tx,
    person: PersonId,
    keep: SessionId,
    reason: EndReason,
    now: Timestamp,
) -> Result<Vec<SessionId>, Error> {
    let params = params![person, keep, now, reason.as_str()];
    tx.fetch_all(&END_OTHER_SESSIONS, params).await?.iter().map(|row| row.get("session_id")).collect()
}

/// Most sessions that one sign-in ends. There are more only where the bound was lowered or is new; the next sign-ins end
/// those.
const MOST_SURPLUS: i64 = 256;

/// Ends what `person` has beyond `most` sessions, `newest` among them, first those unused for longest; the ids of those
/// that it ended. Call it under the lock of [`super::people::mark_sign_in`].
pub async fn end_surplus(
    tx: &mut Tx,
    person: PersonId,
    newest: SessionId,
    most: u32,
    now: Timestamp,
) -> Result<Vec<SessionId>, Error> {
    let others = most.saturating_sub(1);
    let params = params![person, newest, now, EndReason::Surplus.as_str(), others, MOST_SURPLUS];
    tx.fetch_all(&END_SURPLUS_SESSIONS, params).await?.iter().map(|row| row.get("session_id")).collect()
}

/// Ends all of `person`'s.
pub async fn end_all(tx: &mut Tx, person: PersonId, reason: EndReason, now: Timestamp) -> Result<u64, Error> {
    tx.execute(&END_ALL_SESSIONS, params![person, now, reason.as_str()]).await
}

/// Ends all of `person`'s in `tenant`.
pub async fn end_in_tenant(
    tx: &mut Tx,
    tenant: TenantId,
    person: PersonId,
    reason: EndReason,
    now: Timestamp,
) -> Result<u64, Error> {
    tx.execute(&END_SESSIONS_IN_TENANT, params![tenant, person, now, reason.as_str()]).await
}

/// `person`'s live sessions, newest first, at most 1000.
pub async fn list(tx: &mut Tx, person: PersonId, now: Timestamp) -> Result<Vec<Session>, Error> {
    tx.fetch_all(&LIST_SESSIONS, params![person, now]).await?.iter().map(Session::from_row).collect()
}

/// Forgets sessions whose time was over before `before`; how many.
pub async fn purge(tx: &mut Tx, before: Timestamp) -> Result<u64, Error> {
    tx.execute(&PURGE_SESSIONS, params![before]).await
}
