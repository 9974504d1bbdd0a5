//! The `[optimizer]` section.

use gatehouse_client::worker::WorkerConfig;
use gatehouse_core::Environment;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The optimizer worker.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Most iterations of one job, 1 to 1000000. A request for more gets this many and is told so. Where it is another when a
    /// job is taken up again (after a restart), a lower one ends the job, though not before the iteration that it was at, and
    /// the job is told so; a higher one is not for a job that was told a lower.
    #[schemars(extend("x-env" = "MAX_ITERATIONS"))]
    pub max_iterations: u32,
    /// Least time that one iteration takes, milliseconds, at most 60000. Above 0 it leaves processor time to others
    /// and makes progress slow enough to watch.
    pub min_iteration_ms: u64,
    /// Most time that one iteration may take, milliseconds, 10 to 600000. A job that takes longer fails.
    pub iteration_timeout_ms: u64,
    /// How the worker works. Its `max_unacknowledged` bounds how many iterations may be told after a cancel.
    pub worker: WorkerConfig,
}

impl Default for Config {
    fn default() -> Self {
        let worker = WorkerConfig {
            name: "optimizer".into(),
            concurrency: 4,
            max_unacknowledged: 1,
            ..WorkerConfig::default()
        };
        Self { max_iterations: 200, min_iteration_ms: 0, iteration_timeout_ms: 30_000, worker }
    }
}

impl Config {
    /// What is wrong with it, each as a sentence that begins with the field; empty if nothing is.
    #[must_use]
    pub fn validate(&self, _environment: Environment) -> Vec<String> {
        let mut problems: Vec<String> =
            self.worker.validate().into_iter().map(|problem| format!("worker.{problem}")).collect();
        let mut within = |name: &str, value: u64, from: u64, to: u64| {
            if !(from..=to).contains(&value) {
                problems.push(format!("{name}: must be from {from} to {to}"));
            }
        };
        within("max_iterations", self.max_iterations.into(), 1, 1_000_000);
        within("min_iteration_ms", self.min_iteration_ms, 0, 60_000);
        within("iteration_timeout_ms", self.iteration_timeout_ms, 10, 600_000);
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_name_the_field() {
        assert!(Config::default().validate(Environment::Prod).is_empty());
        let wrong = Config { max_iterations: 0, ..Config::default() };
        assert_eq!(wrong.validate(Environment::Dev), ["max_iterations: must be from 1 to 1000000"]);
    }
}
