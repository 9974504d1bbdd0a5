//! The service on its socket.

use gatehouse_core::Result;
use gatehouse_service::{GrpcServer, Readiness};
use tonic::service::Routes;

use crate::app::{Broker, Deps};
use crate::config::Config;
use crate::grpc;

/// The package whose methods this service answers; for [`gatehouse_service::AccessLayer::new`].
pub const PACKAGE: &str = "gatehouse.token_broker.v1";

/// Starts the service: serves its RPCs on `server` and begins its sweeps. It runs until the lifecycle in `deps` stops
/// and ends what was begun; drain waits for that.
///
/// # Errors
/// `CLIENT_SECRET_UNREADABLE`, and those of the database.
pub async fn build(config: Config, deps: Deps, server: GrpcServer, readiness: &Readiness) -> Result<Broker> {
    let lifecycle = deps.lifecycle.clone();
    let broker = Broker::new(config, deps)?;
    broker.free_leases_of_the_dead().await?;
    broker.start();
    server.start(Routes::new(grpc::service(broker.clone())), &lifecycle, readiness)?;
    Ok(broker)
}
