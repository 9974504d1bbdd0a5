//! Server-sent events against a job service that breaks, repeats itself, falls silent and floods.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use gatehouse_client::to_status;
use gatehouse_core::Error;
use gatehouse_proto::auth::v1::RevocationKind;
use gatehouse_proto::job::v1::JobEventType;
use gatehouse_testkit::eventually;
use support::{JOB, World};
use tonic::Status;

#[derive(Debug, PartialEq)]
struct Event {
    id: Option<i64>,
    name: String,
    data: String,
}

/// The events of a whole stream, or of its first `most`.
fn parse(text: &str) -> Vec<Event> {
    let mut events = Vec::new();
    for block in text.split("\n\n") {
        let field = |name: &str| {
            let lines = block.lines().filter_map(|line| line.strip_prefix(name).map(str::to_owned));
            lines.collect::<Vec<_>>().join("\n")
        };
        if block.contains("event: ") {
            events.push(Event {
                id: field("id: ").parse().ok(),
                name: field("event: "),
                data: field("data: "),
            });
        }
    }
    events
}

fn path(after: &str) -> String {
    format!("/v1/jobs/{JOB}/events{after}")
}

/// Reads until `done` says so, or the stream ends.
async fn read_until(answer: reqwest::Response, done: impl Fn(&[Event]) -> bool) -> (Vec<Event>, bool) {
    let mut stream = answer.bytes_stream();
    let mut text = String::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(20), stream.next()).await.expect("news in time");
        let Some(chunk) = next else { return (parse(&text), true) };
        text.push_str(std::str::from_utf8(&chunk.expect("a chunk")).expect("UTF-8"));
        let events = parse(text.rsplit_once("\n\n").map_or("", |(whole, _)| whole));
        if done(&events) {
            return (events, false);
        }
    }
}

fn ids(events: &[Event]) -> Vec<i64> {
    events.iter().filter_map(|event| event.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_named_numbered_and_end_last() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    world.event(JobEventType::Queued, "{}");
    world.event(JobEventType::Started, "{}");
    world.event(JobEventType::Progress, "{\n\"best\": 1\n}");
    let answer = world.get(&path("")).bearer_auth(&token).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    for (name, value) in [
        ("content-type", "text/event-stream; charset=utf-8"),
        ("cache-control", "no-store"),
        ("x-accel-buffering", "no"),
        ("connection", "keep-alive"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(answer.headers().get(name).map(|found| found.to_str().unwrap()), Some(value), "{name}");
    }
    let reading = tokio::spawn(read_until(answer, |_| false));
    world.event(JobEventType::End, r#"{"state":"succeeded"}"#);
    let (events, ended) = reading.await.unwrap();
    assert!(ended);
    assert_eq!(ids(&events), [1, 2, 3, 4]);
    let names: Vec<_> = events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["queued", "started", "progress", "end"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&events[2].data).unwrap()["best"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_resumes_after_the_last_id() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    for _ in 0..5 {
        world.event(JobEventType::Progress, "{}");
    }
    world.event(JobEventType::End, "{}");
    let by_header = world.get(&path("?after=1")).header("last-event-id", "3").bearer_auth(&token);
    let (events, _) = read_until(by_header.send().await.unwrap(), |_| false).await;
    assert_eq!(ids(&events), [4, 5, 6]);
    let by_query = world.get(&path("?after=5")).bearer_auth(&token);
    let (events, _) = read_until(by_query.send().await.unwrap(), |_| false).await;
    assert_eq!(ids(&events), [6]);
    for wrong in ["x", "-1", "1.5", "99999999999999999999"] {
        let answer =
            world.get(&path("")).header("last-event-id", wrong).bearer_auth(&token).send().await.unwrap();
        assert_eq!(answer.status(), 400, "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_has_it_all_is_told_to_stop() {
    let world = World::start_with(|config| config.sse.reconnect_for_s = 1).await;
    let (token, _) = world.person(300);
    let resume =
        |after: &'static str| world.get(&path("")).header("last-event-id", after).bearer_auth(&token);
    world.event(JobEventType::Queued, "{}");
    // The job goes on: nothing new yet is no end.
    let waiting = resume("1").send().await.unwrap();
    assert_eq!(waiting.status(), 200);
    world.event(JobEventType::End, "{}");
    let (events, ended) = read_until(waiting, |_| false).await;
    assert!(ended && ids(&events) == [2], "{events:?}");
    // An EventSource comes back after any end but this one (HTML standard, section 9.2.3).
    let over = resume("2").send().await.unwrap();
    assert_eq!((over.status().as_u16(), over.bytes().await.unwrap().len()), (204, 0));
    let (beyond, by_query) =
        (resume("3").send().await.unwrap(), world.get(&path("?after=3")).bearer_auth(&token));
    for (answer, field) in [(beyond, "Last-Event-ID"), (by_query.send().await.unwrap(), "after")] {
        assert_eq!(answer.status(), 400);
        let problem: serde_json::Value = answer.json().await.unwrap();
        assert_eq!(
            (&problem["reason"], &problem["errors"][0]["field"]),
            (&"INVALID_FIELD".into(), &field.into())
        );
    }
}

/// Whatever lies between may end a stream well: the events are over when the end was told, and not before.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_well_without_the_end_is_looked_for_again() {
    let world = World::start_with(|config| config.sse.reconnect_for_s = 30).await;
    let (token, _) = world.person(300);
    for _ in 0..4 {
        world.event(JobEventType::Progress, "{}");
    }
    world.event(JobEventType::End, "{}");
    world.services.lock().breaks.extend([(1, None), (0, None), (2, None)]);
    let answer = world.get(&path("")).bearer_auth(&token).send().await.unwrap();
    let (events, ended) = read_until(answer, |_| false).await;
    assert!(ended && ids(&events) == [1, 2, 3, 4, 5], "{events:?}");
    assert!(events.iter().all(|event| event.name != "closed"), "{events:?}");
    assert_eq!(world.services.lock().cursors, [0, 1, 1, 3]);
}

/// The end of an attempt that was retried is not the last.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_is_the_last_only_until_a_retry() {
    let world = World::start_with(|config| config.sse.reconnect_for_s = 1).await;
    let (token, _) = world.person(300);
    world.services.lock().retried = 1;
    world.event(JobEventType::End, "{}");
    world.event(JobEventType::Queued, "{}");
    // It ends well in the middle of the second life, and again: who does not come back with news is given up.
    world.services.lock().breaks.extend([(2, None)]);
    world.services.lock().breaks.extend(std::iter::repeat_n((0, None), 200));
    let answer = world.get(&path("")).bearer_auth(&token).send().await.unwrap();
    let (events, ended) = read_until(answer, |_| false).await;
    assert!(ended && ids(&events) == [1, 2], "{events:?}");
    assert!(events.last().unwrap().data.contains("SERVICE_UNAVAILABLE"), "{events:?}");
    world.services.lock().breaks.clear();
    world.event(JobEventType::End, "{}");
    // A break after the end is looked behind: there may be a retry.
    world.services.lock().breaks.push_back((3, Some(Status::unavailable("gone"))));
    let answer = world.get(&path("")).bearer_auth(&token).send().await.unwrap();
    let (events, ended) = read_until(answer, |_| false).await;
    assert!(ended && ids(&events) == [1, 2, 3], "{events:?}");
    assert!(events.iter().all(|event| event.name != "closed"), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_finds_the_job_service_again_without_gap_or_repeat() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    for _ in 0..20 {
        world.event(JobEventType::Progress, "{}");
    }
    world.event(JobEventType::End, "{}");
    {
        let mut script = world.services.lock();
        // Repeats from the first each time; breaks by status, by refusal.
        script.repeats = true;
        script.breaks.extend([
            (3, Some(Status::unavailable("gone"))),
            (9, Some(to_status(&Error::unavailable("SERVICE_STOPPING", "Draining.")))),
            (12, Some(Status::unknown("h2 protocol error"))),
            (15, Some(Status::internal("oops"))),
        ]);
    }
    let answer = world.get(&path("")).bearer_auth(&token).send().await.unwrap();
    world.fail("WatchJobEvents", Status::unavailable("restarting"));
    let (events, ended) = read_until(answer, |_| false).await;
    assert!(ended);
    assert_eq!(ids(&events), (1..=21).collect::<Vec<_>>());
    assert_eq!(events.last().unwrap().name, "end");
    assert_eq!(world.services.lock().cursors.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_stays_away_ends_the_answer_so_that_the_reader_resumes() {
    let world = World::start_with(|config| config.sse.reconnect_for_s = 1).await;
    let (token, _) = world.person(300);
    world.event(JobEventType::Queued, "{}");
    world.services.lock().breaks.push_back((1, Some(Status::unavailable("gone"))));
    for _ in 0..200 {
        world.fail("WatchJobEvents", Status::unavailable("still away"));
    }
    let first = world.services.lock().failures.remove("WatchJobEvents").unwrap();
    let answer = world.get(&path("")).bearer_auth(&token).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    world.services.lock().failures.insert("WatchJobEvents", first);
    let (events, ended) = read_until(answer, |_| false).await;
    assert!(ended);
    assert_eq!(ids(&events), [1]);
    let last = events.last().unwrap();
    assert_eq!((last.name.as_str(), last.id), ("closed", None));
    assert!(last.data.contains("SERVICE_UNAVAILABLE"), "{}", last.data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_a_plain_error_answer() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    world.fail("WatchJobEvents", to_status(&Error::not_found("JOB_NOT_FOUND", "No such job.")));
    let answer = world.get(&path("")).bearer_auth(&token).send().await.unwrap();
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_and_expiry_end_a_stream() {
    let world = World::start().await;
    world.event(JobEventType::Queued, "{}");
    let (token, claims) = world.person(300);
    let answer = world.get(&path("")).bearer_auth(&token).send().await.unwrap();
    let reading = tokio::spawn(read_until(answer, |_| false));
    world.revoke(RevocationKind::Person, &claims.sub);
    let (events, ended) = reading.await.unwrap();
    assert!(ended && events.last().unwrap().data.contains("CREDENTIAL_REVOKED"), "{events:?}");

    let (token, _) = world.person(3);
    let answer = world.get(&path("")).bearer_auth(&token).send().await.unwrap();
    let (events, ended) = read_until(answer, |_| false).await;
    assert!(ended && events.last().unwrap().data.contains("CREDENTIAL_EXPIRED"), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_ends_streams_with_a_hint_and_loses_nothing() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    for _ in 0..10 {
        world.event(JobEventType::Progress, "{}");
    }
    let answer = world.get(&path("")).bearer_auth(&token).send().await.unwrap();
    let (lifecycle, began) = (world.lifecycle.clone(), Instant::now());
    let reading = tokio::spawn(read_until(answer, |_| false));
    eventually(Duration::from_secs(5), || async { world.calls("WatchJobEvents") == 1 }).await;
    assert!(lifecycle.drain(Duration::from_secs(10)).await, "a stream kept the gateway from draining");
    assert!(began.elapsed() < Duration::from_secs(8));
    let (events, ended) = reading.await.unwrap();
    assert!(ended);
    // A prefix, in order; the rest is resumed elsewhere.
    let seen = ids(&events);
    assert_eq!(seen, (1..=i64::try_from(seen.len()).unwrap()).collect::<Vec<_>>());
    assert!(events.last().unwrap().data.contains("DRAINING"), "{events:?}");
}

/// The fields `connection` of an answer to `GET` of the events, and whatever `extra` the request says.
fn connection_fields(world: &World, token: &str, extra: &str) -> Vec<String> {
    let mut socket = TcpStream::connect(world.gateway.address()).expect("a connection");
    let request = format!("GET {} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n{extra}", path(""));
    socket.write_all(request.as_bytes()).expect("sent");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("UTF-8").to_ascii_lowercase();
    head.lines().filter_map(|line| line.strip_prefix("connection: ").map(str::to_owned)).collect()
}

/// A gateway that begins to leave while it opens a stream says one thing of the connection, not two.
#[tokio::test(flavor = "multi_thread")]
async fn the_head_says_keep_alive_or_close_and_never_both() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    let fields = |extra: &str| tokio::task::block_in_place(|| connection_fields(&world, &token, extra));
    world.event(JobEventType::Progress, "{}");
    assert_eq!(fields("\r\n"), ["keep-alive"]);
    assert_eq!(fields("connection: close\r\n\r\n"), ["close"]);
    // What was not read of the request would be taken for the next.
    assert_eq!(fields("content-length: 70000\r\n\r\nx"), ["close"]);
    world.lifecycle.leave();
    assert_eq!(fields("\r\n"), ["close"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_nothing_is_cut_off_and_costs_no_memory() {
    let world = World::start_with(|config| {
        config.sse.queue_maxsize = 4;
        config.sse.backpressure_fail_timeout_s = 1;
    })
    .await;
    let (token, _) = world.person(300);
    let big = format!(r#"{{"pad":"{}"}}"#, "x".repeat(16 * 1024));
    for _ in 0..2000 {
        world.event(JobEventType::Progress, &big);
    }
    let mut socket = TcpStream::connect(world.gateway.address()).unwrap();
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n",
        path("")
    );
    socket.write_all(request.as_bytes()).unwrap();
    // The gateway stops reading from the job service: its stream there is closed although most was not sent.
    eventually(Duration::from_secs(20), || async {
        world.services.watchers() == 0 && world.calls("WatchJobEvents") == 1
    })
    .await;
    // What the reader finds when it reads again is a prefix without a gap.
    let mut text = Vec::new();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let _ = tokio::task::block_in_place(|| socket.read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    let seen: Vec<i64> = text.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect();
    assert!(!seen.is_empty() && seen.len() < 2000, "{} events", seen.len());
    assert_eq!(seen, (1..=i64::try_from(seen.len()).unwrap()).collect::<Vec<_>>());
    let last = seen.len();
    let again = world.get(&path(&format!("?after={last}"))).bearer_auth(&token).send().await.unwrap();
    let next = i64::try_from(last).unwrap() + 1;
    let (events, _) = read_until(again, |events| !events.is_empty()).await;
    assert_eq!(events[0].id, Some(next));
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_filled_with_comments_and_a_reader_gone_is_noticed() {
    let world = World::start_with(|config| config.sse.keep_alive_s = 1).await;
    let (token, _) = world.person(300);
    let answer = world.get(&path("")).bearer_auth(&token).send().await.unwrap();
    let mut stream = answer.bytes_stream();
    let mut text = String::new();
    while !text.contains(": keep-alive") {
        text.push_str(std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap());
    }
    assert!(text.starts_with("retry: "), "{text}");
    assert_eq!(world.services.watchers(), 1);
    drop(stream);
    eventually(Duration::from_secs(10), || async { world.services.watchers() == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_bounded() {
    let world = World::start_with(|config| config.sse.max_streams = 1).await;
    let (token, _) = world.person(300);
    let first = world.get(&path("")).bearer_auth(&token).send().await.unwrap();
    let second = world.get(&path("")).bearer_auth(&token).send().await.unwrap();
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 429));
    world.event(JobEventType::End, "{}");
    read_until(first, |_| false).await;
    eventually(Duration::from_secs(5), || async {
        world.get(&path("")).bearer_auth(&token).send().await.unwrap().status() == 200
    })
    .await;
}

/// The answer to `GET` of a job's events, until its head.
async fn open(world: &World, job: &str, token: &str) -> reqwest::Response {
    world.get(&format!("/v1/jobs/{job}/events")).bearer_auth(token).send().await.expect("an answer")
}

async fn is_refused(answer: reqwest::Response, whose: &str) {
    assert_eq!(answer.status(), 429);
    let problem: serde_json::Value = answer.json().await.expect("JSON");
    assert_eq!(problem["reason"], "TOO_MANY_STREAMS");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(whose)), "{problem}");
}

const OTHER_JOB: &str = "0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5f";

#[tokio::test(flavor = "multi_thread")]
async fn nobody_may_open_streams_without_bound() {
    let world = World::start_with(|config| {
        // A reader who went away is noticed by it.
        config.sse.keep_alive_s = 1;
        config.sse.max_streams_per_caller = 2;
        config.sse.max_streams_per_tenant = 3;
    })
    .await;
    let (ada, claims) = world.person(300);
    let tenant = claims.tid.unwrap();
    let (bob, _) = world.person_in(tenant, 300);
    let (eve, _) = world.person(300);
    let first = open(&world, JOB, &ada).await;
    let second = open(&world, OTHER_JOB, &ada).await;
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200));
    is_refused(open(&world, JOB, &ada).await, "You have").await;
    let third = open(&world, JOB, &bob).await;
    assert_eq!(third.status(), 200);
    is_refused(open(&world, JOB, &bob).await, "The tenant has").await;
    let elsewhere = open(&world, JOB, &eve).await;
    assert_eq!(elsewhere.status(), 200, "another tenant pays for it");
    let (key, _) = world.api_key();
    let by_key = || world.get(&path("")).header("x-api-key", &key).send();
    let held = (by_key().await.unwrap(), by_key().await.unwrap());
    assert_eq!((held.0.status().as_u16(), held.1.status().as_u16()), (200, 200));
    is_refused(by_key().await.unwrap(), "You have").await;
    // What was refused holds nothing, and what is closed is given back.
    drop(first);
    eventually(Duration::from_secs(10), || async { open(&world, JOB, &bob).await.status() == 200 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_has_so_many_readers() {
    let world = World::start_with(|config| {
        config.sse.keep_alive_s = 1;
        config.sse.max_streams_per_job = 1;
    })
    .await;
    let (ada, claims) = world.person(300);
    let first = open(&world, JOB, &ada).await;
    let (bob, _) = world.person_in(claims.tid.unwrap(), 300);
    is_refused(open(&world, JOB, &bob).await, "this job").await;
    assert_eq!(open(&world, OTHER_JOB, &bob).await.status(), 200);
    // Whoever asks for a job that is not theirs keeps nobody out who may read it.
    let (eve, _) = world.person(300);
    assert_eq!(open(&world, JOB, &eve).await.status(), 200);
    // A refusal by the job service gives the place back.
    drop(first);
    eventually(Duration::from_secs(10), || async { world.services.watchers() == 0 }).await;
    world.fail("WatchJobEvents", to_status(&Error::not_found("JOB_NOT_FOUND", "No such job.")));
    assert_eq!(open(&world, JOB, &bob).await.status(), 404);
    assert_eq!(open(&world, JOB, &bob).await.status(), 200);
}

/// As many streams as a connection takes once kept every tenant's calls to the job service waiting.
#[tokio::test(flavor = "multi_thread")]
async fn open_streams_keep_no_call_waiting() {
    let world = World::start_crowded(4).await;
    let (ada, _) = world.person(300);
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(open(&world, JOB, &ada).await);
    }
    assert!(streams.iter().all(|stream| stream.status() == 200));
    // The connection of streams is full: a fifth waits in the gateway.
    let waiting = tokio::spawn(world.get(&path("")).bearer_auth(&ada).send());
    let (eve, _) = world.person(300);
    let call = world.get(&format!("/v1/jobs/{JOB}")).bearer_auth(&eve).send();
    let answer =
        tokio::time::timeout(Duration::from_secs(5), call).await.expect("an answer at once").unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!((waiting.is_finished(), world.calls("WatchJobEvents")), (false, 4));
    drop(streams.pop());
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("a place").unwrap();
    assert_eq!(waited.unwrap().status(), 200);
}
