//! A tenant's API keys.

use std::time::Duration;

use gatehouse_client::audience;
use gatehouse_core::ids::{CredentialId, PersonId, TenantId};
use gatehouse_core::{Error, Result, Secret, Timestamp};
use gatehouse_db::{Tx, read_tx, run_tx};
use gatehouse_service::Caller;
use serde_json::json;

use super::{App, permissions_of};
use crate::domain::api_key::{ApiKey, end_after_rotation};
use crate::domain::roles::{Role, audience_of, is_for_keys, is_known};
use crate::domain::text;
use crate::store::api_keys::{self, ApiKeyRow, Rotation};
use crate::store::revocations::{self, Revoked};
use crate::store::{memberships, tenants};

const DAY: u64 = 86_400;
/// The longest life of a key, seconds.
const MAX_LIFETIME_S: u64 = 365 * DAY;
/// The life that a key has if none is asked for: requirement P11's 90 days.
const DEFAULT_LIFETIME_S: u64 = 90 * DAY;
/// The longest overlap of two texts of one key, seconds.
const MAX_OVERLAP_S: u64 = 7 * DAY;

fn not_found() -> Error {
    Error::not_found("API_KEY_NOT_FOUND", "This tenant has no such API key.")
}

fn seconds(field: &str, value: i64, most: u64) -> Result<u64> {
    let wrong = || Error::invalid_field(field, format!("must be from 0 to {most} seconds"));
    u64::try_from(value).ok().filter(|value| *value <= most).ok_or_else(wrong)
}

/// What the caller, who is `person`, may do in `tenant` now, whatever their token says. Takes the lock of the tenant's
/// members first, so that no change of a role falls between this and what is decided by it.
async fn held_now(
    tx: &mut Tx,
    caller: &Caller,
    (tenant, person): (TenantId, PersonId),
) -> gatehouse_db::Result<Vec<String>> {
    tenants::lock_members(tx, tenant).await?;
    let role = memberships::lookup_role(tx, tenant, person).await?;
    let held = role.map(|role| permissions_of(&[role])).unwrap_or_default();
    Ok(within_token(held, &caller.claims().permissions))
}

/// Those of `held` that a token for this service, which says `told`, does not withhold. It says nothing of what the
/// caller may do at other services.
fn within_token(mut held: Vec<String>, told: &[String]) -> Vec<String> {
    held.retain(|permission| {
        audience_of(permission).as_deref() != Some(audience::AUTH) || told.contains(permission)
    });
    held
}

/// Who is given a key's text is given all that the key may do.
fn refuse_wider(permissions: &[String], held: &[String]) -> Result<()> {
    match permissions.iter().find(|permission| !held.contains(permission)) {
        Some(missing) => {
            let message = format!("The key would have the permission {missing}, which you lack.");
            Err(Error::permission_denied("PERMISSION_TOO_HIGH", message))
        }
        None => Ok(()),
    }
}

/// What a rotation at `now` does to the texts that `key` has.
fn rotation(key: &ApiKeyRow, now: Timestamp, overlap: Duration, replace: bool) -> Result<Rotation> {
    match &key.previous {
        Some((_, until)) if now < *until && replace => {
            Ok(Rotation::Replace(end_after_rotation(Some(*until), now, overlap)))
        }
        Some((_, until)) if now < *until => Err(Error::failed_precondition(
            "API_KEY_IN_OVERLAP",
            format!(
                "This key was rotated already, and its old text holds until {until}. Use the new text; if that is lost, \
                 rotate with replace_new_text: it ends, the old one stays."
            ),
        )),
        _ => Ok(Rotation::Overlap(end_after_rotation(key.expires_at, now, overlap))),
    }
}

impl App {
    /// Makes a key. No wider than its maker is now, nor, in what concerns this service, than the maker's token. Only people
    /// make keys: what a key made would outlive its end and its revocation.
    ///
    /// # Errors
    /// `INVALID_FIELD`, `PERMISSION_TOO_HIGH`, `TOO_MANY_KEYS`, `TENANT_REQUIRED`, `PERSON_REQUIRED`.
    pub async fn create_api_key(
        &self,
        caller: &Caller,
        name: &str,
        permissions: Vec<String>,
        lifetime_s: i64,
    ) -> Result<(ApiKeyRow, Secret<String>)> {
        let (tenant, person) = (caller.tenant()?, caller.person()?);
        let name = text::name("name", name)?;
        let lifetime = match seconds("lifetime_seconds", lifetime_s, MAX_LIFETIME_S)? {
            0 => DEFAULT_LIFETIME_S,
            lifetime => lifetime,
        };
        if let Some(unknown) = permissions.iter().find(|permission| !is_known(permission)) {
            let shown: String = unknown.chars().filter(|c| !c.is_control()).take(64).collect();
            return Err(Error::invalid_field(
                "permissions",
                format!("{shown:?} is no permission that a key can have"),
            ));
        }
        if let Some(personal) = permissions.iter().find(|permission| !is_for_keys(permission)) {
            let message = format!("{personal} is for signed-in people only: a key could never use it");
            return Err(Error::invalid_field("permissions", message));
        }
        let now = self.now();
        let key = ApiKey::generate(CredentialId::new(&self.0.clock, &self.0.entropy), &self.0.entropy);
        let text = key.to_text(self.0.environment);
        let ring = self.0.keys.ring();
        let mut row = ApiKeyRow {
            tenant,
            id: key.id(),
            name,
            permissions: Vec::new(),
            created_by: person.to_string(),
            created_at: now,
            made_at: now,
            expires_at: Some(now.plus(Duration::from_secs(lifetime))),
            last_used_at: None,
            revoked_at: None,
            hint: key.hint(self.0.environment),
            digest: key.digest(&ring, ring.current(now)),
            previous: None,
            tokens_from: None,
        };
        let event =
            self.0.outbox.event("auth.api_keys.create").by(caller).target("api_key", key.id().as_uuid());
        row.permissions = run_tx!(self.0.db, "auth.api_key.create", |tx| {
            let held = held_now(tx, caller, (tenant, person)).await?;
            let granted = if permissions.is_empty() {
                permissions_of(&[Role::Member])
                    .into_iter()
                    .filter(|permission| is_for_keys(permission) && held.contains(permission))
                    .collect()
            } else {
                refuse_wider(&permissions, &held)?;
                let mut granted = permissions.clone();
                granted.sort();
                granted.dedup();
                granted
            };
            let row = ApiKeyRow { permissions: granted, ..row.clone() };
            if !api_keys::add(tx, &row, self.0.config.max_api_keys).await? {
                let message = "The tenant has as many API keys as are allowed. Revoke one first.";
                return Err(Error::failed_precondition("TOO_MANY_KEYS", message).into());
            }
            self.0.outbox.emit(tx, &event.clone().payload(json!({ "permissions": row.permissions }))).await?;
            Ok(row.permissions)
        })?;
        Ok((row, text))
    }

    /// The tenant's keys, newest first.
    ///
    /// # Errors
    /// `TENANT_REQUIRED`.
    pub async fn list_api_keys(&self, caller: &Caller) -> Result<Vec<ApiKeyRow>> {
        let tenant = caller.tenant()?;
        Ok(read_tx!(self.0.db, "auth.api_key.list", |tx| { api_keys::list(tx, tenant).await })?)
    }

    /// Gives a key a new text with a whole life of its own; the old text holds for the overlap. The new text is the
    /// caller's to use, so they must hold all that the key may do. A second rotation within an overlap is refused, unless
    /// it is to `replace` the new text of the first: which of the two texts is in use, only the caller knows.
    ///
    /// # Errors
    /// `API_KEY_NOT_FOUND`, `API_KEY_EXPIRED`, `API_KEY_CHANGED`, `API_KEY_IN_OVERLAP`, `PERMISSION_TOO_HIGH`,
    /// `INVALID_FIELD`, `TENANT_REQUIRED`, `PERSON_REQUIRED`.
    pub async fn rotate_api_key(
        &self,
        caller: &Caller,
        id: CredentialId,
        overlap_s: i64,
        replace: bool,
    ) -> Result<(ApiKeyRow, Secret<String>)> {
        let (tenant, person) = (caller.tenant()?, caller.person()?);
        let overlap = Duration::from_secs(seconds("overlap_seconds", overlap_s, MAX_OVERLAP_S)?);
        let now = self.now();
        let key = ApiKey::generate(id, &self.0.entropy);
        let text = key.to_text(self.0.environment);
        let ring = self.0.keys.ring();
        let digest = key.digest(&ring, ring.current(now));
        let event = self.0.outbox.event("auth.api_keys.rotate").by(caller).target("api_key", id.as_uuid());
        let row = run_tx!(self.0.db, "auth.api_key.rotate", |tx| {
            let held = held_now(tx, caller, (tenant, person)).await?;
            let Some(old) = api_keys::lookup(tx, tenant, id).await?.filter(|key| key.revoked_at.is_none())
            else {
                return Err(not_found().into());
            };
            if !old.is_live(now) {
                let message = "This API key has ended. Make a new one.";
                return Err(Error::failed_precondition("API_KEY_EXPIRED", message).into());
            }
            refuse_wider(&old.permissions, &held)?;
            let rotation = rotation(&old, now, overlap, replace)?;
            let life = old.expires_at.map(|end| end.since(old.made_at));
            let new = ApiKeyRow {
                made_at: now,
                tokens_from: Some(revocations::next_not_before(tx, now).await?),
                expires_at: life.map(|life| now.plus(life)),
                digest: digest.clone(),
                hint: key.hint(self.0.environment),
                ..old.clone()
            };
            if !api_keys::rotate(tx, &old, &new, rotation, &person.to_string()).await? {
                return Err(Error::aborted(
                    "API_KEY_CHANGED",
                    "Someone else changed this key just now. Look again.",
                )
                .into());
            }
            let replaced = matches!(rotation, Rotation::Replace(_));
            let told = json!({ "overlap_seconds": overlap.as_secs(), "replaced": replaced });
            self.0.outbox.emit(tx, &event.clone().payload(told)).await?;
            if overlap.is_zero() || replaced {
                revocations::add(tx, &Revoked::Credential(id), now, self.0.config.longest_token()).await?;
            }
            Ok(new)
        })?;
        self.revoked();
        Ok((row, text))
    }

    /// Ends a key. Idempotent.
    ///
    /// # Errors
    /// `API_KEY_NOT_FOUND`, `TENANT_REQUIRED`, `PERSON_REQUIRED`.
    pub async fn revoke_api_key(&self, caller: &Caller, id: CredentialId) -> Result<()> {
        let (tenant, _) = (caller.tenant()?, caller.person()?);
        let event = self.0.outbox.event("auth.api_keys.revoke").by(caller).target("api_key", id.as_uuid());
        let now = self.now();
        run_tx!(self.0.db, "auth.api_key.revoke", |tx| {
            if api_keys::lookup(tx, tenant, id).await?.is_none() {
                return Err(not_found().into());
            }
            if api_keys::revoke(tx, tenant, id, now).await? {
                self.0.outbox.emit(tx, &event).await?;
                revocations::add(tx, &Revoked::Credential(id), now, self.0.config.longest_token()).await?;
            }
            Ok(())
        })?;
        self.revoked();
        Ok(())
    }

    /// Ends the live keys in `tenant` that came from `person`, or whose text they were shown, and that may do what `role`,
    /// theirs from now on, may not; without a role, all of them. Part of the transaction that changes the role, under the lock of the tenant's members.
    pub(crate) async fn revoke_keys_above(
        &self,
        tx: &mut Tx,
        caller: &Caller,
        (tenant, person): (TenantId, PersonId),
        role: Option<Role>,
        now: Timestamp,
    ) -> gatehouse_db::Result<()> {
        let allowed = role.map(|role| permissions_of(&[role]));
        let mut revoked = Vec::new();
        for key in api_keys::list_of_person(tx, tenant, person, now).await? {
            let stays = allowed
                .as_ref()
                .is_some_and(|allowed| key.permissions.iter().all(|permission| allowed.contains(permission)));
            if !stays && api_keys::revoke(tx, tenant, key.id, now).await? {
                let event = self.0.outbox.event("auth.api_keys.revoke").by(caller).about(person);
                let event = event.target("api_key", key.id.as_uuid());
                self.0.outbox.emit(tx, &event.payload(json!({ "because": "holder_lost_rights" }))).await?;
                revoked.push(Revoked::Credential(key.id));
            }
        }
        revocations::add_all(tx, &revoked, now, self.0.config.longest_token()).await
    }

    /// Ends a key on the word of whoever holds its text.
    pub(crate) async fn revoke_held_api_key(&self, key: &ApiKeyRow) -> Result<()> {
        let event = self
            .0
            .outbox
            .event("auth.api_keys.revoke")
            .tenant(key.tenant)
            .target("api_key", key.id.as_uuid());
        let now = self.now();
        run_tx!(self.0.db, "auth.api_key.revoke_held", |tx| {
            if api_keys::revoke(tx, key.tenant, key.id, now).await? {
                self.0.outbox.emit(tx, &event).await?;
                revocations::add(tx, &Revoked::Credential(key.id), now, self.0.config.longest_token())
                    .await?;
            }
            Ok(())
        })?;
        self.revoked();
        Ok(())
    }

    /// The live key that `text` is, when it ends, and the date that its tokens must not be before.
    pub(crate) async fn lookup_presented_key(
        &self,
        text: &str,
        now: Timestamp,
    ) -> Result<Option<(ApiKeyRow, Option<Timestamp>, Option<Timestamp>)>> {
        let Some(key) = ApiKey::parse(text, self.0.environment) else { return Ok(None) };
        let (row, not_before) = read_tx!(self.0.db, "auth.api_key.present", |tx| {
            let Some(row) = api_keys::lookup_credential(tx, key.id()).await? else { return Ok((None, None)) };
            let subjects = [Revoked::Credential(row.id), Revoked::Tenant(row.tenant)];
            let not_before = revocations::latest_not_before(tx, &subjects).await?;
            Ok((Some(row), not_before))
        })?;
        let ring = self.0.keys.ring();
        let Some(row) = row.filter(|row| row.is_live(now)) else { return Ok(None) };
        let (ends_at, not_before) = if key.matches(&ring, &row.digest) {
            (row.expires_at, not_before.max(row.tokens_from))
        } else {
            match &row.previous {
                Some((digest, until)) if now < *until && key.matches(&ring, digest) => {
                    (Some(*until), not_before)
                }
                _ => return Ok(None),
            }
        };
        let minute_ago = now.minus(Duration::from_mins(1));
        if row.last_used_at.is_none_or(|used| used < minute_ago) {
            run_tx!(self.0.db, "auth.api_key.mark_use", |tx| {
                api_keys::mark_use(tx, &row, now, minute_ago).await
            })?;
        }
        Ok(Some((row, ends_at, not_before)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_token_makes_no_wide_key() {
        let texts = |all: &[&str]| all.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let held = texts(&["auth.api_keys.manage", "auth.members.read", "job.jobs.submit"]);
        let told = texts(&["auth.api_keys.manage"]);
        assert_eq!(within_token(held, &told), ["auth.api_keys.manage", "job.jobs.submit"]);
    }
}
