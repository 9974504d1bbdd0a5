//! What lies between a TCP connection and HTTP/2: nothing, or TLS.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A connection that HTTP/2 can be spoken on.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// A transport on its way.
pub type Securing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Transport>>> + Send>>;

type Secure = Arc<dyn Fn(TcpStream, String) -> Securing + Send + Sync>;

/// Makes a fresh TCP connection one that calls may go over. Cheap to clone.
#[derive(Clone)]
pub struct Connector(Option<Secure>);

impl Connector {
    /// HTTP/2 in the clear.
    #[must_use]
    pub const fn plain() -> Self {
        Self(None)
    }

    /// TLS, whatever the endpoint says: `secure` takes the connection and the host that the endpoint names, makes sure that
    /// the peer is that host and speaks `h2` (ALPN), and gives what the calls go over. It is called for each
    /// connection, so it may read certificates that were renewed, and ends within the channel's connect timeout.
    #[must_use]
    pub fn tls(secure: impl Fn(TcpStream, String) -> Securing + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(secure)))
    }

    pub(super) const fn is_tls(&self) -> bool {
        self.0.is_some()
    }

    pub(super) async fn secure(&self, connection: TcpStream, host: &str) -> io::Result<Box<dyn Transport>> {
        match &self.0 {
            Some(secure) => secure(connection, host.to_owned()).await,
            None => Ok(Box::new(connection)),
        }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_tls() { "Connector(TLS)" } else { "Connector(plain)" })
    }
}
