//! Event streams through the gateway: deliveries, and what a stream takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use gatehouse_client::audience;
use gatehouse_client::worker::{Failure, LeasedJob, Worker, WorkerConfig};
use gatehouse_proto::job::v1::{CancelJobRequest, SubmitJobRequest};

use super::held;
use super::job::{Hands, jobs_as};
use crate::bare::EVENT;
use crate::cluster::{Cluster, Engine};
use crate::figure::{Run, Sample};
use crate::http::{Delivered, get, read_events};
use crate::load::window;
use crate::people::Person;
use crate::raw::idle_memory;
use crate::session::Session;

/// Events that a job may be ahead of its readers: enough to keep them busy, too few to fill a queue.
const AHEAD: u64 = 150;

pub(crate) async fn measure(session: &Session, run: &mut Run) -> Result<()> {
    held(session, run, "job.sse", deliveries(session)).await?;
    let (gateway, job) = memory(session).await?;
    let sample = |kib| async move { Ok(Sample { value: kib, ..Sample::default() }) };
    held(session, run, "job.sse-memory-gateway", sample(gateway)).await?;
    held(session, run, "job.sse-memory-job", sample(job)).await
}

/// Submits the job that events come from.
async fn submit(cluster: &Cluster, person: &Person) -> Result<String> {
    let request =
        SubmitJobRequest { kind: "stream".into(), input_json: "{}".into(), ..SubmitJobRequest::default() };
    let answer = jobs_as(cluster, person).await?.submit_job(request).await?.into_inner();
    Ok(answer.job.context("no job")?.job_id)
}

async fn deliveries(session: &Session) -> Result<Sample> {
    let cluster = session.cluster(Engine::Postgres)?;
    let person = session.people(Engine::Postgres, 1).await?.swap_remove(0);
    let job = submit(cluster, &person).await?;
    let delivered = Delivered::default();
    let request = get(cluster.gateway, &format!("/v1/jobs/{job}/events"), Some(&person.access_token));
    let mut readers = Vec::new();
    for _ in 0..session.streams {
        readers.push(tokio::spawn(read_events(cluster.gateway, request.clone(), delivered.clone())));
    }
    let streams = session.streams as u64;
    wait_until(|| delivered.open.load(Ordering::Relaxed) == streams)
        .await
        .context("not all streams opened")?;
    // The worker comes when all watch: every event goes to every stream.
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::new(AtomicU64::new(0));
    let config = WorkerConfig {
        name: "stream".into(),
        concurrency: 1,
        max_unacknowledged: 256,
        ..WorkerConfig::default()
    };
    let worker = Worker::new(cluster.as_client("job", audience::JOB)?, config);
    let (ending, counting, telling) = (Arc::clone(&stop), delivered.clone(), Arc::clone(&told));
    let watched = job.clone();
    let worker = worker.handle("stream", move |job: LeasedJob| {
        let is_watched = job.id.to_string() == watched;
        let (stop, delivered, told) = (Arc::clone(&ending), counting.clone(), Arc::clone(&telling));
        async move {
            if !is_watched {
                return Err(Failure {
                    reason: "NOT_WATCHED".into(),
                    message: "A job that was left over, which nobody watches.".into(),
                    retryable: false,
                }
                .into());
            }
            while !stop.load(Ordering::Relaxed) {
                let read = delivered.events.load(Ordering::Relaxed) / streams;
                if told.load(Ordering::Relaxed) > read + AHEAD {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
                // Notices are never left out, as progress may be.
                job.notice(EVENT.to_owned(), None).await?;
                told.fetch_add(1, Ordering::Relaxed);
            }
            Ok("{}".to_owned())
        }
    });
    let hands = Hands::start(worker);
    let count = || delivered.events.load(Ordering::Relaxed);
    let sample = window(session.times, session.processes(), count, None).await;
    stop.store(true, Ordering::Relaxed);
    // Queued, started, what was told, end: on every stream, or the figure counts for nothing.
    let complete = wait_until(|| count() == streams * (told.load(Ordering::Relaxed) + 3)).await;
    delivered.over.store(true, Ordering::Relaxed);
    hands.stop().await?;
    for reader in readers {
        reader.abort();
    }
    complete.with_context(|| {
        let (told, broken) = (told.load(Ordering::Relaxed), delivered.broken.load(Ordering::Relaxed));
        format!("{told} events told, {} delivered on {streams} streams, {broken} of them broken", count())
    })?;
    sample
}

async fn wait_until(condition: impl Fn() -> bool) -> Result<()> {
    let began = Instant::now();
    while !condition() {
        ensure!(began.elapsed() < Duration::from_secs(60), "waited for a minute");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// What one idle stream takes, KiB: gateway, job service. Fresh ones: memory once taken is not given back.
async fn memory(session: &Session) -> Result<(f64, f64)> {
    let cluster = session.cluster(Engine::Postgres)?;
    let person = session.people(Engine::Postgres, 1).await?.swap_remove(0);
    // Nobody works on it, so nothing happens after its first event.
    let job_id = submit(cluster, &person).await?;
    let pair = cluster.fresh_pair().await?;
    let request = get(pair.address, &format!("/v1/jobs/{job_id}/events"), Some(&person.access_token));
    let used = idle_memory(session.idle_streams, pair.ids, |_| (pair.address, request.clone())).await;
    pair.stop().await?;
    // Left waiting, it would be what the next run's worker takes first, and all watch another.
    jobs_as(cluster, &person).await?.cancel_job(CancelJobRequest { job_id }).await?;
    used
}
