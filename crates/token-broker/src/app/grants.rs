//! Offline grants: a person lets one internal service act upstream while they are away.

use std::sync::PoisonError;
use std::time::Duration;

use gatehouse_core::ids::{ConnectionId, OfflineGrantId, PersonId};
use gatehouse_core::{Error, Result, Timestamp};
use gatehouse_db::{read_tx, run_tx};
use gatehouse_proto::auth::v1::RevocationKind;
use gatehouse_service::Caller;

use super::failure::{Failure, connection_not_found};
use super::{Broker, SERVICE};
use crate::domain::connection::{Connection, ConnectionKey, ConnectionState, OfflineGrant};
use crate::domain::policy::{self, Asker};
use crate::domain::scopes::Scopes;
use crate::steps::Step;
use crate::store::connections::{self, new_key};
use crate::store::{offline_grants, person_locks};

const DEFAULT_LIFE: Duration = Duration::from_hours(30 * 24);
const LONGEST_LIFE: Duration = Duration::from_hours(365 * 24);
/// The kinds of revocation that end what a person gave in a tenant.
const ENDING: [RevocationKind; 3] =
    [RevocationKind::Person, RevocationKind::Membership, RevocationKind::Tenant];
/// Grants that have ended, beside all that may stand, in a list.
const SHOWN_ENDED: i64 = 200;

pub(crate) fn grant_not_found() -> Error {
    Error::not_found("GRANT_NOT_FOUND", "There is no such offline grant for this caller, or it has ended.")
}

fn too_many(most: i64) -> Error {
    Error::resource_exhausted(
        "TOO_MANY_GRANTS",
        format!("You have {most} offline grants, which is all that may stand. Revoke one first."),
    )
}

/// What a grant is asked for.
struct GrantRequest<'a> {
    key: ConnectionKey,
    person: PersonId,
    client: &'a str,
    scopes: &'a [String],
    life: Duration,
}

impl Broker {
    /// Lets `client` use the caller's connection `id` for `scopes` (all that the client may have, if empty), for
    /// `lifetime_seconds` (30 days if 0, a year at most).
    ///
    /// # Errors
    /// `CONNECTION_NOT_FOUND`, `CLIENT_NOT_ALLOWED`, `INVALID_FIELD`, `TOO_MANY_GRANTS`.
    pub async fn create_offline_grant(
        &self,
        caller: &Caller,
        id: ConnectionId,
        client: &str,
        scopes: &[String],
        lifetime_seconds: i64,
    ) -> Result<OfflineGrant> {
        let (person, tenant) = (caller.person()?, caller.tenant()?);
        if caller.client().is_some_and(|acting| acting == client) {
            return Err(Error::permission_denied(
                "CLIENT_NOT_ALLOWED",
                "A service can't give itself a grant in a person's name.",
            ));
        }
        let life = match u64::try_from(lifetime_seconds) {
            Ok(0) => DEFAULT_LIFE,
            Ok(seconds) if Duration::from_secs(seconds) <= LONGEST_LIFE => Duration::from_secs(seconds),
            _ => return Err(Error::invalid_field("lifetime_seconds", "must be from 0 to 31536000")),
        };
        let wanted = GrantRequest { key: new_key(tenant, id), person, client, scopes, life };
        // A token made just after a revocation is dated ahead, past it; what it gives must be too.
        let now = self.clock.now();
        let given_at = now.max(Timestamp::from_micros(caller.claims().iat_us));
        let event = self.outbox.event("token-broker.grants.create").by(caller).about(person);
        let most = i64::from(self.0.config.max_offline_grants);
        let added = run_tx!(self.db, "token_broker.grants.create", |tx| {
            // Disconnecting queues for the same row: what is found of the connection now holds until the grant is there.
            person_locks::lock(tx, tenant, person, now).await?;
            let connection = connections::lookup(tx, wanted.key).await?;
            let grant = match self.allow(connection, &wanted, now, given_at) {
                Ok(grant) => grant,
                Err(refusal) => return Ok(Err(refusal)),
            };
            if offline_grants::count(tx, tenant, person, now).await? >= most {
                return Ok(Err(too_many(most)));
            }
            if let Err(died) = self.steps.at(Step::GrantAllowed) {
                return Ok(Err(Failure::from(died).into()));
            }
            offline_grants::add(tx, &grant).await?;
            let event =
                event.clone().target("offline-grant", grant.id.as_uuid()).payload(serde_json::json!({
                    "client": client,
                    "connection": id.to_string(),
                    "scopes": grant.scopes.to_vec(),
                    "expires_at": grant.expires_at.as_micros(),
                }));
            self.outbox.emit(tx, &event).await?;
            Ok(Ok(grant))
        })?;
        let grant = added?;
        // A revocation that came after the caller was let in: a sweep may have looked before the grant was there.
        if self.is_revoked(&grant) {
            self.end_revoked(&grant).await?;
        }
        Ok(grant)
    }

    /// The grant that `wanted` asks for, if the connection and the upstream's rules allow it.
    fn allow(
        &self,
        connection: Option<Connection>,
        wanted: &GrantRequest<'_>,
        now: Timestamp,
        given_at: Timestamp,
    ) -> Result<OfflineGrant> {
        let connection = connection
            .filter(|found| found.person == wanted.person)
            .filter(|found| {
                matches!(found.state, ConnectionState::Active | ConnectionState::NeedsReauthorization)
            })
            .ok_or_else(connection_not_found)?;
        let provider = self.0.providers.get(&connection.upstream)?;
        let client_asks = Asker::Client(wanted.client.to_owned());
        let allowed = policy::allowed(&provider.settings.allow, &client_asks, &connection.scopes)
            .ok_or_else(|| {
                Error::permission_denied("CLIENT_NOT_ALLOWED", "This service may not use this upstream.")
            })?;
        let asked: Scopes =
            if wanted.scopes.is_empty() { allowed.clone() } else { wanted.scopes.iter().cloned().collect() };
        if asked.is_empty() || !asked.are_within(&allowed) {
            return Err(Error::invalid_field(
                "scopes",
                "must be among those of the connection that the service may have",
            ));
        }
        // A grant for less would never be answered: each token carries every scope of the connection.
        if !provider.settings.narrows_scopes && !connection.scopes.are_within(&asked) {
            return Err(if connection.scopes.are_within(&allowed) {
                Error::invalid_field(
                    "scopes",
                    "this upstream's tokens carry all scopes of the connection: name all of them, or none",
                )
            } else {
                Error::permission_denied(
                    "CLIENT_NOT_ALLOWED",
                    "This upstream's tokens carry all scopes of the connection, and this service may not have all.",
                )
            });
        }
        Ok(OfflineGrant {
            id: OfflineGrantId::new(&self.clock, &self.entropy),
            key: wanted.key,
            person: wanted.person,
            client: wanted.client.to_owned(),
            scopes: asked,
            created_at: given_at,
            expires_at: now.plus(wanted.life),
            revoked_at: None,
        })
    }

    /// The caller's own offline grants in their tenant: those that hold, then those that have ended; each newest first.
    ///
    /// # Errors
    /// `PERSON_REQUIRED`, `TENANT_REQUIRED`.
    pub async fn list_offline_grants(&self, caller: &Caller) -> Result<Vec<OfflineGrant>> {
        let (person, tenant, now) = (caller.person()?, caller.tenant()?, self.clock.now());
        let most = i64::from(self.0.config.max_offline_grants) + SHOWN_ENDED;
        Ok(read_tx!(self.db, "token_broker.grants.list", |tx| {
            offline_grants::list(tx, tenant, person, now, most).await
        })?)
    }

    /// Ends one of the caller's own grants at once. Idempotent.
    ///
    /// # Errors
    /// `GRANT_NOT_FOUND`.
    pub async fn revoke_offline_grant(&self, caller: &Caller, id: OfflineGrantId) -> Result<()> {
        let (person, tenant, now) = (caller.person()?, caller.tenant()?, self.clock.now());
        let event = self
            .outbox
            .event("token-broker.grants.revoke")
            .by(caller)
            .about(person)
            .target("offline-grant", id.as_uuid());
        let known = run_tx!(self.db, "token_broker.grants.revoke", |tx| {
            if offline_grants::revoke(tx, tenant, id, person, now).await? {
                self.outbox.emit(tx, &event).await?;
                return Ok(true);
            }
            Ok(offline_grants::lookup(tx, tenant, id, person).await?.is_some())
        })?;
        if known { Ok(()) } else { Err(grant_not_found()) }
    }

    /// Whether the person, their membership or the tenant was revoked after the grant was given.
    pub(crate) fn is_revoked(&self, grant: &OfflineGrant) -> bool {
        let (person, tenant) = (grant.person, grant.key.tenant);
        ENDING.iter().any(|kind| {
            let id = match kind {
                RevocationKind::Person => person.to_string(),
                RevocationKind::Tenant => tenant.to_string(),
                _ => format!("{person}/{tenant}"),
            };
            self.revocations.is_revoked_since(*kind, &id, grant.created_at)
        })
    }

    /// Ends a grant for good, so that it stays ended when the revocation is forgotten.
    pub(crate) async fn end_revoked(&self, grant: &OfflineGrant) -> Result<()> {
        let now = self.clock.now();
        let event = self
            .outbox
            .event("token-broker.grants.end")
            .by_system(SERVICE)
            .tenant(grant.key.tenant)
            .about(grant.person)
            .target("offline-grant", grant.id.as_uuid())
            .payload(serde_json::json!({ "client": grant.client, "why": "MEMBERSHIP_REVOKED" }));
        Ok(run_tx!(self.db, "token_broker.grants.end", |tx| {
            if offline_grants::revoke(tx, grant.key.tenant, grant.id, grant.person, now).await? {
                self.outbox.emit(tx, &event).await?;
            }
            Ok(())
        })?)
    }

    /// Ends every grant whose giver was revoked since. Goes through all grants, but only when revocations of the kinds
    /// that matter have changed since it last did.
    pub(crate) async fn sweep_grants(&self) -> Result<()> {
        let live = self.revocations.live(&ENDING);
        if *self.0.grants_swept.lock().unwrap_or_else(PoisonError::into_inner) == live {
            return Ok(());
        }
        let now = self.clock.now();
        let mut after = OfflineGrantId::from_uuid(uuid::Uuid::nil());
        loop {
            let grants = read_tx!(self.db, "token_broker.grants.sweep", |tx| {
                offline_grants::list_standing(tx, after, now).await
            })?;
            for grant in grants.iter().filter(|grant| self.is_revoked(grant)) {
                self.end_revoked(grant).await?;
            }
            let Some(last) = grants.last() else { break };
            after = last.id;
        }
        *self.0.grants_swept.lock().unwrap_or_else(PoisonError::into_inner) = live;
        Ok(())
    }
}
