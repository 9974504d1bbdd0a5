//! Accepting connections: what every gRPC server does before it sees a request, with TLS and without.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::net::{TcpListener, TcpStream};

/// After an accept that failed for want of something (file handles, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The next connection of `listener`. No error ends a server: where this process has no file handle left, it has one
/// again when another connection ends.
///
/// Answers on the connection leave at once. Otherwise a short one would wait for the acknowledgement of the one before
/// it, which the other side may delay, and Linux does for 40 ms (RFC 1122, sections 4.2.3.2 and 4.2.3.4).
pub(crate) async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            // What can't be set is set on a connection that is gone already.
            Ok((stream, address)) if stream.set_nodelay(true).is_ok() => return (stream, address),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The connections of `listener`, in the clear. Never ends.
pub(crate) fn in_the_clear(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    stream::unfold(listener, async |listener| {
        let (stream, _) = accept(&listener).await;
        Some((Ok(stream), listener))
    })
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn answers_do_not_wait_for_acknowledgements() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = Box::pin(in_the_clear(listener));
        let _client = TcpStream::connect(address).await.unwrap();
        assert!(incoming.next().await.unwrap().unwrap().nodelay().unwrap());
    }
}
