//! Use cases: authorise, one named transaction, the audit event in the same transaction.

mod attempt;
mod connect;
mod connections;
mod disconnect;
mod failure;
mod flights;
mod grants;
mod metrics;
mod recover;
mod rotate;
mod settle;
mod static_keys;
mod tokens;

use std::sync::{Arc, Mutex};

use gatehouse_core::{Clock, Entropy, Result};
use gatehouse_db::Db;
use gatehouse_outbox::Outbox;
use gatehouse_secrets::Secrets;
use gatehouse_service::revocations::Live;
use gatehouse_service::{Lifecycle, Revocations};
use uuid::Uuid;

pub use connect::{Begun, Callback};
pub use tokens::{Issued, TokenRequest};

use crate::config::Config;
use crate::domain::connection::ConnectionKey;
use crate::provider::Providers;
use crate::steps::Steps;
use failure::Failure;
use flights::Flights;
use metrics::Metrics;

/// What the broker works with.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Its database, migrated.
    pub db: Db,
    /// Where refresh tokens live.
    pub secrets: Secrets,
    /// Its end of the audit outbox.
    pub outbox: Outbox,
    /// Now.
    pub clock: Clock,
    /// Chance.
    pub entropy: Entropy,
    /// What has been revoked: offline grants end with the membership that they were given in.
    pub revocations: Revocations,
    /// What must finish though its caller went away runs here.
    pub lifecycle: Lifecycle,
    /// Whether no other process uses this database: then whatever lease is found at start belongs to the dead.
    pub sole_replica: bool,
    /// Where tests let the process die; `Steps::default()` everywhere else.
    pub steps: Steps,
}

/// The broker's use cases. Cheap to clone.
#[derive(Clone)]
pub struct Broker(Arc<Inner>);

struct Inner {
    config: Config,
    deps: Deps,
    providers: Providers,
    flights: Flights<ConnectionKey, Result<(), Failure>>,
    metrics: Metrics,
    /// The revocations by which all offline grants have been gone through.
    grants_swept: Mutex<Live>,
    /// This process, among replicas.
    holder: Uuid,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("holder", &self.0.holder).finish_non_exhaustive()
    }
}

impl Broker {
    /// A broker over `deps`. Reads the upstreams' client secrets.
    ///
    /// # Errors
    /// `CLIENT_SECRET_UNREADABLE`.
    pub fn new(config: Config, deps: Deps) -> Result<Self> {
        let providers = Providers::open(&config, &deps.clock)?;
        let holder = uuid::Builder::from_random_bytes(deps.entropy.bytes()).into_uuid();
        let (flights, metrics) = (Flights::default(), Metrics::new());
        Ok(Self(Arc::new(Inner {
            config,
            deps,
            providers,
            flights,
            metrics,
            grants_swept: Mutex::default(),
            holder,
        })))
    }
}

impl std::ops::Deref for Broker {
    type Target = Deps;

    fn deref(&self) -> &Deps {
        &self.0.deps
    }
}

/// The name under which this service acts on its own account.
const SERVICE: &str = "token-broker";
