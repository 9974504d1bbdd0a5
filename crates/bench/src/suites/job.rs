//! Jobs from submission to finish.

use anyhow::{Context as _, Result, ensure};
use gatehouse_client::worker::{LeasedJob, Worker, WorkerConfig};
use gatehouse_client::{Authorized, audience};
use gatehouse_core::Secret;
use gatehouse_proto::job::v1::job_service_client::JobServiceClient;
use gatehouse_proto::job::v1::{JobEventType, SubmitJobRequest, WatchJobEventsRequest};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{held, modes};
use crate::cluster::{Cluster, Engine};
use crate::figure::{Run, Sample};
use crate::load::{Caller, drive};
use crate::people::Person;
use crate::session::Session;

/// Jobs that the worker may do at once.
const CONCURRENCY: u32 = 64;
/// People who submit, each for a tenant of their own.
const PEOPLE: usize = 16;

pub(crate) async fn measure(session: &Session, run: &mut Run) -> Result<()> {
    for (engine, key) in modes("job.submit-to-finish", "job.submit-to-finish@sqlite") {
        held(session, run, key, jobs(session, engine)).await?;
    }
    Ok(())
}

/// A client of the job service in somebody's name.
///
/// # Errors
/// What auth answered.
pub(crate) async fn jobs_as(cluster: &Cluster, person: &Person) -> Result<JobServiceClient<Authorized>> {
    let token = Secret::new(person.token_for(cluster, audience::JOB).await?);
    Ok(JobServiceClient::new(Authorized::with_token(cluster.channel("job")?, token)))
}

/// A worker that runs beside the load, until it is told to end.
pub(crate) struct Hands {
    task: JoinHandle<gatehouse_core::Result<()>>,
    stop: CancellationToken,
}

impl Hands {
    pub(crate) fn start(worker: Worker) -> Self {
        let stop = CancellationToken::new();
        Self { task: tokio::spawn(worker.run(stop.clone())), stop }
    }

    /// # Errors
    /// If it ended badly.
    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.task.await??;
        Ok(())
    }
}

/// Submits a job, follows its events to the last, submits the next.
pub(crate) struct Submitter {
    jobs: JobServiceClient<Authorized>,
}

impl Caller for Submitter {
    async fn call(&mut self) -> Result<u64> {
        let request =
            SubmitJobRequest { kind: "bench".into(), input_json: "{}".into(), ..SubmitJobRequest::default() };
        let job = self.jobs.submit_job(request).await?.into_inner().job.context("no job")?;
        let request = WatchJobEventsRequest { job_id: job.job_id, after_sequence: 0 };
        let mut stream = self.jobs.watch_job_events(request).await?.into_inner();
        let mut last = None;
        while let Some(message) = stream.message().await? {
            last = message.events.into_iter().next_back().or(last);
        }
        let end = last.filter(|event| event.r#type() == JobEventType::End).context("a job did not end")?;
        let data: serde_json::Value = serde_json::from_str(&end.data_json)?;
        ensure!(data["state"] == "succeeded", "a job ended with {data}");
        Ok(1)
    }
}

/// Submitters, and the worker that does what they submit.
///
/// # Errors
/// What auth answered.
pub(crate) async fn submitters(
    cluster: &Cluster,
    people: &[Person],
    count: usize,
) -> Result<(Vec<Submitter>, Hands)> {
    let mut clients = Vec::new();
    for person in people {
        clients.push(jobs_as(cluster, person).await?);
    }
    let submitters =
        clients.iter().cycle().take(count).map(|jobs| Submitter { jobs: jobs.clone() }).collect();
    let config = WorkerConfig { name: "bench".into(), concurrency: CONCURRENCY, ..WorkerConfig::default() };
    let worker = Worker::new(cluster.as_client("job", audience::JOB)?, config);
    let worker = worker.handle("bench", |_: LeasedJob| async { Ok("{}".to_owned()) });
    Ok((submitters, Hands::start(worker)))
}

async fn jobs(session: &Session, engine: Engine) -> Result<Sample> {
    let people = session.people(engine, PEOPLE).await?;
    let (submitters, hands) = submitters(session.cluster(engine)?, &people, session.callers).await?;
    let (sample, _) = drive(submitters, session.times, session.processes()).await?;
    hands.stop().await?;
    Ok(sample)
}
