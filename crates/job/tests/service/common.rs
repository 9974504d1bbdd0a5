//! A job service over real sockets, callers with tokens, and workers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use gatehouse_client::worker::{LeasedJob, Unfinished, Worker, WorkerConfig};
use gatehouse_client::{Authorized, ChannelConfig, audience, channel, from_status};
use gatehouse_core::ids::{PersonId, TenantId};
use gatehouse_core::{Clock, Entropy, Error, Secret, Timestamp};
use gatehouse_db::Db;
use gatehouse_job::{App, Config, Deps, KindConfig, start};
use gatehouse_outbox::Outbox;
use gatehouse_proto::job::v1::job_service_client::JobServiceClient;
use gatehouse_proto::job::v1::work_request::Message;
use gatehouse_proto::job::v1::work_response::Message as Answer;
use gatehouse_proto::job::v1::worker_service_client::WorkerServiceClient;
use gatehouse_proto::job::v1::*;
use gatehouse_service::grpc::{GrpcConfig, GrpcServer};
use gatehouse_service::revocations::Staleness;
use gatehouse_service::{AccessLayer, Doorbell, KeySet, Lifecycle, Readiness, Revocations, Verifier};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

const ISSUER: &str = "https://gatehouse.test/dev";
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Short times, so that what should happen soon happens soon.
pub(crate) fn config() -> Config {
    let kind = KindConfig { retry_pause_ms: 1, ..KindConfig::default() };
    Config {
        kinds: ["optimize", "count", "other"].map(|name| (name.to_owned(), kind.clone())).into(),
        lease_ttl_ms: 900,
        poll_interval_ms: 50,
        sweep_interval_ms: 50,
        ..Config::default()
    }
}

/// One replica of the service.
pub(crate) struct Service {
    pub(crate) app: App,
    pub(crate) address: SocketAddr,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) revocations: Revocations,
    pub(crate) clock: Clock,
    key: SigningKey,
}

impl Service {
    pub(crate) async fn start(db: &Db) -> Self {
        Self::start_with(db, config(), Clock::system(), "127.0.0.1:0").await
    }

    /// For tests in which nobody dies: no worker loses its lease because it waited for a processor.
    pub(crate) async fn start_patient(db: &Db) -> Self {
        let config = Config { lease_ttl_ms: 60_000, ..config() };
        Self::start_with(db, config, Clock::system(), "127.0.0.1:0").await
    }

    /// Its sweeper never runs by itself: the test calls `app.sweep()`.
    pub(crate) async fn with_clock(db: &Db, clock: &Clock) -> Self {
        let config = Config { sweep_interval_ms: 600_000, ..config() };
        Self::start_with(db, config, clock.clone(), "127.0.0.1:0").await
    }

    pub(crate) async fn start_with(db: &Db, config: Config, clock: Clock, address: &str) -> Self {
        let listener = bind(address).await;
        let address = listener.local_addr().unwrap();
        let key = SigningKey::from_bytes(&Entropy::seeded(1).bytes());
        let keys = KeySet::default();
        keys.replace(&jwks(&key)).unwrap();
        let never = Duration::from_hours(1_000_000);
        let revocations = Revocations::new(clock.clone(), Staleness { privileged: never, all: never });
        revocations.apply(&[], 0, true);
        let verifier = Verifier::new(ISSUER, audience::JOB, keys, revocations.clone(), clock.clone());
        let access =
            AccessLayer::new(&["gatehouse.job.v1"], verifier, clock.clone(), Entropy::system()).unwrap();
        let lifecycle = Lifecycle::new();
        let deps = Deps {
            db: db.clone(),
            outbox: Outbox::new(clock.clone(), Entropy::system()),
            doorbell: Doorbell::local(),
            revocations: revocations.clone(),
            clock: clock.clone(),
            entropy: Entropy::system(),
            lifecycle: lifecycle.clone(),
        };
        let server = GrpcServer::new(GrpcConfig::default(), access, listener);
        let app = start(config, deps, server, &Readiness::new()).unwrap();
        Self { app, address, lifecycle, revocations, clock, key }
    }

    fn authorized(&self, token: String) -> Authorized {
        let config = ChannelConfig {
            // A machine that stands still for a moment must not look like a server that died.
            keep_alive_timeout_ms: 60_000,
            request_timeout_ms: 60_000,
            ..ChannelConfig::to(format!("http://{}", self.address))
        };
        Authorized::with_token(channel(&config).unwrap(), Secret::new(token))
    }

    fn token(&self, subject: &str, tenant: Option<TenantId>, permissions: &[&str]) -> String {
        let now = self.clock.now();
        let header = json!({"alg": "EdDSA", "typ": "at+jwt", "kid": "k1"});
        let mut claims = json!({
            "iss": ISSUER, "sub": subject, "aud": audience::JOB, "exp": now.as_seconds() + 10_000_000,
            "iat": now.as_seconds(), "iat_us": now.as_micros(), "nbf": now.as_seconds(), "jti": "j",
            "token_use": "access", "permissions": permissions,
        });
        if let Some(tenant) = tenant {
            claims["tid"] = json!(tenant);
        }
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes()).to_bytes());
        format!("{signed}.{signature}")
    }

    /// Someone of a new tenant who may do everything with jobs.
    pub(crate) fn owner(&self) -> Caller {
        self.member(TenantId::new(&self.clock, &Entropy::system()))
    }

    pub(crate) fn member(&self, tenant: TenantId) -> Caller {
        self.caller(Some(tenant), &["job.jobs.submit", "job.jobs.read", "job.jobs.cancel"])
    }

    pub(crate) fn caller(&self, tenant: Option<TenantId>, permissions: &[&str]) -> Caller {
        let person = PersonId::new(&self.clock, &Entropy::system()).to_string();
        let tenant_or_none = tenant.unwrap_or_else(|| TenantId::new(&self.clock, &Entropy::system()));
        let token = self.token(&person, tenant, permissions);
        Caller { jobs: JobServiceClient::new(self.authorized(token)), tenant: tenant_or_none }
    }

    /// The channel of a worker client with these scopes.
    pub(crate) fn worker_channel(&self, scopes: &[&str]) -> Authorized {
        let permissions: Vec<_> = scopes.iter().map(|scope| format!("job.jobs.work:{scope}")).collect();
        let permissions: Vec<_> = permissions.iter().map(String::as_str).collect();
        self.authorized(self.token("client:worker", None, &permissions))
    }

    /// A worker by hand.
    pub(crate) async fn raw_worker(
        &self,
        kinds: &[&str],
        scopes: &[&str],
        worker_id: &str,
    ) -> Result<RawWorker, Error> {
        let (requests, outgoing) = mpsc::unbounded_channel();
        let hello = WorkHello {
            kinds: kinds.iter().map(|&kind| kind.to_owned()).collect(),
            worker_id: worker_id.to_owned(),
            name: "raw".into(),
        };
        requests.send(WorkRequest { message: Some(Message::Hello(hello)) }).unwrap();
        let mut client = WorkerServiceClient::new(self.worker_channel(scopes));
        let answers =
            client.work(UnboundedReceiverStream::new(outgoing)).await.map_err(from_status)?.into_inner();
        let mut worker = RawWorker { requests, answers, welcome: WorkWelcome::default() };
        let Answer::Welcome(welcome) = worker.answer().await.unwrap() else { panic!("no welcome") };
        worker.welcome = welcome;
        Ok(worker)
    }

    /// A worker that does jobs of kind `count`: it tells `input.steps` steps, resuming at its checkpoint.
    pub(crate) fn counter(&self, pause: Duration) -> RunningWorker {
        RunningWorker::start(self.worker_channel(&["count:*"]), move |job| count(job, pause))
    }

    pub(crate) async fn stop(self) {
        assert!(self.lifecycle.drain(PATIENCE).await, "the service did not drain");
    }
}

/// A port that was in use a moment ago is free again soon.
async fn bind(address: &str) -> TcpListener {
    gatehouse_testkit::eventually(PATIENCE, || async { TcpListener::bind(address).await.ok() }).await
}

fn jwks(key: &SigningKey) -> String {
    let x = URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes());
    json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": "k1", "x": x}]})
        .to_string()
}

async fn count(job: LeasedJob, pause: Duration) -> Result<String, Unfinished> {
    let input: serde_json::Value = serde_json::from_str(&job.input).unwrap();
    let steps = input["steps"].as_u64().unwrap();
    let done: u64 = String::from_utf8(job.checkpoint.clone()).unwrap().parse().unwrap_or(0);
    for step in done + 1..=steps {
        job.progress(json!({"step": step}).to_string(), Some(step.to_string().into_bytes())).await?;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            stop = job.stopped() => return Err(stop.into()),
        }
    }
    Ok(json!({"counted": steps}).to_string())
}

/// A worker of the client crate in a runtime of its own, so that it can be killed with all its tasks.
pub(crate) struct RunningWorker {
    runtime: Option<tokio::runtime::Runtime>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) ended: Option<tokio::task::JoinHandle<Result<(), Error>>>,
    /// How often a job was begun.
    pub(crate) begun: Arc<AtomicU32>,
}

impl RunningWorker {
    pub(crate) fn start<D>(
        channel: Authorized,
        handler: impl Fn(LeasedJob) -> D + Send + Sync + 'static,
    ) -> Self
    where
        D: Future<Output = Result<String, Unfinished>> + Send + 'static,
    {
        let begun = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&begun);
        let config = WorkerConfig { reconnect_max_ms: 50, ..WorkerConfig::default() };
        let worker = Worker::new(channel, config).handle("count", move |job| {
            counter.fetch_add(1, Ordering::SeqCst);
            handler(job)
        });
        let mut running = Self::spawn(|shutdown| worker.run(shutdown));
        running.begun = begun;
        running
    }

    pub(crate) fn spawn<F>(run: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shutdown = CancellationToken::new();
        let ended = Some(runtime.spawn(run(shutdown.clone())));
        Self { runtime: Some(runtime), shutdown, ended, begun: Arc::default() }
    }

    /// As kill -9: nothing is said, nothing is finished.
    pub(crate) fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub(crate) async fn drain(mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.ended.take().unwrap())
            .await
            .expect("it drains")
            .unwrap()
            .unwrap();
    }
}

impl Drop for RunningWorker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) struct RawWorker {
    pub(crate) requests: mpsc::UnboundedSender<WorkRequest>,
    pub(crate) answers: Streaming<WorkResponse>,
    pub(crate) welcome: WorkWelcome,
}

impl RawWorker {
    pub(crate) fn send(&self, message: Message) {
        self.requests.send(WorkRequest { message: Some(message) }).unwrap();
    }

    pub(crate) async fn answer(&mut self) -> Result<Answer, Error> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("an answer in time");
        answer.map_err(from_status).map(|answer| answer.expect("the stream goes on").message.unwrap())
    }

    pub(crate) async fn lease(&mut self) -> WorkLease {
        self.send(Message::Credit(WorkCredit { leases: 1 }));
        match self.answer().await.unwrap() {
            Answer::Lease(lease) => lease,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn progress(&self, lease: &WorkLease, write_number: i64, step: u32) {
        self.send(Message::Event(WorkEvent {
            job_id: lease.job_id.clone(),
            epoch: lease.epoch,
            r#type: JobEventType::Progress.into(),
            data_json: json!({"step": step}).to_string(),
            write_number,
            checkpoint: step.to_string().into_bytes().into(),
        }));
    }

    pub(crate) fn finish(&self, lease: &WorkLease, write_number: i64, outcome: work_finish::Outcome) {
        let (job_id, epoch) = (lease.job_id.clone(), lease.epoch);
        self.send(Message::Finish(WorkFinish { job_id, epoch, write_number, outcome: Some(outcome) }));
    }
}

/// A caller with a token.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) jobs: JobServiceClient<Authorized>,
    pub(crate) tenant: TenantId,
}

impl Caller {
    pub(crate) async fn submit(
        &self,
        kind: &str,
        input: &str,
        key: &str,
    ) -> Result<SubmitJobResponse, Error> {
        let request =
            SubmitJobRequest { kind: kind.into(), input_json: input.into(), idempotency_key: key.into() };
        self.jobs.clone().submit_job(request).await.map(tonic::Response::into_inner).map_err(from_status)
    }

    pub(crate) async fn submit_count(&self, steps: u32) -> String {
        self.submit("count", &json!({"steps": steps}).to_string(), "").await.unwrap().job.unwrap().job_id
    }

    pub(crate) async fn get(&self, job_id: &str) -> Result<Job, Error> {
        let request = GetJobRequest { job_id: job_id.into() };
        self.jobs
            .clone()
            .get_job(request)
            .await
            .map(|answer| answer.into_inner().job.unwrap())
            .map_err(from_status)
    }

    pub(crate) async fn cancel(&self, job_id: &str) -> Result<Job, Error> {
        let request = CancelJobRequest { job_id: job_id.into() };
        self.jobs
            .clone()
            .cancel_job(request)
            .await
            .map(|answer| answer.into_inner().job.unwrap())
            .map_err(from_status)
    }

    pub(crate) async fn retry(&self, job_id: &str) -> Result<Job, Error> {
        let request = RetryJobRequest { job_id: job_id.into() };
        self.jobs
            .clone()
            .retry_job(request)
            .await
            .map(|answer| answer.into_inner().job.unwrap())
            .map_err(from_status)
    }

    pub(crate) async fn result(&self, job_id: &str) -> Result<String, Error> {
        let request = GetJobResultRequest { job_id: job_id.into() };
        let answer = self.jobs.clone().get_job_result(request).await;
        answer.map(|answer| answer.into_inner().result_json).map_err(from_status)
    }

    pub(crate) async fn list(&self, request: ListJobsRequest) -> Result<ListJobsResponse, Error> {
        self.jobs.clone().list_jobs(request).await.map(tonic::Response::into_inner).map_err(from_status)
    }

    pub(crate) async fn watch(&self, job_id: &str, after: i64) -> Result<Watching, Error> {
        let request = WatchJobEventsRequest { job_id: job_id.into(), after_sequence: after };
        let stream = self.jobs.clone().watch_job_events(request).await.map_err(from_status)?.into_inner();
        Ok(Watching { stream, ready: std::collections::VecDeque::new() })
    }

    /// All events after a cursor, to the end.
    pub(crate) async fn events(&self, job_id: &str, after: i64) -> Vec<JobEvent> {
        let mut watching = self.watch(job_id, after).await.unwrap();
        let mut events = Vec::new();
        while let Some(event) = watching.next().await.unwrap() {
            events.push(event);
        }
        events
    }

    pub(crate) async fn until(&self, job_id: &str, state: JobState) -> Job {
        gatehouse_testkit::eventually(PATIENCE, || async {
            self.get(job_id).await.ok().filter(|job| job.state() == state)
        })
        .await
    }
}

pub(crate) struct Watching {
    pub(crate) stream: Streaming<WatchJobEventsResponse>,
    ready: std::collections::VecDeque<JobEvent>,
}

impl Watching {
    pub(crate) async fn next(&mut self) -> Result<Option<JobEvent>, Error> {
        while self.ready.is_empty() {
            let message =
                tokio::time::timeout(PATIENCE, self.stream.message()).await.expect("an event in time");
            match message.map_err(from_status)? {
                Some(batch) => self.ready.extend(batch.events),
                None => return Ok(None),
            }
        }
        Ok(self.ready.pop_front())
    }

    /// Reads until an event of this type.
    pub(crate) async fn until(&mut self, wanted: JobEventType) -> JobEvent {
        loop {
            let event = self.next().await.unwrap().expect("the stream goes on");
            if event.r#type() == wanted {
                return event;
            }
        }
    }
}

/// From `after + 1` on, without gap or repeat.
#[track_caller]
pub(crate) fn assert_contiguous(events: &[JobEvent], after: i64) {
    let sequences: Vec<_> = events.iter().map(|event| event.sequence).collect();
    let expected: Vec<_> = (after + 1..=after + i64::try_from(events.len()).unwrap()).collect();
    assert_eq!(sequences, expected);
}

/// The `step`s (or `iteration`s) of the progress events, in order.
pub(crate) fn steps(events: &[JobEvent], name: &str) -> Vec<u64> {
    events
        .iter()
        .filter(|event| event.r#type() == JobEventType::Progress)
        .map(|event| {
            serde_json::from_str::<serde_json::Value>(&event.data_json).unwrap()[name].as_u64().unwrap()
        })
        .collect()
}

pub(crate) fn types(events: &[JobEvent]) -> Vec<JobEventType> {
    events.iter().map(JobEvent::r#type).collect()
}

pub(crate) fn at(seconds: i64) -> Clock {
    Clock::settable(Timestamp::from_seconds(1_790_000_000 + seconds))
}

/// The actions in the outbox, in order.
pub(crate) async fn audited(db: &Db) -> Vec<String> {
    use prost::Message as _;
    const READ: gatehouse_db::Sql =
        gatehouse_db::Sql::new("READ", "SELECT event FROM audit_outbox ORDER BY position");
    let rows =
        gatehouse_db::read_tx!(db, "test.audited", |tx| { tx.fetch_all(&READ, vec![]).await }).unwrap();
    rows.iter()
        .map(|row| {
            let bytes: Vec<u8> = row.get("event").unwrap();
            gatehouse_proto::audit::v1::NewEvent::decode(bytes.as_slice()).unwrap().action
        })
        .collect()
}
