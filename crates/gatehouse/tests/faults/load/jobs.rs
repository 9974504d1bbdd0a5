//! Jobs submitted under idempotency keys, and readers of their events.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use eventsource_stream::Eventsource as _;
use futures_util::StreamExt as _;
use gatehouse_testkit::check::{Seen, Told, check_events};
use reqwest::{Client, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::client::{Api, Failure, PATIENCE};
use crate::shared::submission;

/// Most iterations of a job here; jobs ask for more, so that each is told once that they were clamped.
pub(crate) const ITERATIONS: usize = 50;
/// A reader that hears nothing for so long, not even a comment, connects anew. The gateway sends one each second here.
const SILENCE: Duration = Duration::from_secs(4);

/// A job that came to its end.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) id: String,
    pub(crate) key: String,
    pub(crate) told: Told,
    pub(crate) result: Value,
    pub(crate) resumed: u64,
}

/// Submits a job, follows it to its end and fetches what came of it.
pub(crate) async fn run(api: Api, token: String, key: String) -> anyhow::Result<Done> {
    let id = submit(&api, &token, &key).await?;
    let at = || format!("job {id} of key {key}");
    let (seen, resumed) = follow(&api, &token, &id).await.with_context(at)?;
    let told = check_events(&seen).with_context(|| format!("{}; its reader saw {}", at(), names(&seen)))?;
    ensure!(told.state == "succeeded", "{} ended as {}", at(), told.state);
    ensure!(told.progress.len() == ITERATIONS, "{} told of {} iterations", at(), told.progress.len());
    let job = api.get(&token, &format!("/v1/jobs/{id}")).await.with_context(at)?;
    ensure!(job["state"] == "succeeded", "{} is {job}", at());
    ensure!(job["last_sequence"] == told.last, "the last event of {job} was told as {}", told.last);
    let result = api.get(&token, &format!("/v1/jobs/{id}/result")).await.with_context(at)?;
    let again = submit(&api, &token, &key).await?;
    ensure!(again == id, "key {key} gave job {id}, and later job {again}");
    Ok(Done { id, key, told, result, resumed })
}

fn names(seen: &[Seen]) -> String {
    seen.iter().map(|event| format!("{}:{}", event.id, event.name)).collect::<Vec<_>>().join(" ")
}

async fn submit(api: &Api, token: &str, key: &str) -> anyhow::Result<String> {
    let build = |http: &Client, base: &str| submission(http, base, token, key);
    let job = api.done(build).await.with_context(|| format!("submission of {key}"))?;
    job["job_id"].as_str().map(str::to_owned).context("a job without id")
}

/// Reads events to their end, resuming by the last id each time the stream breaks; how often it did.
async fn follow(api: &Api, token: &str, job: &str) -> anyhow::Result<(Vec<Seen>, u64)> {
    let (mut seen, mut resumed): (Vec<Seen>, u64) = (Vec::new(), 0);
    let mut until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let last = seen.last().map(|event| event.id);
        let request = api.request(|http, base| {
            let request = http.get(format!("{base}/v1/jobs/{job}/events")).bearer_auth(token);
            match last {
                Some(last) => request.header("Last-Event-ID", last),
                None => request,
            }
        });
        resumed += u64::from(last.is_some());
        let sent = api.now();
        if let Ok(Ok(response)) = timeout(SILENCE, request.send()).await {
            match response.status() {
                StatusCode::OK => {
                    if read(response, &mut seen).await? {
                        return Ok((seen, resumed));
                    }
                }
                status if status.is_server_error() => {
                    let body: Value = response.json().await.unwrap_or_default();
                    let reason = body["reason"].as_str().unwrap_or_default().to_owned();
                    let (what, is_late) = ("events".to_owned(), status == StatusCode::GATEWAY_TIMEOUT);
                    let (answered, status) = (api.now(), Some(status.as_u16()));
                    api.note(Failure { what, sent, answered, status, reason, is_late });
                }
                StatusCode::TOO_MANY_REQUESTS => {}
                other => bail!("the events were answered {other}: {}", response.text().await?),
            }
        }
        if seen.last().map(|event| event.id) > last {
            until = Instant::now() + PATIENCE;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    bail!("nothing new in {} s after {}", PATIENCE.as_secs(), names(&seen))
}

/// Reads one answer; `true` at the end of the job, `false` if the answer broke off.
async fn read(response: reqwest::Response, seen: &mut Vec<Seen>) -> anyhow::Result<bool> {
    // Comments are no events: silence is of bytes.
    let bytes = futures_util::stream::unfold(Some(response.bytes_stream()), |stream| async move {
        let mut stream = stream?;
        let next = timeout(SILENCE, stream.next()).await.ok()??;
        Some((next, Some(stream)))
    });
    let mut events = Box::pin(bytes.eventsource());
    while let Some(Ok(event)) = events.next().await {
        // Has no id: it says why this answer ends, not what happened to the job.
        if event.event == "closed" {
            return Ok(false);
        }
        let event = Seen::read(&event.id, event.event, &event.data)?;
        let is_end = event.is_end();
        seen.push(event);
        if is_end {
            return Ok(true);
        }
    }
    Ok(false)
}
