//! One client of the cluster: it sends again what was not answered, and knows what it does not know.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::time::Instant;

use crate::shared::Tokens;

/// How long a client waits for one answer.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
/// How long it goes on trying: longer than any plan and the recovery after it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(40);

/// What came of one request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// An answer that settles it: status and body.
    Got(StatusCode, Value),
    /// None, or one that says that it could not be done now: it may have been done all the same.
    Unknown,
}

/// Counts over all clients.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) sent: AtomicU64,
    /// No answer, or one that broke off.
    pub(crate) lost: AtomicU64,
    /// Answers that say to come again: 503, 504 and 429.
    pub(crate) put_off: AtomicU64,
}

/// A request that got an answer, and when.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    #[expect(dead_code, reason = "a failed check shows all of it")]
    pub(crate) what: String,
    pub(crate) status: u16,
    pub(crate) sent: Duration,
    pub(crate) answered: Duration,
}

/// A request that got no answer, or one with a status of 500 or more, or one that says that too much is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    #[expect(dead_code, reason = "a failed check shows all of it")]
    pub(crate) what: String,
    pub(crate) sent: Duration,
    pub(crate) answered: Duration,
    /// None if there was no answer.
    pub(crate) status: Option<u16>,
    pub(crate) reason: String,
    /// Whether the client no longer waited, or a service did not.
    pub(crate) is_late: bool,
}

/// Talks to the balancer. Each request takes a connection of its own, so that replicas take turns.
#[derive(Clone)]
pub(crate) struct Api {
    http: Client,
    base: String,
    pub(crate) counts: Arc<Counts>,
    pub(crate) failures: Arc<Mutex<Vec<Failure>>>,
    /// All that were answered but event streams, failed or not.
    pub(crate) answers: Arc<Mutex<Vec<Reply>>>,
    /// Whether it may be told that it asks for too much.
    is_limited: bool,
    /// When the load began: all times are counted from it.
    pub(crate) began: Instant,
}

impl Api {
    pub(crate) fn new(base: String) -> anyhow::Result<Self> {
        let http = Client::builder().connect_timeout(TIMEOUT).pool_max_idle_per_host(0).no_proxy().build()?;
        let (counts, failures, answers) = (Arc::default(), Arc::default(), Arc::default());
        Ok(Self { http, base, counts, failures, answers, is_limited: false, began: Instant::now() })
    }

    /// The same for whoever asks for more than it may.
    pub(crate) fn limited(&self) -> Self {
        Self { is_limited: true, ..self.clone() }
    }

    /// The same at another address.
    pub(crate) fn at(&self, base: String) -> Self {
        Self { base, ..self.clone() }
    }

    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// A request for `path`, for those who read the answer themselves.
    pub(crate) fn request(&self, build: impl Fn(&Client, &str) -> RequestBuilder) -> RequestBuilder {
        self.counts.sent.fetch_add(1, Ordering::Relaxed);
        build(&self.http, &self.base)
    }

    /// One try, whatever comes. A failure is written down.
    pub(crate) async fn once(
        &self,
        build: impl Fn(&Client, &str) -> RequestBuilder,
    ) -> Option<(StatusCode, Value)> {
        self.once_within(TIMEOUT, build).await
    }

    /// As [`Api::once`], for as long as `limit`.
    pub(crate) async fn once_within(
        &self,
        limit: Duration,
        build: impl Fn(&Client, &str) -> RequestBuilder,
    ) -> Option<(StatusCode, Value)> {
        let (sent, request) = (self.now(), self.request(build).timeout(limit));
        let answered = async {
            let response = request.send().await?;
            let (status, path) = (response.status(), response.url().path().to_owned());
            Ok::<_, reqwest::Error>((status, path, response.text().await?))
        };
        let failed = |what: String, status: Option<StatusCode>, reason: String, is_late: bool| {
            let status = status.map(|status| status.as_u16());
            self.note(Failure { what, sent, answered: self.now(), status, reason, is_late });
        };
        match answered.await {
            Ok((status, path, text)) => {
                let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
                let (what, code, answered) = (path.clone(), status.as_u16(), self.now());
                let answered = Reply { what, status: code, sent, answered };
                self.answers.lock().unwrap_or_else(PoisonError::into_inner).push(answered);
                let is_too_much = status == StatusCode::TOO_MANY_REQUESTS && !self.is_limited;
                if status.is_server_error() || is_too_much {
                    let reason = body["reason"].as_str().map_or_else(|| body.to_string(), str::to_owned);
                    failed(path, Some(status), reason, status == StatusCode::GATEWAY_TIMEOUT);
                }
                Some((status, body))
            }
            Err(error) => {
                let what = error.url().map(|url| url.path().to_owned()).unwrap_or_default();
                failed(what, None, format!("{error:?}"), error.is_timeout());
                None
            }
        }
    }

    /// Writes down a failure.
    pub(crate) fn note(&self, failure: Failure) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
    }

    /// One try.
    pub(crate) async fn attempt(&self, build: impl Fn(&Client, &str) -> RequestBuilder) -> Answer {
        match self.once(build).await {
            None => {
                self.counts.lost.fetch_add(1, Ordering::Relaxed);
                Answer::Unknown
            }
            Some((status, _)) if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                self.counts.put_off.fetch_add(1, Ordering::Relaxed);
                Answer::Unknown
            }
            // Two that did the same at the same moment: one of them is told to come again.
            Some((StatusCode::CONFLICT, body)) if body["reason"] == "REFRESH_RACE" => Answer::Unknown,
            Some((status, body)) => Answer::Got(status, body),
        }
    }

    /// Tries until there is an answer.
    pub(crate) async fn answer(
        &self,
        build: impl Fn(&Client, &str) -> RequestBuilder,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Answer::Got(status, body) = self.attempt(&build).await {
                return Ok((status, body));
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

    /// GETs `path` as who holds `token`, until there is an answer.
    pub(crate) async fn get(&self, token: &str, path: &str) -> anyhow::Result<Value> {
        let build = |http: &Client, base: &str| http.get(format!("{base}{path}")).bearer_auth(token);
        self.done(build).await.with_context(|| path.to_owned())
    }

    /// POSTs `body` to the public `path`, until there is an answer.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<(StatusCode, Value)> {
        self.answer(|http, base| http.post(format!("{base}{path}")).json(body)).await
    }

    /// Signs in, for as long as it takes.
    pub(crate) async fn sign_in(&self, credentials: &Value) -> anyhow::Result<Tokens> {
        let (status, body) = self.post("/v1/auth/sign-in", credentials).await?;
        ensure!(status.is_success(), "sign-in was answered {status}: {body}");
        Tokens::read(&body)
    }
}
