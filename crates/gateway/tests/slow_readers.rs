//! Readers over HTTP/2 that grant no window (RFC 9113, section 5.2): nothing of what they are sent leaves, and no
//! timer of the kernel runs, because their sockets take everything else.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gatehouse_gateway::Config;
use gatehouse_proto::job::v1::JobEventType;
use gatehouse_testkit::eventually;
use h2::client::{ResponseFuture, SendRequest};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use support::{JOB, World};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A connection whose streams are granted no window.
struct Miser {
    requests: SendRequest<Bytes>,
    /// Ends with the connection.
    connection: JoinHandle<()>,
    /// Grants what streams may want.
    window: oneshot::Sender<()>,
}

impl Miser {
    async fn connect(world: &World, folder: &std::path::Path) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(folder.join("localhost.pem")).unwrap()).unwrap();
        let mut tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let socket = tokio::net::TcpStream::connect(world.gateway.https_address().unwrap()).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let stream = connector.connect(ServerName::try_from("localhost").unwrap(), socket).await.unwrap();
        let (requests, mut connection) =
            h2::client::Builder::new().initial_window_size(0).handshake(stream).await.unwrap();
        let (window, asked) = oneshot::channel();
        let connection = tokio::spawn(async move {
            tokio::select! {
                _ = &mut connection => return,
                Ok(()) = asked => {}
            }
            connection.set_initial_window_size(1 << 20).unwrap();
            let _ = connection.await;
        });
        Self { requests, connection, window }
    }

    async fn get(&self, path: &str, token: &str) -> ResponseFuture {
        let request = http::Request::get(format!("https://localhost{path}"))
            .header("authorization", format!("Bearer {token}"))
            .body(())
            .unwrap();
        self.requests.clone().ready().await.unwrap().send_request(request, true).unwrap().0
    }
}

fn events() -> String {
    format!("/v1/jobs/{JOB}/events")
}

async fn world(folder: &std::path::Path, change: impl FnOnce(&mut Config)) -> World {
    let world = World::start_https_with(folder, |config| {
        config.sse.backpressure_fail_timeout_s = 1;
        config.sse.keep_alive_s = 1;
        change(config);
    })
    .await;
    let big = format!(r#"{{"pad":"{}"}}"#, "x".repeat(16 * 1024));
    for _ in 0..50 {
        world.event(JobEventType::Progress, &big);
    }
    world.event(JobEventType::End, "{}");
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_grants_no_window_counts_until_it_is_cut_off_and_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), |config| config.sse.max_streams_per_caller = 1).await;
    let (token, _) = world.person(300);
    let miser = Miser::connect(&world, folder.path()).await;
    let answer = miser.get(&events(), &token).await.await.unwrap();
    assert_eq!(answer.status(), 200);
    // Everything waits in the gateway, and the job service has no more to say.
    eventually(Duration::from_secs(10), || async {
        world.calls("WatchJobEvents") == 1 && world.services.watchers() == 0
    })
    .await;
    let other = || world.get(&events()).bearer_auth(&token).send();
    assert_eq!(other().await.unwrap().status(), 429, "it counts no more, and holds what it holds");
    eventually(Duration::from_secs(20), || async { miser.connection.is_finished() }).await;
    eventually(Duration::from_secs(5), || async { other().await.unwrap().status() == 200 }).await;
    drop(answer);
}

/// Other clients' requests come over a proxy's connection: it stays, and for a while the place stays taken.
#[tokio::test(flavor = "multi_thread")]
async fn what_waited_for_a_reader_in_vain_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), |config| {
        config.trusted_proxies = vec!["127.0.0.0/8".into()];
        config.sse.max_streams_per_caller = 1;
        config.sse.backpressure_fail_timeout_s = 6;
    })
    .await;
    let (token, _) = world.person(300);
    let miser = Miser::connect(&world, folder.path()).await;
    let mut answer = miser.get(&events(), &token).await.await.unwrap().into_body();
    // Longer than events may wait, and less than twice that.
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert!(!miser.connection.is_finished());
    assert_eq!(world.get(&events()).bearer_auth(&token).send().await.unwrap().status(), 429);
    // It wakes up: what it then gets is why nothing more comes.
    miser.window.send(()).unwrap();
    let mut text = String::new();
    while let Some(chunk) = answer.data().await {
        let chunk = chunk.unwrap();
        // Or no more comes than the connection's window, whatever there is.
        answer.flow_control().release_capacity(chunk.len()).unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert!(text.contains("SLOW_CONSUMER") && !text.contains("id: "), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_behind_a_proxy_that_grants_no_window_loses_its_place_and_nobody_else_anything() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), |config| {
        config.trusted_proxies = vec!["127.0.0.0/8".into()];
        config.sse.max_streams_per_caller = 1;
    })
    .await;
    let (token, _) = world.person(300);
    let miser = Miser::connect(&world, folder.path()).await;
    let mut answer = miser.get(&events(), &token).await.await.unwrap().into_body();
    let other = || world.get(&events()).bearer_auth(&token).send();
    eventually(Duration::from_secs(20), || async { other().await.unwrap().status() == 200 }).await;
    assert!(!miser.connection.is_finished());
    let told = loop {
        match answer.data().await {
            Some(Ok(_)) => {}
            end => break end,
        }
    };
    assert_eq!(told.unwrap().unwrap_err().reason(), Some(h2::Reason::CANCEL));
    assert_eq!(miser.get("/healthz", &token).await.await.unwrap().status(), 200);
}

/// An ordinary answer that nobody takes holds its memory no longer either.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_taken_ends_its_connection() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), |_| {}).await;
    let (token, _) = world.person(300);
    let miser = Miser::connect(&world, folder.path()).await;
    let answer = miser.get("/docs", &token).await.await.unwrap();
    assert_eq!(answer.status(), 200);
    eventually(Duration::from_secs(20), || async { miser.connection.is_finished() }).await;
}

/// A client that keeps to what it is told waits with the third.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_carries_so_many_requests_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), |config| {
        config.max_requests_per_connection = 2;
        config.sse.backpressure_fail_timeout_s = 60;
    })
    .await;
    let (token, _) = world.person(300);
    let miser = Miser::connect(&world, folder.path()).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(miser.get("/docs", &token).await.await.unwrap());
    }
    let third = tokio::spawn(miser.get("/healthz", &token).await);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!third.is_finished());
    // What is let go makes room.
    held.pop();
    let third = tokio::time::timeout(Duration::from_secs(5), third).await.unwrap().unwrap();
    assert_eq!(third.unwrap().status(), 200);
}

/// What a client took back counts for as long as it is worked on.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_were_taken_back_count_while_they_are_at_work() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path(), |config| config.max_requests_per_connection = 2).await;
    let (token, _) = world.person(300);
    let release = Arc::new(tokio::sync::Notify::new());
    world.services.lock().held.insert("GetJobResult", Arc::clone(&release));
    let miser = Miser::connect(&world, folder.path()).await;
    let path = format!("/v1/jobs/{JOB}/result");
    for asked in 1..=2 {
        let answer = miser.get(&path, &token).await;
        eventually(Duration::from_secs(5), || async { world.calls("GetJobResult") == asked }).await;
        drop(answer);
    }
    assert_eq!(miser.get(&path, &token).await.await.unwrap().status(), 429);
    release.notify_waiters();
    world.services.lock().held.clear();
    eventually(Duration::from_secs(5), || async {
        miser.get(&path, &token).await.await.unwrap().status() == 200
    })
    .await;
}
