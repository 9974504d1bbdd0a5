//! The audit trail: all that was acknowledged, each once.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;

/// An entry as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The event's id.
    pub event: String,
    /// The log.
    pub log: String,
    /// Its place there.
    pub index: u64,
    /// What was done.
    pub action: String,
    /// To what.
    pub target: String,
    /// `success`, `denied` or `failure`.
    pub outcome: String,
    /// What more is told.
    pub payload: serde_json::Value,
}

/// How many entries there are of an action on a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// What was done.
    pub action: &'static str,
    /// To what.
    pub target: String,
    /// `success`, `denied` or `failure`.
    pub outcome: &'static str,
    /// How often.
    pub number: usize,
}

/// Checks the whole trail against what clients know to have happened; what is not there yet.
///
/// # Errors
/// If something is there too often: that does not pass.
pub fn check_audit(logged: &[Logged], expected: &[Expected]) -> anyhow::Result<Vec<Expected>> {
    let (mut events, mut places) = (BTreeSet::new(), BTreeSet::new());
    let mut found: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
    for entry in logged {
        ensure!(events.insert(&entry.event), "event {} is in the trail twice", entry.event);
        ensure!(
            places.insert((&entry.log, entry.index)),
            "entry {} of log {} was read as two different events",
            entry.index,
            entry.log
        );
        *found.entry((&entry.action, &entry.target, &entry.outcome)).or_default() += 1;
    }
    let mut missing = Vec::new();
    for wanted in expected {
        let found = found.get(&(wanted.action, wanted.target.as_str(), wanted.outcome)).copied().unwrap_or(0);
        ensure!(
            found <= wanted.number,
            "the audit trail has {found} entries of {} on {}, and it happened {} times",
            wanted.action,
            wanted.target,
            wanted.number
        );
        if found < wanted.number {
            missing.push(Expected { number: wanted.number - found, ..wanted.clone() });
        }
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(event: &str, index: u64) -> Logged {
        Logged {
            event: event.to_owned(),
            log: "default".to_owned(),
            index,
            action: "job.jobs.submit".to_owned(),
            target: "job/1".to_owned(),
            outcome: "success".to_owned(),
            payload: serde_json::Value::Null,
        }
    }

    fn expected(number: usize) -> Expected {
        Expected { action: "job.jobs.submit", target: "job/1".to_owned(), outcome: "success", number }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(check_audit(&[entry("a", 1)], &[expected(1)]).unwrap(), []);
        assert_eq!(check_audit(&[entry("a", 1)], &[expected(3)]).unwrap(), [expected(2)]);
    }

    #[test]
    fn an_entry_stands_for_nothing_else() {
        let other = [
            Logged { action: "job.jobs.start".to_owned(), ..entry("a", 1) },
            Logged { target: "job/2".to_owned(), ..entry("b", 2) },
            Logged { outcome: "denied".to_owned(), ..entry("c", 3) },
        ];
        assert_eq!(check_audit(&other, &[expected(1)]).unwrap(), [expected(1)]);
        // Each log counts by itself, and all that is in it together.
        let elsewhere = Logged { log: "administration".to_owned(), ..entry("b", 1) };
        assert_eq!(check_audit(&[entry("a", 1), elsewhere], &[expected(2)]).unwrap(), []);
        let here = Logged { action: "job.jobs.start".to_owned(), ..entry("b", 1) };
        assert!(check_audit(&[entry("a", 1), here], &[expected(1)]).is_err());
    }

    #[test]
    fn what_is_there_too_often_is_found() {
        let twice = [entry("a", 1), entry("b", 2)];
        assert!(check_audit(&twice, &[expected(1)]).unwrap_err().to_string().contains("has 2 entries"));
        assert!(check_audit(&[entry("a", 1), entry("a", 2)], &[]).is_err());
        assert!(check_audit(&[entry("a", 1), entry("b", 1)], &[]).is_err());
    }
}
