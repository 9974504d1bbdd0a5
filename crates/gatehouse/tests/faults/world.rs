//! One seed: a fresh cluster, its load, the faults of its plan, and the account of all of it.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use gatehouse_core::Entropy;
use gatehouse_testkit::check;
use gatehouse_testkit::faults::{Plan, Shape, Supervisor};
use gatehouse_testkit::{Cluster, Layout};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::account::account;
use crate::client::{Api, Failure, Reply};
use crate::load::refresh::{History, Session, Theft};
use crate::load::revocation::{Ended, SHOWN};
use crate::load::{jobs, pause, rate, refresh, revocation};
use crate::shared::Tokens;

/// How long faults go on; the load begins before and ends after.
pub(crate) const LENGTH: Duration = Duration::from_secs(12);
/// How long processes may take to be ready once everything is healed.
const RECOVERY: Duration = Duration::from_secs(60);
/// One job after the other, so long apart.
const BETWEEN_JOBS: Duration = Duration::from_millis(900);
/// Jobs that begin when everything is healed.
const CALM_JOBS: u32 = 3;

const SETTINGS: &[(&str, &str)] = &[
    ("MAX_ITERATIONS", "50"),
    ("GATEHOUSE_OPTIMIZER__MIN_ITERATION_MS", "40"),
    ("GATEHOUSE_OPTIMIZER__WORKER__RECONNECT_MAX_MS", "500"),
    // Short leases and frequent looks: a round then waits for the product, not for a timeout made for production.
    ("GATEHOUSE_JOB__LEASE_TTL_MS", "1200"),
    ("GATEHOUSE_JOB__SWEEP_INTERVAL_MS", "200"),
    ("GATEHOUSE_JOB__POLL_INTERVAL_MS", "200"),
    ("GATEHOUSE_JOB__KINDS", "{optimize = {max_attempts = 100, retry_pause_ms = 50}}"),
    ("GATEHOUSE_OUTBOX__POLL_MS", "100"),
    ("GATEHOUSE_OUTBOX__LEASE_MS", "3000"),
    ("GATEHOUSE_OUTBOX__MAX_BACKOFF_MS", "1000"),
    ("GATEHOUSE_REVOCATIONS__STALE_AFTER_MS", "4000"),
    ("GATEHOUSE_RATE_LIMITS__RULES__CLASSES", "{}"),
    ("GATEHOUSE_RATE_LIMITS__RULES__IP__CAPACITY", "1000000"),
    ("GATEHOUSE_RATE_LIMITS__RULES__IP__INTERVAL_S", "60"),
    ("GATEHOUSE_RATE_LIMITS__RULES__PERSON__CAPACITY", "1000000"),
    ("GATEHOUSE_RATE_LIMITS__RULES__PERSON__INTERVAL_S", "60"),
    ("GATEHOUSE_RATE_LIMITS__RULES__TENANT__CAPACITY", "1000000"),
    ("GATEHOUSE_RATE_LIMITS__RULES__TENANT__INTERVAL_S", "60"),
    ("GATEHOUSE_RATE_LIMITS__RULES__API_KEY__CAPACITY", "20"),
    ("GATEHOUSE_RATE_LIMITS__RULES__API_KEY__INTERVAL_S", "10"),
    ("GATEHOUSE_RATE_LIMITS__REPLICAS", "2"),
    ("GATEHOUSE_RATE_LIMITS__TIMEOUT_MS", "1000"),
    ("GATEHOUSE_GATEWAY__SSE__KEEP_ALIVE_S", "1"),
    ("GATEHOUSE_DRAIN_TIMEOUT_S", "3"),
    ("GATEHOUSE_GATEWAY__DRAIN_TIMEOUT_S", "3"),
    ("GATEHOUSE_PEERS__AUTH__REQUEST_TIMEOUT_MS", "3000"),
    ("GATEHOUSE_PEERS__JOB__REQUEST_TIMEOUT_MS", "3000"),
    ("GATEHOUSE_PEERS__AUDIT__REQUEST_TIMEOUT_MS", "2000"),
    ("GATEHOUSE_DATABASES__AUTH__STATEMENT_TIMEOUT_MS", "3000"),
    ("GATEHOUSE_DATABASES__JOB__STATEMENT_TIMEOUT_MS", "3000"),
    ("GATEHOUSE_DATABASES__AUDIT__STATEMENT_TIMEOUT_MS", "3000"),
];

/// What a seed came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) faults: usize,
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) put_off: u64,
    pub(crate) drained: usize,
    pub(crate) gave_up: usize,
    /// How long after everything was healed the last process was ready.
    pub(crate) ready: Duration,
    pub(crate) recovered: Duration,
    pub(crate) lag: Duration,
    pub(crate) jobs: usize,
    pub(crate) attempts: u64,
    pub(crate) resumed: u64,
    pub(crate) generations: usize,
    pub(crate) taken_for_thieves: usize,
    pub(crate) admitted: usize,
    pub(crate) revocations: usize,
    pub(crate) slowest_revocation: Duration,
    pub(crate) slowest_calm_revocation: Duration,
    pub(crate) slowest_answer: Duration,
    pub(crate) answered_within: Duration,
    pub(crate) rates_checked: usize,
    pub(crate) entries: usize,
    pub(crate) checkpoints: usize,
}

/// What [`Session::run`] gives in the end.
type RunningSession = JoinHandle<anyhow::Result<Option<(Tokens, bool)>>>;

/// The clients at work.
pub(crate) struct Load {
    pub(crate) stop: watch::Sender<bool>,
    /// Of those who ask for more than they may: they go on in calm weather.
    pub(crate) stop_asking: watch::Sender<bool>,
    pub(crate) history: History,
    pub(crate) sessions: Vec<(String, RunningSession)>,
    pub(crate) thefts: Vec<JoinHandle<anyhow::Result<Option<Theft>>>>,
    pub(crate) jobs: Vec<JoinHandle<anyhow::Result<jobs::Done>>>,
    pub(crate) probers: Vec<JoinHandle<anyhow::Result<Vec<check::Asked>>>>,
    pub(crate) ended: Vec<JoinHandle<anyhow::Result<Ended>>>,
    pub(crate) keeper: JoinHandle<anyhow::Result<()>>,
    pub(crate) checkpoints: Arc<Mutex<Vec<String>>>,
}

/// A cluster and who uses it.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) program: PathBuf,
    seed: u64,
    pub(crate) api: Api,
    pub(crate) credentials: Value,
    pub(crate) owner: Tokens,
    key: String,
}

impl World {
    /// A fresh cluster with a tenant, its owner and an API key. `variables` come on top of the settings.
    pub(crate) async fn new(program: PathBuf, seed: u64, variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut layout = Layout::new(&program).with_own_servers().replicas("token-broker", 0);
        for service in ["auth", "job", "audit", "gateway", "optimizer"] {
            layout = layout.replicas(service, 2);
        }
        for (variable, value) in SETTINGS.iter().chain(variables) {
            layout = layout.set(variable, *value);
        }
        let cluster = Cluster::start(layout).await.context("the cluster did not start")?;
        let api = Api::new(cluster.url())?;
        let credentials = json!({"email": "ada@example.com", "password": "correct horse battery soak"});
        let mut registration = credentials.clone();
        registration["tenant_name"] = json!("Analytical Engines");
        let (status, body) = api.post("/v1/auth/register", &registration).await?;
        ensure!(status.is_success(), "registration was answered {status}: {body}");
        let owner = api.sign_in(&credentials).await?;
        let made = api
            .done(|http, base| {
                let request = http.post(format!("{base}/v1/api-keys")).bearer_auth(&owner.access);
                request.json(&json!({"name": "probe"}))
            })
            .await?;
        let key = made["text"].as_str().context("an API key without text")?.to_owned();
        Ok(Self { cluster, program, seed, api, credentials, owner, key })
    }

    /// What fails under this seed.
    pub(crate) fn plan(&self) -> Plan {
        Plan::of(self.seed, &Shape::of(&self.cluster, LENGTH))
    }

    /// The load, the faults, and the account.
    pub(crate) async fn run(&mut self) -> anyhow::Result<Outcome> {
        let plan = self.plan();
        self.api.began = Instant::now();
        let load = self.load().await?;
        let mut supervisor = Supervisor::new(self.api.began);
        supervisor.play(&mut self.cluster, &plan).await.context("among the faults")?;
        supervisor.drains_end(&mut self.cluster).await.context("after the faults")?;
        let healed = Instant::now();
        // Whoever tried to start while PostgreSQL was away may be about to give up.
        while let Err(error) = self.cluster.all_ready(RECOVERY).await {
            ensure!(healed.elapsed() < RECOVERY, "everything is healed, and not all is well: {error}");
            supervisor.look(&mut self.cluster).context("after the faults")?;
        }
        supervisor.look(&mut self.cluster).context("after the faults")?;
        let ready = healed.elapsed();
        load.stop.send_replace(true);
        let history = Arc::clone(&load.history);
        let outcome = account(self, load, &supervisor).await;
        if outcome.is_err() {
            let folder = self.cluster.keep();
            let told = format!(
                "{plan}\n{:#?}\n{:#?}\n{:#?}",
                supervisor.injected(),
                self.failures(),
                history.lock().unwrap_or_else(PoisonError::into_inner)
            );
            std::fs::write(folder.join("history.txt"), told)?;
        }
        // What ended while the account was taken had no reason to.
        supervisor.look(&mut self.cluster).context("in calm weather")?;
        let counts = &self.api.counts;
        let read = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        Ok(Outcome {
            faults: supervisor.injected().len(),
            drained: supervisor.drained(),
            gave_up: supervisor.gave_up(),
            ready,
            sent: read(&counts.sent),
            lost: read(&counts.lost),
            put_off: read(&counts.put_off),
            ..outcome?
        })
    }

    /// Everything that failed so far.
    pub(crate) fn failures(&self) -> Vec<Failure> {
        self.api.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everything that was answered so far.
    pub(crate) fn answers(&self) -> Vec<Reply> {
        self.api.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets all clients to work.
    async fn load(&self) -> anyhow::Result<Load> {
        let entropy =
            |stream: u64| Entropy::seeded(self.seed.wrapping_add(stream.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let ((stop, stopped), (stop_asking, stopped_asking)) = (watch::channel(false), watch::channel(false));
        let history = History::default();
        let (api, owner) = (&self.api, &self.owner.access);
        let mut sessions = Vec::new();
        // Clients that race, a lone one, and some that are hasty.
        for (number, (racers, patient)) in
            [(3, true), (2, true), (1, true), (3, false), (2, false)].into_iter().enumerate()
        {
            let session = Session::new(api.sign_in(&self.credentials).await?, racers, patient);
            let id = session.tokens.session.clone();
            let running =
                session.run(api.clone(), Arc::clone(&history), entropy(1 + number as u64), stopped.clone());
            sessions.push((id, tokio::spawn(running)));
        }
        let mut thefts = Vec::new();
        for _ in 0..2 {
            let (api, credentials, history) = (api.clone(), self.credentials.clone(), Arc::clone(&history));
            let gateways = self.gateways();
            let entropy = entropy(20 + thefts.len() as u64);
            thefts.push(tokio::spawn(async move {
                pause(&entropy, LENGTH).await;
                refresh::steal(&api, &credentials, &history, &gateways).await
            }));
        }
        let mut jobs = Vec::new();
        let many = u32::try_from(LENGTH.as_millis() / BETWEEN_JOBS.as_millis())?;
        for number in 0..many {
            let running = jobs::run(api.clone(), owner.clone(), format!("seed-{}-{number}", self.seed));
            jobs.push(tokio::spawn(async move {
                tokio::time::sleep(BETWEEN_JOBS * number).await;
                running.await
            }));
        }
        // In calm weather no stream may break: some must be there.
        for number in many..many + CALM_JOBS {
            let running = jobs::run(api.clone(), owner.clone(), format!("seed-{}-{number}", self.seed));
            let mut healed = stopped.clone();
            jobs.push(tokio::spawn(async move {
                healed.wait_for(|healed| *healed).await?;
                tokio::time::sleep(BETWEEN_JOBS * (number - many + 1)).await;
                running.await
            }));
        }
        let probers = (0..2)
            .map(|number| {
                tokio::spawn(rate::probe(
                    api.clone(),
                    self.key.clone(),
                    entropy(40 + number),
                    stopped_asking.clone(),
                ))
            })
            .collect();
        let gateways: Vec<_> = self.gateways();
        let ended = (0..5_u64).map(|number| {
            let (api, credentials, gateways) = (api.clone(), self.credentials.clone(), gateways.clone());
            let entropy = entropy(60 + number);
            tokio::spawn(async move {
                pause(&entropy, LENGTH).await;
                revocation::run(api, gateways, credentials, SHOWN).await
            })
        });
        let ended = ended.collect();
        let checkpoints = Arc::new(Mutex::new(Vec::new()));
        let keeper =
            tokio::spawn(keep_checkpoints(api.clone(), owner.clone(), Arc::clone(&checkpoints), stopped));
        Ok(Load { stop, stop_asking, history, sessions, thefts, jobs, probers, ended, keeper, checkpoints })
    }

    /// Names of the gateways, and where each is reached past balancer and proxies.
    pub(crate) fn gateways(&self) -> Vec<(String, String)> {
        let gateways = self.cluster.replicas("gateway").into_iter();
        gateways.map(|name| (name.clone(), format!("http://{}", self.cluster.address(&name)))).collect()
    }
}

/// Fetches a fresh checkpoint now and then, and a last one, and keeps them all as a client elsewhere would.
async fn keep_checkpoints(
    api: Api,
    token: String,
    kept: Arc<Mutex<Vec<String>>>,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    loop {
        let last = *stop.borrow();
        let answer = api.get(&token, "/v1/audit/logs/default/checkpoint?fresh=true").await?;
        let checkpoint = answer["checkpoint"].as_str().context("no checkpoint")?.to_owned();
        kept.lock().unwrap_or_else(PoisonError::into_inner).push(checkpoint);
        if last {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
}
