//! The running service.

use std::time::Duration;

use gatehouse_core::{Clock, Entropy, Environment, Result};
use gatehouse_db::{Db, Migrations, migrations, read_tx};
use gatehouse_proto::audit::v1::audit_service_server::AuditServiceServer;
use gatehouse_service::grpc::GrpcConfig;
use gatehouse_service::{AccessLayer, GrpcServer, Lifecycle, Readiness, Verifier, reply};
use tokio::net::TcpListener;
use tonic::service::Routes;

use crate::Config;
use crate::app::{App, Parts};
use crate::grpc::Audit;
use crate::key_folder;
use crate::keys::SubjectKeys;
use crate::signing::CheckpointSeed;
use crate::store::heads;

/// The tables of this service.
pub const MIGRATIONS: Migrations = migrations![
    "0001_init" => include_str!("../../../migrations/audit/0001_init.sql"),
    "0002_key_folder" => include_str!("../../../migrations/audit/0002_key_folder.sql"),
];

/// The gRPC package that this service serves.
pub const PACKAGE: &str = "gatehouse.audit.v1";

/// What the service needs from its process.
#[derive(Clone, Debug)]
pub struct Deps {
    /// The service's database, migrated.
    pub db: Db,
    /// Verifies tokens for `gatehouse.audit`.
    pub verifier: Verifier,
    /// Time.
    pub clock: Clock,
    /// Chance.
    pub entropy: Entropy,
    /// The environment, which stands in all that is sealed and in the logs' names.
    pub environment: Environment,
    /// Stop and drain.
    pub lifecycle: Lifecycle,
    /// What this service is not ready without.
    pub readiness: Readiness,
}

/// Starts the service on `listener`: serves gRPC, signs checkpoints and removes what is past its time until
/// `deps.lifecycle` stops.
///
/// # Errors
/// A key folder or key file that can't be used, a key folder or checkpoint key that is not the one of the logs, a method without an access rule, or a database that is away.
pub async fn build(config: &Config, grpc: GrpcConfig, deps: Deps, listener: TcpListener) -> Result<()> {
    let Deps { db, verifier, clock, entropy, environment, lifecycle, readiness } = deps;
    let access = AccessLayer::new(&[PACKAGE], verifier, clock.clone(), entropy.clone())?;
    let has_entries = read_tx!(db, "audit.any_begun", |tx| { heads::any_begun(tx).await })?;
    key_folder::settle(&db, config, has_entries, &entropy).await?;
    let parts = Parts {
        keys: SubjectKeys::open(&config.subject_keys_dir, entropy.clone())?,
        seed: CheckpointSeed::load(&config.checkpoint_key_file, environment, has_entries, &entropy)?,
        db,
        clock,
        entropy,
        environment,
        lifecycle: lifecycle.clone(),
        readiness: readiness.clone(),
    };
    let app = App::new(config, parts).await?;
    repeat(&lifecycle, config.checkpoint_interval_ms, app.clone(), |app| async move { sign_all(&app).await });
    repeat(&lifecycle, config.prune_interval_ms, app.clone(), |app| async move { app.prune().await });
    let routes = Routes::new(AuditServiceServer::new(Audit(app)));
    GrpcServer::new(grpc, access, listener).start(routes, &lifecycle, &readiness)
}

/// Signs every log that can be signed; what fails is logged and tried again next time.
async fn sign_all(app: &App) {
    for log in app.logs() {
        if let Err(error) = app.sign_checkpoint(log).await {
            reply::log(&error);
        }
    }
}

/// Does `work` every `interval_ms` until stop.
fn repeat<W, F>(lifecycle: &Lifecycle, interval_ms: u64, app: App, work: W)
where
    W: Fn(App) -> F + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let stopping = lifecycle.stopping();
    lifecycle.spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(interval_ms)) => {}
                () = stopping.cancelled() => return,
            }
            work(app.clone()).await;
        }
    });
}
