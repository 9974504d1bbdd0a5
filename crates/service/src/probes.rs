//! The private HTTP port: `/healthz`, `/readyz`, `/metrics`. Never published: it tells of the inside.

use std::net::TcpListener;
use std::time::Duration;

use actix_web::{App, HttpResponse, HttpServer, web};
use gatehouse_core::{Error, Result};

use crate::telemetry::Metrics;
use crate::{Lifecycle, Readiness};

#[derive(Clone)]
struct State {
    readiness: Readiness,
    metrics: Metrics,
    leaving: tokio_util::sync::CancellationToken,
}

/// Serves the probes on `listener`. `/readyz` fails as soon as `process` is about to stop; the port itself lives until `probes`
/// stops, so that the drain can be watched.
///
/// # Errors
/// If the listener can't be used.
pub fn start(
    listener: TcpListener,
    readiness: &Readiness,
    metrics: &Metrics,
    process: &Lifecycle,
    probes: &Lifecycle,
) -> Result<()> {
    let state = State { readiness: readiness.clone(), metrics: metrics.clone(), leaving: process.leaving() };
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(state.clone()))
            .route("/healthz", web::get().to(|| async { HttpResponse::Ok().body("alive\n") }))
            .route("/readyz", web::get().to(readyz))
            .route("/metrics", web::get().to(metrics_page))
    })
    .workers(1)
    .disable_signals()
    .shutdown_timeout(1)
    .keep_alive(Duration::from_secs(15))
    .listen(listener)
    .map_err(Error::internal)?
    .run();
    let handle = server.handle();
    let stopping = probes.stopping();
    probes.spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the probes' server ended");
        }
    });
    probes.spawn(async move {
        stopping.cancelled().await;
        handle.stop(true).await;
    });
    Ok(())
}

async fn readyz(state: web::Data<State>) -> HttpResponse {
    if state.leaving.is_cancelled() {
        return HttpResponse::ServiceUnavailable()
            .json(serde_json::json!({"ready": false, "stopping": true}));
    }
    let unmet = state.readiness.unmet();
    if unmet.is_empty() {
        HttpResponse::Ok().json(serde_json::json!({"ready": true}))
    } else {
        HttpResponse::ServiceUnavailable().json(serde_json::json!({"ready": false, "waiting_for": unmet}))
    }
}

async fn metrics_page(state: web::Data<State>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(state.metrics.render())
}
