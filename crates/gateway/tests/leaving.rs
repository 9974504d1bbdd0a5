//! A gateway that leaves: every client is told in time to go elsewhere, none loses an answer, and the drain ends with
//! the last request.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gatehouse_proto::job::v1::JobEventType;
use gatehouse_testkit::eventually;
use h2::{Reason, RecvStream};
use http::Request;
use support::http2::{Client, LIMIT, SOON, by_hand, frame, headers, literal, text, tls};
use support::{JOB, World};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_client_of_http_2_is_told_at_once_and_keeps_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let (unused, used) =
        (Client::connect(&world, folder.path()).await, Client::connect(&world, folder.path()).await);
    assert_eq!(used.get("/healthz", "").await.status(), 200);
    let began = Instant::now();
    world.lifecycle.leave();
    for client in [unused, used] {
        client.told_to_leave().await;
        client.ends().await;
    }
    // Whoever comes all the same, because it does not know yet, is served until the gateway stops.
    let late = Client::connect(&world, folder.path()).await;
    for _ in 0..2 {
        assert_eq!(late.get("/healthz", "").await.status(), 200);
    }
    let silent = Client::connect(&world, folder.path()).await;
    assert!(world.lifecycle.drain(LIMIT).await, "an idle connection kept the gateway");
    for client in [late, silent] {
        client.told_to_leave().await;
        client.ends().await;
    }
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

/// Headers that take one byte each on the wire: they were sent before.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_unpacks_to_much_is_refused_and_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let client = Client::connect(&world, folder.path()).await;
    let with_headers = |count: usize| {
        let mut request = Request::get("https://localhost/healthz").body(()).unwrap();
        let headers = request.headers_mut();
        headers.reserve(count);
        for _ in 0..count {
            headers.append("a", http::HeaderValue::from_static("b"));
        }
        request
    };
    // 34 bytes each as they are counted: 32 KiB are 963, and the rest of the head takes some.
    for (count, status) in [(900, 200), (1000, 431), (3500, 431), (10, 200)] {
        let mut requests = client.requests.clone().ready().await.unwrap();
        let (answer, _) = requests.send_request(with_headers(count), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), status, "{count} headers");
    }
    // One of more than four times what it may be is the connection's last.
    let mut requests = client.requests.clone().ready().await.unwrap();
    let (answer, _) = requests.send_request(with_headers(16_000), true).unwrap();
    let refused = answer.await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{refused}");
    assert!(refused.is_go_away() && refused.is_remote(), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_way_over_http_2_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let client = Client::connect(&world, folder.path()).await;
    let request = Request::post("https://localhost/v1/auth/sign-in")
        .header("content-type", "application/json")
        .body(())
        .unwrap();
    let (answer, mut body) =
        client.requests.clone().ready().await.unwrap().send_request(request, false).unwrap();
    let text = r#"{"email": "a@example.org", "password": "nine purple teapots in a row"}"#;
    let (first, rest) = text.split_at(20);
    body.send_data(Bytes::from_static(first.as_bytes()), false).unwrap();
    // What was sent before it has been seen, as streams are opened in order.
    assert_eq!(client.get("/healthz", "").await.status(), 200);
    let lifecycle = world.lifecycle.clone();
    let drain = tokio::spawn(async move { lifecycle.drain(LIMIT).await });
    client.told_to_leave().await;
    assert!(!client.connection.is_finished() && !drain.is_finished(), "it did not wait for the request");
    body.send_data(Bytes::from_static(rest.as_bytes()), true).unwrap();
    let sent = Instant::now();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(whole(answer).await.contains("access_token"));
    client.ends().await;
    assert!(drain.await.unwrap());
    assert!(sent.elapsed() < SOON, "{:?}", sent.elapsed());
}

async fn whole(answer: http::Response<RecvStream>) -> String {
    text(answer.into_body(), "\u{0}").await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_stream_over_http_2_goes_on_until_the_gateway_stops_and_is_taken_up_over_another_connection()
{
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let (token, _) = world.person(300);
    let path = format!("/v1/jobs/{JOB}/events");
    world.event(JobEventType::Queued, "{}");
    let client = Client::connect(&world, folder.path()).await;
    let answer = client.get(&path, &token).await;
    world.lifecycle.leave();
    client.told_to_leave().await;
    world.event(JobEventType::Started, "{}");
    let reading = tokio::spawn(whole(answer));
    // A new one needs another connection, as from a browser that has seen the word.
    let other = Client::connect(&world, folder.path()).await;
    let events = text(other.get(&path, &token).await.into_body(), "event: started").await;
    assert!(events.contains("event: started"), "{events}");
    assert!(!reading.is_finished());
    let (lifecycle, began) = (world.lifecycle.clone(), Instant::now());
    assert!(lifecycle.drain(LIMIT).await, "a stream kept the gateway");
    let events = reading.await.unwrap();
    assert!(events.contains("event: started") && events.contains(r#"{"reason":"DRAINING"}"#), "{events}");
    client.ends().await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_client_of_http_1_keeps_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let ask = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut clear = TcpStream::connect(world.gateway.address()).await.unwrap();
    let mut encrypted = tls(&world, folder.path(), b"http/1.1").await;
    let mut unused = TcpStream::connect(world.gateway.address()).await.unwrap();
    let mut answer = [0; 12];
    clear.write_all(ask).await.unwrap();
    clear.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    encrypted.write_all(ask).await.unwrap();
    encrypted.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    let began = Instant::now();
    assert!(world.lifecycle.drain(LIMIT).await, "an idle connection kept the gateway");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    let mut rest = Vec::new();
    clear.read_to_end(&mut rest).await.unwrap();
    encrypted.read_to_end(&mut rest).await.unwrap();
    unused.read_to_end(&mut rest).await.unwrap();
}

/// An `EventSource` gives up for good on anything but 200.
#[tokio::test(flavor = "multi_thread")]
async fn who_opens_an_event_stream_too_late_is_told_in_a_stream() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let (token, _) = world.person(300);
    let mut stream = by_hand(&world, folder.path()).await;
    world.lifecycle.stop();
    while frame(&mut stream).await.expect("GOAWAY").0 != 7 {}
    // It was on its way when the gateway said that it goes.
    let mut fields = vec![0x82, 0x87];
    fields.extend(literal(&[0x01], "localhost"));
    fields.extend(literal(&[0x04], &format!("/v1/jobs/{JOB}/events")));
    fields.extend(literal(&[0x0f, 0x08], &format!("Bearer {token}")));
    stream.write_all(&headers(1, &fields)).await.unwrap();
    let mut seen = Vec::new();
    while seen.last().is_none_or(|(kind, _, flags, _): &(u8, _, u8, _)| *kind != 0 || flags & 1 == 0) {
        let (kind, flags, id, payload) = frame(&mut stream).await.expect("an answer");
        seen.push((kind, id, flags, payload));
    }
    let head = seen.iter().find(|(kind, ..)| *kind == 1).unwrap();
    assert_eq!(head.3[0], 0x88, "the status is not 200: {seen:?}");
    let data = seen.iter().filter(|(kind, ..)| *kind == 0).flat_map(|(.., payload)| payload.clone());
    let text = String::from_utf8(data.collect()).unwrap();
    assert!(text.contains("retry: ") && text.contains(r#"{"reason":"DRAINING"}"#), "{text}");
    drop(stream);
    assert!(world.lifecycle.drain(LIMIT).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_answers_nothing_keeps_nobody_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let mut stream = by_hand(&world, folder.path()).await;
    let lifecycle = world.lifecycle.clone();
    let drain = tokio::spawn(async move { lifecycle.drain(LIMIT).await });
    let mut seen = Vec::new();
    while let Some((kind, _, _, payload)) = frame(&mut stream).await {
        seen.push((kind, payload));
    }
    // GOAWAY that allows for all that is on its way, a ping to know when that has come, and after the wait the last word.
    let away: Vec<_> = seen.iter().filter(|(kind, _)| *kind == 7).map(|(_, payload)| &payload[..8]).collect();
    assert_eq!(away, [&[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0], &[0; 8]], "{seen:?}");
    assert!(seen.iter().any(|(kind, _)| *kind == 6), "{seen:?}");
    drop(stream);
    assert!(drain.await.unwrap());
}

/// It stays for the ping that would end it, and has always something to ask.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_answers_no_ping_and_goes_on_asking_keeps_nobody_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let (mut reader, mut writer) = tokio::io::split(by_hand(&world, folder.path()).await);
    tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    let mut fields = vec![0x82, 0x87];
    fields.extend(literal(&[0x01], "localhost"));
    fields.extend(literal(&[0x04], "/healthz"));
    let asking = tokio::spawn(async move {
        for stream in (1..).step_by(2) {
            if writer.write_all(&headers(stream, &fields)).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    let began = Instant::now();
    assert!(world.lifecycle.drain(LIMIT).await, "it kept the gateway");
    assert!(began.elapsed() + SOON < LIMIT, "{:?}", began.elapsed());
    asking.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_with_a_pool_notice_nothing_while_a_gateway_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let certificate = std::fs::read(folder.path().join("localhost.pem")).unwrap();
    let base = format!("https://localhost:{}", world.gateway.https_address().unwrap().port());
    let (mut clients, answered) = (Vec::new(), Arc::new(AtomicUsize::new(0)));
    for _ in 0..4 {
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([reqwest::Certificate::from_pem(&certificate).unwrap()])
            .build()
            .unwrap();
        for _ in 0..4 {
            let (http, url, leaving) = (http.clone(), format!("{base}/healthz"), world.lifecycle.leaving());
            let answered = Arc::clone(&answered);
            clients.push(tokio::spawn(async move {
                let mut after = 0;
                while after < 50 {
                    let answer = http.get(&url).send().await.unwrap();
                    assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_2));
                    answer.bytes().await.unwrap();
                    answered.fetch_add(1, Ordering::Relaxed);
                    after += usize::from(leaving.is_cancelled());
                }
            }));
        }
    }
    // A pool tries again elsewhere what it could not send over a connection that it has used before.
    eventually(SOON, || async { answered.load(Ordering::Relaxed) > 200 }).await;
    world.lifecycle.leave();
    for client in clients {
        client.await.unwrap();
    }
    assert!(world.lifecycle.drain(LIMIT).await);
}
