//! The limits of this machine, measured in the same run as what is held against them.

mod compute;
mod servers;
mod stores;

use anyhow::{Result, bail};

pub(crate) use servers::{BareServers, idle_memory};
pub(crate) use stores::postgres_pool;

use crate::figure::Sample;
use crate::session::Session;

/// Measures the limit `key`.
///
/// # Errors
/// If it can't be measured here.
pub(crate) async fn measure(session: &Session, key: &'static str) -> Result<Vec<(&'static str, Sample)>> {
    let times = session.times;
    let sample = match key {
        "raw.argon2" => compute::argon2(times).await?,
        "raw.sha256" => compute::sha256(times).await?,
        "raw.ed25519" => compute::ed25519(times).await?,
        "raw.ed25519-sign" => compute::ed25519_sign(times).await?,
        "raw.fsync" => stores::fsync(times).await?,
        "raw.pg-commit-1" => stores::postgres_commits(session, 1).await?,
        "raw.pg-commit" => stores::postgres_commits(session, 10).await?,
        "raw.pg-batch" => stores::postgres_batches(session).await?,
        "raw.sqlite-commit" => stores::sqlite_commits(session).await?,
        "raw.redis-script" => stores::redis_scripts(session).await?,
        "raw.http" => servers::http(session, "/fixed").await?,
        "raw.rpc" => servers::rpc(session).await?,
        "raw.proxy" | "raw.proxy-cpu" => {
            let sample = servers::http(session, "/call").await?;
            let own = sample.cpu_us.get("bare-proxy").copied().unwrap_or_default();
            return Ok(vec![
                ("raw.proxy-cpu", Sample { value: own, ..Sample::default() }),
                ("raw.proxy", sample),
            ]);
        }
        "raw.sse" => servers::events(session).await?,
        "raw.sse-memory-edge" | "raw.sse-memory-source" => {
            let (edge, source) = servers::memory(session).await?;
            return Ok(vec![("raw.sse-memory-edge", edge), ("raw.sse-memory-source", source)]);
        }
        other => bail!("there is no limit {other}"),
    };
    Ok(vec![(key, sample)])
}
