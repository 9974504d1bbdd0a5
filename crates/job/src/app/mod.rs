//! Use cases: authorise, one named transaction, audit in it, then ring the bells.

mod cancel;
mod lease;
mod outgoing;
mod queue;
mod read;
mod retry;
mod submit;
mod sweep;
mod watch;
mod write;

use std::sync::Arc;

use gatehouse_core::ids::{JobId, TenantId, WorkerId};
use gatehouse_core::{Clock, Entropy};
use gatehouse_db::Db;
use gatehouse_outbox::Outbox;
use gatehouse_service::{Doorbell, Lifecycle, Revocations};

use crate::Config;
use crate::metrics::Metrics;
use crate::server::Deps;

pub(crate) use lease::{Opened, WorkerSession};
pub(crate) use outgoing::Outgoing;
pub(crate) use write::NumberedWrite;

/// The job service's use cases. Cheap to clone.
#[derive(Clone, Debug)]
pub struct App(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    db: Db,
    outbox: Outbox,
    doorbell: Doorbell,
    revocations: Revocations,
    clock: Clock,
    entropy: Entropy,
    lifecycle: Lifecycle,
    metrics: Metrics,
}

impl App {
    pub(crate) fn new(config: Config, deps: Deps) -> Self {
        let Deps { db, outbox, doorbell, revocations, clock, entropy, lifecycle } = deps;
        let metrics = Metrics::new();
        Self(Arc::new(Inner {
            config,
            db,
            outbox,
            doorbell,
            revocations,
            clock,
            entropy,
            lifecycle,
            metrics,
        }))
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    pub(crate) fn doorbell(&self) -> &Doorbell {
        &self.0.doorbell
    }

    pub(crate) fn revocations(&self) -> &Revocations {
        &self.0.revocations
    }

    pub(crate) fn lifecycle(&self) -> &Lifecycle {
        &self.0.lifecycle
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    fn ring_events(&self, tenant: TenantId, job: JobId) {
        self.0.doorbell.ring(&events_topic(tenant, job));
    }

    fn ring_queue(&self, kind: &str) {
        self.0.doorbell.ring(&queue_topic(kind));
    }

    fn ring_worker(&self, worker: WorkerId) {
        self.0.doorbell.ring(&worker_topic(worker));
    }
}

/// Rung when a job has new events.
pub(crate) fn events_topic(tenant: TenantId, job: JobId) -> String {
    format!("job:events:{tenant}:{job}")
}

/// Rung when a job of the kind waits.
pub(crate) fn queue_topic(kind: &str) -> String {
    format!("job:queue:{kind}")
}

/// Rung when something changed about what a worker holds.
pub(crate) fn worker_topic(worker: WorkerId) -> String {
    format!("job:worker:{worker}")
}
