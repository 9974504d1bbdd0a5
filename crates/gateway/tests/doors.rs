//! Who takes connections and gives nothing: others do not notice.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gatehouse_testkit::eventually;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use support::{JOB, World};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

const SOON: Duration = Duration::from_secs(4);
/// What a client at its ease may wait for an answer, on a busy machine too.
const AT_ONCE: Duration = Duration::from_millis(1500);

/// Connects to `address` as a client at `from` would.
async fn connect(from: &str, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    socket.connect(address).await.unwrap()
}

/// Connects to the HTTPS port, for HTTP/1.1.
async fn tls(world: &World, folder: &Path, from: &str) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("localhost.pem")).unwrap()).unwrap();
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let socket = connect(from, world.gateway.https_address().unwrap()).await;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    connector.connect(ServerName::try_from("localhost").unwrap(), socket).await.unwrap()
}

/// The status of `/healthz`, or nothing if the connection is closed instead.
async fn healthz(socket: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Option<u16> {
    let asked = socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let mut answer = Vec::new();
    while asked.is_ok() && !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        match socket.read_buf(&mut answer).await {
            Ok(1..) => {}
            _ => return None,
        }
    }
    std::str::from_utf8(answer.get(9..12)?).unwrap().parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_handshakes_of_one_address_keep_nobody_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let https = world.gateway.https_address().unwrap();
    let mut silent = Vec::new();
    for _ in 0..700 {
        silent.push(connect("127.0.0.2", https).await);
    }
    let began = Instant::now();
    let mut other = connect("127.0.0.3", world.gateway.address()).await;
    assert_eq!(healthz(&mut other).await, Some(200));
    assert!(began.elapsed() < AT_ONCE, "HTTP took {:?}", began.elapsed());
    let began = Instant::now();
    let mut other = tls(&world, folder.path(), "127.0.0.3").await;
    assert_eq!(healthz(&mut other).await, Some(200));
    assert!(began.elapsed() < AT_ONCE, "HTTPS took {:?}", began.elapsed());
}

/// Whether the gateway closes the connection at once, without a word.
async fn is_closed(mut socket: TcpStream) -> bool {
    let read = tokio::time::timeout(AT_ONCE, socket.read(&mut [0; 16])).await;
    // A reset, if it was closed over something that it had not read.
    matches!(read, Ok(Ok(0) | Err(_)))
}

/// A connection over which a request was answered, once there is a place for it.
async fn admitted(from: &str, address: SocketAddr) -> TcpStream {
    eventually(SOON, || async {
        let mut socket = connect(from, address).await;
        healthz(&mut socket).await.map(|status| (status, socket))
    })
    .await
    .1
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_its_share_over_both_ports() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https_with(folder.path(), |config| config.max_connections_per_address = 4).await;
    let (http, https) = (world.gateway.address(), world.gateway.https_address().unwrap());
    let mut held = vec![admitted("127.0.0.2", http).await, admitted("127.0.0.2", http).await];
    let secure =
        [tls(&world, folder.path(), "127.0.0.2").await, tls(&world, folder.path(), "127.0.0.2").await];
    assert!(is_closed(connect("127.0.0.2", https).await).await, "a fifth over HTTPS");
    assert!(is_closed(connect("127.0.0.2", http).await).await, "a fifth over HTTP");
    assert_eq!(healthz(&mut held[0]).await, Some(200), "who was there stays");
    admitted("127.0.0.3", http).await;
    held.swap_remove(1);
    held.push(admitted("127.0.0.2", http).await);
    held.clear();
    drop(secure);
    for _ in 0..4 {
        held.push(admitted("127.0.0.2", http).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_left_waiting_when_every_place_is_taken() {
    let world = World::start_with(|config| {
        config.max_connections = 16;
        config.max_connections_per_address = 4;
        config.trusted_proxies = vec!["127.0.0.9/32".into()];
    })
    .await;
    let address = world.gateway.address();
    let mut held = Vec::new();
    // A trusted proxy has more than a share.
    for (from, count) in [("127.0.0.9", 8), ("127.0.0.2", 4), ("127.0.0.3", 4)] {
        for _ in 0..count {
            held.push(admitted(from, address).await);
        }
    }
    for from in ["127.0.0.4", "127.0.0.9"] {
        assert!(is_closed(connect(from, address).await).await, "a seventeenth from {from}");
    }
    assert_eq!(healthz(&mut held[15]).await, Some(200), "who was there stays");
    held.pop();
    admitted("127.0.0.4", address).await;
}

/// For how long a head may go on to come.
async fn trickle(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Duration {
    let began = Instant::now();
    let head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".iter().chain(&[b'a'; 1000]);
    for byte in head {
        let written = io.write_all(&[*byte]).await;
        let read = tokio::time::timeout(Duration::from_millis(50), io.read(&mut [0; 16])).await;
        if written.is_err() || matches!(read, Ok(Ok(0) | Err(_))) {
            break;
        }
    }
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_head_has_its_time_too() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https_with(folder.path(), |config| config.keep_alive_s = 2).await;
    let mut clear = connect("127.0.0.2", world.gateway.address()).await;
    let mut secure = tls(&world, folder.path(), "127.0.0.2").await;
    assert_eq!(healthz(&mut clear).await, Some(200));
    assert_eq!(healthz(&mut secure).await, Some(200));
    let (clear, secure) = tokio::join!(trickle(&mut clear), trickle(&mut secure));
    for took in [clear, secure] {
        assert!((Duration::from_millis(1900)..Duration::from_secs(5)).contains(&took), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_at_work_has_the_time_it_takes() {
    let world = World::start_with(|config| {
        config.keep_alive_s = 1;
        config.sse.keep_alive_s = 3;
    })
    .await;
    let (token, _) = world.person(600);
    let mut stream = connect("127.0.0.2", world.gateway.address()).await;
    assert_eq!(healthz(&mut stream).await, Some(200));
    let request = format!(
        "GET /v1/jobs/{JOB}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\nGET /hea"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    // Comments are the only thing that comes, three seconds apart; the begun head behind the request changes nothing.
    let mut text = String::new();
    let both = async {
        while text.matches(": keep-alive\n\n").count() < 2 {
            let mut piece = [0; 4096];
            let read = stream.read(&mut piece).await.unwrap();
            assert_ne!(read, 0, "cut off: {text}");
            text.push_str(std::str::from_utf8(&piece[..read]).unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(20), both).await.expect("no comments");
}
