//! Clients of HTTP/2: one that keeps to everything, and frames by hand.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gatehouse_testkit::eventually;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::Request;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;

use super::World;

/// Far less than a drain may take: what ends within this did not wait for its limit.
pub(crate) const SOON: Duration = Duration::from_secs(4);
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) async fn tls(world: &World, folder: &Path, protocol: &[u8]) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("localhost.pem")).unwrap()).unwrap();
    let mut tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    tls.alpn_protocols = vec![protocol.to_vec()];
    // Small, for those that read nothing: what a client's kernel takes for it, nobody waits for.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let socket = socket.connect(world.gateway.https_address().unwrap()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    connector.connect(ServerName::try_from("localhost").unwrap(), socket).await.unwrap()
}

/// A connection of HTTP/2, and how it ended.
pub(crate) struct Client {
    pub(crate) requests: SendRequest<Bytes>,
    pub(crate) connection: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    pub(crate) async fn connect(world: &World, folder: &Path) -> Self {
        let (requests, connection) = h2::client::handshake(tls(world, folder, b"h2").await).await.unwrap();
        Self { requests, connection: tokio::spawn(connection) }
    }

    pub(crate) async fn get(&self, path: &str, token: &str) -> http::Response<RecvStream> {
        let request = Request::get(format!("https://localhost{path}"))
            .header("authorization", format!("Bearer {token}"))
            .body(())
            .unwrap();
        self.send(request).await
    }

    pub(crate) async fn send(&self, request: Request<()>) -> http::Response<RecvStream> {
        self.requests.clone().ready().await.unwrap().send_request(request, true).unwrap().0.await.unwrap()
    }

    /// Waits until the gateway has said that nothing new may come.
    pub(crate) async fn told_to_leave(&self) {
        let told = eventually(SOON, || async { self.requests.clone().ready().await.err() }).await;
        assert!(told.is_go_away() && told.is_remote(), "{told:?}");
        assert_eq!(told.reason(), Some(Reason::NO_ERROR));
    }

    /// Waits until the connection has ended, and well.
    pub(crate) async fn ends(self) {
        tokio::time::timeout(SOON, self.connection).await.expect("still open").unwrap().unwrap();
    }
}

pub(crate) async fn text(mut body: RecvStream, until: &str) -> String {
    let mut text = String::new();
    while !text.contains(until) {
        let Some(chunk) = body.data().await else { break };
        let chunk = chunk.unwrap();
        body.flow_control().release_capacity(chunk.len()).unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    text
}

/// What came in by now, frame by frame: type, flags, stream, payload.
pub(crate) async fn frame(stream: &mut TlsStream<TcpStream>) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let [a, b, c, kind, flags, id @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((kind, flags, u32::from_be_bytes(id), payload))
}

/// A connection of HTTP/2 on which nobody answers what has to be answered.
pub(crate) async fn by_hand(world: &World, folder: &Path) -> TlsStream<TcpStream> {
    let mut stream = tls(world, folder, b"h2").await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    assert_eq!(frame(&mut stream).await.unwrap().0, 4, "SETTINGS");
    stream
}

/// A header whose name has a number in HPACK's table, as it is.
pub(crate) fn literal(number: &[u8], value: &str) -> Vec<u8> {
    let mut bytes = number.to_vec();
    match value.len() {
        short @ 0..127 => bytes.push(u8::try_from(short).unwrap()),
        long => {
            bytes.push(127);
            let mut rest = long - 127;
            while rest >= 128 {
                bytes.push(u8::try_from(rest % 128 + 128).unwrap());
                rest /= 128;
            }
            bytes.push(u8::try_from(rest).unwrap());
        }
    }
    bytes.extend_from_slice(value.as_bytes());
    bytes
}

/// A request without a body, whose headers stand in `fields` as HPACK has them.
pub(crate) fn headers(stream: u32, fields: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(fields.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([1, 0x05]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(fields);
    bytes
}

/// The head of a request whose body, JSON, is to follow.
pub(crate) fn head(stream: u32, method: &str, path: &str, token: Option<&str>) -> Vec<u8> {
    let mut fields = match method {
        "GET" => vec![0x82, 0x87],
        _ => vec![0x83, 0x87],
    };
    fields.extend(literal(&[0x41], "localhost"));
    fields.extend(literal(&[0x44], path));
    fields.extend(literal(&[0x5f], "application/json"));
    if let Some(token) = token {
        fields.extend(literal(&[0x57], &format!("Bearer {token}")));
    }
    let mut bytes = headers(stream, &fields);
    // END_HEADERS alone.
    bytes[4] = 0x04;
    bytes
}

/// A frame of a body: `flags` say whether it is the last (1) and padded (8).
pub(crate) fn data(stream: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([0, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}
