//! Clients that outlive the server: they send again what was not answered, as clients must.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use eventsource_stream::{EventStreamError, Eventsource as _};
use futures_util::future::join_all;
use futures_util::{Stream, StreamExt as _};
use gatehouse_testkit::check::{Seen, Successors};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::shared::{Tokens, submission};

/// How long a client keeps trying before the round has failed.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two tries, so that a server that is away is not asked in a tight loop.
const PAUSE: Duration = Duration::from_millis(20);
/// Clients that present the same refresh token at once.
const REFRESHERS: usize = 3;

/// What came of one request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// An answer: status and body.
    Got(StatusCode, Value),
    /// None, or one that was cut off: the request may or may not have been done.
    Lost,
}

/// Talks to whichever process runs now.
#[derive(Clone)]
pub(crate) struct Api {
    http: Client,
    address: watch::Receiver<Option<String>>,
    /// Answers that were lost.
    pub(crate) lost: Arc<AtomicU64>,
    /// Answers 503 and 429 of a process that had said that it is ready.
    pub(crate) put_off: Arc<AtomicU64>,
}

impl Api {
    pub(crate) fn new(address: watch::Receiver<Option<String>>) -> anyhow::Result<Self> {
        let http = Client::builder().connect_timeout(Duration::from_secs(5)).no_proxy().build()?;
        Ok(Self { http, address, lost: Arc::default(), put_off: Arc::default() })
    }

    async fn base(&self) -> anyhow::Result<String> {
        let mut address = self.address.clone();
        let up = tokio::time::timeout(PATIENCE, address.wait_for(Option::is_some)).await;
        up.context("nothing runs")??.clone().context("nothing runs")
    }

    /// One try.
    pub(crate) async fn attempt(
        &self,
        build: impl Fn(&Client, &str) -> RequestBuilder,
    ) -> anyhow::Result<Answer> {
        let base = self.base().await?;
        let sent = build(&self.http, &base).timeout(Duration::from_secs(30)).send().await;
        let Ok(response) = sent else { return Ok(self.lose()) };
        let status = response.status();
        let Ok(text) = response.text().await else { return Ok(self.lose()) };
        Ok(Answer::Got(status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    fn lose(&self) -> Answer {
        self.lost.fetch_add(1, Ordering::Relaxed);
        Answer::Lost
    }

    /// Tries until there is an answer.
    pub(crate) async fn answer(
        &self,
        build: impl Fn(&Client, &str) -> RequestBuilder,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            match self.attempt(&build).await? {
                Answer::Got(StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS, _) => {
                    self.put_off.fetch_add(1, Ordering::Relaxed);
                }
                Answer::Got(status, body) => return Ok((status, body)),
                Answer::Lost => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("no answer in {} s", PATIENCE.as_secs())
    }

    /// Tries until there is an answer, which must be a success.
    pub(crate) async fn done(
        &self,
        build: impl Fn(&Client, &str) -> RequestBuilder,
    ) -> anyhow::Result<Value> {
        let (status, body) = self.answer(build).await?;
        ensure!(status.is_success(), "answered {status}: {body}");
        Ok(body)
    }

    /// Submits a job under an idempotency key; its id.
    pub(crate) async fn submit(&self, token: &str, key: &str) -> anyhow::Result<String> {
        let build = |http: &Client, base: &str| submission(http, base, token, key);
        let job = self.done(build).await.context("a submission")?;
        job["job_id"].as_str().map(str::to_owned).context("a job without id")
    }

    /// GETs `path` as who holds `token`.
    pub(crate) async fn get(&self, token: &str, path: &str) -> anyhow::Result<Value> {
        let build = |http: &Client, base: &str| http.get(format!("{base}{path}")).bearer_auth(token);
        self.done(build).await.with_context(|| path.to_owned())
    }

    /// POSTs `body` to the public `path`.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<(StatusCode, Value)> {
        self.answer(|http, base| http.post(format!("{base}{path}")).json(body)).await
    }

    /// Signs in, for as long as it takes.
    pub(crate) async fn sign_in(&self, credentials: &Value) -> anyhow::Result<Tokens> {
        let (status, body) = self.post("/v1/auth/sign-in", credentials).await?;
        ensure!(status.is_success(), "sign-in was answered {status}: {body}");
        Tokens::read(&body)
    }

    /// Presents a refresh token, for as long as it takes.
    pub(crate) async fn refresh(&self, token: &str) -> anyhow::Result<(StatusCode, Value)> {
        self.post("/v1/auth/refresh", &json!({"refresh_token": token})).await
    }
}

/// Several clients that share a session and refresh it at the same moments, one generation after the other, until
/// `stop`; the newest tokens and how many generations it were. A generation is over when each of them has its answer,
/// so nobody presents a token that is used up.
pub(crate) async fn refresh_until(
    api: Api,
    mut tokens: Tokens,
    successors: Arc<Mutex<Successors>>,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<(Tokens, usize)> {
    for generation in 1.. {
        let last = *stop.borrow();
        tokens = refresh_together(&api, &tokens, REFRESHERS, &successors).await?;
        if last {
            return Ok((tokens, generation));
        }
        tokio::time::sleep(PAUSE).await;
    }
    bail!("more generations than there are numbers")
}

/// `clients` present the same token at once; each must be given the same successor.
pub(crate) async fn refresh_together(
    api: &Api,
    tokens: &Tokens,
    clients: usize,
    successors: &Mutex<Successors>,
) -> anyhow::Result<Tokens> {
    let mut next = None;
    for answer in join_all((0..clients).map(|_| api.refresh(&tokens.refresh))).await {
        let (status, body) = answer?;
        ensure!(status.is_success(), "a refresh within the retry window was answered {status}: {body}");
        let got = Tokens::read(&body)?;
        ensure!(got.session == tokens.session, "a refresh changed the session");
        successors.lock().unwrap_or_else(PoisonError::into_inner).note(&tokens.refresh, &got.refresh)?;
        next = Some(got);
    }
    next.context("no client")
}

/// Reads a job's events to their end, resuming by the last id each time the stream breaks; how often it did.
pub(crate) async fn follow(
    api: Api,
    token: String,
    job: String,
    seen: watch::Sender<Vec<Seen>>,
) -> anyhow::Result<u64> {
    let mut resumed = 0;
    loop {
        let base = api.base().await?;
        let last = seen.borrow().last().map(|event| event.id);
        let mut request = api.http.get(format!("{base}/v1/jobs/{job}/events")).bearer_auth(&token);
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
            resumed += 1;
        }
        if let Ok(response) = request.send().await {
            match response.status() {
                StatusCode::OK => {
                    if read(response.bytes_stream(), &seen).await? {
                        return Ok(resumed);
                    }
                }
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                    api.put_off.fetch_add(1, Ordering::Relaxed);
                }
                other => bail!("the events were answered {other}: {}", response.text().await?),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Reads one answer; `true` at the end of the job, `false` if the answer broke off or said that there is more to come.
///
/// # Errors
/// It ended well, and told neither the job's end nor why it ends.
async fn read<B, E>(
    bytes: impl Stream<Item = Result<B, E>>,
    seen: &watch::Sender<Vec<Seen>>,
) -> anyhow::Result<bool>
where
    B: AsRef<[u8]>,
    E: std::fmt::Debug,
{
    let mut events = Box::pin(bytes.eventsource());
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(EventStreamError::Transport(_)) => return Ok(false),
            Err(error) => bail!("what came is no event stream: {error:?}"),
        };
        // Has no id: it says why this answer ends, not what happened to the job.
        if event.event == "closed" {
            return Ok(false);
        }
        let event = Seen::read(&event.id, event.event, &event.data)?;
        let is_end = event.is_end();
        seen.send_modify(|seen| seen.push(event));
        if is_end {
            return Ok(true);
        }
    }
    bail!("the events ended well, without `end` and without `closed`, after {:?}", seen.borrow().last())
}

#[cfg(test)]
mod tests {
    use futures_util::stream::iter;

    use super::*;

    const PROGRESS: &str = "id: 1\nevent: progress\ndata: {}\n\n";
    const END: &str = "id: 2\nevent: end\ndata: {\"state\":\"succeeded\"}\n\n";
    const CLOSED: &str = "event: closed\ndata: {\"reason\":\"DRAINING\"}\n\n";

    async fn read_all(chunks: &[Result<&str, &str>]) -> Option<bool> {
        read(iter(chunks.to_vec()), &watch::Sender::default()).await.ok()
    }

    #[tokio::test]
    async fn an_answer_that_ends_without_a_word_is_no_break() {
        assert_eq!(read_all(&[Ok(PROGRESS), Ok(END)]).await, Some(true));
        assert_eq!(read_all(&[Ok(PROGRESS), Ok(CLOSED)]).await, Some(false));
        assert_eq!(read_all(&[Ok(PROGRESS), Err("cut")]).await, Some(false));
        assert_eq!(read_all(&[Err("cut")]).await, Some(false));
        assert_eq!((read_all(&[Ok(PROGRESS)]).await, read_all(&[]).await), (None, None));
    }
}
