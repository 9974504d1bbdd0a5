//! Calm weather after the faults: everything comes back by itself, soon, and then nothing fails and nothing is late.

use std::time::Duration;

use anyhow::ensure;
use futures_util::future::{join_all, try_join_all};
use gatehouse_testkit::check::Shown;
use gatehouse_testkit::faults::Supervisor;
use tokio::time::Instant;

use crate::account::FOUND_AGAIN;
use crate::client::Failure;
use crate::load::revocation::{self, Ended};
use crate::world::World;

/// How long whoever is ready may fail to reach what is ready too.
const RECOVERY: Duration = Duration::from_secs(5);
/// How long a session that ended may be accepted, besides what the machine is late.
const CALM: Duration = Duration::from_secs(1);
/// How long a session is shown after it was signed out: longer than that.
const SHOWN: Duration = Duration::from_millis(2_500);
/// How long calm lasts at least after the gateways count together again, for the limits to show.
const COUNTED: Duration = Duration::from_secs(3);
/// Sessions that are signed out.
const SESSIONS: usize = 3;
/// A machine that is so late may let anything run out of time.
const LATE: Duration = Duration::from_millis(500);
/// What each gateway must answer: each needs another service.
const PATHS: [&str; 3] = ["/v1/jobs?page_size=1", "/v1/auth/me", "/v1/audit/events?page_size=1"];

/// What calm weather came to.
#[derive(Debug)]
pub(crate) struct Quiet {
    /// From when on nothing fails.
    pub(crate) from: Duration,
    /// Until when.
    pub(crate) to: Duration,
    /// How long recovery took.
    pub(crate) recovered: Duration,
    /// How late the machine was: the longest that anyone woke too late, or waited for an answer.
    pub(crate) lag: Duration,
    pub(crate) ended: Vec<Ended>,
}

impl Quiet {
    /// How long a session may be accepted after its end.
    pub(crate) fn bound(&self) -> Duration {
        CALM + self.lag
    }

    /// Whether the machine is to blame for a failure.
    pub(crate) fn excuses(&self, failure: &Failure) -> bool {
        failure.is_late && self.lag > LATE
    }
}

/// Waits for recovery, and signs people out.
pub(crate) async fn quiet(world: &World, supervisor: &Supervisor) -> anyhow::Result<Quiet> {
    let (api, gateways) = (&world.api, world.gateways());
    let ready = Instant::now();
    let recovered = gateways.iter().map(|(name, base)| async move {
        let there = api.at(base.clone());
        loop {
            let tried = Instant::now();
            let answers = PATHS.map(|path| {
                let token = &world.owner.access;
                there.once(move |http, base| http.get(format!("{base}{path}")).bearer_auth(token))
            });
            let answers = join_all(answers).await;
            if answers.iter().all(|answer| answer.as_ref().is_some_and(|(status, _)| status.is_success())) {
                return Ok(tried - ready);
            }
            let (from, now) = (ready.into_std(), Instant::now().into_std());
            let meter = supervisor.lag();
            ensure!(
                tried - ready <= RECOVERY * meter.stretch(from, now) + meter.worst(from, now),
                "{name} does not recover: {:?} after everything was ready it answers {answers:?}",
                tried - ready
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let recovered = try_join_all(recovered).await?.into_iter().max().unwrap_or_default();
    let from = api.now();
    let sign_outs = (0..SESSIONS).map(|number| {
        let (api, gateways, credentials) = (api.clone(), gateways.clone(), world.credentials.clone());
        async move {
            tokio::time::sleep(CALM * u32::try_from(number)?).await;
            revocation::run(api, gateways, credentials, SHOWN).await
        }
    });
    let ended = try_join_all(sign_outs).await?;
    tokio::time::sleep_until(ready + FOUND_AGAIN + COUNTED).await;
    let to = api.now();
    let waits =
        ended.iter().flat_map(|ended| &ended.probes).map(|probe| probe.answered.saturating_sub(probe.sent));
    let slowest = waits.max().unwrap_or_default();
    let lag = supervisor.lag().worst((api.began + from).into_std(), Instant::now().into_std());
    let quiet = Quiet { from, to, recovered, lag: lag.max(slowest), ended };
    for ended in &quiet.ended {
        let refused = ended.before.iter().find(|probe| probe.shown != Shown::Accepted);
        ensure!(refused.is_none(), "a session that lives is not let in in calm weather: {refused:?}");
    }
    for probe in quiet.ended.iter().flat_map(|ended| &ended.probes) {
        ensure!(probe.shown != Shown::Silent, "a gateway says nothing in calm weather: {probe:?}");
    }
    Ok(quiet)
}
