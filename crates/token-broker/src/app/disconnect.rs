//! Ending a connection: at once for everyone here, then upstream, then for good.

use gatehouse_core::ids::ConnectionId;
use gatehouse_core::{Error, Result};
use gatehouse_db::{read_tx, run_tx};
use gatehouse_service::Caller;

use super::failure::{Failure, connection_not_found};
use super::{Broker, SERVICE};
use crate::domain::connection::{ConnectionKey, ConnectionState};
use crate::steps::Step;
use crate::store::connections::{self, new_key, secret_key};
use crate::store::{access_tokens, offline_grants, person_locks, rotations};

impl Broker {
    /// Ends one of the caller's own connections and every offline grant on it; whether the upstream confirmed the
    /// revocation. What can't be done now is done by a later sweep. Idempotent.
    ///
    /// # Errors
    /// `CONNECTION_NOT_FOUND`.
    pub async fn disconnect(&self, caller: &Caller, id: ConnectionId) -> Result<bool> {
        let (person, key) = (caller.person()?, new_key(caller.tenant()?, id));
        let event = self
            .outbox
            .event("token-broker.connections.disconnect")
            .by(caller)
            .about(person)
            .target("connection", id.as_uuid());
        let (tenant, now) = (key.tenant, self.clock.now());
        let found = run_tx!(self.db, "token_broker.disconnect", |tx| {
            // A grant that is being given waits, or is there to be ended.
            person_locks::lock(tx, tenant, person, now).await?;
            let found = connections::lookup(tx, key).await?.filter(|found| found.person == person);
            let Some(found) = found.filter(|found| found.state != ConnectionState::Connecting) else {
                return Ok(None);
            };
            if found.state == ConnectionState::Disconnected {
                return Ok(Some(false));
            }
            let ended = connections::disconnect(tx, key, person, now).await?;
            offline_grants::revoke_all_of(tx, key, now).await?;
            access_tokens::delete_all(tx, key).await?;
            self.outbox.emit(tx, &event).await?;
            Ok(Some(ended))
        })?;
        if !found.ok_or_else(connection_not_found)? {
            return Ok(false);
        }
        let broker = self.clone();
        let work = self.lifecycle.spawn(async move {
            broker.steps.at(Step::DisconnectCommitted)?;
            broker.shred(key).await
        });
        match work.await.map_err(Error::internal)? {
            Ok(revoked) => Ok(revoked),
            Err(failure) => {
                tracing::warn!(connection = %id, ?failure, "a connection's secrets will be shredded later");
                Ok(false)
            }
        }
    }

    /// Revokes upstream and deletes the secrets of a connection that is over; whether the upstream confirmed. While a
    /// rotation may still be under way it is not marked as done: that rotation, or a sweep, comes back.
    pub(crate) async fn shred(&self, key: ConnectionKey) -> Result<bool, Failure> {
        let connection =
            read_tx!(self.db, "token_broker.shred.look", |tx| { connections::lookup(tx, key).await })?;
        let Some(connection) = connection.filter(|found| found.state == ConnectionState::Disconnected) else {
            return Ok(false);
        };
        let secret = secret_key(key)?;
        let versions = self.secrets.list_versions(&secret).await?;
        let had_any = !versions.is_empty();
        let mut revoked = had_any;
        if let Ok(provider) = self.0.providers.get(&connection.upstream) {
            for version in versions {
                if let Some(found) = self.secrets.get_version(&secret, &version.id).await? {
                    let token = std::str::from_utf8(found.value.expose()).map_err(Error::internal)?;
                    revoked &= provider.revoke(token).await;
                }
            }
        } else {
            revoked = false;
        }
        self.secrets.delete(&secret).await?;
        self.steps.at(Step::SecretDeleted)?;
        let event = self
            .outbox
            .event("token-broker.connections.shred")
            .by_system(SERVICE)
            .tenant(key.tenant)
            .about(connection.person)
            .target("connection", key.connection.as_uuid())
            .payload(serde_json::json!({ "upstream": connection.upstream, "revoked_upstream": revoked }));
        let now = self.clock.now();
        let over = !connection.is_leased(now);
        run_tx!(self.db, "token_broker.shred", |tx| {
            rotations::shred_escrows(tx, key).await?;
            access_tokens::delete_all(tx, key).await?;
            if over {
                connections::shredded(tx, key, now).await?;
            }
            if had_any {
                self.outbox.emit(tx, &event).await?;
            }
            Ok(())
        })?;
        Ok(revoked)
    }
}
