//! API keys.

use gatehouse_core::Timestamp;
use gatehouse_core::ids::{CredentialId, PersonId, TenantId};
use gatehouse_db::{Error, Row, Tx, params, sql};

use super::{digest, optional_digest};
use crate::domain::keys::KeyedDigest;
use crate::domain::roles::is_for_keys;

sql! {
    /// Adds a key unless the tenant has its fill of live ones.
    pub ADD_API_KEY = "INSERT INTO api_keys (tenant_id, api_key_id, name, permissions, created_by, created_at, made_at, expires_at, hint, digest_kid, digest) SELECT $1, $2, $3, $4, $5, $6, $6, $7, $8, $9, $10 WHERE (SELECT COUNT(*) FROM api_keys AS others WHERE others.tenant_id = $1 AND others.revoked_at IS NULL AND (others.expires_at IS NULL OR others.expires_at > $6)) < $11";
    /// A key by id alone: what is presented names no tenant, and the key says which one it is for.
    pub LOOKUP_CREDENTIAL = "SELECT tenant_id, api_key_id, name, permissions, created_by, created_at, made_at, expires_at, last_used_at, revoked_at, hint, digest_kid, digest, previous_digest_kid, previous_digest, previous_until, tokens_from FROM api_keys WHERE api_key_id = $1";
    /// A key of a tenant.
    pub LOOKUP_API_KEY = "SELECT tenant_id, api_key_id, name, permissions, created_by, created_at, made_at, expires_at, last_used_at, revoked_at, hint, digest_kid, digest, previous_digest_kid, previous_digest, previous_until, tokens_from FROM api_keys WHERE tenant_id = $1 AND api_key_id = $2";
    /// A tenant's keys, newest first.
    pub LIST_API_KEYS = "SELECT tenant_id, api_key_id, name, permissions, created_by, created_at, made_at, expires_at, last_used_at, revoked_at, hint, digest_kid, digest, previous_digest_kid, previous_digest, previous_until, tokens_from FROM api_keys WHERE tenant_id = $1 ORDER BY created_at DESC, api_key_id DESC LIMIT 500";
    /// The live keys of a tenant that came from one person, or whose text that person was shown.
    pub LIST_API_KEYS_OF_PERSON = "SELECT tenant_id, api_key_id, name, permissions, created_by, created_at, made_at, expires_at, last_used_at, revoked_at, hint, digest_kid, digest, previous_digest_kid, previous_digest, previous_until, tokens_from FROM api_keys WHERE tenant_id = $1 AND (created_by = $2 OR held_by = $2 OR (previous_held_by = $2 AND previous_until > $3)) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $3) ORDER BY api_key_id";
    /// Gives a live key a new text; the present one becomes the previous one.
    pub ROTATE_API_KEY = "UPDATE api_keys SET previous_digest_kid = digest_kid, previous_digest = digest, previous_until = $3, previous_held_by = COALESCE(held_by, created_by), held_by = $10, digest_kid = $4, digest = $5, made_at = $6, expires_at = $7, hint = $8, tokens_from = $11 WHERE tenant_id = $1 AND api_key_id = $2 AND digest = $9 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $6)";
    /// Gives a live key another new text; the previous one stays the previous one, until $3 at the latest.
    pub REPLACE_TEXT = "UPDATE api_keys SET previous_until = $3, held_by = $10, digest_kid = $4, digest = $5, made_at = $6, expires_at = $7, hint = $8, tokens_from = $11 WHERE tenant_id = $1 AND api_key_id = $2 AND digest = $9 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $6) AND previous_until > $6";
    /// When the next overlap ends.
    pub NEXT_END_OF_OVERLAP = "SELECT MIN(previous_until) AS ends_at FROM api_keys WHERE previous_until IS NOT NULL";
    /// Forgets the texts whose overlap has ended, of all tenants' keys; of each key only one who asks is told.
    pub END_OVERLAPS = "UPDATE api_keys SET previous_digest_kid = NULL, previous_digest = NULL, previous_until = NULL, previous_held_by = NULL WHERE previous_until <= $1 RETURNING api_key_id, made_at, tokens_from";
    /// Ends a key.
    pub REVOKE_API_KEY = "UPDATE api_keys SET revoked_at = $3 WHERE tenant_id = $1 AND api_key_id = $2 AND revoked_at IS NULL";
    /// Marks a use, to the minute.
    pub MARK_USE = "UPDATE api_keys SET last_used_at = $3 WHERE tenant_id = $1 AND api_key_id = $2 AND (last_used_at IS NULL OR last_used_at < $4)";
    /// Forgets keys that were revoked or ran out before.
    pub PURGE_API_KEYS = "DELETE FROM api_keys WHERE revoked_at < $1 OR expires_at < $1";
}

/// A key as stored.
#[derive(Clone, Debug)]
pub struct ApiKeyRow {
    /// The tenant that it acts in.
    pub tenant: TenantId,
    /// Its id.
    pub id: CredentialId,
    /// Its name.
    pub name: String,
    /// What it may do. A stored permission that keys can't have (any more) is not among them.
    pub permissions: Vec<String>,
    /// The person from whom it has its rights, as they stand in `sub`: its maker.
    pub created_by: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its present text was made.
    pub made_at: Timestamp,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// What tells keys and their texts apart: [`ApiKey::hint`](crate::domain::api_key::ApiKey::hint).
    pub hint: String,
    /// Digest of its text.
    pub digest: KeyedDigest,
    /// Digest of the text before, and until when that one holds.
    pub previous: Option<(KeyedDigest, Timestamp)>,
    /// Tokens of its text are dated to this at least; those of the texts before it are dated before.
    pub tokens_from: Option<Timestamp>,
}

/// What becomes of the texts that a key had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// The present one holds until then; what was before it ends.
    Overlap(Timestamp),
    /// The present one ends; the one before it holds until then.
    Replace(Timestamp),
}

impl ApiKeyRow {
    fn from_row(row: &Row) -> Result<Self, Error> {
        let previous = optional_digest(row, "previous_digest_kid", "previous_digest")?;
        let until: Option<Timestamp> = row.get("previous_until")?;
        Ok(Self {
            tenant: row.get("tenant_id")?,
            id: row.get("api_key_id")?,
            name: row.get("name")?,
            permissions: row
                .get::<String>("permissions")?
                .split_whitespace()
                .filter(|permission| is_for_keys(permission))
                .map(str::to_owned)
                .collect(),
            created_by: row.get("created_by")?,
            created_at: row.get("created_at")?,
            made_at: row.get("made_at")?,
            expires_at: row.get("expires_at")?,
            last_used_at: row.get("last_used_at")?,
            revoked_at: row.get("revoked_at")?,
            hint: row.get("hint")?,
            digest: digest(row, "digest_kid", "digest")?,
            previous: previous.zip(until),
            tokens_from: row.get("tokens_from")?,
        })
    }

    /// Whether it holds at `now`.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }
}

/// Adds a key; `false` if the tenant has `most` live ones already.
pub async fn add(tx: &mut Tx, key: &ApiKeyRow, most: u32) -> Result<bool, Error> {
    let params = params![
        key.tenant,
        key.id,
        &key.name,
        key.permissions.join(" "),
        &key.created_by,
        key.created_at,
        key.expires_at,
        &key.hint,
        key.digest.kid.as_str(),
        key.digest.bytes,
        most
    ];
    Ok(tx.execute(&ADD_API_KEY, params).await? == 1)
}

/// The key `id`, whoever's it is. Only for what is presented as a credential.
pub async fn lookup_credential(tx: &mut Tx, id: CredentialId) -> Result<Option<ApiKeyRow>, Error> {
    let row = tx.fetch_optional(&LOOKUP_CREDENTIAL, params![id]).await?;
    row.as_ref().map(ApiKeyRow::from_row).transpose()
}

/// The key `id` of `tenant`.
pub async fn lookup(tx: &mut Tx, tenant: TenantId, id: CredentialId) -> Result<Option<ApiKeyRow>, Error> {
    let row = tx.fetch_optional(&LOOKUP_API_KEY, params![tenant, id]).await?;
    row.as_ref().map(ApiKeyRow::from_row).transpose()
}

/// `tenant`'s keys, newest first, at most 500.
pub async fn list(tx: &mut Tx, tenant: TenantId) -> Result<Vec<ApiKeyRow>, Error> {
    tx.fetch_all(&LIST_API_KEYS, params![tenant]).await?.iter().map(ApiKeyRow::from_row).collect()
}

/// The keys of `tenant` that are live at `now` and came from `person`, or whose text, present or not yet over at `now`,
/// was shown to them; in the order of their ids.
pub async fn list_of_person(
    tx: &mut Tx,
    tenant: TenantId,
    person: PersonId,
    now: Timestamp,
) -> Result<Vec<ApiKeyRow>, Error> {
    let rows = tx.fetch_all(&LIST_API_KEYS_OF_PERSON, params![tenant, person.to_string(), now]).await?;
    rows.iter().map(ApiKeyRow::from_row).collect()
}

/// Puts the text of `new`, which `holder` is shown, in place of that of `old`: `rotation` says what becomes of that one.
/// `false` if the key was rotated or revoked meanwhile.
pub async fn rotate(
    tx: &mut Tx,
    old: &ApiKeyRow,
    new: &ApiKeyRow,
    rotation: Rotation,
    holder: &str,
) -> Result<bool, Error> {
    let (statement, until) = match rotation {
        Rotation::Overlap(until) => (&ROTATE_API_KEY, until),
        Rotation::Replace(until) => (&REPLACE_TEXT, until),
    };
    let params = params![
        old.tenant,
        old.id,
        until,
        new.digest.kid.as_str(),
        new.digest.bytes,
        new.made_at,
        new.expires_at,
        &new.hint,
        old.digest.bytes,
        holder,
        new.tokens_from
    ];
    Ok(tx.execute(statement, params).await? == 1)
}

/// When the next overlap of two texts of a key ends, whosever it is.
pub async fn next_end_of_overlap(tx: &mut Tx) -> Result<Option<Timestamp>, Error> {
    tx.fetch_one(&NEXT_END_OF_OVERLAP, params![]).await?.get("ends_at")
}

/// Forgets the texts whose overlap has ended by `now`: the keys, each with the date that tokens of its text are not before.
pub async fn end_overlaps(tx: &mut Tx, now: Timestamp) -> Result<Vec<(CredentialId, Timestamp)>, Error> {
    let rows = tx.fetch_all(&END_OVERLAPS, params![now]).await?;
    rows.iter()
        .map(|row| {
            let made_at: Timestamp = row.get("made_at")?;
            let tokens_from: Option<Timestamp> = row.get("tokens_from")?;
            // A version that knows no such date may have rotated it since.
            Ok((row.get("api_key_id")?, made_at.max(tokens_from.unwrap_or(made_at))))
        })
        .collect()
}

/// Ends a key; `false` if it was over.
pub async fn revoke(tx: &mut Tx, tenant: TenantId, id: CredentialId, now: Timestamp) -> Result<bool, Error> {
    Ok(tx.execute(&REVOKE_API_KEY, params![tenant, id, now]).await? == 1)
}

/// Marks a use, unless one was marked after `unless_after`.
pub async fn mark_use(
    tx: &mut Tx,
    key: &ApiKeyRow,
    now: Timestamp,
    unless_after: Timestamp,
) -> Result<(), Error> {
    tx.execute(&MARK_USE, params![key.tenant, key.id, now, unless_after]).await?;
    Ok(())
}

/// Forgets keys that were over before `before`; how many.
pub async fn purge(tx: &mut Tx, before: Timestamp) -> Result<u64, Error> {
    tx.execute(&PURGE_API_KEYS, params![before]).await
}
