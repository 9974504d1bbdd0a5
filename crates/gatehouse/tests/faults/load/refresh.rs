//! Sessions that several tabs refresh at the same moments, and thieves.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::future::join_all;
use gatehouse_core::Entropy;
use gatehouse_testkit::check::{Probe, RefreshAnswer, RefreshAttempt};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{pause, revocation};
use crate::client::{Answer, Api, PATIENCE};
use crate::shared::Tokens;

/// How long a request that got no answer may still arrive: longer than two faults after each other, and a drain.
pub(crate) const HELD_BACK: Duration = Duration::from_secs(10);
/// Longest pause between two generations.
const REST: Duration = Duration::from_millis(150);

/// What all sessions saw.
pub(crate) type History = Arc<Mutex<Vec<RefreshAttempt>>>;

/// A session and how its clients behave.
pub(crate) struct Session {
    pub(crate) tokens: Tokens,
    /// Clients that present the same token at once.
    pub(crate) racers: usize,
    /// Whether they let requests without an answer die before they use a successor.
    pub(crate) patient: bool,
    generation: usize,
    /// When a request last got no answer.
    unknown: Option<Instant>,
}

impl Session {
    pub(crate) const fn new(tokens: Tokens, racers: usize, patient: bool) -> Self {
        Self { tokens, racers, patient, generation: 0, unknown: None }
    }

    /// Refreshes until `stop`, and once after it; `None` if the session was taken for stolen.
    ///
    /// Beside the tokens, whether it may be taken for stolen yet: a hasty client left a request without an answer behind, which
    /// may arrive long after the successor was used.
    pub(crate) async fn run(
        mut self,
        api: Api,
        history: History,
        entropy: Entropy,
        stop: watch::Receiver<bool>,
    ) -> anyhow::Result<Option<(Tokens, bool)>> {
        loop {
            let last = *stop.borrow();
            if self.patient
                && let Some(unknown) = self.unknown.take()
            {
                tokio::time::sleep_until(unknown + HELD_BACK).await;
            }
            if !self.refresh(&api, &history).await? {
                return Ok(None);
            }
            if last {
                let was_hasty = !self.patient && self.unknown.is_some();
                return Ok(Some((self.tokens, was_hasty)));
            }
            pause(&entropy, REST).await;
        }
    }

    /// One generation: over when every racer has its answer.
    async fn refresh(&mut self, api: &Api, history: &History) -> anyhow::Result<bool> {
        let racers = (0..self.racers).map(|_| self.present(api, history));
        let mut next = None;
        for answer in join_all(racers).await {
            let (tokens, unknown) = answer?;
            self.unknown = self.unknown.max(unknown);
            // Whoever is refused goes; the checker says whether it was right.
            let Some(tokens) = tokens else { return Ok(false) };
            next = Some(tokens);
        }
        let next = next.context("no client")?;
        ensure!(next.session == self.tokens.session, "a refresh changed the session");
        self.tokens = next;
        self.generation += 1;
        Ok(true)
    }

    /// Presents the token until there is an answer: the tokens, unless it is a refusal, and when a try last got none.
    async fn present(
        &self,
        api: &Api,
        history: &History,
    ) -> anyhow::Result<(Option<Tokens>, Option<Instant>)> {
        let body = json!({"refresh_token": self.tokens.refresh});
        let (until, mut unknown) = (Instant::now() + PATIENCE, None);
        loop {
            let sent = api.now();
            let answer =
                api.attempt(|http, base| http.post(format!("{base}/v1/auth/refresh")).json(&body)).await;
            let (tokens, answer) = match answer {
                Answer::Got(status, body) if status.is_success() => {
                    let tokens = Tokens::read(&body)?;
                    let successor = tokens.refresh.clone();
                    (Some(tokens), RefreshAnswer::Successor(successor))
                }
                Answer::Got(status, body) => {
                    (None, RefreshAnswer::Refused(status.as_u16(), body["reason"].to_string()))
                }
                Answer::Unknown => (None, RefreshAnswer::Unknown),
            };
            let is_settled = answer != RefreshAnswer::Unknown;
            history.lock().unwrap_or_else(PoisonError::into_inner).push(RefreshAttempt {
                session: self.tokens.session.clone(),
                generation: self.generation,
                token: self.tokens.refresh.clone(),
                patient: self.patient,
                sent,
                answered: api.now(),
                answer,
            });
            if is_settled {
                return Ok((tokens, unknown));
            }
            unknown = Some(Instant::now());
            ensure!(Instant::now() < until, "a refresh got no answer in {} s", PATIENCE.as_secs());
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    }
}

/// What a thief saw.
#[derive(Debug)]
pub(crate) struct Theft {
    /// The session's newest tokens.
    pub(crate) newest: Tokens,
    /// How often it was refreshed.
    pub(crate) generations: usize,
    /// When the theft was answered.
    pub(crate) refused: Duration,
    /// Every gateway that was shown the newest access token from then on.
    pub(crate) probes: Vec<Probe>,
}

/// Signs in, refreshes twice, and presents the first token: that must end the session. `None` if it ended before, which the
/// checker of the history judges.
pub(crate) async fn steal(
    api: &Api,
    credentials: &Value,
    history: &History,
    gateways: &[(String, String)],
) -> anyhow::Result<Option<Theft>> {
    let first = api.sign_in(credentials).await?;
    let mut session = Session::new(first.clone(), 1, true);
    for _ in 0..2 {
        if !session.refresh(api, history).await? {
            return Ok(None);
        }
        if let Some(unknown) = session.unknown.take() {
            tokio::time::sleep_until(unknown + HELD_BACK).await;
        }
    }
    let (status, body) = api.post("/v1/auth/refresh", &json!({"refresh_token": first.refresh})).await?;
    ensure!(status == StatusCode::UNAUTHORIZED, "a token that is used up was answered {status}: {body}");
    let refused = api.now();
    let newest = session.tokens;
    let probes = revocation::watch(api, gateways, &newest.access, refused + revocation::SHOWN);
    let refresh = json!({"refresh_token": newest.refresh});
    let (probes, again) = tokio::join!(probes, api.post("/v1/auth/refresh", &refresh));
    let (status, body) = again?;
    ensure!(
        status == StatusCode::UNAUTHORIZED,
        "a session goes on although a used token was presented: {status}, {body}"
    );
    Ok(Some(Theft { newest, generations: 2, refused, probes }))
}
