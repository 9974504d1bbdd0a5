//! One HTTP/2 connection: requests in, answers out, and an end that costs nobody an answer.
//!
//! actix-web has no way to tell a client of HTTP/2 that its server goes away (its answers' `Connection: close` means
//! nothing there), so connections of HTTP/2 are served here, with the same application behind them.
//!
//! Invariants: a process that leaves says so to each connection at once, in two steps (RFC 9113, section 6.8), so that
//! what was sent before the client could know is answered; a connection without a request ends right after that, any
//! other with its last answer. A client is told what it may send, and what it may not is not kept: so many requests at
//! a time, at work or with an answer that has not left ([`crate::wire`] has the rest of it), and so much of their
//! bodies. Of a request that was taken back, nothing is kept for its client but what its handler still does.

use std::cell::Cell;
use std::error::Error as StdError;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use actix_http::{BoxedPayloadStream, HttpMessage as _, Request, RequestHead, Response, ResponseHead};
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, Service};
use actix_web::http::header::{self, HeaderName, HeaderValue, HttpDate};
use actix_web::http::uri::Authority;
use actix_web::http::{Method, StatusCode, Uri, Version, uri};
use bytes::Bytes;
use gatehouse_core::Clock;
use h2::server::{Builder, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::connection::Connection;
use crate::server::Patience;
use crate::upload::{Intake, upload};
use crate::wire::{LINGER, Ways, Wire};

/// The largest piece of an answer that is handed over at a time.
const PIECE_BYTES: usize = 16 * 1024;
/// How much of one answer `h2` takes before it has left.
const HANDED_OVER_BYTES: usize = 2 * PIECE_BYTES;
/// How many streams that were reset from here are remembered over a connection of many, and for how long. While there are
/// so many, another that is reset is not remembered at all. The end of a body (its trailers) that comes for one that is
/// not remembered, or not any more, ends the connection.
const REMEMBERED_RESETS: usize = 4096;
const RESETS_REMEMBERED_FOR: Duration = Duration::from_secs(5);
/// For how long a client without a request may leave it open whether it knows that the connection ends.
const UNANSWERED: Duration = Duration::from_secs(5);

/// What one connection may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    max_requests: u32,
    max_header_list_bytes: u32,
    /// What may be sent of a request's body before it is read.
    request_window: u32,
    /// The same of all of them.
    connection_window: u32,
    /// How long it may be without a request, and its client without a sign of life.
    pub(crate) patience: Patience,
}

impl Bounds {
    pub(crate) fn new(config: &Config, patience: Patience) -> Self {
        let longest = u32::try_from(config.max_request_bytes).unwrap_or(u32::MAX);
        // A longer body is read while it comes.
        let request_window = longest.clamp(16 * 1024, 1024 * 1024);
        Self {
            max_requests: config.max_requests_per_connection,
            max_header_list_bytes: config.max_header_list_bytes,
            request_window,
            // Less than 64 KiB can't be said.
            connection_window: (4 * request_window).clamp(64 * 1024, 2 * 1024 * 1024),
            patience,
        }
    }

    /// How `h2` is to keep to them. `is_shared`: what ends the connection ends the requests of others.
    fn builder(&self, is_shared: bool) -> Builder {
        let mut builder = Builder::new();
        builder
            .initial_window_size(self.request_window)
            .initial_connection_window_size(self.connection_window)
            // A stream counts until its answer has gone to the socket or was taken back.
            .max_concurrent_streams(self.max_requests)
            .max_send_buffer_size(HANDED_OVER_BYTES)
            // A byte can stand for a whole header that was sent before (RFC 7541): without a bound of its own a head of
            // half a megabyte takes fifty, and is kept for as long as its body does not come.
            .max_header_list_size(self.max_header_list_bytes);
        // Frames that carry little or nothing of a body, and frames that come too late, have bounds of `h2`'s own: windows
        // know nothing of them. They are counts for the life of a connection, and end it.
        if is_shared {
            builder
                // What is kept of them is bounded without it: by how much is read at a time, and by `Intake`.
                .data_frame_budget(usize::MAX)
                // Nothing is kept for what comes too late, but the word to stop.
                .max_local_error_reset_streams(None)
                .max_concurrent_reset_streams(REMEMBERED_RESETS)
                .reset_stream_duration(RESETS_REMEMBERED_FOR)
                // Each comes to the application, which counts them, before more is read.
                .max_pending_accept_reset_streams(usize::MAX);
        }
        builder
    }
}

/// The requests of a connection that are at work or whose answers are on their way.
struct Work {
    open: Cell<usize>,
    /// When there was something of the kind.
    seen_at: Cell<Instant>,
}

impl Work {
    fn is_none_since(&self) -> Option<Instant> {
        (self.open.get() == 0).then(|| self.seen_at.get())
    }
}

struct AtWork(Rc<Work>);

impl AtWork {
    fn begin(work: &Rc<Work>) -> Self {
        work.open.set(work.open.get() + 1);
        Self(Rc::clone(work))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.seen_at.set(Instant::now());
    }
}

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
    bounds: Bounds,
    Leaving { leaving, stopping }: Leaving,
) -> Result<(), h2::Error>
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
    let (ways, is_shared) = (Ways::default(), connection.is_shared());
    let mut http2 = tokio::select! {
        made = bounds.builder(is_shared).handshake(Wire::new(io, ways.clone(), is_shared)) => made?,
        () = tokio::time::sleep(bounds.patience.first_request) => return Ok(()),
        // What it has sent by then is read, and it is told.
        () = long_after(&stopping) => return Ok(()),
    };
    let mut silent = std::pin::pin!(silence(http2.ping_pong(), bounds.patience.keep_alive));
    let work = Rc::new(Work { open: Cell::new(0), seen_at: Cell::new(Instant::now()) });
    let mut look = std::pin::pin!(tokio::time::sleep(bounds.patience.keep_alive));
    let mut told: Option<Instant> = None;
    loop {
        let leaves = tokio::select! {
            biased;
            () = told_at.cancelled(), if told.is_none() => None,
            () = connection.cut() => Some(Reason::ENHANCE_YOUR_CALM),
            () = &mut silent => return Ok(()),
            () = &mut look => {
                if ways.is_full() {
                    work.seen_at.set(Instant::now());
                }
                let patience = if told.is_some() { UNANSWERED } else { bounds.patience.keep_alive };
                match work.is_none_since() {
                    Some(since) if since.elapsed() >= patience => told.map(|_| Reason::NO_ERROR),
                    since => {
                        look.as_mut().reset(since.unwrap_or_else(Instant::now) + patience);
                        continue;
                    }
                }
            }
            accepted = http2.accept() => {
                let Some(accepted) = accepted else { return Ok(()) };
                let (request, mut reply) = accepted?;
                if told.is_some_and(|told| told.elapsed() > UNANSWERED) {
                    // It does not answer the ping after which it could send nothing any more.
                    reply.send_reset(Reason::REFUSED_STREAM);
                    continue;
                }
                ways.took_request();
                if is_taken_back(&mut reply) {
                    continue;
                }
                let Some((request, is_head, intake)) = request_of(request, peer, &connection) else {
                    reply.send_reset(Reason::PROTOCOL_ERROR);
                    continue;
                };
                let (answering, at_work) = (app.call(request), AtWork::begin(&work));
                let patience = connection.patience_with_an_answer();
                let answered = async move {
                    match answering.await {
                        Ok(response) => answer(response.into(), reply, is_head, patience).await,
                        Err(error) => answer(error.into(), reply, is_head, patience).await,
                    }
                };
                actix_web::rt::spawn(async move {
                    let sent = taking_in(&intake, answered).await;
                    if let Err(error) = sent {
                        tracing::debug!(error, "an answer did not go out whole");
                    }
                    drop(at_work);
                });
                continue;
            }
            () = ways.read_enough() => {
                ways.give_way().await;
                continue;
            }
        };
        let Some(reason) = leaves else {
            told = Some(Instant::now());
            work.seen_at.set(Instant::now());
            look.as_mut().reset(Instant::now() + UNANSWERED);
            http2.graceful_shutdown();
            continue;
        };
        http2.abrupt_shutdown(reason);
        let _ = tokio::time::timeout(LINGER, http2.accept()).await;
        return Ok(());
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

/// Whether the client has reset a request that nothing was done for yet.
fn is_taken_back(reply: &mut SendResponse<Bytes>) -> bool {
    reply.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// `work`, and beside it the body of the request that it is for.
async fn taking_in<T>(intake: &Intake, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|context| {
        intake.take_in(context);
        work.as_mut().poll(context)
    })
    .await
}

/// The request as the application takes it, whether it asks for no body, and the end of its own that body comes in by.
/// None if it can't be said there.
fn request_of(
    request: http::Request<RecvStream>,
    peer: Option<SocketAddr>,
    connection: &Connection,
) -> Option<(Request, bool, Intake)> {
    let (parts, body) = request.into_parts();
    let (body, intake) = upload(body);
    let payload: BoxedPayloadStream = Box::pin(body);
    let mut request = Request::with_payload(Payload::Stream { payload });
    let is_head = parts.method == http::Method::HEAD;
    let head = request.head_mut();
    head.uri = uri_of(&parts.uri)?;
    head.method = Method::from_bytes(parts.method.as_str().as_bytes()).ok()?;
    head.version = Version::HTTP_2;
    for (name, value) in &parts.headers {
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).ok()?;
        head.headers.append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
    }
    name_host(head);
    head.peer_addr = peer;
    request.extensions_mut().insert(connection.clone());
    Some((request, is_head, intake))
}

/// The same URI, of the older `http` that actix-web has.
fn uri_of(uri: &http::Uri) -> Option<Uri> {
    let mut parts = uri::Parts::default();
    parts.scheme = uri.scheme_str().map(str::parse).transpose().ok()?;
    parts.authority = uri.authority().map(|authority| authority.as_str().parse()).transpose().ok()?;
    parts.path_and_query = uri.path_and_query().map(|path| path.as_str().parse()).transpose().ok()?;
    Uri::from_parts(parts).ok()
}

/// The host of a request stands in `Host`, as it does over HTTP/1.1. One that says two different things (RFC 9113,
/// section 8.3.1) has two such headers then, as it could over HTTP/1.1, and is refused for it.
fn name_host(head: &mut RequestHead) {
    let Some(authority) = head.uri.authority().map(Authority::as_str) else { return };
    let same = |host: &HeaderValue| host.as_bytes().eq_ignore_ascii_case(authority.as_bytes());
    if !head.headers.get_all(header::HOST).any(same)
        && let Ok(host) = HeaderValue::from_str(authority)
    {
        head.headers.append(header::HOST, host);
    }
}

/// Sends an answer, for which a client has its `patience` for each piece if there is one.
async fn answer<B: MessageBody>(
    response: Response<B>,
    mut reply: SendResponse<Bytes>,
    is_head: bool,
    patience: Option<Duration>,
) -> Result<(), Box<dyn StdError>> {
    let (response, body) = response.into_parts();
    let (head, size) = head_of(response.head(), body.size())?;
    let is_whole = is_head || size.is_eof();
    let mut stream = reply.send_response(head, is_whole)?;
    if is_whole {
        return Ok(());
    }
    let mut body = std::pin::pin!(body);
    loop {
        // What a client took back, or can't get any more, may have nothing to say for a long time.
        let next = std::future::poll_fn(|context| match stream.poll_reset(context) {
            Poll::Ready(gone) => Poll::Ready(Err(gone)),
            Poll::Pending => body.as_mut().poll_next(context).map(Ok),
        });
        let mut chunk = match next.await {
            Ok(Some(chunk)) => chunk.map_err(Into::into)?,
            Ok(None) => break,
            Err(gone) => return gone.map(drop).map_err(Into::into),
        };
        // `Connection` gives no more than a piece at a time.
        let given_at = Instant::now();
        while !chunk.is_empty() {
            stream.reserve_capacity(chunk.len().min(PIECE_BYTES));
            if stream.capacity() == 0 {
                let room = std::future::poll_fn(|context| stream.poll_capacity(context));
                let room = match patience {
                    Some(patience) => tokio::time::timeout_at(given_at + patience, room).await,
                    None => Ok(room.await),
                };
                match room {
                    Ok(Some(room)) => drop(room?),
                    Ok(None) => return Ok(()),
                    Err(late) => {
                        tracing::info!("an answer is given up: it was not taken");
                        stream.send_reset(Reason::CANCEL);
                        return Err(late.into());
                    }
                }
                continue;
            }
            let piece = chunk.split_to(stream.capacity().min(chunk.len()).min(PIECE_BYTES));
            stream.send_data(piece, false)?;
        }
    }
    Ok(stream.send_data(Bytes::new(), true)?)
}

/// The head of an answer, and the size of its body: without what only HTTP/1.1 says (RFC 9113, section 8.2.2).
fn head_of(head: &ResponseHead, size: BodySize) -> Result<(http::Response<()>, BodySize), http::Error> {
    let size = if head.status == StatusCode::NO_CONTENT { BodySize::None } else { size };
    let mut sent = http::Response::new(());
    *sent.status_mut() = http::StatusCode::from_u16(head.status.as_u16())?;
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
            let name = http::HeaderName::from_bytes(name.as_str().as_bytes())?;
            headers.append(name, http::HeaderValue::from_bytes(value.as_bytes())?);
        }
    }
    if let BodySize::Sized(bytes) = size {
        headers.insert(http::header::CONTENT_LENGTH, bytes.into());
    }
    if !headers.contains_key(http::header::DATE) {
        headers.insert(http::header::DATE, HttpDate::from(now()).to_string().try_into()?);
    }
    Ok((sent, size))
}

/// The time of day.
fn now() -> SystemTime {
    let micros = u64::try_from(Clock::system().now().as_micros()).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
}
