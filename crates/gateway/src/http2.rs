//! One HTTP/2 connection: requests in, answers out, and an end that costs nobody an answer.
//!
//! actix-web has no way to tell a client of HTTP/2 that its server goes away (its answers' `Connection: close` means
//! nothing there), so connections of HTTP/2 are served here, with the same application behind them.
//!
//! Invariants: a process that leaves says so to each connection at once, in two steps (RFC 9113, section 6.8), so that
//! what was sent before the client could know is answered; a connection without a request ends right after that, any
//! other with its last answer; and an answer that was written is not lost because its connection was closed behind it.

use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{self, Poll, ready};
use std::time::{Duration, SystemTime};

use actix_http::{BoxedPayloadStream, HttpMessage as _, Request, Response, ResponseHead};
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, Service};
use actix_web::error::PayloadError;
use actix_web::http::header::{self, HeaderName, HeaderValue, HttpDate};
use actix_web::http::{Method, StatusCode};
use bytes::Bytes;
use futures_util::Stream;
use gatehouse_core::Clock;
use h2_03::server::{Builder, SendResponse};
use h2_03::{Ping, PingPong, Reason, RecvStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use crate::connection::Connection;
use crate::server::Patience;

/// What a client may send before it is read: for one request, and for all of a connection.
const WINDOWS: (u32, u32) = (1024 * 1024, 2 * 1024 * 1024);
/// The largest piece of an answer that is handed over at a time.
const PIECE_BYTES: usize = 16 * 1024;
/// For how long a client without a request may leave it open whether it knows that the connection ends.
const UNANSWERED: Duration = Duration::from_secs(5);
/// For how long a connection that has been closed from here is read, so that the other end can read to the end.
const LINGER: Duration = Duration::from_secs(1);
/// How often is looked whether a connection that should end can.
const LOOK: Duration = Duration::from_secs(1);

/// How a connection learns that its process goes away.
#[derive(Clone, Debug)]
pub(crate) struct Leaving {
    /// Others should be asked from now on.
    pub(crate) leaving: CancellationToken,
    /// There is no new work any more.
    pub(crate) stopping: CancellationToken,
}

/// Serves one connection until it ends.
///
/// # Errors
/// If it breaks.
pub(crate) async fn serve<T, S, B>(
    io: T,
    peer: Option<SocketAddr>,
    app: Rc<S>,
    connection: Connection,
    max_header_list_bytes: u32,
    patience: Patience,
    Leaving { leaving, stopping }: Leaving,
) -> Result<(), h2_03::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Service<Request> + 'static,
    S::Response: Into<Response<B>>,
    S::Error: Into<Response<BoxBody>>,
    B: MessageBody + 'static,
{
    // Who comes while the process leaves was sent here by someone who does not know yet, and is served until it stops. Told
    // to go right after its first answer, a client with more to ask would fail: clients try again elsewhere what they
    // could not send over a connection that they have used before, and not over a new one.
    let told_at = if leaving.is_cancelled() { &stopping } else { &leaving };
    let mut builder = Builder::new();
    builder.initial_window_size(WINDOWS.0).initial_connection_window_size(WINDOWS.1);
    // A byte can stand for a whole header that was sent before (RFC 7541): without a bound of its own a head of half a
    // megabyte takes fifty, and is kept for as long as its body does not come.
    builder.max_header_list_size(max_header_list_bytes);
    let mut http2 = tokio::select! {
        made = builder.handshake(Lingering { io, until: None }) => made?,
        () = tokio::time::sleep(patience.first_request) => return Ok(()),
        // What it has sent by then is read, and it is told.
        () = long_after(&stopping) => return Ok(()),
    };
    let mut silent = std::pin::pin!(silence(http2.ping_pong(), patience.keep_alive));
    // Each request that is at work or on its way back holds one more.
    let at_work = Rc::new(());
    let (mut told, mut idle_since) = (false, Instant::now());
    loop {
        tokio::select! {
            accepted = http2.accept() => {
                let Some(accepted) = accepted else { return Ok(()) };
                let (request, reply) = accepted?;
                let (request, is_head) = request_of(request, peer, &connection);
                let (answering, at_work) = (app.call(request), Rc::clone(&at_work));
                actix_web::rt::spawn(async move {
                    let sent = match answering.await {
                        Ok(response) => answer(response.into(), reply, is_head).await,
                        Err(error) => answer(error.into(), reply, is_head).await,
                    };
                    if let Err(error) = sent {
                        tracing::debug!(error, "an answer did not go out whole");
                    }
                    drop(at_work);
                });
            }
            () = told_at.cancelled(), if !told => {
                (told, idle_since) = (true, Instant::now());
                http2.graceful_shutdown();
            }
            () = tokio::time::sleep(LOOK), if told => {
                if Rc::strong_count(&at_work) > 1 {
                    idle_since = Instant::now();
                } else if idle_since.elapsed() > UNANSWERED {
                    // It does not even answer a ping.
                    http2.abrupt_shutdown(Reason::NO_ERROR);
                    let _ = tokio::time::timeout(LINGER, http2.accept()).await;
                    return Ok(());
                }
            }
            () = &mut silent => return Ok(()),
        }
    }
}

async fn long_after(stopping: &CancellationToken) {
    stopping.cancelled().await;
    tokio::time::sleep(LINGER).await;
}

/// Ends when the client of an otherwise quiet connection is found gone.
async fn silence(pings: Option<PingPong>, keep_alive: Duration) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(keep_alive).await;
        let answered = tokio::time::timeout(keep_alive, pings.ping(Ping::opaque())).await;
        if !matches!(answered, Ok(Ok(_))) {
            return;
        }
    }
}

/// The request as the application takes it, and whether it asks for no body.
fn request_of(
    request: http_02::Request<RecvStream>,
    peer: Option<SocketAddr>,
    connection: &Connection,
) -> (Request, bool) {
    let (parts, body) = request.into_parts();
    let payload: BoxedPayloadStream = Box::pin(Upload(body));
    let mut request = Request::with_payload(Payload::Stream { payload });
    let is_head = parts.method == Method::HEAD;
    let head = request.head_mut();
    head.uri = parts.uri;
    head.method = parts.method;
    head.version = parts.version;
    head.headers = parts.headers.into();
    head.peer_addr = peer;
    request.extensions_mut().insert(connection.clone());
    (request, is_head)
}

/// The body of a request.
struct Upload(RecvStream);

impl Stream for Upload {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        let chunk = match ready!(self.0.poll_data(context)) {
            Some(chunk) => chunk?,
            None => return Poll::Ready(None),
        };
        self.0.flow_control().release_capacity(chunk.len())?;
        Poll::Ready(Some(Ok(chunk)))
    }
}

/// Sends an answer.
async fn answer<B: MessageBody>(
    response: Response<B>,
    mut reply: SendResponse<Bytes>,
    is_head: bool,
) -> Result<(), Box<dyn StdError>> {
    let (response, body) = response.into_parts();
    let (head, size) = head_of(response.head(), body.size());
    let is_whole = is_head || size.is_eof();
    let mut stream = reply.send_response(head, is_whole)?;
    if is_whole {
        return Ok(());
    }
    let mut body = std::pin::pin!(body);
    while let Some(chunk) = std::future::poll_fn(|context| body.as_mut().poll_next(context)).await {
        let mut chunk = chunk.map_err(Into::into)?;
        while !chunk.is_empty() {
            stream.reserve_capacity(chunk.len().min(PIECE_BYTES));
            let Some(room) = std::future::poll_fn(|context| stream.poll_capacity(context)).await else {
                return Ok(());
            };
            let piece = chunk.split_to(room?.min(chunk.len()));
            stream.send_data(piece, false)?;
        }
    }
    Ok(stream.send_data(Bytes::new(), true)?)
}

/// The head of an answer, and the size of its body: without what only HTTP/1.1 says (RFC 9113, section 8.2.2).
fn head_of(head: &ResponseHead, size: BodySize) -> (http_02::Response<()>, BodySize) {
    let size = if head.status == StatusCode::NO_CONTENT { BodySize::None } else { size };
    let mut sent = http_02::Response::new(());
    *sent.status_mut() = head.status;
    let headers = sent.headers_mut();
    for (name, value) in head.headers() {
        let of_http1 = *name == header::CONNECTION
            || *name == header::TRANSFER_ENCODING
            || *name == header::UPGRADE
            || *name == HeaderName::from_static("keep-alive")
            || *name == HeaderName::from_static("proxy-connection");
        // The body knows its length, unless it is a stream of which the answer knows it.
        let known = *name == header::CONTENT_LENGTH && size != BodySize::Stream;
        if !of_http1 && !known {
            headers.append(name.clone(), value.clone());
        }
    }
    if let BodySize::Sized(bytes) = size {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    }
    if !headers.contains_key(header::DATE)
        && let Ok(date) = HeaderValue::from_str(&HttpDate::from(now()).to_string())
    {
        headers.insert(header::DATE, date);
    }
    (sent, size)
}

/// The time of day.
fn now() -> SystemTime {
    let micros = u64::try_from(Clock::system().now().as_micros()).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
}

/// A stream that is closed only once the other end has closed it too, or has had its time: closed with something unread
/// (a word about windows, say), the kernel would take back what was sent and not yet read over there.
struct Lingering<T> {
    io: T,
    /// Set when our end was closed.
    until: Option<Pin<Box<Sleep>>>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Lingering<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.until.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(context))?;
        }
        let until = this.until.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut unread = [0; 1024];
        loop {
            if until.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut unread);
            match ready!(Pin::new(&mut this.io).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // Closed, one way or the other.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}
