//! The audit service.

use gatehouse_audit::Deps;
use gatehouse_client::audience;
use tokio::net::TcpListener;

use super::Runtime;

/// Starts it on `listener`.
pub(crate) async fn start(runtime: &Runtime, listener: TcpListener) -> anyhow::Result<()> {
    let db = runtime.database(&runtime.config.databases.audit, &gatehouse_audit::MIGRATIONS).await?;
    let deps = Deps {
        db,
        verifier: runtime.verifier(audience::AUDIT),
        clock: runtime.clock.clone(),
        entropy: runtime.entropy.clone(),
        environment: runtime.environment,
        lifecycle: runtime.lifecycle.clone(),
        readiness: runtime.readiness.clone(),
    };
    Ok(gatehouse_audit::build(&runtime.config.audit, runtime.config.grpc.clone(), deps, listener).await?)
}
