//! The running gateway: workers, listeners, drain.
//!
//! actix-web runs its workers as threads, each with a runtime of its own, beside the tokio runtime that the
//! process's gRPC services run on; the two meet only in channels that may be used from anywhere.

use std::any::Any;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_http::{HttpServiceBuilder, Protocol, Request, Response};
use actix_service::{IntoService as _, Service, ServiceFactory, fn_factory, fn_service, map_config};
use actix_tls::accept::rustls_0_23::{Acceptor, TlsStream};
use actix_web::body::BoxBody;
use actix_web::dev::{AppConfig, Server, ServerHandle};
use actix_web::middleware::from_fn;
use actix_web::rt::net::TcpStream;
use actix_web::{App, HttpRequest, web};
use gatehouse_core::{Error, Result};
use gatehouse_service::tls::warn_before_end;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::connection::Connection;
use crate::doors::{Door, Doors, when_ready};
use crate::edge;
use crate::gateway::{Deps, Gateway};
use crate::heads::Patient;
use crate::http2::{Bounds, Leaving};
use crate::https::{Accepted, Https};
use crate::tls;

/// How long connections may be without a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// How long one may be without a request at work: for the whole head of the next to come, over HTTP/2 for any, and there
    /// without a sign of life too.
    pub(crate) keep_alive: Duration,
    /// How long the first request may take to come.
    pub(crate) first_request: Duration,
}

impl Patience {
    fn of(config: &Config) -> Self {
        Self {
            keep_alive: Duration::from_secs(config.keep_alive_s),
            first_request: Duration::from_secs(config.first_request_timeout_s),
        }
    }
}

/// Where the gateway listens: bound by the caller, so that a port in use is found before anything starts.
#[derive(Debug)]
pub struct Listeners {
    /// For HTTP.
    pub http: TcpListener,
    /// For HTTPS, with its certificate.
    pub https: Option<(TcpListener, tls::Identity)>,
}

/// A gateway that serves.
#[derive(Debug)]
pub struct RunningGateway {
    http: SocketAddr,
    https: Option<SocketAddr>,
    handle: ServerHandle,
}

impl RunningGateway {
    /// The address of the HTTP listener.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.http
    }

    /// The address of the HTTPS listener, if there is one.
    #[must_use]
    pub const fn https_address(&self) -> Option<SocketAddr> {
        self.https
    }

    /// Stops at once, without waiting for requests. For tests; processes stop through their `Lifecycle`.
    pub async fn abort(self) {
        self.handle.stop(false).await;
    }
}

/// Starts the gateway. It serves until `deps.lifecycle` stops: then `/readyz` fails, event streams end with a hint to
/// come back, running requests finish, and the lifecycle's drain waits for all that.
///
/// # Errors
/// `INVALID_CONFIG`, `ROUTE_DECLARATION`, or a listener that can't be used. Must be called inside a tokio runtime.
pub fn build(config: Config, deps: Deps, listeners: Listeners) -> Result<RunningGateway> {
    let drain = config.drain_timeout_s;
    let workers = match config.workers {
        0 => std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
        some => some,
    };
    let lifecycle = deps.lifecycle.clone();
    // A reader that takes nothing at all is cut off by the kernel; one that takes too little, by `sse`.
    let stuck_after = Duration::from_secs(config.sse.backpressure_fail_timeout_s).max(Duration::from_secs(5));
    // A place in the queue is given up first; then a reader has as long again to take why.
    let untaken_after = 2 * Duration::from_secs(config.sse.backpressure_fail_timeout_s);
    let (most, patience) = (config.max_requests_per_connection as usize, Patience::of(&config));
    let bounds = Bounds::new(&config, patience);
    let gateway = Gateway::new(config, deps)?;
    let trusted = gateway.trusted_proxies.clone();
    let doors = Doors::new(&gateway.config, trusted.clone());
    let app = move || {
        let gateway = Arc::clone(&gateway);
        let (around, fallback) = (Arc::clone(&gateway), Arc::clone(&gateway));
        let app = App::new()
            .wrap(from_fn(move |request, next| edge::surround(Arc::clone(&around), request, next)))
            .configure(|config| edge::configure(&gateway, config))
            .default_service(web::to(move |request: HttpRequest, payload: web::Payload| {
                edge::not_found(Arc::clone(&fallback), request, payload)
            }));
        map_config(app, |()| AppConfig::default())
    };
    let connection = move |io: &dyn Any| {
        tls::bound_stuck_writes(io, stuck_after);
        Connection::new(io, most, untaken_after, &trusted)
    };
    // The doors bound them: a worker that has as many as it may would leave the next one waiting.
    let server = Server::build().workers(workers).max_concurrent_connections(usize::MAX);
    let mut server = server.disable_signals().shutdown_timeout(drain);
    let leaving = Leaving { leaving: lifecycle.leaving(), stopping: lifecycle.stopping() };
    let address = listeners.http.local_addr().map_err(Error::internal)?;
    let (on_connect, stopping, application) = (connection.clone(), lifecycle.stopping(), app.clone());
    let entrance = Arc::clone(&doors);
    let clear = move || {
        let (on_connect, doors) = (on_connect.clone(), Arc::clone(&entrance));
        let http1 = http1(&stopping, patience)
            .on_connect_ext(move |io: &Patient<TcpStream>, data| {
                data.insert(on_connect(io.get_ref()));
                data.insert(io.activity());
            })
            .finish(application());
        in_the_clear(http1, doors, patience)
    };
    server = server.listen("http", listeners.http, clear).map_err(Error::internal)?;
    let mut tls_address = None;
    if let Some((listener, identity)) = listeners.https {
        tls_address = Some(listener.local_addr().map_err(Error::internal)?);
        let (mut config, shown) = identity.into_server_config()?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        warn_before_end("gateway (HTTPS)", &lifecycle, move || shown.ends_at());
        let encrypted = move || {
            let (acceptor, leaving) = (Acceptor::new(config.clone()), leaving.clone());
            let (on_connect, connection) = (connection.clone(), connection.clone());
            let doors = Arc::clone(&doors);
            let http1 = http1(&leaving.stopping, patience)
                .on_connect_ext(move |io: &Patient<TlsStream<TcpStream>>, data| {
                    data.insert(on_connect(io.get_ref()));
                    data.insert(io.activity());
                })
                .finish(app());
            let app = app();
            fn_factory(move || {
                let acceptor = ServiceFactory::<TcpStream>::new_service(&acceptor, ());
                let http1 = ServiceFactory::<Accepted<TlsStream<TcpStream>>>::new_service(&http1, ());
                let app = ServiceFactory::<Request>::new_service(&app, ());
                let (connection, leaving, doors) = (connection.clone(), leaving.clone(), Arc::clone(&doors));
                let connection = move |io: &TlsStream<TcpStream>| connection(io);
                async move {
                    let (acceptor, http1, app) =
                        (acceptor.await?, Rc::new(http1.await?), Rc::new(app.await?));
                    let service =
                        Https { acceptor, http1, app, connection, bounds, leaving, body: PhantomData };
                    Ok::<_, ()>(Door::new(doors, service))
                }
            })
        };
        server = server.listen("https", listener, encrypted).map_err(Error::internal)?;
    }
    let server = server.run();
    let handle = server.handle();
    lifecycle.spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the HTTP server ended");
        }
    });
    let (stopping, stopper) = (lifecycle.stopping(), handle.clone());
    lifecycle.spawn(async move {
        stopping.cancelled().await;
        stopper.stop(true).await;
    });
    Ok(RunningGateway { http: address, https: tls_address, handle })
}

/// What serves connections without TLS: `http1`, behind the doors.
fn in_the_clear<H1>(
    http1: H1,
    doors: Arc<Doors>,
    patience: Patience,
) -> impl ServiceFactory<TcpStream, Config = (), Response = (), Error = (), InitError = ()>
where
    H1: ServiceFactory<Accepted<TcpStream>, Config = (), Response = (), InitError = ()>,
    H1::Error: Debug + 'static,
    H1::Service: 'static,
    H1::Future: 'static,
{
    fn_factory(move || {
        let (made, doors) = (http1.new_service(()), Arc::clone(&doors));
        async move {
            let http1 = Rc::new(made.await?);
            let serve = move |socket: TcpStream| {
                let (http1, peer) = (Rc::clone(&http1), socket.peer_addr().ok());
                let io = Patient::new(socket, patience.keep_alive);
                async move { when_ready(&*http1, (io, Protocol::Http1, peer)).await }
            };
            Ok(Door::new(doors, fn_service(serve).into_service()))
        }
    })
}

/// What serves HTTP/1.1 over connections of one kind.
fn http1<T, S>(stopping: &CancellationToken, patience: Patience) -> HttpServiceBuilder<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    S: ServiceFactory<Request, Config = ()>,
    S::Error: Into<Response<BoxBody>> + 'static,
    S::InitError: Debug,
    <S::Service as Service<Request>>::Future: 'static,
{
    let stopping = stopping.clone();
    HttpServiceBuilder::default()
        .graceful_shutdown_signal(move || stopping.clone().cancelled_owned())
        .keep_alive(patience.keep_alive)
        .client_request_timeout(patience.first_request)
        .client_disconnect_timeout(Duration::from_secs(2))
}
