//! What a person sees of their connections.

use gatehouse_core::Result;
use gatehouse_core::ids::ConnectionId;
use gatehouse_db::read_tx;
use gatehouse_service::Caller;

use super::Broker;
use super::failure::connection_not_found;
use crate::domain::connection::{Connection, ConnectionState};
use crate::domain::scopes::Scopes;
use crate::store::connections::{self, new_key};

/// Connections that are over, beside all that a person may have, in a list.
const SHOWN_ENDED: i64 = 200;

/// An upstream as people see it.
#[derive(Clone, Debug)]
pub struct UpstreamInfo {
    /// Its name in the configuration.
    pub name: String,
    /// Its name for people.
    pub display_name: String,
    /// The scopes that may be asked for.
    pub scopes: Scopes,
}

impl Broker {
    /// The upstreams that a person may connect.
    #[must_use]
    pub fn list_upstreams(&self) -> Vec<UpstreamInfo> {
        self.0
            .providers
            .iter()
            .map(|provider| UpstreamInfo {
                name: provider.name.clone(),
                display_name: match provider.settings.display_name.as_str() {
                    "" => provider.name.clone(),
                    named => named.to_owned(),
                },
                scopes: provider.settings.all_scopes(),
            })
            .collect()
    }

    /// The caller's own connections in their tenant: those that stand, then those disconnected; each newest first.
    ///
    /// # Errors
    /// `PERSON_REQUIRED`, `TENANT_REQUIRED`.
    pub async fn list_connections(&self, caller: &Caller) -> Result<Vec<Connection>> {
        let (person, tenant) = (caller.person()?, caller.tenant()?);
        let most = i64::from(self.0.config.max_connections) + SHOWN_ENDED;
        Ok(read_tx!(self.db, "token_broker.connections.list", |tx| {
            connections::list(tx, tenant, person, most).await
        })?)
    }

    /// One of the caller's own connections.
    ///
    /// # Errors
    /// `CONNECTION_NOT_FOUND`, also for someone else's.
    pub async fn get_connection(&self, caller: &Caller, id: ConnectionId) -> Result<Connection> {
        let (person, key) = (caller.person()?, new_key(caller.tenant()?, id));
        let found =
            read_tx!(self.db, "token_broker.connections.get", |tx| { connections::lookup(tx, key).await })?;
        found
            .filter(|found| found.person == person && found.state != ConnectionState::Connecting)
            .ok_or_else(connection_not_found)
    }
}
