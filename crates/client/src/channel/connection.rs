//! One HTTP/2 connection to one replica.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::body::Attempt;
use super::connector::Transport;
use super::pool::{Settings, Target};

/// A connection that was seen to work.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Attempt>,
    outstanding: Arc<AtomicUsize>,
    ended: CancellationToken,
    pub(super) target: Target,
}

/// Why a call brought no answer.
pub(super) enum Lost {
    /// The replica never began on it.
    Unsent,
    /// Nobody can tell.
    InFlight(hyper::Error),
}

impl Connection {
    /// Connects and waits until the replica has spoken HTTP/2. A connection that the kernel took for a process that is
    /// on its way out, or frozen, is none.
    ///
    /// # Errors
    /// What went wrong on the way. The caller bounds the time.
    pub(super) async fn open(settings: &Settings, target: &Target) -> io::Result<Self> {
        let tcp = TcpStream::connect(target.address).await?;
        tcp.set_nodelay(true)?;
        let transport = settings.connector.secure(tcp, &target.endpoint.host).await?;
        let spoke = CancellationToken::new();
        let transport =
            TokioIo::new(Listening { transport, spoke: spoke.clone(), heard: false, broken: false });
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(settings.config.keep_alive_interval())
            .keep_alive_timeout(settings.config.keep_alive_timeout())
            .keep_alive_while_idle(true);
        if let Some(windows) = settings.windows {
            builder
                .initial_stream_window_size(windows.stream)
                .initial_connection_window_size(windows.connection);
        }
        let (sender, connection) = builder.handshake(transport).await.map_err(io::Error::other)?;
        let ended = CancellationToken::new();
        let end = ended.clone().drop_guard();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(end);
        });
        tokio::select! {
            () = spoke.cancelled() => {}
            () = ended.cancelled() => return Err(io::ErrorKind::ConnectionAborted.into()),
        }
        Ok(Self { sender, outstanding: Arc::default(), ended, target: target.clone() })
    }

    /// Whether calls may be sent on it.
    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed() && !self.ended.is_cancelled()
    }

    /// Resolves when no more calls can be sent; those that were may still be answered.
    pub(super) async fn closed(&self) {
        self.ended.cancelled().await;
    }

    /// How many calls are under way.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// Sends one call. The place counts until the answer's last byte was taken.
    pub(super) async fn send(&self, request: Request<Attempt>) -> Result<(Response<Incoming>, Place), Lost> {
        let place = Place::take(&self.outstanding);
        match self.sender.clone().try_send_request(request).await {
            Ok(response) => Ok((response, place)),
            Err(mut failed) => {
                let given_back = failed.take_message().is_some();
                let error = failed.into_error();
                if given_back || error.is_canceled() || was_refused(&error) {
                    return Err(Lost::Unsent);
                }
                Err(Lost::InFlight(error))
            }
        }
    }
}

/// Whether the peer said that it did not and will not begin on it (RFC 9113, sections 6.8 and 8.7).
fn was_refused(error: &hyper::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            // A stream ends with the peer's GOAWAY only if its id is above the last that the peer names in it.
            let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            return error.is_remote() && (error.is_go_away() || refused);
        }
        cause = error.source();
    }
    false
}

/// Counts one call for as long as it is held.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Place {
    pub(super) fn take(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A transport that tells when its peer has said something (the first is an HTTP/2 SETTINGS frame), and that hears its
/// peer out: one that has closed takes no more bytes, but what it said last stands in the buffers still. That is the
/// GOAWAY which tells of each call whether it was begun, and HTTP/2 would not read it after a write has failed.
struct Listening {
    transport: Box<dyn Transport>,
    spoke: CancellationToken,
    heard: bool,
    /// A write has failed: the next end or failure of reading ends the connection.
    broken: bool,
}

impl Listening {
    /// What to tell of a write: after a failure, that all went well.
    fn written<T>(&mut self, polled: Poll<io::Result<T>>, all: T) -> Poll<io::Result<T>> {
        match polled {
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "a connection takes no more; reading what is left");
                self.broken = true;
                Poll::Ready(Ok(all))
            }
            polled => polled,
        }
    }
}

impl AsyncRead for Listening {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.transport).poll_read(cx, buffer);
        if !self.heard && buffer.filled().len() > before {
            self.heard = true;
            self.spoke.cancel();
        }
        polled
    }
}

impl AsyncWrite for Listening {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Ready(Ok(buffer.len()));
        }
        let polled = Pin::new(&mut self.transport).poll_write(cx, buffer);
        self.written(polled, buffer.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut self.transport).poll_flush(cx);
        self.written(polled, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = buffers.iter().map(|buffer| buffer.len()).sum();
        if self.broken {
            return Poll::Ready(Ok(all));
        }
        let polled = Pin::new(&mut self.transport).poll_write_vectored(cx, buffers);
        self.written(polled, all)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }
}
