//! Connections from other services: each shows a certificate, and every request on it knows whose.

use std::collections::BTreeSet;
use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use gatehouse_client::tls::{Certificates, ServiceId, WARN_BEFORE, server_config};
use gatehouse_core::{Clock, Timestamp};
use opentelemetry::KeyValue;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::Lifecycle;
use crate::incoming::accept;

/// How long a handshake may take. Whoever connects and says nothing holds a place for as long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a certificate that ends soon is warned of.
const WARN_EVERY: Duration = Duration::from_hours(24);
/// Handshakes at once.
const MOST_HANDSHAKES: usize = 512;

/// The certificates that a server shows, and whom it knows besides Gatehouse's own services.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// Its own, and the authorities of the others'.
    pub certificates: Certificates,
    /// Services of the user's own, by the names in their certificates: the callers that contracts name `internal`.
    pub internal_services: Arc<BTreeSet<String>>,
}

/// Warns at once and then every day from three weeks before `ends_at` says; `what` names the certificate.
pub fn warn_before_end(
    what: impl Into<String>,
    lifecycle: &Lifecycle,
    ends_at: impl Fn() -> Timestamp + Send + 'static,
) {
    let (what, stopping) = (what.into(), lifecycle.stopping());
    lifecycle.spawn(async move {
        loop {
            let end = ends_at();
            if end.since(Clock::system().now()) < WARN_BEFORE {
                tracing::warn!(
                    certificate = what, ends_at = %end,
                    "a certificate ends soon and was not renewed: run `gatehouse certs` as it was made, or what else \
                     renews it; nothing gets through after its end"
                );
            }
            if stopping.run_until_cancelled(tokio::time::sleep(WARN_EVERY)).await.is_none() {
                return;
            }
        }
    });
}

/// Exports how long the certificate of this process still counts.
pub fn observe(certificates: &Certificates) {
    let certificates = certificates.clone();
    opentelemetry::global::meter("gatehouse")
        .f64_observable_gauge("gatehouse.tls.certificate.remaining")
        .with_unit("s")
        .with_description("Time until this process's TLS certificate ends.")
        .with_callback(move |gauge| {
            let loaded = certificates.current();
            let remaining = loaded.ends_at.since(Clock::system().now()).as_secs_f64();
            gauge.observe(remaining, &[KeyValue::new("service", loaded.id.service().to_owned())]);
        })
        .build();
}

/// The service at the other end of the connection that a request came over, from its certificate. In the extensions of
/// every request where TLS is on, and of none where it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    id: Arc<ServiceId>,
    is_internal: bool,
}

impl Peer {
    /// The owner of a certificate that was verified; `is_internal` if the configuration lists it.
    #[must_use]
    pub fn new(id: ServiceId, is_internal: bool) -> Self {
        Self { id: Arc::new(id), is_internal }
    }

    /// The service's name, which is also its client's at auth.
    #[must_use]
    pub fn service(&self) -> &str {
        self.id.service()
    }

    /// Whether it is one of the user's own that the configuration lists.
    #[must_use]
    pub const fn is_internal(&self) -> bool {
        self.is_internal
    }

    /// The peer of a request, where TLS is on.
    #[must_use]
    pub fn of<T>(request: &tonic::Request<T>) -> Option<&Self> {
        request.extensions().get()
    }
}

/// A connection after its handshake. It ends when the certificate of either side does, so that no connection outlives
/// what it was admitted with.
#[derive(Debug)]
pub(crate) struct PeerStream {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    end: Pin<Box<Sleep>>,
}

/// The connections of `listener` whose handshake went well. Ends when the stream is dropped.
pub(crate) fn shaken(listener: TcpListener, tls: ServerTls) -> ReceiverStream<io::Result<PeerStream>> {
    let (sender, receiver) = mpsc::channel(16);
    let places = Arc::new(Semaphore::new(MOST_HANDSHAKES));
    tokio::spawn(async move {
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (stream, address) = tokio::select! {
                () = sender.closed() => return,
                accepted = accept(&listener) => accepted,
            };
            let (sender, tls) = (sender.clone(), tls.clone());
            tokio::spawn(async move {
                let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, shake(stream, &tls)).await;
                drop(place);
                match shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                    // The receiver is gone: the server stops.
                    Ok(stream) => drop(sender.send(Ok(stream)).await),
                    Err(error) => refuse(address, &error),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

fn refuse(address: SocketAddr, error: &io::Error) {
    // Whoever looks whether the port is open (probes, balancers) hangs up before saying anything.
    if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) {
        tracing::debug!(%address, %error, "a connection ended during its handshake");
    } else {
        tracing::warn!(%address, %error, "a connection was refused: no TLS handshake with a certificate of ours");
    }
}

async fn shake(stream: TcpStream, tls: &ServerTls) -> io::Result<PeerStream> {
    let certificates = &tls.certificates;
    let own_end = certificates.current().ends_at;
    let config = server_config(certificates).map_err(io::Error::other)?;
    let stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
    let session = stream.get_ref().1;
    let leaf = session.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
    let leaf = leaf.ok_or_else(|| io::Error::other("the client showed no certificate"))?;
    let id = ServiceId::of_certificate(leaf).map_err(io::Error::other)?;
    let is_internal = tls.internal_services.contains(id.service());
    let ends_at = gatehouse_client::tls::ends_at(leaf).map_err(io::Error::other)?.min(own_end);
    let now = Clock::system().now();
    // The second in which it ends still counts (RFC 5280, section 4.1.2.5): whoever is cut off must not get in again.
    let end = Instant::now() + ends_at.since(now) + Duration::from_secs(1);
    Ok(PeerStream { stream, peer: Peer::new(id, is_internal), end: Box::pin(tokio::time::sleep_until(end)) })
}

impl Connected for PeerStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(cx).is_ready() {
            tracing::info!(peer = self.peer.service(), "a connection ends with a certificate");
            return Poll::Ready(Err(io::Error::other("a certificate of this connection has ended")));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
