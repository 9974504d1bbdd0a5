//! What every process of Gatehouse does around its services: telemetry, probes, signals, drain.

use std::future::Future;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::select_all;
use gatehouse_core::Environment;
use gatehouse_service::lifecycle::Signals;
use gatehouse_service::readiness::Gate;
use gatehouse_service::telemetry::Telemetry;
use gatehouse_service::{Lifecycle, Readiness, grpc, probes};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;

/// Runs `future` on a runtime with one thread for each core.
pub(crate) fn block_on<F: Future<Output = anyhow::Result<ExitCode>>>(future: F) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    let outcome = runtime.block_on(future);
    // A blocking task that hangs (a name look-up, say) must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

/// Calls `reload` at every SIGHUP from now on, until `lifecycle` stops.
pub(crate) fn at_hangup(lifecycle: &Lifecycle, reload: impl Fn() + Send + 'static) -> anyhow::Result<()> {
    let mut hangups = signal(SignalKind::hangup()).context("can't listen for SIGHUP")?;
    let stopping = lifecycle.stopping();
    lifecycle.spawn(async move {
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                heard = hangups.recv() => match heard {
                    Some(()) => reload(),
                    None => return,
                },
            }
        }
    });
    Ok(())
}

/// A process on its feet, before its services start.
pub(crate) struct Process {
    pub(crate) lifecycle: Lifecycle,
    pub(crate) readiness: Readiness,
    pub(crate) probes_address: SocketAddr,
    pub(crate) signals: Signals,
    /// Holds once every service has been started and said what it waits for.
    pub(crate) started: Gate,
    telemetry: Telemetry,
    // Probes answer until everything else has ended.
    probes: Lifecycle,
}

impl Process {
    /// Binds the address of the probes.
    pub(crate) async fn bind(config: &Config) -> anyhow::Result<TcpListener> {
        Ok(grpc::bind("probes", &config.probes.address).await?)
    }

    /// Starts telemetry, and the probes on `listener`.
    pub(crate) fn start(
        name: &'static str,
        config: &Config,
        environment: Environment,
        listener: TcpListener,
    ) -> anyhow::Result<Self> {
        // Fails only if it was installed before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let telemetry = Telemetry::start(&config.telemetry, name, environment)
            .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let (lifecycle, readiness, probes) = (Lifecycle::new(), Readiness::new(), Lifecycle::new());
        let started = readiness.gate("process", "not everything has been started yet");
        let listener = listener.into_std()?;
        let probes_address = listener.local_addr()?;
        probes::start(listener, &readiness, &telemetry.metrics(), &lifecycle, &probes)?;
        // Before anything says that it is ready: whoever reads that may send a signal at once.
        let signals = Lifecycle::signals().context("can't listen for signals")?;
        Ok(Self { lifecycle, readiness, probes_address, signals, started, telemetry, probes })
    }

    /// Waits for a signal, then drains: for `delay` everything goes on as before but `/readyz`, then there is no new
    /// work, and running work finishes, at most `limit`. A second signal ends the delay. `stages` are parts of the
    /// process's lifecycle; each has ended before the next is told to, so that what one part needs of a later one is
    /// there to the end.
    pub(crate) async fn run_until_signal(
        mut self,
        delay: Duration,
        stages: &[Lifecycle],
        limit: Duration,
    ) -> anyhow::Result<ExitCode> {
        let stopping = self.lifecycle.stopping();
        let parts = std::iter::once(&self.lifecycle).chain(stages);
        let a_part_stops = select_all(parts.map(|part| Box::pin(part.stopping().cancelled_owned())));
        let signal = tokio::select! {
            signal = self.signals.recv() => signal,
            // It can't go on.
            _ = a_part_stops => "none",
        };
        tracing::info!(signal, "stopping: running work finishes first");
        self.lifecycle.leave();
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = self.signals.recv() => {}
            () = stopping.cancelled() => {}
        }
        self.finish(stages, limit).await
    }

    /// Drains now, the `stages` in their order and then what else there is.
    pub(crate) async fn finish(self, stages: &[Lifecycle], limit: Duration) -> anyhow::Result<ExitCode> {
        self.lifecycle.leave();
        let began = Instant::now();
        for (number, stage) in stages.iter().enumerate() {
            stage.drain(share(limit, began.elapsed(), stages.len() - number)).await;
        }
        self.finish_within(limit, limit.saturating_sub(began.elapsed())).await
    }

    /// Drains what is left of a drain that has a `limit`.
    async fn finish_within(self, limit: Duration, left: Duration) -> anyhow::Result<ExitCode> {
        let drained = self.lifecycle.drain(left).await;
        if drained {
            tracing::info!("stopped");
        } else {
            tracing::warn!(
                limit_s = limit.as_secs(),
                "some work did not finish in time; what is durable will be taken up again"
            );
        }
        self.probes.drain(Duration::from_secs(2)).await;
        // The exporters block while they send what is left.
        let telemetry = self.telemetry;
        tokio::task::spawn_blocking(move || telemetry.shutdown()).await?;
        Ok(if drained { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// How long a part may take to drain that `later` others come after: what is left of `limit`, less what the others are
/// to have even if this one does not end.
fn share(limit: Duration, gone: Duration, later: usize) -> Duration {
    let later = u32::try_from(later).unwrap_or(u32::MAX);
    limit.saturating_sub(gone).saturating_sub((limit / 16).saturating_mul(later))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_does_not_end_leaves_time_for_the_others() {
        let (limit, second) = (Duration::from_secs(16), Duration::from_secs(1));
        let (mut gone, mut shares) = (Duration::ZERO, Vec::new());
        for later in (1..=4).rev() {
            shares.push(share(limit, gone, later));
            gone += share(limit, gone, later);
        }
        assert_eq!(shares, [12 * second, second, second, second]);
        assert_eq!(gone + second, limit, "for what is left");
        assert_eq!(share(limit, second, 1), 14 * second, "parts that end give theirs to the others");
        assert_eq!(share(limit, 20 * second, 4), Duration::ZERO);
    }
}
