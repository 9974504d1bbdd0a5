//! A gRPC server as every service runs it.

use std::time::Duration;

use gatehouse_core::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::pb::health_server::HealthServer;

use crate::health::Health;
use crate::incoming::in_the_clear;
use crate::tls::{ServerTls, shaken};
use crate::{AccessLayer, Lifecycle, Readiness, reflection};

/// Bounds of a gRPC server.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GrpcConfig {
    /// Calls at once on one connection, 1 to 10000.
    pub max_concurrent_streams: u32,
    /// How long a call may take before its first answer, milliseconds, 1 to 600000.
    pub request_timeout_ms: u64,
    /// The largest header list of a call, bytes, 1024 to 65536.
    pub max_header_bytes: u32,
    /// How long a connection is used for new calls, seconds, 60 to 86400: then its client is told to open another, and
    /// what is under way on it finishes. So a renewed certificate is in use long before the old one ends.
    pub max_connection_age_s: u32,
    /// The certificates to serve with, and whom to know; none: in the clear, to anyone. Set by the process, not by
    /// configuration.
    #[serde(skip)]
    pub tls: Option<ServerTls>,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1_000,
            request_timeout_ms: 30_000,
            max_header_bytes: 16 * 1024,
            max_connection_age_s: 3_600,
            tls: None,
        }
    }
}

impl GrpcConfig {
    /// What is wrong with it; empty if nothing is.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(1..=10_000).contains(&self.max_concurrent_streams) {
            problems.push("max_concurrent_streams: must be from 1 to 10000".to_owned());
        }
        if !(1..=600_000).contains(&self.request_timeout_ms) {
            problems.push("request_timeout_ms: must be from 1 to 600000".to_owned());
        }
        if !(1_024..=65_536).contains(&self.max_header_bytes) {
            problems.push("max_header_bytes: must be from 1024 to 65536".to_owned());
        }
        if !(60..=86_400).contains(&self.max_connection_age_s) {
            problems.push("max_connection_age_s: must be from 60 to 86400".to_owned());
        }
        problems
    }
}

/// A server that is about to run: the routes of one service behind the [`AccessLayer`], with health
/// (grpc.health.v1) and reflection, which know what this server serves and nothing else.
#[derive(Debug)]
pub struct GrpcServer {
    config: GrpcConfig,
    access: AccessLayer,
    listener: TcpListener,
}

impl GrpcServer {
    /// A server on a socket that is bound already, so that a port in use shows before anything else starts.
    #[must_use]
    pub const fn new(config: GrpcConfig, access: AccessLayer, listener: TcpListener) -> Self {
        Self { config, access, listener }
    }

    /// Serves `routes` until `lifecycle` stops, then finishes the calls that are under way; drain waits for that.
    /// The health service answers as `readiness` says.
    ///
    /// # Errors
    /// If the reflection service can't be made, which a test would have found.
    pub fn start(self, routes: Routes, lifecycle: &Lifecycle, readiness: &Readiness) -> Result<()> {
        let routes = reflection::add(routes, &self.access.own_services())?;
        let health = Health::new(self.access.services(), readiness, lifecycle);
        let routes = routes.add_service(HealthServer::new(health));
        let stopping = lifecycle.stopping();
        let address = self.listener.local_addr().map_err(Error::internal)?;
        // A connection that tells nothing of its other end must then be a mistake of ours.
        let access = if self.config.tls.is_some() { self.access.between_services() } else { self.access };
        let server = Server::builder()
            .max_concurrent_streams(self.config.max_concurrent_streams)
            .timeout(Duration::from_millis(self.config.request_timeout_ms))
            .http2_max_header_list_size(self.config.max_header_bytes)
            // Without a grace: streams that go on for ever, such as revocations, are not cut off.
            .max_connection_age(Duration::from_secs(self.config.max_connection_age_s.into()))
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .layer(access)
            .add_routes(routes);
        let (listener, tls) = (self.listener, self.config.tls);
        lifecycle.spawn(async move {
            tracing::info!(%address, tls = tls.is_some(), "serving gRPC");
            let stopped = async move { stopping.cancelled().await };
            let outcome = match tls {
                None => server.serve_with_incoming_shutdown(in_the_clear(listener), stopped).await,
                Some(tls) => server.serve_with_incoming_shutdown(shaken(listener, tls), stopped).await,
            };
            if let Err(error) = outcome {
                tracing::error!(%address, %error, "the gRPC server failed");
            }
        });
        Ok(())
    }
}

/// Binds `address`, with one clear sentence for each way in which that can fail.
///
/// # Errors
/// `PORT_IN_USE`, `ADDRESS_REFUSED`.
pub async fn bind(name: &str, address: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Error::failed_precondition(
            "PORT_IN_USE",
            format!("{name}: {address} is in use. Stop the program that listens there or configure another address."),
        ),
        _ => Error::failed_precondition("ADDRESS_REFUSED", format!("{name}: can't listen on {address}: {error}.")),
    })
}
