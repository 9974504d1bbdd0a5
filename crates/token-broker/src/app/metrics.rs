//! What an operator must see.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram};

pub(crate) struct Metrics {
    rotations: Counter<u64>,
    duration: Histogram<f64>,
    issued: Counter<u64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let meter = opentelemetry::global::meter("gatehouse");
        Self {
            rotations: meter
                .u64_counter("gatehouse.token_broker.rotations")
                .with_description("Attempts to renew an upstream's token, by outcome; alert on all but ok.")
                .build(),
            duration: meter
                .f64_histogram("gatehouse.token_broker.rotation.duration")
                .with_unit("s")
                .with_description("Time of one renewal, storing included.")
                .build(),
            issued: meter
                .u64_counter("gatehouse.token_broker.tokens_issued")
                .with_description("Access tokens given to callers, by outcome.")
                .build(),
        }
    }

    pub(crate) fn rotation(&self, upstream: &str, outcome: &'static str, seconds: f64) {
        let labels = [KeyValue::new("upstream", upstream.to_owned()), KeyValue::new("outcome", outcome)];
        self.rotations.add(1, &labels);
        self.duration.record(seconds, &labels);
    }

    pub(crate) fn issued(&self, upstream: &str, outcome: &str) {
        let labels =
            [KeyValue::new("upstream", upstream.to_owned()), KeyValue::new("outcome", outcome.to_owned())];
        self.issued.add(1, &labels);
    }
}
