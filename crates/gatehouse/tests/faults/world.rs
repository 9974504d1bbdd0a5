//! One seed: a fresh cluster, its load, the faults of its plan, and the account of all of it.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use gatehouse_core::Entropy;
use gatehouse_testkit::check::{self, Disturbance, Expected, Limit, Logged, Revocation};
use gatehouse_testkit::faults::{Fault, Injected, Plan, Shape, inject};
use gatehouse_testkit::{Cluster, Layout};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::client::Api;
use crate::load::refresh::{History, Session, Theft};
use crate::load::revocation::Ended;
use crate::load::{jobs, pause, rate, refresh, revocation};
use crate::shared::Tokens;

/// How long faults go on; the load begins before and ends after.
pub(crate) const LENGTH: Duration = Duration::from_secs(12);
/// How long processes may take to be ready once everything is healed.
const RECOVERY: Duration = Duration::from_secs(60);
/// How long the audit trail may take to be whole after that.
const SETTLE: Duration = Duration::from_secs(40);
/// Who is cut off refuses after this long.
const STALE_AFTER: Duration = Duration::from_secs(4);
/// What a busy machine may add to the times that the product states.
const SLACK: Duration = Duration::from_secs(2);
/// How long a gateway may count alone after Redis is back for it.
const FOUND_AGAIN: Duration = Duration::from_secs(6);
/// The limit of the API key.
const LIMIT: Limit = Limit { burst: 20, interval: Duration::from_secs(10), replicas: 2 };
/// One job after the other, so long apart.
const BETWEEN_JOBS: Duration = Duration::from_millis(900);

const SETTINGS: &[(&str, &str)] = &[
    ("MAX_ITERATIONS", "40"),
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
    // On a machine that is busy for seconds, a client's retry must still be one.
    ("GATEHOUSE_AUTH__REFRESH_RETRY_WINDOW_S", "180"),
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
    pub(crate) failed: u64,
    pub(crate) jobs: usize,
    pub(crate) attempts: u64,
    pub(crate) resumed: u64,
    pub(crate) generations: usize,
    pub(crate) taken_for_thieves: usize,
    pub(crate) admitted: usize,
    pub(crate) revocations: usize,
    pub(crate) slowest_revocation: Duration,
    pub(crate) entries: usize,
    pub(crate) checkpoints: usize,
}

/// The clients at work.
struct Load {
    stop: watch::Sender<bool>,
    history: History,
    sessions: Vec<(String, JoinHandle<anyhow::Result<Option<Tokens>>>)>,
    thefts: Vec<JoinHandle<anyhow::Result<Theft>>>,
    jobs: Vec<JoinHandle<anyhow::Result<jobs::Done>>>,
    probers: Vec<JoinHandle<(Vec<check::Admitted>, u64)>>,
    ended: Vec<JoinHandle<anyhow::Result<Ended>>>,
    keeper: JoinHandle<anyhow::Result<()>>,
    checkpoints: Arc<Mutex<Vec<String>>>,
}

/// A cluster and who uses it.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    program: PathBuf,
    seed: u64,
    api: Api,
    credentials: Value,
    owner: Tokens,
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
        let began = self.api.began;
        let injected =
            inject(&mut self.cluster, &plan, began).await.context("a fault could not be injected")?;
        let healed = Instant::now();
        // Whoever tried to start while PostgreSQL was away may be about to give up.
        while let Err(error) = self.cluster.all_ready(RECOVERY).await {
            ensure!(healed.elapsed() < RECOVERY, "everything is healed, and not all is well: {error}");
            self.cluster.revive()?;
        }
        self.cluster.revive()?;
        load.stop.send_replace(true);
        let history = Arc::clone(&load.history);
        let outcome = self.account(load, &injected).await;
        if outcome.is_err() {
            let folder = self.cluster.keep();
            let told = format!(
                "{plan}\n{injected:#?}\n{:#?}",
                history.lock().unwrap_or_else(PoisonError::into_inner)
            );
            std::fs::write(folder.join("history.txt"), told)?;
        }
        let counts = &self.api.counts;
        let read = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        Ok(Outcome {
            faults: injected.len(),
            sent: read(&counts.sent),
            lost: read(&counts.lost),
            put_off: read(&counts.put_off),
            failed: read(&counts.failed),
            ..outcome?
        })
    }

    /// Sets all clients to work.
    async fn load(&self) -> anyhow::Result<Load> {
        let entropy =
            |stream: u64| Entropy::seeded(self.seed.wrapping_add(stream.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let (stop, stopped) = watch::channel(false);
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
            let entropy = entropy(20 + thefts.len() as u64);
            thefts.push(tokio::spawn(async move {
                pause(&entropy, LENGTH).await;
                refresh::steal(&api, &credentials, &history).await
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
        let probers = (0..2)
            .map(|number| {
                tokio::spawn(rate::probe(
                    api.clone(),
                    self.key.clone(),
                    entropy(40 + number),
                    stopped.clone(),
                ))
            })
            .collect();
        let gateways: Vec<_> = self.gateways();
        let ended = (0..5_u64).map(|number| {
            let (api, credentials, gateways) = (api.clone(), self.credentials.clone(), gateways.clone());
            let entropy = entropy(60 + number);
            tokio::spawn(async move {
                pause(&entropy, LENGTH).await;
                revocation::run(api, gateways, credentials).await
            })
        });
        let ended = ended.collect();
        let checkpoints = Arc::new(Mutex::new(Vec::new()));
        let keeper =
            tokio::spawn(keep_checkpoints(api.clone(), owner.clone(), Arc::clone(&checkpoints), stopped));
        Ok(Load { stop, history, sessions, thefts, jobs, probers, ended, keeper, checkpoints })
    }

    /// Waits for all clients, and checks what they saw.
    async fn account(&self, load: Load, injected: &[Injected]) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut expected = Vec::new();
        self.account_for_jobs(load.jobs, &mut outcome, &mut expected).await?;

        // Sessions.
        let mut stolen = Vec::new();
        let mut alive = Vec::new();
        for (session, running) in load.sessions {
            match running.await?.with_context(|| format!("at session {session}"))? {
                Some(tokens) => alive.push(tokens),
                None => stolen.push(session),
            }
        }
        let mut thefts = Vec::new();
        for theft in load.thefts {
            thefts.push(theft.await?.context("at a stolen token")?);
        }
        let history = load.history.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let consumed = check::check_refreshes(&history)?;
        for tokens in &alive {
            self.api
                .get(&tokens.access, "/v1/auth/me")
                .await
                .context("a session that behaves is not accepted")?;
        }
        for (session, generations) in &consumed {
            outcome.generations += generations;
            expected.push(one("auth.sessions.create", "session", session, 1));
            if !stolen.contains(session) {
                expected.push(one("auth.sessions.refresh", "session", session, *generations));
            }
        }
        outcome.taken_for_thieves = stolen.len();
        for theft in &thefts {
            ensure!(
                consumed[&theft.newest.session] == theft.generations,
                "a stolen session was refreshed otherwise"
            );
            let refused = one("auth.sessions.refresh", "session", &theft.newest.session, 1);
            expected.push(Expected { outcome: "denied", ..refused });
        }

        // Revocations.
        let mut revocations = Vec::new();
        for ended in load.ended {
            let Ended { session, acknowledged, probes } =
                ended.await?.context("at a session that is signed out")?;
            expected.push(one("auth.sessions.create", "session", &session, 1));
            expected.push(one("auth.sessions.sign_out", "session", &session, 1));
            revocations.push(Revocation {
                bound: bound(injected, acknowledged),
                session,
                acknowledged,
                probes,
            });
        }
        for theft in thefts {
            let probes =
                revocation::watch(&self.api, &self.gateways(), &theft.newest.access, theft.refused).await;
            let (session, acknowledged) = (theft.newest.session, theft.refused);
            revocations.push(Revocation {
                bound: bound(injected, acknowledged),
                session,
                acknowledged,
                probes,
            });
        }
        for revocation in &revocations {
            outcome.slowest_revocation = outcome.slowest_revocation.max(check::check_revocation(revocation)?);
        }
        outcome.revocations = revocations.len();

        // Rate limits.
        let mut admitted = Vec::new();
        for prober in load.probers {
            admitted.extend(prober.await?.0);
        }
        check::check_rate(&admitted, LIMIT, &disturbances(injected, &self.cluster.replicas("gateway")))?;
        outcome.admitted = admitted.len();

        // The audit trail and its log.
        let kept = || load.checkpoints.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.verify(&kept()).await?;
        load.keeper.await??;
        outcome.entries = self.settle(&expected).await?;
        outcome.checkpoints = kept().len();
        self.verify(&kept()).await?;
        self.logs_are_clean()?;
        Ok(outcome)
    }

    /// All jobs came to the same end, told the same, and are as many as there are keys.
    async fn account_for_jobs(
        &self,
        running: Vec<JoinHandle<anyhow::Result<jobs::Done>>>,
        outcome: &mut Outcome,
        expected: &mut Vec<Expected>,
    ) -> anyhow::Result<()> {
        let mut done = Vec::new();
        for job in running {
            done.push(job.await??);
        }
        let first = done.first().context("no job")?;
        for job in &done {
            ensure!(job.result == first.result, "job {} has another result than job {}", job.id, first.id);
            ensure!(
                job.told.progress == first.told.progress,
                "job {} of key {} told of other iterations than job {}",
                job.id,
                job.key,
                first.id
            );
            outcome.attempts += job.told.started;
            outcome.resumed += job.resumed;
            expected.push(one("job.jobs.submit", "job", &job.id, 1));
            expected.push(one("job.jobs.start", "job", &job.id, usize::try_from(job.told.started)?));
            expected.push(one("job.jobs.finish", "job", &job.id, 1));
        }
        outcome.jobs = done.len();
        let listed = self.api.get(&self.owner.access, "/v1/jobs?page_size=200").await?;
        let listed = listed["jobs"].as_array().context("no list of jobs")?.len();
        ensure!(listed == done.len(), "{} keys were used, and there are {listed} jobs", done.len());
        Ok(())
    }

    fn gateways(&self) -> Vec<(String, String)> {
        let gateways = self.cluster.replicas("gateway").into_iter();
        gateways.map(|name| (name.clone(), format!("http://{}", self.cluster.address(&name)))).collect()
    }

    /// Waits until the trail has all that is expected; how many entries it has.
    async fn settle(&self, expected: &[Expected]) -> anyhow::Result<usize> {
        let until = Instant::now() + SETTLE;
        loop {
            let logged = self.trail().await?;
            let missing = check::check_audit(&logged, expected)?;
            if missing.is_empty() {
                return Ok(logged.len());
            }
            if Instant::now() > until {
                bail!("after {} s the audit trail misses {missing:?}", SETTLE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn trail(&self) -> anyhow::Result<Vec<Logged>> {
        let (mut logged, mut page_token) = (Vec::new(), String::new());
        loop {
            let path = format!("/v1/audit/events?page_size=200&page_token={page_token}");
            let page = self.api.get(&self.owner.access, &path).await?;
            let text = |event: &Value, name: &str| event[name].as_str().unwrap_or_default().to_owned();
            for event in page["events"].as_array().context("a page without events")? {
                logged.push(Logged {
                    event: text(event, "event_id"),
                    log: text(event, "log"),
                    index: event["index"].as_u64().context("an event without index")?,
                    action: text(event, "action"),
                    target: text(event, "target"),
                    outcome: text(event, "outcome"),
                });
            }
            match page["next_page_token"].as_str() {
                Some(next) if !next.is_empty() => next.clone_into(&mut page_token),
                _ => return Ok(logged),
            }
        }
    }

    /// The log, read straight from the database, extends every checkpoint that was ever seen.
    async fn verify(&self, checkpoints: &[String]) -> anyhow::Result<()> {
        let mut command = tokio::process::Command::new(&self.program);
        command
            .arg("verify-audit-chain")
            .arg("--config")
            .arg(self.cluster.config())
            .env("GATEHOUSE_ENV", "dev");
        for (number, checkpoint) in checkpoints.iter().enumerate() {
            let file = self.cluster.folder().join(format!("checkpoint-{number}"));
            std::fs::write(&file, checkpoint)?;
            command.arg("--checkpoint").arg(file);
        }
        let output = command.stdin(Stdio::null()).output().await?;
        ensure!(
            output.status.success(),
            "verify-audit-chain with {} checkpoints ended with {}: {}{}",
            checkpoints.len(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn logs_are_clean(&self) -> anyhow::Result<()> {
        for name in self.cluster.names() {
            let log = std::fs::read_to_string(self.cluster.node(&name).log())?;
            if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
                bail!("{name} panicked: {line}");
            }
        }
        Ok(())
    }
}

/// So many entries that tell of a success.
fn one(action: &'static str, kind: &str, id: &str, number: usize) -> Expected {
    Expected { action, target: format!("{kind}/{id}"), outcome: "success", number }
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

/// How long a session that ended then may be accepted: briefly, or until whoever is cut off refuses everything.
fn bound(injected: &[Injected], acknowledged: Duration) -> Duration {
    let near = |fault: &&Injected| {
        fault.from <= acknowledged + STALE_AFTER && fault.to + FOUND_AGAIN >= acknowledged
    };
    let calm = Duration::from_secs(1);
    if injected.iter().any(|fault| near(&fault)) { STALE_AFTER + SLACK } else { calm + SLACK }
}

/// When gateways may not have counted together.
fn disturbances(injected: &[Injected], gateways: &[String]) -> Vec<Disturbance> {
    let of = |Injected { fault, from, to }: &Injected| {
        let alone = match fault {
            Fault::RedisAway | Fault::RedisPaused => gateways.len(),
            _ => gateways
                .iter()
                .filter(|gateway| match fault {
                    Fault::Cut(from, to) | Fault::Link(from, to, _) => from == *gateway && to == "redis",
                    other => other.concerns(gateway),
                })
                .count(),
        };
        let alone = u32::try_from(alone).unwrap_or(u32::MAX);
        (alone > 0).then(|| Disturbance {
            from: *from,
            to: *to + FOUND_AGAIN,
            alone,
            forgotten: *fault == Fault::RedisAway,
        })
    };
    injected.iter().filter_map(of).collect()
}
