//! Carries a plan out.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

use super::{Fault, Plan};
use crate::Cluster;

/// How long a process may take from SIGTERM to its end before it is killed: then its drain hangs on something that fails.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// How often whoever runs a deployment looks for processes that ended.
const SUPERVISION: Duration = Duration::from_millis(200);

/// A fault as it was, from its beginning to its healing.
#[derive(Clone, Debug)]
pub struct Injected {
    /// What failed.
    pub fault: Fault,
    /// When, from the beginning of the load.
    pub from: Duration,
    /// When it was healed, as far as that is up to us: a process that starts takes a while to be ready.
    pub to: Duration,
}

/// Injects every fault of `plan` at its time from `began` on, and heals each. What was healed may not be ready yet.
///
/// # Errors
/// A fault could not be injected or healed, or a process ended that nobody had ended.
///
/// # Panics
/// Outside a multi-threaded tokio runtime.
pub async fn inject(cluster: &mut Cluster, plan: &Plan, began: Instant) -> io::Result<Vec<Injected>> {
    let mut moments: Vec<(Duration, bool, usize)> = plan
        .steps
        .iter()
        .enumerate()
        .flat_map(|(index, step)| [(step.at, false, index), (step.until, true, index)])
        .collect();
    moments.sort();
    let mut injected: Vec<Option<Injected>> = vec![None; plan.steps.len()];
    for (at, heals, index) in moments {
        while began + at > Instant::now() {
            tokio::time::sleep_until((began + at).min(Instant::now() + SUPERVISION)).await;
            cluster.revive()?;
        }
        let fault = &plan.steps[index].fault;
        let now = began.elapsed();
        if heals {
            heal(cluster, fault).await?;
            if let Some(injected) = &mut injected[index] {
                injected.to = began.elapsed();
            }
        } else {
            // What ends by itself at this very moment is there to be paused all the same.
            cluster.revive()?;
            begin(cluster, fault)?;
            injected[index] = Some(Injected { fault: fault.clone(), from: now, to: plan.length });
        }
    }
    Ok(injected.into_iter().flatten().collect())
}

fn begin(cluster: &mut Cluster, fault: &Fault) -> io::Result<()> {
    match fault {
        Fault::Kill(node) => cluster.kill9(node),
        Fault::Terminate(node) => cluster.terminate(node),
        Fault::Pause(node) => cluster.pause(node),
        Fault::Cut(from, to) => {
            cluster.link(from, to).cut();
            Ok(())
        }
        Fault::Link(from, to, weather) => {
            let link = cluster.link(from, to);
            link.set(weather.clone());
            if weather.refuse {
                link.cut();
            }
            Ok(())
        }
        Fault::RedisAway => tokio::task::block_in_place(|| cluster.redis().stop()),
        Fault::RedisPaused => cluster.redis().pause(),
        Fault::PostgresStopped | Fault::PostgresCrashed => {
            let crash = *fault == Fault::PostgresCrashed;
            tokio::task::block_in_place(|| match cluster.postgres() {
                Some(postgres) if crash => postgres.crash(),
                Some(postgres) => postgres.stop(),
                None => Err(io::Error::other("PostgreSQL is not this cluster's own")),
            })
        }
    }
}

async fn heal(cluster: &mut Cluster, fault: &Fault) -> io::Result<()> {
    match fault {
        Fault::Kill(node) => cluster.launch(node),
        Fault::Terminate(node) => {
            // What fails meanwhile may be what it waits for.
            if cluster.ended(node, DRAIN_LIMIT).await.is_err() {
                cluster.kill9(node)?;
            }
            cluster.launch(node)
        }
        Fault::Pause(node) => cluster.resume(node),
        Fault::Cut(..) => Ok(()),
        Fault::Link(from, to, _) => {
            cluster.link(from, to).heal();
            Ok(())
        }
        Fault::RedisAway => tokio::task::block_in_place(|| cluster.redis().start_again()),
        Fault::RedisPaused => cluster.redis().resume(),
        Fault::PostgresStopped | Fault::PostgresCrashed => {
            tokio::task::block_in_place(|| match cluster.postgres() {
                Some(postgres) => postgres.start_again(),
                None => Err(io::Error::other("PostgreSQL is not this cluster's own")),
            })
        }
    }
}
