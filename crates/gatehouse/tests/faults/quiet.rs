//! Calm weather after the faults: everything comes back by itself, soon, and then nothing fails and nothing is late.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::ensure;
use futures_util::StreamExt as _;
use futures_util::future::{join_all, try_join_all};
use futures_util::stream::FuturesUnordered;
use gatehouse_testkit::LagMeter;
use gatehouse_testkit::check::Shown;
use gatehouse_testkit::faults::Supervisor;
use reqwest::StatusCode;
use serde_json::Value;
use tokio::time::Instant;

use crate::account::FOUND_AGAIN;
use crate::client::{Failure, Reply, TIMEOUT};
use crate::load::revocation::{self, Ended};
use crate::shared::Tokens;
use crate::world::World;

/// How long whoever is ready may fail to reach what is ready too.
const RECOVERY: Duration = Duration::from_secs(5);
/// Between two looks whether a gateway reaches everything. None waits for the one before it, which may hang.
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);
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
    /// How long recovery took.
    pub(crate) recovered: Duration,
    /// How long an answer may take: longer where others take the processors.
    pub(crate) answered_within: Duration,
    /// The longest that the machine was late meanwhile, as the meter says; what is tested has no say in it.
    pub(crate) lag: Duration,
    /// The session that ended first, by which it showed who hears of such things again.
    pub(crate) first: String,
    pub(crate) ended: Vec<Ended>,
}

impl Quiet {
    /// How long a session may be accepted after its end.
    pub(crate) fn bound(&self) -> Duration {
        CALM + self.lag
    }

    /// What the slowest answer took. What failed is no answer here: [`Quiet::check_failure`] judges it.
    ///
    /// # Errors
    /// One took longer than it may on a machine that was as late meanwhile as `late` says.
    pub(crate) fn check_answers(
        &self,
        answers: &[Reply],
        late: impl Fn(Duration, Duration) -> Duration,
    ) -> anyhow::Result<Duration> {
        let mut slowest = Duration::ZERO;
        for answer in answers.iter().filter(|answer| answer.sent >= self.from && answer.status < 500) {
            let took = answer.answered.saturating_sub(answer.sent);
            let late = late(answer.sent, answer.answered);
            ensure!(
                took <= self.answered_within + late,
                "an answer took {took:?} in calm weather, and {:?} is the bound on a machine that was {late:?} late: {answer:?}",
                self.answered_within
            );
            slowest = slowest.max(took);
        }
        Ok(slowest)
    }

    /// # Errors
    /// Something failed in calm weather, and not because the machine left it so little time.
    pub(crate) fn check_failure(
        &self,
        failure: &Failure,
        late: impl Fn(Duration, Duration) -> Duration,
    ) -> anyhow::Result<()> {
        let Failure { sent, answered, is_late, .. } = *failure;
        let (took, late) = (answered.saturating_sub(sent), late(sent, answered));
        // A service gives up after 2 to 3 s here: where others keep the processors busy, an answer may take that long.
        let is_crowded =
            self.answered_within > LagMeter::ANSWERED + LATE && took <= self.answered_within + late;
        let is_excused = sent < self.from || (is_late && (late > LATE || is_crowded));
        ensure!(
            is_excused,
            "a request failed in calm weather, on a machine that was {late:?} late, where {:?} bound an answer: {failure:?}",
            self.answered_within
        );
        Ok(())
    }
}

/// How long after `ready` whoever was asked may have failed, on a machine that was as busy as this one since.
fn recovery(ready: Instant, meter: &LagMeter) -> Duration {
    let (from, now) = (ready.into_std(), Instant::now().into_std());
    RECOVERY * meter.stretch(from, now) + meter.worst(from, now)
}

/// From when on nothing fails: from when all that was looked at had recovered, and at the latest from when it must have.
fn calm(recovered: Duration, ready: Duration, recovery: Duration) -> Duration {
    recovered.min(ready + recovery)
}

/// What a look at a gateway found: whether that was all there is to find, or what is not well, and how long after all was
/// ready it may have been asked so.
type Seen = Result<bool, (String, Duration)>;

/// Looks at one gateway again and again until all is well; when, after all was ready, it was first asked so. Ends when
/// nothing that was asked before is under way any more.
async fn settles<F: Future<Output = Seen>>(
    name: &str,
    ready: Instant,
    look: impl Fn() -> F,
) -> anyhow::Result<Duration> {
    let look = |asked: Duration| {
        let look = look();
        async move { (asked, look.await, ready.elapsed()) }
    };
    let (mut looks, mut next) = (FuturesUnordered::new(), tokio::time::interval(BETWEEN_LOOKS));
    let (mut settled, mut failed) = (None::<Duration>, None);
    while settled.is_none() || !looks.is_empty() {
        let (asked, seen, over) = tokio::select! {
            Some(look) = looks.next(), if !looks.is_empty() => look,
            _ = next.tick(), if settled.is_none() => {
                looks.push(look(ready.elapsed()));
                continue;
            }
        };
        match seen {
            Ok(true) => settled = Some(settled.map_or(asked, |first| first.min(asked))),
            Ok(false) => {}
            Err((wrong, bound)) => {
                ensure!(
                    asked <= bound,
                    "{name} does not recover: asked {asked:?} after everything was ready, and {bound:?} is the bound, {wrong}"
                );
                failed = failed.max(Some((asked, over, wrong)));
            }
        }
    }
    let mut settled = settled.unwrap_or_default();
    if let Some((asked, over, wrong)) = failed {
        println!("{name} was asked in vain last after {asked:?}, and after {over:?}: {wrong}");
        // It answered what it was asked before, and did not reach everything yet.
        settled = settled.max(asked);
    }
    Ok(settled)
}

/// A session that ended after all was ready, and when.
type Over = OnceLock<(Tokens, Instant)>;

/// Waits until one gateway reaches every service, and knows that the session is over.
///
/// Without that a gateway that last heard of revocations before the faults ended would do, until that is too long ago.
async fn recovers(
    (name, base): &(String, String),
    world: &World,
    over: &Over,
    ready: Instant,
    meter: &LagMeter,
) -> anyhow::Result<Duration> {
    let (api, token, gateway) = (&world.api, &world.owner.access, [(name.clone(), base.clone())]);
    let there = api.at(base.clone());
    let look = || async {
        let answers = PATHS
            .map(|path| there.once(move |http, base| http.get(format!("{base}{path}")).bearer_auth(token)));
        let over = over.get();
        let shown = async {
            let Some((tokens, _)) = over else { return Vec::new() };
            revocation::show_within(TIMEOUT, api, &gateway, &tokens.access).await
        };
        let (answers, shown) = tokio::join!(join_all(answers), shown);
        let is_well = |answer: &Option<(StatusCode, Value)>| {
            answer.as_ref().is_some_and(|(status, _)| status.is_success())
        };
        if !answers.iter().all(is_well) {
            let answers = answers.into_iter().map(|answer| {
                answer.map(|(status, body)| {
                    format!("{} {}", status.as_u16(), body["reason"].as_str().unwrap_or(""))
                })
            });
            let wrong = format!("it answers {:?}", answers.collect::<Vec<_>>());
            return Err((wrong, recovery(ready, meter)));
        }
        let Some((_, ended)) = over else { return Ok(false) };
        if shown.iter().all(|probe| probe.shown == Shown::Revoked) {
            return Ok(true);
        }
        let late = meter.worst(ended.into_std(), Instant::now().into_std());
        let bound = recovery(ready, meter).max(ended.duration_since(ready) + CALM + late);
        Err((format!("it has not heard of a revocation: {shown:?}"), bound))
    };
    settles(name, ready, look).await
}

/// Waits for recovery, and signs people out.
pub(crate) async fn quiet(world: &World, supervisor: &Supervisor) -> anyhow::Result<Quiet> {
    let (api, gateways, meter) = (&world.api, world.gateways(), supervisor.lag());
    let (ready, over) = (Instant::now(), Over::new());
    let recovered = gateways.iter().map(|gateway| recovers(gateway, world, &over, ready, meter));
    let sign_out = async {
        let tokens = api.sign_in(&world.credentials).await?;
        revocation::sign_out(api, &tokens).await?;
        anyhow::Ok(over.get_or_init(|| (tokens, Instant::now())).0.session.clone())
    };
    let (recovered, first) = tokio::try_join!(try_join_all(recovered), sign_out)?;
    let recovered = recovered.into_iter().max().unwrap_or_default();
    // Whoever signs in or out tries again; a try that comes too late may not fail either.
    let from = calm(api.now(), ready.duration_since(api.began), recovery(ready, meter));
    let sign_outs = (0..SESSIONS).map(|number| {
        let (api, gateways, credentials) = (api.clone(), gateways.clone(), world.credentials.clone());
        async move {
            tokio::time::sleep(CALM * u32::try_from(number)?).await;
            revocation::run(api, gateways, credentials, SHOWN).await
        }
    });
    let ended = try_join_all(sign_outs).await?;
    tokio::time::sleep_until(ready + FOUND_AGAIN + COUNTED).await;
    let (began, now) = ((api.began + from).into_std(), Instant::now().into_std());
    let (answered_within, lag) = (meter.answered_within(began, now), meter.worst(began, now));
    let quiet = Quiet { from, recovered, answered_within, lag, first, ended };
    for ended in &quiet.ended {
        let refused = ended.before.iter().find(|probe| probe.shown != Shown::Accepted);
        ensure!(refused.is_none(), "a session that lives is not let in in calm weather: {refused:?}");
    }
    for probe in quiet.ended.iter().flat_map(|ended| &ended.probes) {
        ensure!(probe.shown != Shown::Silent, "a gateway says nothing in calm weather: {probe:?}");
    }
    Ok(quiet)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What comes of a gateway that answers well what it is asked after so many times, each after `takes`.
    async fn settled(times: u32, takes: Duration, bound: Duration) -> anyhow::Result<Duration> {
        let asked = Cell::new(0);
        let look = || {
            asked.set(asked.get() + 1);
            let is_well = asked.get() > times;
            async move {
                tokio::time::sleep(takes).await;
                if is_well { Ok(true) } else { Err(("away".to_owned(), bound)) }
            }
        };
        settles("a gateway", Instant::now(), look).await
    }

    #[tokio::test]
    async fn whoever_is_asked_too_late_answers_well() {
        for takes in [Duration::ZERO, SECOND * 2] {
            assert!(settled(3, takes, SECOND * 60).await.expect("in time") >= BETWEEN_LOOKS * 3);
            let error = settled(6, takes, BETWEEN_LOOKS * 4).await.expect_err("too late").to_string();
            assert!(error.contains("does not recover"), "{error}");
        }
    }

    #[test]
    fn nothing_is_excused_for_long() {
        let (ready, early, late) = (SECOND * 12, SECOND * 14, SECOND * 40);
        assert_eq!(calm(early, ready, RECOVERY), early);
        assert_eq!(calm(late, ready, RECOVERY), ready + RECOVERY);
    }
}
