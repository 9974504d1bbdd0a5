//! What the relay tells of itself.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge};

use crate::relay::Status;

/// Instruments of one service's relay.
#[derive(Debug)]
pub(crate) struct Metrics {
    waiting: Gauge<u64>,
    oldest: Gauge<f64>,
    refused: Gauge<u64>,
    stuck: Gauge<u64>,
    sent: Counter<u64>,
    failures: Counter<u64>,
    labels: [KeyValue; 1],
}

impl Metrics {
    pub(crate) fn new(service: &'static str) -> Self {
        let meter = opentelemetry::global::meter("gatehouse");
        Self {
            waiting: meter
                .u64_gauge("gatehouse.audit.outbox.waiting")
                .with_description("Audit events that the audit service does not have yet.")
                .build(),
            oldest: meter
                .f64_gauge("gatehouse.audit.outbox.oldest")
                .with_unit("s")
                .with_description("Age of the oldest of them.")
                .build(),
            refused: meter
                .u64_gauge("gatehouse.audit.outbox.refused")
                .with_description("Audit events that the audit service refused: a person must look at them.")
                .build(),
            stuck: meter
                .u64_gauge("gatehouse.audit.outbox.stuck")
                .with_description("Audit events on which the audit service fails while it takes others.")
                .build(),
            sent: meter
                .u64_counter("gatehouse.audit.outbox.sent")
                .with_description("Audit events relayed.")
                .build(),
            failures: meter
                .u64_counter("gatehouse.audit.outbox.failures")
                .with_description("Calls to the audit service that failed and will be made again.")
                .build(),
            labels: [KeyValue::new("service", service)],
        }
    }

    pub(crate) fn show(&self, status: &Status) {
        self.waiting.record(status.waiting, &self.labels);
        self.oldest.record(status.oldest_age.as_secs_f64(), &self.labels);
        self.refused.record(status.refused, &self.labels);
    }

    pub(crate) fn stuck(&self, events: usize) {
        self.stuck.record(events as u64, &self.labels);
    }

    pub(crate) fn sent(&self, events: u64) {
        self.sent.add(events, &self.labels);
    }

    pub(crate) fn failed(&self) {
        self.failures.add(1, &self.labels);
    }
}
