//! What the job service counts.

use gatehouse_core::Timestamp;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge};

/// The instruments of one process.
#[derive(Debug)]
pub(crate) struct Metrics {
    submitted: Counter<u64>,
    finished: Counter<u64>,
    attempts_lost: Counter<u64>,
    stalled: Counter<u64>,
    refused_writes: Counter<u64>,
    purged: Counter<u64>,
    slow_readers: Counter<u64>,
    jobs: Gauge<u64>,
    oldest_waiting: Gauge<f64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let meter = opentelemetry::global::meter("gatehouse");
        let counter = |name: &'static str, description: &'static str| {
            meter.u64_counter(name).with_description(description).build()
        };
        Self {
            submitted: counter("gatehouse.job.submitted", "Jobs submitted."),
            finished: counter("gatehouse.job.finished", "Jobs that reached a final state."),
            attempts_lost: counter(
                "gatehouse.job.attempts_lost",
                "Attempts that ended without the worker saying so.",
            ),
            stalled: counter("gatehouse.job.stalled", "Running jobs that were found without progress."),
            refused_writes: counter(
                "gatehouse.job.refused_writes",
                "Writes of workers that no longer held the job.",
            ),
            purged: counter("gatehouse.job.purged", "Jobs deleted because their time was over."),
            slow_readers: counter("gatehouse.job.slow_readers", "Readers of events that were cut off."),
            jobs: meter
                .u64_gauge("gatehouse.job.jobs")
                .with_description("Jobs that wait or run, of all tenants.")
                .build(),
            oldest_waiting: meter
                .f64_gauge("gatehouse.job.oldest_waiting")
                .with_unit("s")
                .with_description("How long the first job of the queue has waited.")
                .build(),
        }
    }

    pub(crate) fn submitted(&self, kind: &str) {
        self.submitted.add(1, &[label("kind", kind)]);
    }

    pub(crate) fn finished(&self, kind: &str, state: &'static str) {
        self.finished.add(1, &[label("kind", kind), KeyValue::new("state", state)]);
    }

    pub(crate) fn attempt_lost(&self, kind: &str, reason: &'static str) {
        self.attempts_lost.add(1, &[label("kind", kind), KeyValue::new("reason", reason)]);
    }

    pub(crate) fn stalled(&self, kind: &str) {
        self.stalled.add(1, &[label("kind", kind)]);
    }

    pub(crate) fn write_refused(&self) {
        self.refused_writes.add(1, &[]);
    }

    pub(crate) fn purged(&self, kind: &str) {
        self.purged.add(1, &[label("kind", kind)]);
    }

    pub(crate) fn reader_cut_off(&self) {
        self.slow_readers.add(1, &[]);
    }

    /// Takes the counts of one look; a kind and state that is not among them has none.
    pub(crate) fn observe(
        &self,
        kinds: &[&str],
        counts: &[(String, String, i64, Timestamp)],
        now: Timestamp,
    ) {
        for kind in kinds {
            for state in ["queued", "running"] {
                let found = counts.iter().find(|(of, is, ..)| of == kind && is == state);
                let jobs = found.map_or(0, |(_, _, jobs, _)| u64::try_from(*jobs).unwrap_or(0));
                self.jobs.record(jobs, &[label("kind", kind), KeyValue::new("state", state)]);
                if state == "queued" {
                    let waited = found.map_or(0.0, |(_, _, _, oldest)| now.since(*oldest).as_secs_f64());
                    self.oldest_waiting.record(waited, &[label("kind", kind)]);
                }
            }
        }
    }
}

fn label(name: &'static str, value: &str) -> KeyValue {
    KeyValue::new(name, value.to_owned())
}
