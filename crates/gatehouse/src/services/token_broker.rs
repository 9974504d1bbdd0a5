//! The token broker.

use gatehouse_client::audience;
use gatehouse_secrets::Secrets;
use gatehouse_token_broker::{Deps, PACKAGE, Steps};
use tokio::net::TcpListener;

use super::Runtime;

/// Starts it on `listener`. `sole_replica`: no other process uses its database.
pub(crate) async fn start(
    runtime: &Runtime,
    listener: TcpListener,
    sole_replica: bool,
) -> anyhow::Result<()> {
    let config = &runtime.config;
    let db = runtime.database(&config.databases.token_broker, &gatehouse_token_broker::MIGRATIONS).await?;
    let (clock, entropy) = (runtime.clock.clone(), runtime.entropy.clone());
    let verifier = runtime.verifier(audience::TOKEN_BROKER);
    let deps = Deps {
        outbox: runtime.outbox(&db),
        db,
        secrets: Secrets::open(&config.secrets, runtime.environment, clock.clone(), entropy.clone()).await?,
        clock,
        entropy,
        revocations: verifier.revocations().clone(),
        lifecycle: runtime.lifecycle.clone(),
        sole_replica,
        steps: Steps::default(),
    };
    let server = runtime.server(PACKAGE, verifier, listener)?;
    gatehouse_token_broker::build(config.token_broker.clone(), deps, server, &runtime.readiness).await?;
    Ok(())
}
