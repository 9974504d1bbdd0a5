//! What outlives the rounds, and one round: a job, clients, a kill, a start, and the account of all of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use gatehouse_core::Clock;
use gatehouse_testkit::check::{Seen, Successors, Told, check_events};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::audit::{self, Count};
use crate::client::{self, Api};
use crate::shared::Tokens;

use crate::plan::{Phase, Plan};
use crate::server::{ITERATIONS, Server};

/// How long anything may take, a restart included, on a slow, busy machine.
const LIMIT: Duration = Duration::from_secs(120);
/// How long a revocation may take; a second, were the machine not shared with others.
const REVOCATION_LIMIT: Duration = Duration::from_secs(5);
/// Where it went wrong.
const CHAIN: &str = "at the session that is refreshed all the time";
/// Clients that present one token at the moment of the kill.
const CROWD: usize = 8;

/// What goes on from round to round.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) api: Api,
    credentials: Value,
    /// A session that is refreshed through all rounds: its newest tokens.
    tokens: Tokens,
    successors: Arc<Mutex<Successors>>,
    /// A checkpoint of each log, fetched at the end of the round before.
    checkpoints: BTreeMap<String, PathBuf>,
    /// What a job tells and results in if nothing disturbs it: the same each time, for its seed is fixed.
    undisturbed: (Vec<Value>, Value),
    folder: PathBuf,
}

/// What a round came to.
pub(crate) struct Outcome {
    pub(crate) ready_after: Duration,
    pub(crate) resumed: u64,
    pub(crate) attempts: u64,
    pub(crate) events: u64,
    pub(crate) refreshes: usize,
    /// Whether the job still ran at the kill.
    pub(crate) in_the_middle: bool,
}

/// What the action at the kill came to.
enum Acted {
    Nothing,
    Submitted(String),
    SignedIn(Tokens),
    /// One token was presented by many.
    Refreshed(Tokens),
    /// A token that was used up was presented; these are the newest of its session.
    Replayed(Tokens),
}

/// A job and the reader of its events.
struct Followed {
    id: String,
    seen: watch::Receiver<Vec<Seen>>,
    reader: JoinHandle<anyhow::Result<u64>>,
}

/// What an action needs.
struct Action {
    api: Api,
    phase: Phase,
    token: String,
    key: String,
    credentials: Value,
    /// A session of its own: its first tokens and its newest.
    spare: Option<(Tokens, Tokens)>,
    successors: Arc<Mutex<Successors>>,
}

impl Action {
    async fn run(self) -> anyhow::Result<Acted> {
        let api = &self.api;
        Ok(match (self.phase, self.spare) {
            (Phase::Submit, _) => Acted::Submitted(api.submit(&self.token, &self.key).await?),
            (Phase::SignIn, _) => Acted::SignedIn(api.sign_in(&self.credentials).await?),
            (Phase::Refresh, Some((tokens, _))) => {
                Acted::Refreshed(client::refresh_together(api, &tokens, CROWD, &self.successors).await?)
            }
            (Phase::Replay, Some((used, newest))) => {
                let (status, body) = api.refresh(&used.refresh).await?;
                ensure!(status == StatusCode::UNAUTHORIZED, "a replayed token was answered {status}: {body}");
                Acted::Replayed(newest)
            }
            _ => Acted::Nothing,
        })
    }
}

impl World {
    /// The first start, a tenant with its owner, and one job that nothing disturbs.
    pub(crate) async fn new(folder: &Path, killed_starts: &[Duration]) -> anyhow::Result<Self> {
        let mut server = Server::new(folder)?;
        for after in killed_starts {
            server.start_and_kill(*after).await.context("at a kill within the first start")?;
        }
        server.start().await.context("at the first start")?;
        let api = Api::new(server.address())?;
        let credentials = json!({"email": "ada@example.com", "password": "correct horse battery soak"});
        let mut registration = credentials.clone();
        registration["tenant_name"] = json!("Analytical Engines");
        let (status, body) = api.post("/v1/auth/register", &registration).await?;
        ensure!(status.is_success(), "registration was answered {status}: {body}");
        let tokens = api.sign_in(&credentials).await?;
        let mut world = Self {
            server,
            api,
            credentials,
            tokens,
            successors: Arc::default(),
            checkpoints: BTreeMap::new(),
            undisturbed: (Vec::new(), Value::Null),
            folder: folder.to_owned(),
        };
        let id = world.api.submit(&world.tokens.access, "undisturbed").await?;
        let (told, _) = world.follow(id.clone()).finish().await?;
        ensure!(told.progress.len() == ITERATIONS as usize, "{} iterations ran", told.progress.len());
        let result = world.result(&id).await?;
        world.undisturbed = (told.progress, result);
        world.keep_checkpoints().await?;
        Ok(world)
    }

    /// One round.
    pub(crate) async fn round(&mut self, number: u64, plan: &Plan) -> anyhow::Result<Outcome> {
        let since = Clock::system().now();
        let (stop, stopped) = watch::channel(false);
        let chain = self.tokens.clone();
        let successors = Arc::clone(&self.successors);
        let chained = tokio::spawn(client::refresh_until(self.api.clone(), chain, successors, stopped));
        let (mut outcome, mut counts) = match self.kill_and_start(number, plan).await {
            Ok(done) => done,
            // If the session broke, all else broke for it, and that is what to tell.
            Err(error) => match tokio::time::timeout(Duration::from_secs(2), chained).await {
                Ok(Ok(Err(first))) => return Err(first.context(CHAIN)),
                _ => return Err(error),
            },
        };
        stop.send_replace(true);
        let chain = tokio::time::timeout(LIMIT, chained).await.context("the refreshers got no answer")??;
        let (tokens, refreshes) = chain.context(CHAIN)?;
        outcome.refreshes = refreshes;
        counts.push(Count::successes("auth.sessions.refresh", "session", &tokens.session, refreshes));
        self.tokens = tokens;
        self.get("/v1/auth/me").await.context("the session did not survive")?;
        audit::settle(&self.api, &self.tokens.access, since, &counts).await?;
        self.verify().await?;
        self.keep_checkpoints().await?;
        ensure!(self.server.runs(), "the process ended by itself");
        Ok(outcome)
    }

    /// A job, what is under way besides it, the kill, the start, and what came of both; the outcome and what the audit
    /// trail must hold of it.
    async fn kill_and_start(&mut self, number: u64, plan: &Plan) -> anyhow::Result<(Outcome, Vec<Count>)> {
        let key = format!("round-{number}");
        let id = self.api.submit(&self.tokens.access, &key).await?;
        let mut job = self.follow(id);
        let action = self.action(plan.phase, &key).await?;
        job.told(plan.progress).await?;

        let action = tokio::spawn(action.run());
        // The moment of the kill is what is tried here.
        tokio::time::sleep(plan.delay).await;
        let in_the_middle = !job.has_ended();
        self.server.kill().await?;
        if plan.verify_while_down {
            self.verify().await.context("with nothing running")?;
        }
        for after in &plan.killed_starts {
            self.server.start_and_kill(*after).await?;
        }
        let ready_after = self.server.start().await?;

        let acted = tokio::time::timeout(LIMIT, action).await.context("the action got no answer")???;
        let id = job.id.clone();
        let (told, resumed) = job.finish().await.with_context(|| format!("at job {id}"))?;
        ensure!(told.started >= 2 || !in_the_middle, "the job was killed in its middle and has one attempt");
        ensure!(
            resumed >= 1 || !in_the_middle,
            "the reader was not cut off by a kill in the middle of a job"
        );
        let mut counts = self.account_for_job(&id, &key, &told).await?;
        counts.extend(self.account_for(acted, &key).await.with_context(|| format!("at the {}", plan.phase))?);
        let (attempts, events) = (told.started, told.last);
        Ok((Outcome { ready_after, resumed, attempts, events, refreshes: 0, in_the_middle }, counts))
    }

    /// Prepares what is to be under way at the kill.
    async fn action(&self, phase: Phase, key: &str) -> anyhow::Result<Action> {
        let mut spare = None;
        if matches!(phase, Phase::Refresh | Phase::Replay) {
            let first = self.api.sign_in(&self.credentials).await?;
            let mut newest = first.clone();
            if phase == Phase::Replay {
                // Two generations on, the first token is used up whatever the retry window.
                for _ in 0..2 {
                    newest = client::refresh_together(&self.api, &newest, 1, &self.successors).await?;
                }
            }
            spare = Some((first, newest));
        }
        Ok(Action {
            api: self.api.clone(),
            phase,
            token: self.tokens.access.clone(),
            key: format!("{key}-second"),
            credentials: self.credentials.clone(),
            spare,
            successors: Arc::clone(&self.successors),
        })
    }

    /// Checks a job that ended against what its reader was told; what the audit trail must hold of it.
    async fn account_for_job(&self, id: &str, key: &str, told: &Told) -> anyhow::Result<Vec<Count>> {
        ensure!(told.state == "succeeded", "job {id} ended as {}", told.state);
        ensure!(
            told.progress == self.undisturbed.0,
            "job {id} told of other iterations than an undisturbed one"
        );
        let job = self.get(&format!("/v1/jobs/{id}")).await?;
        ensure!(job["state"] == "succeeded", "job {id} is {}", job["state"]);
        ensure!(job["last_sequence"] == told.last, "the last event of {job} was told as {}", told.last);
        ensure!(job["attempt"] == told.started, "{} attempts of {job} were told", told.started);
        let result = self.result(id).await?;
        ensure!(
            result == self.undisturbed.1,
            "job {id} has another result than an undisturbed one: {result}"
        );
        let again = self.api.submit(&self.tokens.access, key).await?;
        ensure!(again == id, "the idempotency key of job {id} gave job {again}");
        let started = usize::try_from(told.started)?;
        Ok(vec![
            Count::successes("job.jobs.submit", "job", id, 1),
            Count::successes("job.jobs.start", "job", id, started),
            Count::successes("job.jobs.finish", "job", id, 1),
        ])
    }

    /// Checks what was under way at the kill; what the audit trail must hold of it.
    async fn account_for(&self, acted: Acted, key: &str) -> anyhow::Result<Vec<Count>> {
        let refresh = "auth.sessions.refresh";
        let session =
            |action, tokens: &Tokens, number| Count::successes(action, "session", &tokens.session, number);
        Ok(match acted {
            Acted::Nothing => Vec::new(),
            Acted::Submitted(id) => {
                let (told, _) = self.follow(id.clone()).finish().await?;
                self.account_for_job(&id, &format!("{key}-second"), &told).await?
            }
            Acted::SignedIn(tokens) => {
                let newest = client::refresh_together(&self.api, &tokens, 1, &self.successors).await?;
                vec![session("auth.sessions.create", &tokens, 1), session(refresh, &newest, 1)]
            }
            Acted::Refreshed(tokens) => {
                vec![session("auth.sessions.create", &tokens, 1), session(refresh, &tokens, 1)]
            }
            Acted::Replayed(newest) => {
                // Whoever replayed was refused, and whatever was killed then: the session is over, for all of its tokens.
                let (status, body) = self.api.refresh(&newest.refresh).await?;
                ensure!(
                    status == StatusCode::UNAUTHORIZED,
                    "a session goes on although a used token was presented: {status}, {body}"
                );
                self.refused(&newest.access).await?;
                vec![session(refresh, &newest, 2), Count::denied(refresh, "session", &newest.session, 1)]
            }
        })
    }

    /// Waits until an access token of a session that is over is refused.
    async fn refused(&self, token: &str) -> anyhow::Result<()> {
        let asked = async {
            loop {
                let me =
                    self.api.answer(|http, base| http.get(format!("{base}/v1/auth/me")).bearer_auth(token));
                match me.await? {
                    (StatusCode::UNAUTHORIZED, _) => return Ok(()),
                    (status, body) => ensure!(status.is_success(), "answered {status}: {body}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let refused = tokio::time::timeout(REVOCATION_LIMIT, asked).await;
        refused.context("an access token of a session that is over is still good")?
    }

    fn follow(&self, id: String) -> Followed {
        let (sender, seen) = watch::channel(Vec::new());
        let reader = client::follow(self.api.clone(), self.tokens.access.clone(), id.clone(), sender);
        Followed { id, seen, reader: tokio::spawn(reader) }
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.api.get(&self.tokens.access, path).await
    }

    async fn result(&self, id: &str) -> anyhow::Result<Value> {
        self.get(&format!("/v1/jobs/{id}/result")).await
    }

    /// Verifies each log against the checkpoint of the round before.
    async fn verify(&self) -> anyhow::Result<()> {
        for (log, checkpoint) in &self.checkpoints {
            let output = self.server.verify(log, checkpoint).await?;
            ensure!(
                output.status.success(),
                "verify-audit-chain of {log} ended with {}: {}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// Fetches a fresh checkpoint of each log and keeps it for the next round.
    async fn keep_checkpoints(&mut self) -> anyhow::Result<()> {
        let logs = self.get("/v1/audit/logs").await?;
        for log in logs["logs"].as_array().context("no logs")? {
            let name = log["name"].as_str().context("a log without name")?;
            let answer = self.get(&format!("/v1/audit/logs/{name}/checkpoint?fresh=true")).await?;
            let path = self.folder.join(format!("checkpoint of {}", name.replace('/', "-")));
            std::fs::write(&path, answer["checkpoint"].as_str().context("no checkpoint")?)?;
            self.checkpoints.insert(name.to_owned(), path);
        }
        ensure!(!self.checkpoints.is_empty(), "there is no audit log");
        Ok(())
    }
}

impl Followed {
    /// Waits for so many progress events.
    async fn told(&mut self, progress: usize) -> anyhow::Result<()> {
        let enough =
            |seen: &Vec<Seen>| seen.iter().filter(|event| event.name == "progress").count() >= progress;
        let waited = tokio::time::timeout(LIMIT, self.seen.wait_for(enough)).await;
        if waited.context("the job makes no progress")?.is_ok() {
            return Ok(());
        }
        (&mut self.reader).await??;
        bail!("the job ended after fewer than {progress} progress events")
    }

    fn has_ended(&self) -> bool {
        self.seen.borrow().last().is_some_and(|event| event.name == "end")
    }

    /// Waits for the end; what was told, and how often the reader resumed.
    async fn finish(self) -> anyhow::Result<(Told, u64)> {
        let read = tokio::time::timeout(LIMIT, self.reader).await;
        let resumed = read.context("the job does not end")???;
        Ok((check_events(&self.seen.borrow())?, resumed))
    }
}
