//! The account of one seed: what the clients saw, against what must hold.

use std::process::Stdio;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use gatehouse_testkit::check::{
    self, Admitted, Disturbance, Expected, Limit, Logged, RefreshTimes, Revocation, Said,
};
use gatehouse_testkit::faults::{Fault, Injected, Supervisor};
use reqwest::Client;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::client::Failure;
use crate::load::refresh::Theft;
use crate::load::revocation::Ended;
use crate::load::{jobs, refresh, revocation};
use crate::quiet::{Quiet, quiet};
use crate::world::{Load, Outcome, World};

/// How long the audit trail may take to be whole once everything is healed.
const SETTLE: Duration = Duration::from_secs(40);
/// Who is cut off refuses after this long.
const STALE_AFTER: Duration = Duration::from_secs(4);
/// What every step of a request may take besides, on a machine that is not late.
const SLACK: Duration = Duration::from_secs(1);
/// How long a gateway may count alone after Redis is back for it.
pub(crate) const FOUND_AGAIN: Duration = Duration::from_secs(6);
/// The limit of the API key.
const LIMIT: Limit = Limit { burst: 20, interval: Duration::from_secs(10), replicas: 2 };
/// How long who presents a consumed refresh token is given its successor, by default, and how long requests live.
const REFRESHES: RefreshTimes =
    RefreshTimes { retry_window: Duration::from_secs(30), held_back: refresh::HELD_BACK };
/// Why a request may be answered 503 or 504 among faults: a service, its database, the way there or its news is away.
/// That a limiter has nobody to count with is no such reason.
const REASONS: [&str; 7] = [
    "SERVICE_UNAVAILABLE",
    "CONNECTION_LOST",
    "DATABASE_UNAVAILABLE",
    "REVOCATIONS_STALE",
    "DEADLINE_EXCEEDED",
    "DRAINING",
    "NOT_READY",
];

/// Why somebody who is within every limit may be told 429 among faults: what it needs has too much to do. That it asks for
/// too much is no such reason.
const BUSY: [&str; 3] = ["HASHING_BUSY", "AUDIT_BUSY", "SERVICE_BUSY"];

/// Waits for all clients, and checks what they saw.
pub(crate) async fn account(world: &World, load: Load, supervisor: &Supervisor) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut expected = Vec::new();
    let Load { stop_asking, history, sessions, thefts, jobs, probers, ended, keeper, checkpoints, .. } = load;
    let clients = async {
        world.account_for_jobs(jobs, &mut outcome, &mut expected).await?;
        // Sessions.
        let mut stolen = Vec::new();
        let mut alive = Vec::new();
        for (session, running) in sessions {
            match running.await?.with_context(|| format!("at session {session}"))? {
                Some((tokens, was_hasty)) => alive.push((session, tokens, was_hasty)),
                None => stolen.push(session),
            }
        }
        let mut robbed = Vec::new();
        for theft in thefts {
            robbed.extend(theft.await?.context("at a stolen token")?);
        }
        let history = history.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let consumed = check::check_refreshes(&history, REFRESHES)?;
        for (session, tokens, was_hasty) in alive {
            let ask = |http: &Client, base: &str| {
                http.get(format!("{base}/v1/auth/me")).bearer_auth(&tokens.access)
            };
            let (status, me) = world.api.answer(ask).await?;
            if was_hasty && me["reason"] == "TOKEN_REVOKED" {
                stolen.push(session);
                continue;
            }
            ensure!(status.is_success(), "a session that behaves is not accepted: answered {status}: {me}");
        }
        for (session, generations) in &consumed {
            outcome.generations += generations;
            expected.push(one("auth.sessions.create", "session", session, 1));
            if !stolen.contains(session) {
                expected.push(one("auth.sessions.refresh", "session", session, *generations));
            }
        }
        for session in &stolen {
            let refused = one("auth.sessions.refresh", "session", session, 1);
            expected.push(Expected { outcome: "denied", ..refused });
        }
        for theft in &robbed {
            ensure!(
                consumed[&theft.newest.session] == theft.generations,
                "a stolen session was refreshed otherwise"
            );
            let refused = one("auth.sessions.refresh", "session", &theft.newest.session, 1);
            expected.push(Expected { outcome: "denied", ..refused });
        }
        Ok((robbed, stolen, history))
    };
    // In calm weather there is time for what may take no time.
    let ((robbed, stolen, history), quiet) = tokio::try_join!(clients, quiet(world, supervisor))?;
    stop_asking.send_replace(true);
    let thefts: Vec<_> = robbed.iter().map(|theft| theft.newest.session.clone()).collect();
    world.account_for_revocations(ended, robbed, &quiet, supervisor, &mut outcome, &mut expected).await?;
    account_for_rates(world, probers, supervisor.injected(), &mut outcome).await?;
    (outcome.recovered, outcome.lag) = (quiet.recovered, quiet.lag);

    // The audit trail and its log.
    let kept = || checkpoints.lock().unwrap_or_else(PoisonError::into_inner).clone();
    world.verify(&kept()).await?;
    // After it: a log that is broken is told as such, and not by the requests that fail of it.
    let began = world.api.began;
    let late = |from: Duration, to: Duration| {
        supervisor.lag().worst((began + from).into_std(), (began + to).into_std())
    };
    check_failures(&world.failures(), &quiet, late)?;
    outcome.slowest_answer = quiet.check_answers(&world.answers(), late)?;
    outcome.answered_within = quiet.answered_within;
    keeper.await??;
    let trail = world.settle(&expected).await?;
    for session in &thefts {
        ensure!(
            presented(&trail, session)? == 0,
            "a stolen session was ended by another token than the stolen one"
        );
    }
    for session in &stolen {
        check::check_taken(&history, session, presented(&trail, session)?, REFRESHES)?;
    }
    (outcome.entries, outcome.taken_for_thieves) = (trail.len(), stolen.len());
    outcome.checkpoints = kept().len();
    world.verify(&kept()).await?;
    world.logs_are_clean()?;
    Ok(outcome)
}

/// Checks how much an API key was let do, and how little.
async fn account_for_rates(
    world: &World,
    probers: Vec<JoinHandle<anyhow::Result<Vec<check::Asked>>>>,
    injected: &[Injected],
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let mut asked = Vec::new();
    for prober in probers {
        asked.extend(prober.await??);
    }
    let admitted = asked.iter().filter(|request| request.said == Said::Yes);
    let admitted: Vec<_> =
        admitted.map(|request| Admitted { sent: request.sent, answered: request.answered }).collect();
    let disturbances = disturbances(injected, &world.cluster.replicas("gateway"));
    check::check_rate(&admitted, LIMIT, &disturbances)?;
    outcome.rates_checked = check::check_admitted(&asked, LIMIT, &disturbances)?;
    ensure!(outcome.rates_checked > 0, "nobody was refused in calm weather: the limit is not there");
    outcome.admitted = admitted.len();
    Ok(())
}

/// Every failure has a reason that clients are told of, and in calm weather there is none.
fn check_failures(
    failures: &[Failure],
    quiet: &Quiet,
    late: impl Fn(Duration, Duration) -> Duration,
) -> anyhow::Result<()> {
    for failure in failures {
        check_reason(failure)?;
        quiet.check_failure(failure, &late)?;
    }
    Ok(())
}

/// Whether that may be the answer to somebody at all.
fn check_reason(failure: &Failure) -> anyhow::Result<()> {
    let reasons: &[&str] = match failure.status {
        None => return Ok(()),
        Some(503 | 504) => &REASONS,
        Some(429) => &BUSY,
        Some(_) => &[],
    };
    ensure!(
        reasons.contains(&failure.reason.as_str()),
        "a request failed in a way that nobody is told of: {failure:?}"
    );
    Ok(())
}

impl World {
    /// Nobody accepts for too long what has ended, and everybody refuses it in the end.
    async fn account_for_revocations(
        &self,
        ended: Vec<JoinHandle<anyhow::Result<Ended>>>,
        robbed: Vec<Theft>,
        quiet: &Quiet,
        supervisor: &Supervisor,
        outcome: &mut Outcome,
        expected: &mut Vec<Expected>,
    ) -> anyhow::Result<()> {
        let gateways = self.gateways();
        let known_by: Vec<_> = gateways.iter().map(|(name, _)| name.clone()).collect();
        let began = self.api.began;
        let check = |session: &str, acknowledged, bound, probes| {
            let known_by = known_by.clone();
            let session = session.to_owned();
            check::check_revocation(&Revocation { session, acknowledged, bound, probes, known_by })
        };
        let calm = quiet.ended.iter().map(|ended| &ended.session);
        for session in std::iter::once(&quiet.first).chain(calm) {
            expected.push(one("auth.sessions.create", "session", session, 1));
            expected.push(one("auth.sessions.sign_out", "session", session, 1));
        }
        for calm in &quiet.ended {
            let mut probes = calm.probes.clone();
            // Whoever is too busy to have heard itself refuses by the word of whom it asks; by now it has heard.
            probes.extend(revocation::show(&self.api, &gateways, &calm.access).await);
            let slowest = check(&calm.session, calm.acknowledged, quiet.bound(), probes)
                .context("of a session that ended in calm weather")?;
            outcome.slowest_calm_revocation = outcome.slowest_calm_revocation.max(slowest);
        }
        let mut among_faults = Vec::new();
        for ended in ended {
            let ended = ended.await?.context("at a session that is signed out")?;
            expected.push(one("auth.sessions.create", "session", &ended.session, 1));
            expected.push(one("auth.sessions.sign_out", "session", &ended.session, 1));
            among_faults.push(ended);
        }
        among_faults.extend(robbed.into_iter().map(|theft| Ended {
            session: theft.newest.session,
            access: theft.newest.access,
            acknowledged: theft.refused,
            before: Vec::new(),
            probes: theft.probes,
        }));
        for mut ended in among_faults {
            // Whoever was away all the time has heard of it by now.
            ended.probes.extend(revocation::show(&self.api, &gateways, &ended.access).await);
            let from = (began + ended.acknowledged).into_std();
            let lag = supervisor.lag().worst(from, from + revocation::SHOWN);
            let bound = STALE_AFTER + SLACK + lag;
            let slowest = check(&ended.session, ended.acknowledged, bound, ended.probes)
                .context("of a session that ended among faults")?;
            outcome.slowest_revocation = outcome.slowest_revocation.max(slowest);
            outcome.revocations += 1;
        }
        Ok(())
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

    /// Waits until the trail has all that is expected; all of it.
    async fn settle(&self, expected: &[Expected]) -> anyhow::Result<Vec<Logged>> {
        let until = Instant::now() + SETTLE;
        loop {
            let logged = self.trail().await?;
            let missing = check::check_audit(&logged, expected)?;
            if missing.is_empty() {
                return Ok(logged);
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
                    payload: event["payload"].clone(),
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

/// Of which generation the token was that a session was taken for stolen by, as the trail tells.
fn presented(trail: &[Logged], session: &str) -> anyhow::Result<usize> {
    let denied = one("auth.sessions.refresh", "session", session, 1).target;
    let entry = trail.iter().find(|entry| entry.target == denied && entry.outcome == "denied");
    let presented = entry.and_then(|entry| entry.payload["presented_generation"].as_u64());
    Ok(usize::try_from(presented.with_context(|| format!("nothing tells why {session} ended"))?)?)
}

/// So many entries that tell of a success.
fn one(action: &'static str, kind: &str, id: &str, number: usize) -> Expected {
    Expected { action, target: format!("{kind}/{id}"), outcome: "success", number }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Reply;

    const SECOND: Duration = Duration::from_secs(1);

    fn quiet() -> Quiet {
        Quiet {
            from: SECOND * 10,
            recovered: SECOND,
            answered_within: SECOND * 2,
            lag: Duration::ZERO,
            first: String::new(),
            ended: Vec::new(),
        }
    }

    fn failure(status: Option<u16>, reason: &str, sent: u32, answered: u32) -> Failure {
        let (sent, answered, reason) = (SECOND * sent, SECOND * answered, reason.to_owned());
        Failure { what: String::new(), sent, answered, status, reason, is_late: status == Some(504) }
    }

    #[test]
    fn who_is_within_the_limits_is_not_told_to_ask_for_less() {
        let check = |status, reason, sent| {
            check_failures(&[failure(Some(status), reason, sent, sent + 1)], &quiet(), |_, _| Duration::ZERO)
        };
        assert!(check(503, "DRAINING", 1).is_ok() && check(429, "HASHING_BUSY", 1).is_ok());
        for reason in ["RATE_LIMITED", "TOO_MANY_STREAMS", "DRAINING", ""] {
            assert!(check(429, reason, 1).is_err(), "{reason}");
        }
        assert!(check(503, "HASHING_BUSY", 1).is_err() && check(500, "DRAINING", 1).is_err());
        let error = check(429, "HASHING_BUSY", 12).expect_err("it was calm").to_string();
        assert!(error.contains("in calm weather"), "{error}");
    }

    #[test]
    fn only_a_late_machine_excuses_what_is_late() {
        let late = |late: Duration| {
            move |from: Duration, to: Duration| {
                if from == SECOND * 12 && to == SECOND * 16 { late } else { SECOND * 9 }
            }
        };
        let failed = |ms, failure: Failure| {
            check_failures(&[failure], &quiet(), late(Duration::from_millis(ms))).is_err()
        };
        let timeout = || failure(Some(504), "DEADLINE_EXCEEDED", 12, 16);
        assert!(failed(0, timeout()) && failed(500, timeout()) && !failed(501, timeout()));
        assert!(failed(501, failure(Some(503), "DRAINING", 12, 16)));
        // So do others who take the processors, as far as an answer may take longer for it.
        let crowded = |ms, failure: Failure| {
            let quiet = Quiet { answered_within: Duration::from_millis(ms), ..quiet() };
            check_failures(&[failure], &quiet, |_, _| Duration::ZERO).is_err()
        };
        assert!(crowded(3_999, timeout()) && !crowded(4_000, timeout()));
        assert!(crowded(4_000, failure(Some(503), "DRAINING", 12, 16)));
        assert!(crowded(2_500, failure(Some(504), "DEADLINE_EXCEEDED", 12, 14)));

        let took = |ms, sent: u32, answered: u32| {
            let (sent, answered) = (SECOND * sent, SECOND * answered);
            let answer = Reply { what: String::new(), status: 200, sent, answered };
            quiet().check_answers(&[answer], late(Duration::from_millis(ms))).ok()
        };
        // Four seconds are too many unless the machine was late for two of them.
        assert_eq!((took(1_999, 12, 16), took(2_000, 12, 16)), (None, Some(SECOND * 4)));
        // It was sent before.
        assert_eq!(took(0, 9, 11), Some(Duration::ZERO));
    }
}
