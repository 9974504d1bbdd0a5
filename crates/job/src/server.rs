//! Putting the service together.

use gatehouse_core::{Clock, Entropy, Result};
use gatehouse_db::Db;
use gatehouse_outbox::Outbox;
use gatehouse_proto::job::v1::job_service_server::JobServiceServer;
use gatehouse_proto::job::v1::worker_service_server::WorkerServiceServer;
use gatehouse_service::{Doorbell, GrpcServer, Lifecycle, Readiness, Revocations};
use tonic::service::Routes;

use crate::grpc::{Jobs, Workers};
use crate::{App, Config};

/// Largest message that is taken: an input or a result with what stands around it.
const MAX_MESSAGE_BYTES: usize = 3 * 1024 * 1024;

/// What the service works with.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Its database, migrated.
    pub db: Db,
    /// Its audit outbox; the relay is started by whoever started that.
    pub outbox: Outbox,
    /// Bells, joined with those of the other replicas.
    pub doorbell: Doorbell,
    /// What the server's verifier goes by: open streams end when their caller is revoked.
    pub revocations: Revocations,
    /// Time.
    pub clock: Clock,
    /// Chance, for ids.
    pub entropy: Entropy,
    /// Stop and drain.
    pub lifecycle: Lifecycle,
}

/// Serves `gatehouse.job.v1` on `server` and begins to sweep. Stops with the lifecycle.
///
/// # Errors
/// Those of [`GrpcServer::start`].
pub fn start(config: Config, deps: Deps, server: GrpcServer, readiness: &Readiness) -> Result<App> {
    let lifecycle = deps.lifecycle.clone();
    let app = App::new(config, deps);
    let jobs = JobServiceServer::new(Jobs(app.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let workers = WorkerServiceServer::new(Workers(app.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES);
    server.start(Routes::new(jobs).add_service(workers), &lifecycle, readiness)?;
    lifecycle.spawn(app.clone().run_sweeper());
    Ok(app)
}
