//! gRPC health (`grpc.health.v1`): whether this server, and so each service on it, may be sent work.

use std::collections::BTreeSet;
use std::pin::Pin;

use futures_util::{Stream, stream};
use gatehouse_client::to_status;
use gatehouse_core::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::{Lifecycle, Readiness};

/// The paths of its methods.
pub(crate) const METHODS: [&str; 2] = ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"];

/// Answers as readiness and lifecycle say at the moment of the question: there is no copy that could be older.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    /// Whom one can ask for, besides the server as a whole.
    services: BTreeSet<String>,
    state: State,
}

#[derive(Clone, Debug)]
struct State {
    readiness: Readiness,
    leaving: CancellationToken,
    stopping: CancellationToken,
}

/// One who watches.
struct Watcher {
    /// None where the service is not known here; then there is never more to say than that.
    state: Option<State>,
    changes: watch::Receiver<()>,
    stopping: CancellationToken,
    said: Option<ServingStatus>,
    ended: bool,
}

impl Health {
    /// The health of `services` (full names), which are as healthy as the server that they are on.
    pub(crate) fn new(services: BTreeSet<String>, readiness: &Readiness, lifecycle: &Lifecycle) -> Self {
        let state = State {
            readiness: readiness.clone(),
            leaving: lifecycle.leaving(),
            stopping: lifecycle.stopping(),
        };
        Self { services, state }
    }

    fn knows(&self, service: &str) -> bool {
        service.is_empty() || self.services.contains(service)
    }
}

impl State {
    fn now(&self) -> ServingStatus {
        if !self.leaving.is_cancelled() && self.readiness.unmet().is_empty() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        }
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !self.knows(&request.get_ref().service) {
            let error = Error::not_found("SERVICE_UNKNOWN", "This server has no service of that name.");
            return Err(to_status(&error));
        }
        Ok(Response::new(HealthCheckResponse { status: self.state.now().into() }))
    }

    /// Says at once what is, then what changes. At a stop it ends and says so: streams that go on would keep the server
    /// from its end.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watcher = Watcher {
            state: self.knows(&request.get_ref().service).then(|| self.state.clone()),
            changes: self.state.readiness.changes(),
            stopping: self.state.stopping.clone(),
            said: None,
            ended: false,
        };
        let news =
            stream::unfold(watcher, |mut watcher| async move { Some((watcher.next().await?, watcher)) });
        Ok(Response::new(Box::pin(news)))
    }
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<HealthCheckResponse, Status>> {
        if self.ended {
            return None;
        }
        loop {
            self.changes.mark_unchanged();
            let now = self.state.as_ref().map_or(ServingStatus::ServiceUnknown, State::now);
            if self.said != Some(now) {
                self.said = Some(now);
                return Some(Ok(HealthCheckResponse { status: now.into() }));
            }
            tokio::select! {
                () = self.stopping.cancelled() => {
                    self.ended = true;
                    let error = Error::unavailable("SERVICE_STOPPING", "This replica stops. Ask another.");
                    return Some(Err(to_status(&error)));
                }
                Ok(()) = self.changes.changed(), if self.state.is_some() => {}
                () = left(self.state.as_ref(), now) => {}
            }
        }
    }
}

/// Resolves when a server that was serving leaves.
async fn left(state: Option<&State>, now: ServingStatus) {
    match state {
        Some(state) if now == ServingStatus::Serving => state.leaving.cancelled().await,
        _ => std::future::pending().await,
    }
}
