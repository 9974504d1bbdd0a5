//! The loop of a worker: it takes jobs from the job service and does them.
//!
//! A worker keeps one stream to the service. On it it grants credits and gets leases, at most as many as it may do
//! at once; it tells events and ends each lease with a result, a failure, or by giving it back. Every write names
//! the lease's epoch, so what a worker writes after it lost a lease is refused. Before the stream's token ends, the
//! worker opens the stream again with the next one, and its jobs go on. When the stream breaks, the worker connects
//! again, takes its session up and sends what was not yet acknowledged. The service answers each heartbeat when it has
//! renewed the leases; a worker that for the lease's time after it sent such a heartbeat, or its hello, heard no other
//! answer stops its jobs itself, because others may have begun them: while it can't connect, and also on a stream that is open.
//!
//! ```no_run
//! use gatehouse_client::worker::{Failure, LeasedJob, Worker, WorkerConfig};
//!
//! # async fn example(channel: gatehouse_client::Authorized, shutdown: tokio_util::sync::CancellationToken)
//! # -> gatehouse_core::Result<()> {
//! Worker::new(channel, WorkerConfig { name: "counter".into(), ..WorkerConfig::default() })
//!     .handle("count", |job: LeasedJob| async move {
//!         let done: u32 = String::from_utf8_lossy(&job.checkpoint).parse().unwrap_or(0);
//!         for step in done + 1..=10 {
//!             // Event and checkpoint are stored together: a later attempt goes on exactly here.
//!             job.progress(format!("{{\"step\":{step}}}"), Some(step.to_string().into_bytes())).await?;
//!         }
//!         Ok("{\"counted\":10}".to_owned())
//!     })
//!     .run(shutdown)
//!     .await
//! # }
//! ```

mod held;
mod job;
mod session;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use gatehouse_core::{Entropy, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use job::{Failure, LeasedJob, Stop, Unfinished};

use crate::Authorized;

/// How a worker works.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// Name that administrators see, at most 100 characters.
    pub name: String,
    /// Jobs that are done at once, 1 to 256.
    pub concurrency: u32,
    /// Writes of one job that may be under way before the job waits for the first to be stored, 1 to 1024. Also bounds
    /// how much a job tells after it was asked to stop.
    pub max_unacknowledged: u32,
    /// How long running jobs get to stop and give their leases back when the worker shuts down, milliseconds,
    /// at most 600000.
    pub drain_timeout_ms: u64,
    /// Longest wait between two tries to connect, milliseconds, 10 to 60000.
    pub reconnect_max_ms: u64,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            name: "worker".into(),
            concurrency: 4,
            max_unacknowledged: 8,
            drain_timeout_ms: 10_000,
            reconnect_max_ms: 5_000,
        }
    }
}

impl WorkerConfig {
    /// What is wrong with it, each as a sentence that begins with the field; empty if nothing is.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.name.is_empty() || self.name.chars().count() > 100 {
            problems.push("name: must have 1 to 100 characters".to_owned());
        }
        if !(1..=256).contains(&self.concurrency) {
            problems.push("concurrency: must be from 1 to 256".to_owned());
        }
        if !(1..=1024).contains(&self.max_unacknowledged) {
            problems.push("max_unacknowledged: must be from 1 to 1024".to_owned());
        }
        if self.drain_timeout_ms > 600_000 {
            problems.push("drain_timeout_ms: must be at most 600000".to_owned());
        }
        if !(10..=60_000).contains(&self.reconnect_max_ms) {
            problems.push("reconnect_max_ms: must be from 10 to 60000".to_owned());
        }
        problems
    }

    pub(crate) fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}

type Done = Pin<Box<dyn Future<Output = Result<String, Unfinished>> + Send>>;
type Handler = Arc<dyn Fn(LeasedJob) -> Done + Send + Sync>;

/// A worker: what it connects by and what it can do.
pub struct Worker {
    channel: Authorized,
    config: WorkerConfig,
    handlers: BTreeMap<String, Handler>,
    entropy: Entropy,
    connected: watch::Sender<bool>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds: Vec<_> = self.handlers.keys().collect();
        f.debug_struct("Worker").field("config", &self.config).field("kinds", &kinds).finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker that can do nothing yet. `channel` shows a token for [`crate::audience::JOB`] that holds
    /// `job.jobs.work:<kind>:<tenant or *>` for each kind.
    #[must_use]
    pub fn new(channel: Authorized, config: WorkerConfig) -> Self {
        Self {
            channel,
            config,
            handlers: BTreeMap::new(),
            entropy: Entropy::system(),
            connected: watch::Sender::new(false),
        }
    }

    /// Says how jobs of `kind` are done. `handler` gets the job and returns its result, a JSON value; it is a task of
    /// its own and must not block its thread for long. If it panics, the attempt fails and may be tried again.
    #[must_use]
    pub fn handle<F, D>(mut self, kind: impl Into<String>, handler: F) -> Self
    where
        F: Fn(LeasedJob) -> D + Send + Sync + 'static,
        D: Future<Output = Result<String, Unfinished>> + Send + 'static,
    {
        self.handlers.insert(kind.into(), Arc::new(move |job| Box::pin(handler(job))));
        self
    }

    /// Whether the worker's session with the job service is open: for the readiness of its process. A session that
    /// moves to another replica of the service is closed for a moment.
    #[must_use]
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    /// Works until `shutdown`, then gives the leases that it holds back and returns.
    ///
    /// # Errors
    /// What the service answered to the worker's hello, if trying again can't help: `PERMISSION_DENIED`,
    /// `KIND_NOT_FOUND`.
    pub async fn run(self, shutdown: CancellationToken) -> Result<()> {
        session::Session::new(self.channel, self.config, self.handlers, &self.entropy, self.connected)
            .run(shutdown)
            .await
    }
}
