//! The job service.

use gatehouse_client::audience;
use gatehouse_job::Deps;
use tokio::net::TcpListener;

use super::Runtime;

/// Starts it on `listener`.
pub(crate) async fn start(runtime: &Runtime, listener: TcpListener) -> anyhow::Result<()> {
    let db = runtime.database(&runtime.config.databases.job, &gatehouse_job::MIGRATIONS).await?;
    let verifier = runtime.verifier(audience::JOB);
    let deps = Deps {
        outbox: runtime.outbox(&db),
        db,
        doorbell: runtime.doorbell.clone(),
        revocations: verifier.revocations().clone(),
        clock: runtime.clock.clone(),
        entropy: runtime.entropy.clone(),
        lifecycle: runtime.lifecycle.clone(),
    };
    let server = runtime.server("gatehouse.job.v1", verifier, listener)?;
    gatehouse_job::start(runtime.config.job.clone(), deps, server, &runtime.readiness)?;
    Ok(())
}
