//! Doing jobs of kind `optimize`.

use std::sync::Arc;
use std::time::Duration;

use gatehouse_client::Authorized;
use gatehouse_client::worker::{Failure, LeasedJob, Unfinished, Worker};
use gatehouse_core::Error;
use gatehouse_objective::{Iterations, MAX_SEED, Problem};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use crate::search::{Checkpoint, Progress, Search};
use crate::{Config, KIND};

/// The worker. `channel` shows a token for the job service that holds `job.jobs.work:optimize:<tenant or *>`. When it
/// stops, running jobs are given back with their checkpoints.
#[must_use]
pub fn worker(channel: Authorized, config: Config) -> Worker {
    let worker = config.worker.clone();
    let config = Arc::new(config);
    Worker::new(channel, worker).handle(KIND, move |job| {
        let config = Arc::clone(&config);
        async move { optimize(&job, &config).await }
    })
}

async fn optimize(job: &LeasedJob, config: &Config) -> Result<String, Unfinished> {
    let mut problem = Problem::parse(job.input.as_bytes(), config.max_iterations)?;
    let checkpoint = read_checkpoint(&job.checkpoint);
    let is_news = match &checkpoint {
        None => problem.iterations.clamped,
        // The limit may be another than the earlier attempt's.
        Some(checkpoint) => {
            let now = problem.iterations.taken_up(checkpoint.iteration, checkpoint.allowed);
            let told = checkpoint.allowed.unwrap_or(problem.iterations.allowed);
            problem.iterations = now;
            now.allowed != told
        }
    };
    let seed = checkpoint
        .as_ref()
        .map_or_else(|| problem.seed.unwrap_or_else(|| seed_of(job)), |checkpoint| checkpoint.seed);
    let iterations = problem.iterations;
    let mut search = blocking(config, move || Search::start(&problem, seed)).await??;
    if let Some(checkpoint) = checkpoint {
        search = replay(job, config, search, checkpoint).await?;
    }
    if is_news {
        // Stored together with a checkpoint, so that it is told once, however many attempts begin.
        let checkpoint = to_json(&search.checkpoint())?;
        job.notice(limit_notice(iterations), Some(checkpoint.into_bytes())).await?;
    }
    let least = Duration::from_millis(config.min_iteration_ms);
    while search.stopped().is_none() {
        let next = Instant::now() + least;
        let (stepped, progress) = step(config, search).await?;
        search = stepped;
        let checkpoint = to_json(&search.checkpoint())?;
        job.progress(to_json(&progress)?, Some(checkpoint.into_bytes())).await?;
        if !least.is_zero() {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                stop = job.stopped() => return Err(stop.into()),
            }
        }
    }
    let outcome = search.outcome().ok_or_else(|| Error::internal("a search stopped without an outcome"))?;
    to_json(&outcome)
}

/// Runs the iterations that an earlier attempt told of, without telling of them again.
async fn replay(
    job: &LeasedJob,
    config: &Config,
    mut search: Search,
    checkpoint: Checkpoint,
) -> Result<Search, Unfinished> {
    while search.iteration() < checkpoint.iteration && search.stopped().is_none() {
        if let Some(stop) = job.stop() {
            return Err(stop.into());
        }
        search = step(config, search).await?.0;
    }
    search.adopt(checkpoint.best);
    Ok(search)
}

async fn step(config: &Config, mut search: Search) -> Result<(Search, Progress), Unfinished> {
    blocking(config, move || {
        let progress = search.step();
        (search, progress)
    })
    .await
}

/// Runs `work` where it may keep a thread busy, for as long as one iteration may take.
async fn blocking<T: Send + 'static>(
    config: &Config,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    let limit = Duration::from_millis(config.iteration_timeout_ms);
    match tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(Error::internal(error).into()),
        Err(_) => Err(Failure {
            reason: "ITERATION_TIMED_OUT".into(),
            message: format!(
                "One iteration took longer than {} ms: the objective is too costly.",
                limit.as_millis()
            ),
            retryable: false,
        }
        .into()),
    }
}

/// A checkpoint that can't be read is none: the search then begins anew, from the same seed.
fn read_checkpoint(bytes: &[u8]) -> Option<Checkpoint> {
    if bytes.is_empty() {
        return None;
    }
    serde_json::from_slice(bytes)
        .inspect_err(|error| tracing::warn!(%error, "a checkpoint can't be read"))
        .ok()
}

/// The same for every attempt at a job.
fn seed_of(job: &LeasedJob) -> u64 {
    let (_, low) = job.id.as_uuid().as_u64_pair();
    low & MAX_SEED
}

fn limit_notice(iterations: Iterations) -> String {
    let allowed = iterations.allowed;
    let message = match iterations.requested {
        Some(requested) => format!("{requested} iterations were asked for; at most {allowed} are allowed."),
        None => format!("At most {allowed} iterations are allowed now."),
    };
    json!({ "notice": "ITERATIONS_CLAMPED", "message": message, "iterations": iterations }).to_string()
}

fn to_json<T: Serialize>(value: &T) -> Result<String, Unfinished> {
    serde_json::to_string(value).map_err(|error| Error::internal(error).into())
}
