//! The audit section of the configuration.

use std::path::PathBuf;

use gatehouse_core::{Environment, Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::checkpoint::Checkpoint;
use crate::domain::names::LogId;
use crate::domain::note::VerifierKey;
use crate::signed_states;

/// Most verifier keys that are accepted besides that of the key file.
const MAX_ACCEPTED_KEYS: usize = 16;
/// Most states that are given up.
const MAX_GIVEN_UP: usize = 16;

/// The audit service.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the logs' names begin, a host and perhaps a path, without scheme, spaces and `+`: checkpoints of the log
    /// `default` have the origin `<origin>/<environment>/audit/default`. Changing it begins new names for old logs: then
    /// `accepted_verifier_keys` has to name the verifier key under its old name.
    pub origin: String,
    /// How long the log `default` is kept, days, 1 to 36500.
    pub retention_days: u32,
    /// Further logs, one for each retention class that an emitter may ask for: `[{ name = "long", days = 365 }]`. One that
    /// is taken out takes nothing more, but its events are still read; nothing of it is pruned or signed any more.
    pub logs: Vec<LogConfig>,
    /// Folder of the keys that payloads are sealed with, one file a subject. It must lie outside the database and
    /// outside what is backed up with it: a restored backup must not bring shredded keys back. Replicas share it.
    pub subject_keys_dir: PathBuf,
    /// The id of a key folder that is lost for good, as the refused start names it: then what stands in `subject_keys_dir` takes
    /// its place, and what persons did before stays sealed for ever. Works once; take it out again.
    pub lost_subject_keys: Option<String>,
    /// File with the Ed25519 seed that checkpoints are signed with, 64 hexadecimal digits. In dev it is made if
    /// missing while the logs are empty. Logs that were signed with another key keep the service from starting, unless
    /// `accepted_verifier_keys` names that one.
    pub checkpoint_key_file: PathBuf,
    /// Verifier keys (`name+hash+base64`) of the keys that checkpoints were signed with before, after the file or `origin`
    /// was changed on purpose, at most 16. The key under one log's name counts for every log. The next checkpoints are
    /// signed with the key in the file; see the page on the audit log.
    pub accepted_verifier_keys: Vec<String>,
    /// States (`<origin> <size> <root>`, as the refusal to start says them) that were signed and are given up, because the
    /// database was restored from a backup that is older than they are, at most 16; see the page on the audit log.
    pub given_up_states: Vec<String>,
    /// How often a checkpoint is signed if the log grew, milliseconds, 100 to 86400000.
    pub checkpoint_interval_ms: u64,
    /// How often entries that are past their time are removed, milliseconds, 1000 to 86400000.
    pub prune_interval_ms: u64,
    /// Most entries that one transaction removes, 1 to 100000. Appending waits for it; a longer backlog goes in parts.
    pub max_prune: u32,
    /// Most entries in one commit, 1 to 5000.
    pub max_group: u32,
    /// Most entries that wait for a commit before callers are sent away, 1 to 1000000.
    pub max_queue: u32,
}

/// A further log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// Its name, also the retention class: 1 to 32 of a-z, 0-9 and -, a letter first.
    pub name: String,
    /// How long its entries are kept, days, 1 to 36500.
    pub days: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            origin: "gatehouse.invalid".to_owned(),
            retention_days: 30,
            logs: Vec::new(),
            subject_keys_dir: PathBuf::from("audit-keys"),
            lost_subject_keys: None,
            checkpoint_key_file: PathBuf::from("audit-checkpoint.key"),
            accepted_verifier_keys: Vec::new(),
            given_up_states: Vec::new(),
            checkpoint_interval_ms: 60_000,
            prune_interval_ms: 3_600_000,
            max_prune: 1_000,
            max_group: 500,
            max_queue: 20_000,
        }
    }
}

impl Config {
    /// What is wrong with it, each as a sentence that begins with the field; empty if nothing is.
    #[must_use]
    pub fn validate(&self, environment: Environment) -> Vec<String> {
        let mut problems = Vec::new();
        let origin_is_wrong = |c: char| c.is_whitespace() || c.is_control() || c == '+';
        if self.origin.is_empty() || self.origin.contains(origin_is_wrong) || self.origin.contains("://") {
            problems.push(
                "origin: name a host, such as gatehouse.example.com, without scheme, spaces or +".to_owned(),
            );
        } else if environment != Environment::Dev && self.origin.ends_with(".invalid") {
            problems.push(
                "origin: set it to your own host name: it names your logs to verifiers for ever".to_owned(),
            );
        }
        let mut seen = vec!["default"];
        for (place, log) in self.logs.iter().enumerate() {
            if LogId::new(log.name.as_str()).is_err() {
                problems.push(format!("logs[{place}].name: must be 1 to 32 of a-z, 0-9 and -"));
            }
            if seen.contains(&log.name.as_str()) {
                problems.push(format!("logs[{place}].name: is there twice, or is default, which always is"));
            }
            seen.push(&log.name);
        }
        if self.accepted_verifier_keys.len() > MAX_ACCEPTED_KEYS {
            problems.push(format!("accepted_verifier_keys: must be at most {MAX_ACCEPTED_KEYS}"));
        }
        for (place, key) in self.accepted_verifier_keys.iter().enumerate() {
            if !key.parse::<VerifierKey>().is_ok_and(|key| key.name().contains('/')) {
                problems.push(format!(
                    "accepted_verifier_keys[{place}]: is no verifier key (name+hash+base64) of a log, as ListLogs gives it"
                ));
            }
        }
        if self.lost_subject_keys.as_ref().is_some_and(|id| Uuid::parse_str(id).is_err()) {
            problems.push("lost_subject_keys: name the id that the refused start told".to_owned());
        }
        if self.given_up_states.len() > MAX_GIVEN_UP {
            problems.push(format!("given_up_states: must be at most {MAX_GIVEN_UP}"));
        }
        let states = self.given_up_states.iter().enumerate();
        for (place, _) in states.filter(|(_, state)| signed_states::parse(state).is_none()) {
            problems.push(format!(
                "given_up_states[{place}]: is no state (origin, size and root, a space between), as the refusal to start \
                 says it"
            ));
        }
        let mut within = |name: &str, value: u64, from: u64, to: u64| {
            if !(from..=to).contains(&value) {
                problems.push(format!("{name}: must be from {from} to {to}"));
            }
        };
        within("retention_days", self.retention_days.into(), 1, 36_500);
        for log in &self.logs {
            within("logs: days", log.days.into(), 1, 36_500);
        }
        within("checkpoint_interval_ms", self.checkpoint_interval_ms, 100, 86_400_000);
        within("prune_interval_ms", self.prune_interval_ms, 1_000, 86_400_000);
        within("max_prune", self.max_prune.into(), 1, 100_000);
        within("max_group", self.max_group.into(), 1, 5_000);
        within("max_queue", self.max_queue.into(), 1, 1_000_000);
        problems
    }

    /// Every log with the days that its entries are kept; `default` first.
    #[must_use]
    pub fn all_logs(&self) -> Vec<LogConfig> {
        let default = LogConfig { name: "default".to_owned(), days: self.retention_days };
        std::iter::once(default).chain(self.logs.iter().cloned()).collect()
    }

    /// The folder of keys that is lost for good.
    pub(crate) fn lost_folder(&self) -> Option<Uuid> {
        self.lost_subject_keys.as_deref().and_then(|id| Uuid::parse_str(id).ok())
    }

    /// The states that are given up.
    pub(crate) fn given_up(&self) -> Vec<Checkpoint> {
        self.given_up_states.iter().filter_map(|state| signed_states::parse(state)).collect()
    }

    /// The accepted verifier keys, under the names that they have for `log`.
    pub(crate) fn accepted_keys(&self, log: &LogId) -> Result<Vec<VerifierKey>> {
        let named = |text: &String| text.parse::<VerifierKey>().and_then(|key| key.of_log(log));
        self.accepted_verifier_keys.iter().map(named).collect::<Result<_, _>>().map_err(|error| {
            Error::failed_precondition("CONFIG_INVALID", format!("audit.accepted_verifier_keys: {error}"))
        })
    }

    /// The C2SP origin of `log`'s checkpoints, which is also the name of its key.
    #[must_use]
    pub fn origin_of(&self, environment: Environment, log: &LogId) -> String {
        format!("{}/{environment}/audit/{log}", self.origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_name_the_field() {
        assert!(Config::default().validate(Environment::Dev).is_empty());
        assert!(Config::default().validate(Environment::Prod)[0].starts_with("origin:"));
        let log = |name: &str, days| LogConfig { name: name.to_owned(), days };
        let logs = vec![log("default", 1), log("Long", 1), log("x", 0)];
        let config = Config { logs, origin: "https://x".into(), max_group: 0, ..Config::default() };
        assert_eq!(config.validate(Environment::Dev).len(), 5);
        let key = "a/default+14bbabcd+AeA=".to_owned();
        let problems = Config { accepted_verifier_keys: vec![key; 17], ..Config::default() };
        assert_eq!(problems.validate(Environment::Dev).len(), 18);
        let lost = Config { lost_subject_keys: Some("all".into()), ..Config::default() };
        assert!(lost.validate(Environment::Dev)[0].starts_with("lost_subject_keys:"));
        let state = "a/default 3 CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=";
        for (states, wrong) in [
            (vec![state; 16], 0),
            (vec![state; 17], 1),
            (vec!["a/default 3"], 1),
            (vec![&format!("{state} x")], 1),
        ] {
            let given_up_states = states.into_iter().map(str::to_owned).collect();
            let config = Config { given_up_states, ..Config::default() };
            assert_eq!(config.validate(Environment::Dev).len(), wrong, "{config:?}");
        }
    }
}
