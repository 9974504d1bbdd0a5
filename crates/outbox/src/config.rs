//! How hard the relay works.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The relay of audit events.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Most events in one call to the audit service, 1 to 500.
    pub batch: u32,
    /// How often the table is looked at when nobody rang, milliseconds, 10 to 60000. Events of this process are
    /// sent at once; this is for what another process left.
    pub poll_ms: u64,
    /// The longest pause after the audit service did not take a batch, milliseconds, 10 to 600000.
    pub max_backoff_ms: u64,
    /// How long a replica that vanished keeps the others from relaying, milliseconds, 1000 to 600000. Longer than a
    /// call to the audit service may take.
    pub lease_ms: u64,
    /// How long shutdown goes on sending what is left, milliseconds, 0 to 60000. The rest stays in the table.
    pub drain_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { batch: 200, poll_ms: 500, max_backoff_ms: 10_000, lease_ms: 30_000, drain_ms: 3_000 }
    }
}

impl Config {
    /// What is wrong with it, each as a sentence that begins with the field; empty if nothing is.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut within = |name: &str, value: u64, from: u64, to: u64| {
            if !(from..=to).contains(&value) {
                problems.push(format!("{name}: must be from {from} to {to}"));
            }
        };
        within("batch", self.batch.into(), 1, 500);
        within("poll_ms", self.poll_ms, 10, 60_000);
        within("max_backoff_ms", self.max_backoff_ms, 10, 600_000);
        within("lease_ms", self.lease_ms, 1_000, 600_000);
        within("drain_ms", self.drain_ms, 0, 60_000);
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_name_the_field() {
        assert!(Config::default().validate().is_empty());
        let wrong = Config { batch: 501, lease_ms: 1, ..Config::default() };
        assert_eq!(
            wrong.validate(),
            ["batch: must be from 1 to 500", "lease_ms: must be from 1000 to 600000"]
        );
    }
}
