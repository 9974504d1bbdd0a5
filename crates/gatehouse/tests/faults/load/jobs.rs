//! Jobs submitted under idempotency keys, and readers of their events.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use eventsource_stream::{EventStreamError, Eventsource as _};
use futures_util::{Stream, StreamExt as _};
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

/// How an answer with events ended.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    /// The job's end was told.
    End,
    /// It said that there is more to come.
    Closed,
    /// It ended well, and told neither.
    Silent,
    /// It broke off, in the middle of an event or of the answer, or nothing was heard for too long.
    Broken { reason: String, is_late: bool },
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
        let failed = |sent, status: Option<StatusCode>, reason: String, is_late| {
            let (what, status) = ("events".to_owned(), status.map(|status| status.as_u16()));
            api.note(Failure { what, sent, answered: api.now(), status, reason, is_late });
        };
        match timeout(SILENCE, request.send()).await {
            Ok(Ok(response)) => match response.status() {
                StatusCode::OK => {
                    let mut heard = Instant::now();
                    match read(response.bytes_stream(), SILENCE, &mut seen, &mut heard).await? {
                        Ending::End => return Ok((seen, resumed)),
                        Ending::Closed => {}
                        Ending::Silent => bail!(
                            "the events ended well, without `end` and without `closed`, at {:?} after {}",
                            api.now(),
                            names(&seen)
                        ),
                        // It was whole when something was heard last.
                        Ending::Broken { reason, is_late } => {
                            failed(heard - api.began, None, reason, is_late);
                        }
                    }
                }
                status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                    let body: Value = response.json().await.unwrap_or_default();
                    let reason = body["reason"].as_str().unwrap_or_default().to_owned();
                    failed(sent, Some(status), reason, status == StatusCode::GATEWAY_TIMEOUT);
                }
                other => bail!("the events were answered {other}: {}", response.text().await?),
            },
            Ok(Err(error)) => failed(sent, None, format!("{error:?}"), error.is_timeout()),
            Err(_) => failed(sent, None, "no answer".to_owned(), true),
        }
        if seen.last().map(|event| event.id) > last {
            until = Instant::now() + PATIENCE;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    bail!("nothing new in {} s after {}", PATIENCE.as_secs(), names(&seen))
}

/// Reads one answer, and notes when something was heard last: longer than `silence` ago is too long.
async fn read<B, E>(
    bytes: impl Stream<Item = Result<B, E>>,
    silence: Duration,
    seen: &mut Vec<Seen>,
    heard: &mut Instant,
) -> anyhow::Result<Ending>
where
    B: AsRef<[u8]>,
    E: std::fmt::Debug,
{
    // Comments are no events: silence is of bytes. It is no end of the answer, so it must not look like one.
    let bytes = Box::pin(bytes);
    let bytes = futures_util::stream::unfold((Some(bytes), heard), |(stream, heard)| async move {
        let mut stream = stream?;
        match timeout(silence, stream.next()).await {
            Ok(next) => {
                *heard = Instant::now();
                Some((next?.map_err(|error| (format!("{error:?}"), false)), (Some(stream), heard)))
            }
            Err(_) => Some((Err(("nothing was heard".to_owned(), true)), (None, heard))),
        }
    });
    let mut events = Box::pin(bytes.eventsource());
    let mut is_end_told = false;
    loop {
        let event = match events.next().await {
            Some(Ok(event)) => event,
            // Who has the end misses nothing.
            _ if is_end_told => return Ok(Ending::End),
            Some(Err(EventStreamError::Transport((reason, is_late)))) => {
                return Ok(Ending::Broken { reason, is_late });
            }
            Some(Err(error)) => bail!("what came is no event stream: {error:?}"),
            None => return Ok(Ending::Silent),
        };
        // Has no id: it says why this answer ends, not what happened to the job.
        if event.event == "closed" {
            return Ok(if is_end_told { Ending::End } else { Ending::Closed });
        }
        let event = Seen::read(&event.id, event.event, &event.data)?;
        // Nobody retries a job here: what comes after its end is found when all is counted.
        is_end_told |= event.is_end();
        seen.push(event);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream::iter;

    use super::*;

    const PROGRESS: &str = "id: 1\nevent: progress\ndata: {}\n\n";
    const END: &str = "id: 2\nevent: end\ndata: {\"state\":\"succeeded\"}\n\n";
    const CLOSED: &str = "retry: 1000\nevent: closed\ndata: {\"reason\":\"DRAINING\"}\n\n";

    async fn ending(chunks: &[Result<&str, &str>]) -> (Ending, Vec<u64>) {
        let (mut seen, mut heard) = (Vec::new(), Instant::now());
        let ending = read(iter(chunks.to_vec()), SILENCE, &mut seen, &mut heard).await.unwrap();
        (ending, seen.into_iter().map(|event| event.id).collect())
    }

    #[tokio::test]
    async fn each_way_in_which_a_stream_ends_is_told_from_the_others() {
        let broken = || Ending::Broken { reason: "\"cut\"".to_owned(), is_late: false };
        assert_eq!(ending(&[Ok(PROGRESS), Ok(END)]).await, (Ending::End, vec![1, 2]));
        assert_eq!(ending(&[Ok(PROGRESS), Ok(END), Err("cut")]).await, (Ending::End, vec![1, 2]));
        assert_eq!(ending(&[Ok(PROGRESS), Ok(CLOSED)]).await, (Ending::Closed, vec![1]));
        assert_eq!(ending(&[Ok(PROGRESS)]).await, (Ending::Silent, vec![1]));
        assert_eq!(ending(&[]).await, (Ending::Silent, vec![]));
        // A piece of an event is none.
        assert_eq!(ending(&[Ok(PROGRESS), Ok(&END[..END.len() - 1])]).await, (Ending::Silent, vec![1]));
        assert_eq!(ending(&[Ok(PROGRESS), Ok(&END[..9]), Err("cut")]).await, (broken(), vec![1]));
        assert_eq!(ending(&[Err("cut")]).await, (broken(), vec![]));
        let (mut seen, began, short) = (Vec::new(), Instant::now(), Duration::from_millis(20));
        let mut heard = began;
        let silent = iter([Ok::<_, ()>(PROGRESS)]).chain(futures_util::stream::pending());
        let late = Ending::Broken { reason: "nothing was heard".to_owned(), is_late: true };
        assert_eq!(read(silent, short, &mut seen, &mut heard).await.unwrap(), late);
        assert!(seen.len() == 1 && heard > began && heard.elapsed() >= short);
    }
}
