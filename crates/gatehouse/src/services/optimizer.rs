//! The optimize worker: an internal service like any that users write.

use gatehouse_client::{Authorized, audience};
use gatehouse_service::readiness::Gate;

use super::Runtime;

/// What holds once it has a session with the job service.
pub(crate) fn session(runtime: &Runtime) -> Gate {
    runtime.gate("session", "not open yet")
}

/// Starts it; it stops with the process.
pub(crate) fn start(runtime: &Runtime, session: Gate) {
    let channel = Authorized::as_client(runtime.upstreams.job.clone(), runtime.tokens.clone(), audience::JOB);
    let worker = gatehouse_optimizer::worker(channel, runtime.config.optimizer.clone());
    runtime.follow(session, "no session with the job service", worker.connected());
    let work = worker.run(runtime.lifecycle.stopping());
    let lifecycle = runtime.lifecycle.clone();
    runtime.lifecycle.spawn(async move {
        // The loop reconnects by itself; what it returns can't be mended by trying again.
        if let Err(error) = work.await {
            gatehouse_service::reply::log(&error);
            lifecycle.stop();
        }
    });
}
