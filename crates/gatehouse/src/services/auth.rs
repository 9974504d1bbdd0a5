//! The auth service.

use gatehouse_auth::{Deps, Server};
use tokio::net::TcpListener;

use super::Runtime;

/// Starts it on `listener`.
pub(crate) async fn start(runtime: &Runtime, listener: TcpListener) -> anyhow::Result<Server> {
    let db = runtime.database(&runtime.config.databases.auth, &gatehouse_auth::MIGRATIONS).await?;
    let deps = Deps {
        environment: runtime.environment,
        issuer: runtime.issuer(),
        outbox: runtime.outbox(&db),
        db,
        clock: runtime.clock.clone(),
        entropy: runtime.entropy.clone(),
        lifecycle: runtime.lifecycle.clone(),
        readiness: runtime.readiness.clone(),
        doorbell: runtime.doorbell.clone(),
        staleness: runtime.config.revocations.staleness(),
        grpc: runtime.config.grpc.clone(),
    };
    Ok(gatehouse_auth::build(runtime.config.auth.clone(), deps, listener).await?)
}
