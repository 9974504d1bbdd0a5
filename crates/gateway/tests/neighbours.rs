//! Over the connection of a trusted proxy come the requests of many: nothing that one of them sends ends it.

mod support;

use std::sync::Arc;

use gatehouse_testkit::eventually;
use support::http2::{LIMIT, SOON, by_hand, data, frame, head, headers};
use support::{JOB, World};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::client::TlsStream;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;

/// A proxy's connection, with an event stream of somebody on stream 1.
struct Shared {
    stream: TlsStream<TcpStream>,
    next: u32,
}

impl Shared {
    async fn begin(world: &World, folder: &std::path::Path) -> Self {
        let (token, _) = world.person(300);
        let mut shared = Self { stream: by_hand(world, folder).await, next: 1 };
        // A WINDOW_UPDATE for the connection: answers come without bounds.
        shared.send(b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\0\0").await;
        let events = shared.head("GET", &format!("/v1/jobs/{JOB}/events"), Some(&token));
        shared.send(&events).await;
        shared.send(&data(1, END_STREAM, b"")).await;
        shared.until(|kind, stream| (kind, stream) == (HEADERS, 1)).await;
        shared
    }

    fn head(&mut self, method: &str, path: &str, token: Option<&str>) -> Vec<u8> {
        self.next += 2;
        head(self.next - 2, method, path, token)
    }

    async fn send(&mut self, bytes: &[u8]) {
        // It may be closed before all of that is written; what for is read.
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// Reads until a frame of that type and stream.
    async fn until(&mut self, mut wanted: impl FnMut(u8, u32) -> bool) {
        let reading = async {
            loop {
                let (kind, _, id, payload) = frame(&mut self.stream).await.expect("closed");
                let said = String::from_utf8_lossy(payload.get(8..).unwrap_or_default()).into_owned();
                assert!(kind != GOAWAY, "the connection ends for all: {said}");
                assert!((kind, id) != (RST_STREAM, 1), "the neighbour's stream ended");
                if wanted(kind, id) {
                    return;
                }
            }
        };
        tokio::time::timeout(LIMIT, reading).await.expect("nothing came");
    }

    /// Somebody else's request is answered; until then come frames of these types, for these streams.
    async fn serves(&mut self) -> Vec<(u8, u32)> {
        let id = self.next;
        let mut request = self.head("GET", "/healthz", None);
        request[4] |= END_STREAM;
        self.send(&request).await;
        let mut seen = Vec::new();
        self.until(|kind, stream| {
            seen.push((kind, stream));
            (kind, stream) == (HEADERS, id)
        })
        .await;
        seen
    }

    /// So many requests are refused and their streams reset, with the rest of their bodies on its way.
    async fn refused(&mut self, count: usize) -> Vec<u32> {
        let (mut bytes, mut ids) = (Vec::new(), Vec::new());
        for _ in 0..count {
            ids.push(self.next);
            bytes.extend(self.head("POST", "/nope", None));
        }
        self.send(&bytes).await;
        let mut open = ids.clone();
        self.until(|kind, stream| {
            if kind == RST_STREAM {
                open.retain(|id| *id != stream);
            }
            open.is_empty()
        })
        .await;
        ids
    }
}

/// A gateway behind a proxy, whose one connection others are on already.
async fn behind_a_proxy() -> (TempDir, World, Shared) {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::start_https_behind_a_proxy(folder.path()).await;
    let shared = Shared::begin(&world, folder.path()).await;
    (folder, world, shared)
}

#[tokio::test(flavor = "multi_thread")]
async fn small_frames_that_nobody_wants() {
    let (_folder, world, mut shared) = behind_a_proxy().await;
    let (token, _) = world.person(300);
    let id = shared.next;
    let events = shared.head("GET", &format!("/v1/jobs/{JOB}/events"), Some(&token));
    shared.send(&events).await;
    shared.until(|kind, stream| (kind, stream) == (HEADERS, id)).await;
    let bytes: Vec<u8> = (0..5000).flat_map(|_| data(id, 0, b" ")).collect();
    shared.send(&bytes).await;
    shared.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_frames_of_a_body_that_is_not_read_yet() {
    const WINDOW: usize = 16 * 1024;
    let folder = tempfile::tempdir().unwrap();
    let change = |config: &mut gatehouse_gateway::Config| config.max_request_bytes = WINDOW;
    let world = World::start_https_behind_a_proxy_with(folder.path(), change).await;
    let mut shared = Shared::begin(&world, folder.path()).await;
    // SETTINGS, acknowledged: windows are what it was told from now on.
    shared.send(b"\0\0\0\x04\x01\0\0\0\0").await;
    let (token, _) = world.person(300);
    // Whoever asks is exchanged for a token first, and the body is read after that.
    let exchanged = Arc::new(Notify::new());
    world.services.lock().held.insert("ExchangeToken", Arc::clone(&exchanged));
    let before = world.calls("ExchangeToken");
    let job = br#"{"kind":"any","input":1}"#;
    let id = shared.next;
    let mut bytes = shared.head("POST", "/v1/jobs", Some(&token));
    bytes.extend((0..WINDOW - job.len()).flat_map(|_| data(id, 0, b" ")));
    shared.send(&bytes).await;
    eventually(SOON, || async { world.calls("ExchangeToken") == before + 1 }).await;
    for _ in 0..3 {
        let seen = shared.serves().await;
        assert!(!seen.contains(&(WINDOW_UPDATE, id)), "room is given for a body that nobody reads");
    }
    exchanged.notify_one();
    shared.until(|kind, stream| (kind, stream) == (WINDOW_UPDATE, id)).await;
    shared.send(&data(id, END_STREAM, job)).await;
    shared.until(|kind, stream| (kind, stream) == (HEADERS, id)).await;
    assert_eq!(world.services.lock().submitted.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_frames_that_come_with_a_get() {
    let (_folder, world, mut shared) = behind_a_proxy().await;
    let (token, _) = world.person(300);
    let answers = Arc::new(Notify::new());
    world.services.lock().held.insert("GetJobResult", Arc::clone(&answers));
    let id = shared.next;
    let mut bytes = shared.head("GET", &format!("/v1/jobs/{JOB}/result"), Some(&token));
    bytes.extend((0..20_000).flat_map(|_| data(id, 0, b" ")));
    shared.send(&bytes).await;
    eventually(SOON, || async { world.calls("GetJobResult") == 1 }).await;
    shared.serves().await;
    answers.notify_waiters();
    shared.until(|kind, stream| (kind, stream) == (HEADERS, id)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_frames_of_a_body_that_is_read() {
    let (_folder, _world, mut shared) = behind_a_proxy().await;
    let id = shared.next;
    let mut bytes = shared.head("POST", "/v1/auth/sign-in", None);
    bytes.extend((0..20_000).flat_map(|_| data(id, 0, b" ")));
    bytes.extend(data(id, END_STREAM, br#"{"email":"a@b.c","password":"p"}"#));
    shared.send(&bytes).await;
    shared.until(|kind, stream| (kind, stream) == (HEADERS, id)).await;
    shared.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_come_after_a_reset() {
    for late in [&[b' '; 1000][..], b" "] {
        let (_folder, _world, mut shared) = behind_a_proxy().await;
        for _ in 0..13 {
            let bytes: Vec<u8> =
                shared.refused(100).await.into_iter().flat_map(|id| data(id, 0, late)).collect();
            shared.send(&bytes).await;
        }
        shared.serves().await;
    }
}

/// `h2` answers each with a reset of its own, which it counts where nobody says otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn frames_for_streams_that_were_forgotten() {
    let (_folder, _world, mut shared) = behind_a_proxy().await;
    let mut ids = Vec::new();
    // More than are remembered at a time, by more than the 1024 that `h2` would count.
    while ids.len() < 4096 + 1024 + 100 {
        ids.extend(shared.refused(100).await);
    }
    for ids in ids.chunks(100) {
        let late: Vec<u8> = ids.iter().flat_map(|id| data(*id, 0, b"late")).collect();
        shared.send(&late).await;
        shared.serves().await;
    }
}

/// Of a stream that was forgotten, they look like a request with a number that was had before.
#[tokio::test(flavor = "multi_thread")]
async fn trailers_that_come_after_a_reset() {
    let (_folder, _world, mut shared) = behind_a_proxy().await;
    let ids = shared.refused(200).await;
    let trailer = [&b"\0\x03x-a"[..], b"\x01b"].concat();
    let bytes: Vec<u8> = ids.into_iter().flat_map(|id| headers(id, &trailer)).collect();
    shared.send(&bytes).await;
    shared.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_frames() {
    let (_folder, _world, mut shared) = behind_a_proxy().await;
    let id = shared.next;
    let mut bytes = shared.head("POST", "/v1/auth/sign-in", None);
    bytes.extend((0..5000).flat_map(|_| data(id, 0, b"")));
    bytes.extend(data(id, END_STREAM, br#"{"email":"a@b.c","password":"p"}"#));
    shared.send(&bytes).await;
    shared.until(|kind, stream| (kind, stream) == (HEADERS, id)).await;
    shared.serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_taken_back_at_once() {
    let (_folder, world, mut shared) = behind_a_proxy().await;
    let (token, _) = world.person(300);
    let mut bytes = Vec::new();
    for _ in 0..1000 {
        let id = shared.next;
        bytes.extend(shared.head("GET", &format!("/v1/jobs/{JOB}/result"), Some(&token)));
        bytes.extend(b"\0\0\x04\x03\0");
        bytes.extend(id.to_be_bytes());
        bytes.extend(8_u32.to_be_bytes());
    }
    shared.send(&bytes).await;
    shared.serves().await;
    // What was begun before this has come to the service by then.
    for _ in 0..3 {
        let id = shared.next;
        let mut request = shared.head("GET", &format!("/v1/jobs/{JOB}/result"), Some(&token));
        request[4] |= END_STREAM;
        shared.send(&request).await;
        shared.until(|kind, stream| (kind, stream) == (HEADERS, id)).await;
    }
    // Some come in two pieces.
    let done = world.calls("GetJobResult");
    assert!(done < 500, "{done} requests were done for nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let change = |config: &mut gatehouse_gateway::Config| config.sse.backpressure_fail_timeout_s = 1;
    let world = World::start_https_behind_a_proxy_with(folder.path(), change).await;
    // More than the window of a stream that nobody opens any further.
    world.services.lock().result = format!(r#"{{"pad":"{}"}}"#, "x".repeat(100_000));
    let mut shared = Shared::begin(&world, folder.path()).await;
    let (token, _) = world.person(300);
    let id = shared.next;
    let mut request = shared.head("GET", &format!("/v1/jobs/{JOB}/result"), Some(&token));
    request[4] |= END_STREAM;
    shared.send(&request).await;
    shared.until(|kind, stream| (kind, stream) == (RST_STREAM, id)).await;
    shared.serves().await;
}
