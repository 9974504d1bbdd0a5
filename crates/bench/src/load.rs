//! Closed-loop load: so many callers, each with one call under way, for so long.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::figure::{Sample, median};
use crate::processes::{Processes, Spent};

/// How long to warm up and to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) warm: Duration,
    pub(crate) measure: Duration,
}

/// Somebody with a connection and a state of their own.
pub(crate) trait Caller: Send + 'static {
    /// Does the thing once; says how many units that was.
    fn call(&mut self) -> impl Future<Output = Result<u64>> + Send;
}

/// Lets all call until the time is over; gives them back for the next round.
///
/// # Errors
/// The first call that failed: a figure with failed calls in it is none.
pub(crate) async fn drive<C: Caller>(
    callers: Vec<C>,
    times: Times,
    processes: &Processes,
) -> Result<(Sample, Vec<C>)> {
    let (stop, units, measuring) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let tasks: Vec<_> = callers
        .into_iter()
        .map(|mut caller| {
            let (stop, units, measuring) = (Arc::clone(&stop), Arc::clone(&units), Arc::clone(&measuring));
            tokio::spawn(async move {
                let mut waits = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    match caller.call().await {
                        Ok(done) => units.fetch_add(done, Ordering::Relaxed),
                        Err(error) => {
                            stop.store(true, Ordering::Relaxed);
                            return Err(error);
                        }
                    };
                    if measuring.load(Ordering::Relaxed) {
                        waits.push(began.elapsed().as_secs_f64() * 1000.0);
                    }
                }
                Ok((caller, waits))
            })
        })
        .collect();
    let counted = window(times, processes, || units.load(Ordering::Relaxed), Some(&measuring)).await;
    // A call that failed is told before the silence that followed it.
    stop.store(true, Ordering::Relaxed);
    let (mut callers, mut waits) = (Vec::new(), Vec::new());
    for task in tasks {
        let (caller, own) = task.await.context("a caller panicked")??;
        callers.push(caller);
        waits.extend(own);
    }
    waits.sort_unstable_by(f64::total_cmp);
    let sample = Sample {
        p50_ms: median(&waits),
        p99_ms: waits.get(waits.len() * 99 / 100).or(waits.last()).copied(),
        ..counted?
    };
    Ok((sample, callers))
}

/// Warms up, then counts what `units` grows by, and what it costs.
///
/// # Errors
/// If nothing happened at all.
pub(crate) async fn window(
    times: Times,
    processes: &Processes,
    units: impl Fn() -> u64,
    measuring: Option<&AtomicBool>,
) -> Result<Sample> {
    tokio::time::sleep(times.warm).await;
    let (before, began, spent) = (units(), Instant::now(), processes.spent()?);
    if let Some(measuring) = measuring {
        measuring.store(true, Ordering::Relaxed);
    }
    tokio::time::sleep(times.measure).await;
    let (done, took) = (units().saturating_sub(before), began.elapsed());
    ensure!(
        done > 0,
        "nothing was done in {} s: measure for longer (--seconds)",
        times.measure.as_secs_f64()
    );
    let cpu_us = each(&spent, &processes.spent()?, done);
    Ok(Sample { value: rate(done, took), cpu_us, ..Sample::default() })
}

/// What one unit cost.
pub(crate) fn each(before: &Spent, after: &Spent, units: u64) -> Spent {
    let units = count(units.max(1));
    after
        .iter()
        .map(|(name, spent)| (name.clone(), (spent - before.get(name).copied().unwrap_or(0.0)) / units))
        .filter(|(_, spent)| *spent > 0.05)
        .collect()
}

/// Units a second.
pub(crate) fn rate(units: u64, took: Duration) -> f64 {
    count(units) / took.as_secs_f64()
}

/// A count as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(crate) fn count(units: u64) -> f64 {
    units as f64
}

/// How often `work` can be done in `times.measure` by each of `threads` threads, a second in all; not for async work.
///
/// # Errors
/// If a thread panicked.
pub(crate) async fn spin<W>(threads: usize, times: Times, make: impl Fn() -> W) -> Result<Sample>
where
    W: FnMut() + Send + 'static,
{
    let tasks: Vec<_> = (0..threads)
        .map(|_| {
            let mut work = make();
            tokio::task::spawn_blocking(move || {
                let warm = Instant::now();
                while warm.elapsed() < times.warm / 2 {
                    work();
                }
                let (began, mut units) = (Instant::now(), 0_u64);
                // Looking at the clock once for each unit would cost more than a hash of few bytes.
                let mut stride = 1_u64;
                while began.elapsed() < times.measure {
                    let round = Instant::now();
                    (0..stride).for_each(|_| work());
                    units += stride;
                    if round.elapsed() < Duration::from_millis(1) {
                        stride *= 2;
                    }
                }
                rate(units, began.elapsed())
            })
        })
        .collect();
    let mut value = 0.0;
    for task in tasks {
        value += task.await.context("a thread panicked")?;
    }
    Ok(Sample { value, ..Sample::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sleeper(bool);

    impl Caller for Sleeper {
        async fn call(&mut self) -> Result<u64> {
            anyhow::ensure!(self.0, "it failed");
            tokio::time::sleep(Duration::from_millis(2)).await;
            Ok(3)
        }
    }

    const TIMES: Times = Times { warm: Duration::from_millis(20), measure: Duration::from_millis(200) };

    #[tokio::test(flavor = "multi_thread")]
    async fn units_are_counted_and_calls_are_timed() {
        let callers = (0..4).map(|_| Sleeper(true)).collect();
        let (sample, callers) = drive(callers, TIMES, &Processes::default()).await.unwrap();
        assert_eq!(callers.len(), 4);
        // 4 callers, 3 units each 2 ms and a bit: at most 6000.
        assert!(sample.value > 100.0 && sample.value < 6_100.0, "{sample:?}");
        assert!(sample.p50_ms.unwrap() >= 2.0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_call_that_fails_fails_the_figure() {
        let error = drive(vec![Sleeper(true), Sleeper(false)], TIMES, &Processes::default()).await;
        assert_eq!(error.err().unwrap().to_string(), "it failed");
    }
}
