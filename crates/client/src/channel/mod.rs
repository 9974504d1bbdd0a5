//! A channel to all replicas of a service.
//!
//! Invariants: a call goes only to a replica that has spoken HTTP/2 on an open connection, so one that is dead, frozen
//! or on its way out takes none; a call that provably no replica has begun is sent again, over each connection at most
//! once; one that may have reached one is sent again only if its contract says that this does no harm
//! (`idempotency_level` in the proto, or [`Repeatable`]); everything that waits has a bound. Failures are answers with
//! a status of ours, never transport errors.

mod body;
mod config;
mod connection;
mod connector;
mod pool;
mod resolver;

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use gatehouse_core::{Entropy, Error, Result};
use http::header::USER_AGENT;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::body::Body;
use tower::Service;

use body::{Answer, Replay};
pub use config::ChannelConfig;
use config::Endpoint;
use connection::{Connection, Lost, Place};
pub use connector::{Connector, Securing, Transport};
use pool::{Pool, Settings, Windows};
pub use resolver::Resolver;

use crate::tls::ClientTls;
use crate::to_status;

/// What one stream may have under way unread, bytes.
const STREAM_WINDOW: u32 = 64 * 1024;
/// How often a call that no replica began on is sent.
const MAX_SENDS: usize = 8;
/// How often a repeatable call is sent again after its connection broke.
const MAX_REPEATS: usize = 2;
/// What a caller is told to wait when no replica is there.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const AGENT: HeaderValue = HeaderValue::from_static(concat!("gatehouse/", env!("CARGO_PKG_VERSION")));

/// Stands in an answer `UNAVAILABLE` of a replica that has done nothing and will do nothing on this call: another may be
/// asked, whatever the call is.
pub const NOT_BEGUN: HeaderName = HeaderName::from_static("gatehouse-not-begun");

/// In a request's extensions: this call may be made twice, though its method does not say so of every call (it carries
/// an idempotency key, say).
#[derive(Clone, Copy, Debug)]
pub struct Repeatable;

/// Calls to whichever replica of a service has least to do. Give it to any generated client. Cheap to clone; clones
/// share the connections, which close when the last is dropped.
#[derive(Clone)]
pub struct Channel(Arc<Shared>);

struct Shared {
    pool: Arc<Pool>,
    _stop: DropGuard,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Channel").field(&self.0.pool.settings.config.endpoints).finish()
    }
}

/// A channel that connects at its first call and again whenever a connection is lost.
///
/// # Errors
/// `INVALID_ENDPOINT` if the configuration names none or one that is no address. Must be called inside a tokio
/// runtime.
pub fn channel(config: &ChannelConfig) -> Result<Channel> {
    Channel::builder(config).build()
}

/// As [`channel`], for up to `streams` answers that go on for long. Their flow-control windows add up to that of the
/// connection (RFC 9113, section 5.2), so that readers who take nothing do not stop the others on it.
///
/// # Errors
/// As [`channel`].
pub fn stream_channel(config: &ChannelConfig, streams: u32) -> Result<Channel> {
    Channel::builder(config).streams(streams).build()
}

/// A channel that is not made yet.
#[derive(Debug)]
pub struct ChannelBuilder {
    config: ChannelConfig,
    windows: Option<Windows>,
    connector: Connector,
    resolver: Resolver,
}

impl ChannelBuilder {
    /// For up to `streams` answers that go on for long: see [`stream_channel`].
    #[must_use]
    pub fn streams(mut self, streams: u32) -> Self {
        let whole = streams.max(1).saturating_mul(STREAM_WINDOW).min(i32::MAX.unsigned_abs());
        self.windows = Some(Windows { stream: STREAM_WINDOW, connection: whole });
        self
    }

    /// How connections are secured; unless told otherwise, as the configuration's `tls` says.
    #[must_use]
    pub fn connector(mut self, connector: Connector) -> Self {
        self.connector = connector;
        self
    }

    /// How names are resolved; [`Resolver::system`] unless told otherwise.
    #[must_use]
    pub fn resolver(mut self, resolver: Resolver) -> Self {
        self.resolver = resolver;
        self
    }

    /// The channel. Its tasks run on the runtime that this is called in; calls may come from any.
    ///
    /// # Errors
    /// `INVALID_ENDPOINT`.
    pub fn build(self) -> Result<Channel> {
        let invalid = |problem: String| Error::invalid_argument("INVALID_ENDPOINT", problem);
        if let Some(problem) = self.config.validate().into_iter().next() {
            return Err(invalid(problem));
        }
        let endpoints: Vec<_> =
            self.config.endpoints.iter().filter_map(|text| Endpoint::parse(text)).collect();
        if endpoints.iter().any(Endpoint::is_https) && !self.connector.is_tls() {
            return Err(invalid("endpoints: https needs this process to have certificates: set tls.cert_file, key_file and ca_file".to_owned()));
        }
        let runtime = Handle::try_current().map_err(Error::internal)?;
        let stopped = CancellationToken::new();
        let settings = Settings {
            config: self.config,
            endpoints,
            windows: self.windows,
            connector: self.connector,
            resolver: self.resolver,
            entropy: Entropy::system(),
            runtime,
        };
        let pool = Pool::new(settings, stopped.clone());
        Ok(Channel(Arc::new(Shared { pool, _stop: stopped.drop_guard() })))
    }
}

impl Channel {
    /// A channel to the replicas that `config` names.
    #[must_use]
    pub fn builder(config: &ChannelConfig) -> ChannelBuilder {
        ChannelBuilder {
            config: config.clone(),
            windows: None,
            connector: config.tls.as_ref().map_or_else(Connector::plain, ClientTls::connector),
            resolver: Resolver::system(),
        }
    }

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        let pool = &self.0.pool;
        if pool.is_full() {
            return refuse(&Error::resource_exhausted(
                "SERVICE_BUSY",
                "A service that this needs is at its limit. Try again in a moment.",
            ));
        }
        let (place, began) = (pool.place(), Instant::now());
        let asked = asked_timeout(request.headers()).unwrap_or(Duration::MAX);
        let limit = pool.settings.config.request_timeout().min(asked);
        match timeout_at(began + limit, send(pool, request, place)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => refuse(&error),
            Err(_) => refuse(&Error::deadline_exceeded(
                "DEADLINE_EXCEEDED",
                "The service did not answer in time. Whether it acted is not known; read before you try again.",
            )),
        }
    }
}

fn refuse(error: &Error) -> Response<Body> {
    to_status(error).into_http()
}

/// Sends a call until a replica has answered.
async fn send(pool: &Arc<Pool>, request: Request<Body>, place: Place) -> Result<Response<Body>> {
    let repeatable = request.extensions().get::<Repeatable>().is_some()
        || gatehouse_proto::repeatable::is_repeatable(request.uri().path());
    let (mut head, body) = request.into_parts();
    head.version = Version::HTTP_2;
    head.headers.entry(USER_AGENT).or_insert(AGENT);
    let body = Replay::new(body);
    let mut tried: Vec<Arc<Connection>> = Vec::new();
    let mut repeats = 0;
    let mut refused = None;
    loop {
        let picked = match &refused {
            Some(_) => pool.choose(&tried),
            None => pool.pick(&tried).await,
        };
        let Some(connection) = picked else { return refused.ok_or_else(away) };
        let Some(attempt) = body.attempt() else { return Err(broken()) };
        let mut head = head.clone();
        head.uri = at(&connection.target.endpoint, &head.uri)?;
        match connection.send(Request::from_parts(head, attempt)).await {
            Ok((response, _)) if is_not_begun(response.headers()) => refused = Some(response.map(Body::new)),
            Ok((response, replica)) => {
                body.settle();
                return Ok(response.map(|body| Body::new(Answer { body, places: (place, replica) })));
            }
            Err(Lost::Unsent) => {}
            Err(Lost::InFlight(error)) => {
                tracing::debug!(%error, replica = %connection.target.address, repeatable, "a call was lost");
                if !repeatable || repeats >= MAX_REPEATS {
                    return Err(broken().caused_by(error));
                }
                repeats += 1;
            }
        }
        tried.push(connection);
        if tried.len() >= MAX_SENDS {
            return refused.ok_or_else(away);
        }
    }
}

fn is_not_begun(headers: &HeaderMap) -> bool {
    headers.contains_key(NOT_BEGUN) && headers.get("grpc-status").is_some_and(|status| status == "14")
}

fn away() -> Error {
    Error::unavailable("SERVICE_UNAVAILABLE", "A service that this needs is away. Try again in a moment.")
        .retry_after(RETRY_AFTER)
}

fn broken() -> Error {
    Error::unavailable(
        "CONNECTION_LOST",
        "The connection broke before the answer came. Whether the service acted is not known; read before you try again.",
    )
    .retry_after(RETRY_AFTER)
}

/// The path of `uri` at `endpoint`.
fn at(endpoint: &Endpoint, uri: &Uri) -> Result<Uri> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(endpoint.scheme.clone());
    parts.authority = Some(endpoint.authority.clone());
    parts.path_and_query = uri.path_and_query().cloned();
    Uri::from_parts(parts).map_err(Error::internal)
}

/// The time that the caller gives the call (gRPC over HTTP/2, "Timeout").
fn asked_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value = digits.parse::<u64>().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let channel = self.clone();
        Box::pin(async move { Ok(channel.answer(request).await) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_timeout_is_heeded() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_str(text).expect("a header value"));
            asked_timeout(&headers)
        };
        assert_eq!(of("20m"), Some(Duration::from_millis(20)));
        assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "m", "20", "123456789m", "-1m", "1.5S", "2é"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn https_is_never_spoken_in_the_clear() {
        let error = channel(&ChannelConfig::to("https://127.0.0.1:1")).expect_err("it was taken");
        assert_eq!(error.reason(), "INVALID_ENDPOINT");
    }
}
