//! What one HTTP/2 connection may hold, and for how long; and that its requests are checked like any other's.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gatehouse_testkit::eventually;
use http::Request;
use serde_json::Value;
use support::http2::{Client, SOON, by_hand, data, frame, head, headers, literal, text, tls};
use support::{JOB, World};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;
use tokio_rustls::client::TlsStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection over which answers may come without bounds.
async fn greedy(world: &World, folder: &std::path::Path) -> TlsStream<tokio::net::TcpStream> {
    let mut stream = tls(world, folder, b"h2").await;
    let mut bytes = PREFACE.to_vec();
    // SETTINGS_INITIAL_WINDOW_SIZE, and a WINDOW_UPDATE for the connection.
    bytes.extend(b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff");
    bytes.extend(b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\0\0");
    stream.write_all(&bytes).await.unwrap();
    stream
}

/// Requests for the job's result: the first one's headers are kept over there, so that any other takes a few bytes.
fn ask_for_results(token: &str) -> impl FnMut() -> Vec<u8> + use<> {
    let authorization = literal(&[0x57], &format!("Bearer {token}"));
    let path = literal(&[0x44], &format!("/v1/jobs/{JOB}/result"));
    let authority = literal(&[0x41], "localhost");
    let mut stream = 1;
    move || {
        let fields = match stream {
            1 => [&[0x82, 0x87][..], &authority, &path, &authorization].concat(),
            _ => vec![0x82, 0x87, 0xc0, 0xbf, 0xbe],
        };
        stream += 2;
        headers(stream - 2, &fields)
    }
}

/// How many requests are taken from a client that reads no answers, of 2000; the rest is taken once it reads.
async fn taken_unread(resets: bool) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https_unlimited(folder.path()).await;
    // What kernels keep between two ends is 4 MiB by default: some 300 of these.
    world.services.lock().result = format!(r#"{{"pad":"{}"}}"#, "x".repeat(16 * 1024));
    let (token, _) = world.person(300);
    let (mut answers, mut stream) = tokio::io::split(greedy(&world, folder.path()).await);
    let mut ask = ask_for_results(&token);
    let calls = || world.calls("GetJobResult");
    let asking = async {
        for batch in 0..40_u32 {
            let mut bytes: Vec<u8> = std::iter::repeat_with(&mut ask).take(50).flatten().collect();
            stream.write_all(&bytes).await.unwrap();
            stream.flush().await.unwrap();
            let asked = 50 * (batch as usize + 1);
            eventually(Duration::from_secs(60), || async { calls() >= asked }).await;
            if !resets {
                continue;
            }
            // The services were called: their answers have to be in the queue before they are taken out of it.
            tokio::time::sleep(Duration::from_millis(500)).await;
            bytes.clear();
            for request in 0..50 {
                bytes.extend(b"\0\0\x04\x03\0");
                bytes.extend((2 * (50 * batch + request) + 1).to_be_bytes());
                bytes.extend(8_u32.to_be_bytes());
            }
            stream.write_all(&bytes).await.unwrap();
        }
    };
    // Or none is taken for a while.
    let stopped = async {
        let mut seen = 0;
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            if calls() == seen {
                break;
            }
            seen = calls();
        }
    };
    let mut asking = std::pin::pin!(asking);
    tokio::select! {
        () = &mut asking => return calls(),
        () = stopped => {}
    }
    let unread = calls();
    let reading = tokio::spawn(async move { tokio::io::copy(&mut answers, &mut tokio::io::sink()).await });
    tokio::time::timeout(Duration::from_secs(120), asking).await.expect("it is not read again");
    reading.abort();
    unread
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_no_answers_is_not_read_either() {
    let taken = taken_unread(false).await;
    assert!((1..1000).contains(&taken), "{taken} requests were taken and no answer");
}

/// A reset takes an answer out of the queue, and leaves a place in it.
#[tokio::test(flavor = "multi_thread")]
async fn who_reads_no_answers_is_not_read_for_resetting_them() {
    let taken = taken_unread(true).await;
    assert!((1..1000).contains(&taken), "{taken} requests were taken and no answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_what_it_may_send() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https_with(folder.path(), |config| {
        config.max_request_bytes = 100_000;
        config.max_requests_per_connection = 7;
    })
    .await;
    let mut stream = tls(&world, folder.path(), b"h2").await;
    stream.write_all(&[PREFACE, b"\0\0\0\x04\0\0\0\0\0"].concat()).await.unwrap();
    let (mut settings, mut granted) = (None, None);
    while settings.is_none() || granted.is_none() {
        match frame(&mut stream).await.unwrap() {
            (4, 0, _, payload) => settings = Some(payload),
            (8, _, 0, payload) => granted = Some(u32::from_be_bytes(payload.try_into().unwrap())),
            _ => {}
        }
    }
    let settings = settings.unwrap();
    let value = |wanted: u16| {
        settings.chunks(6).find(|entry| entry[..2] == wanted.to_be_bytes()).map(|entry| {
            let mut value = [0; 4];
            value.copy_from_slice(&entry[2..]);
            u32::from_be_bytes(value)
        })
    };
    assert_eq!((value(3), value(4)), (Some(7), Some(100_000)), "{settings:?}");
    assert_eq!(granted.unwrap() + 65_535, 400_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_reset_or_whose_connection_broke_gives_back_its_place_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https_with(folder.path(), |config| {
        config.sse.max_streams_per_caller = 1;
        config.sse.keep_alive_s = 300;
    })
    .await;
    let (token, _) = world.person(300);
    let path = format!("/v1/jobs/{JOB}/events");
    let client = Client::connect(&world, folder.path()).await;
    let first = client.get(&path, &token).await;
    assert_eq!(first.status(), 200);
    assert_eq!(client.get(&path, &token).await.status(), 429);
    drop(first);
    let second = eventually(SOON, || async {
        let answer = client.get(&path, &token).await;
        (answer.status() == 200).then_some(answer)
    })
    .await;
    client.connection.abort();
    let client = Client::connect(&world, folder.path()).await;
    eventually(SOON, || async { client.get(&path, &token).await.status() == 200 }).await;
    drop(second);
}

/// The head of a request to sign in, or for the job's result if there is a token, whose body is to follow.
fn begins(stream: u32, token: Option<&str>) -> Vec<u8> {
    match token {
        Some(token) => head(stream, "GET", &format!("/v1/jobs/{JOB}/result"), Some(token)),
        None => head(stream, "POST", "/v1/auth/sign-in", None),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_carry_next_to_nothing_are_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let (token, _) = world.person(300);
    // Its handler is at work, and reads none of it.
    world.services.lock().held.insert("GetJobResult", Arc::new(Notify::new()));
    for payload in [&b""[..], b" "] {
        let mut stream = by_hand(&world, folder.path()).await;
        let mut bytes = begins(1, Some(&token));
        for _ in 0..20_000 {
            bytes.extend(data(1, 0, payload));
        }
        // It may be closed before all of that is written.
        let _ = stream.write_all(&bytes).await;
        let told = async {
            loop {
                match frame(&mut stream).await {
                    Some((7, _, 0, payload)) => return Some(payload[7]),
                    Some(_) => {}
                    None => return None,
                }
            }
        };
        let told = tokio::time::timeout(SOON, told).await.expect("all of it is taken");
        assert_eq!(told, Some(11), "ENHANCE_YOUR_CALM");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn padding_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let mut stream = by_hand(&world, folder.path()).await;
    let mut granted = 0;
    for request in 0..10 {
        let id = 2 * request + 1;
        let mut bytes = begins(id, None);
        // Padded to 256 bytes.
        let with_padding = |text: &[u8]| {
            let padding = 255 - text.len();
            [&[u8::try_from(padding).unwrap()][..], text, &vec![0; padding]].concat()
        };
        for _ in 0..200 {
            bytes.extend(data(id, 8, &with_padding(b" ")));
        }
        bytes.extend(data(id, 9, &with_padding(br#"{"email":"a@b.c","password":"p"}"#)));
        stream.write_all(&bytes).await.unwrap();
        loop {
            let next = tokio::time::timeout(SOON, frame(&mut stream)).await.expect("no answer");
            match next.expect("closed") {
                (8, _, 0, payload) => granted += u32::from_be_bytes(payload.try_into().unwrap()),
                (_, flags, stream, _) if stream == id && flags & 1 == 1 => break,
                _ => {}
            }
        }
    }
    // What it may have in hand is 65,535 bytes at first, and four bodies of 64 KiB after the first words.
    let sent = 10 * 201 * 256;
    assert!(65_535 + granted >= sent, "of {sent} bytes sent, {granted} were given back");
}

/// Asks for the job's `what`, with `bytes` of a body that does not end here.
async fn asks_with_a_body(
    client: &Client,
    what: &str,
    token: &str,
    bytes: usize,
) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
    let request = Request::get(format!("https://localhost/v1/jobs/{JOB}/{what}"))
        .header("authorization", format!("Bearer {token}"))
        .body(())
        .unwrap();
    let (answer, mut body) =
        client.requests.clone().ready().await.unwrap().send_request(request, false).unwrap();
    body.send_data(Bytes::from(vec![b' '; bytes]), false).unwrap();
    (answer, body)
}

/// Signs in with a body of 30 KB.
async fn signs_in(client: &Client) {
    let sign_in = Request::post("https://localhost/v1/auth/sign-in")
        .header("content-type", "application/json")
        .body(())
        .unwrap();
    let mut requests = client.requests.clone().ready().await.unwrap();
    let (answer, mut body) = requests.send_request(sign_in, false).unwrap();
    let text = format!(r#"{{"email":"a@b.c","password":"p"}}{}"#, " ".repeat(30_000));
    body.send_data(Bytes::from(text), true).unwrap();
    let answer = tokio::time::timeout(SOON, answer).await.expect("its body does not come through").unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_nobody_reads_takes_nothing_from_the_others_of_its_connection() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let (token, _) = world.person(300);
    let client = Client::connect(&world, folder.path()).await;
    // Four bodies of so many bytes are what a connection takes.
    let all = 64 * 1024;
    let mut open = Vec::new();
    let answers = Arc::new(Notify::new());
    world.services.lock().held.insert("WatchJobEvents", Arc::clone(&answers));
    for _ in 0..4 {
        open.push(asks_with_a_body(&client, "events", &token, all - 1).await);
    }
    eventually(SOON, || async { world.calls("WatchJobEvents") == open.len() }).await;
    // What was sent before this has arrived by then.
    assert_eq!(client.get("/healthz", "").await.status(), 200);
    world.services.lock().held.clear();
    answers.notify_waiters();
    // Of others, it comes when the answer has begun.
    for _ in 0..4 {
        open.push(asks_with_a_body(&client, "events", &token, 0).await);
    }
    let mut kept = Vec::new();
    for (answer, mut body) in open {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        body.send_data(Bytes::from(vec![b' '; all]), false).unwrap();
        kept.push((answer, body));
    }
    signs_in(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_nobody_will_read_takes_nothing_from_the_others_while_its_request_is_at_work() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let (token, _) = world.person(300);
    let client = Client::connect(&world, folder.path()).await;
    let answers = Arc::new(Notify::new());
    world.services.lock().held.insert("GetJobResult", Arc::clone(&answers));
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(asks_with_a_body(&client, "result", &token, 64 * 1024).await);
    }
    eventually(SOON, || async { world.calls("GetJobResult") == open.len() }).await;
    // What was sent before this has arrived by then.
    assert_eq!(client.get("/healthz", "").await.status(), 200);
    signs_in(&client).await;
    answers.notify_waiters();
    for (answer, _body) in open {
        assert_eq!(answer.await.unwrap().status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_name_their_host_as_over_http_1() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let client = Client::connect(&world, folder.path()).await;
    for (authority, host, status) in [
        ("localhost", None, 200),
        ("localhost:8443", None, 200),
        ("localhost", Some("localhost"), 200),
        ("localhost", Some("LOCALHOST"), 200),
        ("localhost", Some("evil.example"), 400),
        ("localhost:1", Some("localhost:2"), 400),
        ("user@evil.example", None, 400),
        ("localhost:nonsense", None, 400),
    ] {
        // Not every one can be said with a client that keeps to everything.
        let Ok(uri) = format!("https://{authority}/healthz").parse::<http::Uri>() else { continue };
        let mut request = Request::get(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let answer = client.send(request.body(()).unwrap()).await;
        let found = answer.status();
        let problem = text(answer.into_body(), "\u{0}").await;
        assert_eq!(found, status, "{authority} {host:?}: {problem}");
        assert_eq!(problem.contains("INVALID_HOST"), status == 400, "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_our_own_may_post() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let client = Client::connect(&world, folder.path()).await;
    let port = world.gateway.https_address().unwrap().port();
    for (origin, status) in [
        (format!("https://localhost:{port}"), 200),
        (format!("https://localhost:{}", port ^ 1), 403),
        ("https://evil.example".to_owned(), 403),
    ] {
        let request = Request::post(format!("https://localhost:{port}/v1/auth/sign-in"))
            .header("content-type", "application/json")
            .header("origin", &origin)
            .body(())
            .unwrap();
        let (answer, mut body) =
            client.requests.clone().ready().await.unwrap().send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(br#"{"email":"a@b.c","password":"p"}"#), true).unwrap();
        let answer = answer.await.unwrap();
        let found = answer.status();
        let text = text(answer.into_body(), "\u{0}").await;
        assert_eq!(found, status, "{origin}: {text}");
        let problem = serde_json::from_str::<Value>(&text).unwrap();
        assert_eq!(problem["reason"] == "CROSS_SITE_REQUEST", status == 403, "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_request_is_told_to_go_and_closed() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https_with(folder.path(), |config| config.keep_alive_s = 1).await;
    let (token, _) = world.person(300);
    let unused = Client::connect(&world, folder.path()).await;
    let used = Client::connect(&world, folder.path()).await;
    assert_eq!(used.get("/healthz", "").await.status(), 200);
    let at_work = Client::connect(&world, folder.path()).await;
    let events = at_work.get(&format!("/v1/jobs/{JOB}/events"), &token).await;
    let mut deaf = by_hand(&world, folder.path()).await;
    for client in [unused, used] {
        client.told_to_leave().await;
        client.ends().await;
    }
    // It is told, answers nothing, and is closed all the same.
    let mut told = false;
    let closed = async {
        while let Some((kind, ..)) = frame(&mut deaf).await {
            told |= kind == 7;
        }
    };
    tokio::time::timeout(Duration::from_secs(12), closed).await.expect("still open");
    assert!(told);
    assert!(!at_work.connection.is_finished(), "it had a request at work");
    drop(events);
    at_work.told_to_leave().await;
    at_work.ends().await;
}
