//! The `[job]` section.

use std::collections::BTreeMap;
use std::time::Duration;

use gatehouse_core::Environment;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::domain::JobState;

/// The job service.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The kinds of jobs that can be submitted, by name (lower-case letters, digits, `-`, `_`, at most 64), each with
    /// its bounds. Those written here come to the default, `optimize`, which is switched off by `enabled = false` only.
    #[serde(deserialize_with = "with_the_default_kinds")]
    pub kinds: BTreeMap<String, KindConfig>,
    /// How long a worker may be out of touch before its jobs are given to others, milliseconds, 300 to 600000. Workers
    /// are told to send a heartbeat three times as often.
    pub lease_ttl_ms: u64,
    /// Most jobs leased in one transaction, 1 to 500.
    pub lease_batch: u32,
    /// How often the queue and the events are looked at when no bell rang, milliseconds, 10 to 60000.
    pub poll_interval_ms: u64,
    /// How often dead workers, stalled jobs and expired jobs are looked for, milliseconds, 10 to 600000.
    pub sweep_interval_ms: u64,
    /// How far apart a tenant's waiting jobs stand in the queue, milliseconds, 0 to 3600000: the larger, the less of a
    /// flood of one tenant stands before the others' jobs. 0 is first come, first served.
    pub fair_share_ms: u64,
    /// Most events that wait for one reader; what is more is read again from the log later. 1 to 100000.
    pub sse_queue_maxsize: u32,
    /// How long an event may wait for its reader before the reader is cut off, seconds, 1 to 3600.
    pub sse_backpressure_fail_timeout_s: u64,
    /// How long a job that succeeded is kept, with its events and result, seconds, 1 to 31536000.
    #[schemars(extend("x-env" = "JOB_TTL_SUCCEEDED_S"))]
    pub ttl_succeeded_s: u64,
    /// How long a failed job is kept, seconds, 1 to 31536000.
    #[schemars(extend("x-env" = "JOB_TTL_FAILED_S"))]
    pub ttl_failed_s: u64,
    /// How long a cancelled job is kept, seconds, 1 to 31536000.
    #[schemars(extend("x-env" = "JOB_TTL_CANCELLED_S"))]
    pub ttl_cancelled_s: u64,
}

/// The bounds of one kind of job.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KindConfig {
    /// Whether jobs of it may be submitted or tried again. Those that are queued or running go on. Default true.
    pub enabled: bool,
    /// Largest input, bytes, 1 to 1048576.
    pub max_input_bytes: u32,
    /// Largest result, bytes, 1 to 2097152.
    pub max_result_bytes: u32,
    /// How often the job may be leased before it fails for good, 1 to 100.
    pub max_attempts: u32,
    /// Pause after the first failed attempt, milliseconds, at most 3600000; doubled after each further one.
    pub retry_pause_ms: u64,
    /// How long a running job may be without progress before it counts as stalled, milliseconds, 100 to 86400000.
    pub stall_after_ms: u64,
    /// How long one attempt may run, milliseconds, 100 to 604800000.
    pub attempt_timeout_ms: u64,
    /// Most jobs of this kind that one tenant may have waiting, 1 to 100000.
    pub max_queued_per_tenant: u32,
}

fn default_kinds() -> BTreeMap<String, KindConfig> {
    BTreeMap::from([("optimize".to_owned(), KindConfig::default())])
}

/// The kinds that are written, and the default ones that are not.
fn with_the_default_kinds<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, KindConfig>, D::Error> {
    let mut kinds = default_kinds();
    kinds.extend(BTreeMap::<String, KindConfig>::deserialize(deserializer)?);
    Ok(kinds)
}

const DAY_S: u64 = 24 * 3600;

impl Default for Config {
    fn default() -> Self {
        Self {
            kinds: default_kinds(),
            lease_ttl_ms: 15_000,
            lease_batch: 50,
            poll_interval_ms: 1_000,
            sweep_interval_ms: 1_000,
            fair_share_ms: 100,
            sse_queue_maxsize: 1_000,
            sse_backpressure_fail_timeout_s: 30,
            ttl_succeeded_s: DAY_S,
            ttl_failed_s: DAY_S,
            ttl_cancelled_s: DAY_S,
        }
    }
}

impl Default for KindConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            max_input_bytes: 64 * 1024,
            max_result_bytes: 1024 * 1024,
            max_attempts: 5,
            retry_pause_ms: 1_000,
            stall_after_ms: 60_000,
            attempt_timeout_ms: 3_600_000,
            max_queued_per_tenant: 10_000,
        }
    }
}

impl Config {
    /// What is wrong with it, each as a sentence that begins with the field; empty if nothing is.
    #[must_use]
    pub fn validate(&self, _environment: Environment) -> Vec<String> {
        const YEAR_S: u64 = 365 * DAY_S;
        let mut problems = Vec::new();
        let mut within = |name: &str, value: u64, from: u64, to: u64| {
            if !(from..=to).contains(&value) {
                problems.push(format!("{name}: must be from {from} to {to}"));
            }
        };
        within("lease_ttl_ms", self.lease_ttl_ms, 300, 600_000);
        within("lease_batch", self.lease_batch.into(), 1, 500);
        within("poll_interval_ms", self.poll_interval_ms, 10, 60_000);
        within("sweep_interval_ms", self.sweep_interval_ms, 10, 600_000);
        within("fair_share_ms", self.fair_share_ms, 0, 3_600_000);
        within("sse_queue_maxsize", self.sse_queue_maxsize.into(), 1, 100_000);
        within("sse_backpressure_fail_timeout_s", self.sse_backpressure_fail_timeout_s, 1, 3_600);
        within("ttl_succeeded_s", self.ttl_succeeded_s, 1, YEAR_S);
        within("ttl_failed_s", self.ttl_failed_s, 1, YEAR_S);
        within("ttl_cancelled_s", self.ttl_cancelled_s, 1, YEAR_S);
        for (name, kind) in &self.kinds {
            let path = |field: &str| format!("kinds.{name}.{field}");
            within(&path("max_input_bytes"), kind.max_input_bytes.into(), 1, 1024 * 1024);
            within(&path("max_result_bytes"), kind.max_result_bytes.into(), 1, 2 * 1024 * 1024);
            within(&path("max_attempts"), kind.max_attempts.into(), 1, 100);
            within(&path("retry_pause_ms"), kind.retry_pause_ms, 0, 3_600_000);
            within(&path("stall_after_ms"), kind.stall_after_ms, 100, 86_400_000);
            within(&path("attempt_timeout_ms"), kind.attempt_timeout_ms, 100, 604_800_000);
            within(&path("max_queued_per_tenant"), kind.max_queued_per_tenant.into(), 1, 100_000);
        }
        for name in self.kinds.keys() {
            let plain =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
            if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
                problems.push(format!("kinds: {name:?} must be 1 to 64 of a-z 0-9 - _"));
            }
        }
        problems
    }

    pub(crate) fn lease_ttl(&self) -> Duration {
        Duration::from_millis(self.lease_ttl_ms)
    }

    pub(crate) fn poll_interval(&self) -> Duration {
        Duration::from_millis(self.poll_interval_ms)
    }

    pub(crate) fn fair_share(&self) -> Duration {
        Duration::from_millis(self.fair_share_ms)
    }

    /// How long a job that ended in `state` is kept.
    pub(crate) fn ttl(&self, state: JobState) -> Duration {
        Duration::from_secs(match state {
            JobState::Succeeded => self.ttl_succeeded_s,
            JobState::Cancelled => self.ttl_cancelled_s,
            _ => self.ttl_failed_s,
        })
    }
}

impl Config {
    /// The bounds of a kind whose jobs may be submitted.
    pub(crate) fn enabled_kind(&self, kind: &str) -> Option<&KindConfig> {
        self.kinds.get(kind).filter(|bounds| bounds.enabled)
    }
}

impl KindConfig {
    pub(crate) fn retry_pause(&self) -> Duration {
        Duration::from_millis(self.retry_pause_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_ones_own_takes_no_other_away() {
        let read = |text: &str| serde_json::from_str::<Config>(text).expect("a configuration");
        let config = read(r#"{"kinds": {"other": {"max_attempts": 2}}}"#);
        assert!(config.enabled_kind("optimize").is_some(), "the default kind is gone");
        assert_eq!(config.enabled_kind("other").map(|kind| kind.max_attempts), Some(2));
        let config = read(r#"{"kinds": {"optimize": {"enabled": false}}}"#);
        assert!(config.enabled_kind("optimize").is_none());
        let shown = serde_json::to_string(&config).expect("JSON");
        assert!(read(&shown).enabled_kind("optimize").is_none(), "what is shown is another configuration");
    }

    #[test]
    fn problems_name_the_field() {
        assert!(Config::default().validate(Environment::Prod).is_empty());
        let wrong = Config {
            lease_ttl_ms: 1,
            kinds: BTreeMap::from([(
                "A b".to_owned(),
                KindConfig { max_attempts: 0, ..KindConfig::default() },
            )]),
            ..Config::default()
        };
        let problems = wrong.validate(Environment::Dev);
        assert_eq!(
            problems,
            [
                "lease_ttl_ms: must be from 300 to 600000",
                "kinds.A b.max_attempts: must be from 1 to 100",
                "kinds: \"A b\" must be 1 to 64 of a-z 0-9 - _",
            ]
        );
    }
}
