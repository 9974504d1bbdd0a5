//! The running gateway: workers, listeners, drain.
//!
//! actix-web runs its workers as threads, each with a runtime of its own, beside the tokio runtime that the
//! process's gRPC services run on; the two meet only in channels that may be used from anywhere.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpRequest, HttpServer, web};
use gatehouse_core::{Error, Result};
use gatehouse_service::tls::warn_before_end;

use crate::config::Config;
use crate::connection::Connection;
use crate::edge;
use crate::gateway::{Deps, Gateway};
use crate::tls;

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
    let most = config.max_requests_per_connection;
    let gateway = Gateway::new(config, deps)?;
    let trusted = gateway.trusted_proxies.clone();
    let factory = move || {
        let gateway = Arc::clone(&gateway);
        let (around, fallback) = (Arc::clone(&gateway), Arc::clone(&gateway));
        App::new()
            .wrap(from_fn(move |request, next| edge::surround(Arc::clone(&around), request, next)))
            .configure(|config| edge::configure(&gateway, config))
            .default_service(web::to(move |request: HttpRequest, payload: web::Payload| {
                edge::not_found(Arc::clone(&fallback), request, payload)
            }))
    };
    let mut server = HttpServer::new(factory)
        .workers(workers)
        .disable_signals()
        .shutdown_timeout(drain)
        .keep_alive(Duration::from_secs(75))
        .client_request_timeout(Duration::from_secs(10))
        .client_disconnect_timeout(Duration::from_secs(2))
        // An event goes out when it happens, whether or not the one before it was acknowledged.
        .tcp_nodelay(true)
        .on_connect(move |io, data| {
            tls::bound_stuck_writes(io, stuck_after);
            data.insert(Connection::new(io, most, untaken_after, &trusted));
        });
    let http = listeners.http.local_addr().map_err(Error::internal)?;
    server = server.listen(listeners.http).map_err(Error::internal)?;
    let mut https = None;
    if let Some((listener, identity)) = listeners.https {
        https = Some(listener.local_addr().map_err(Error::internal)?);
        let (config, shown) = identity.into_server_config()?;
        warn_before_end("gateway (HTTPS)", &lifecycle, move || shown.ends_at());
        server = server.listen_rustls_0_23(listener, config).map_err(Error::internal)?;
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
    Ok(RunningGateway { http, https, handle })
}
