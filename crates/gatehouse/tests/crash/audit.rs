//! What the audit trail must hold: all that was answered with success, each once.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use gatehouse_core::Timestamp;
use tokio::time::Instant;

use crate::client::Api;

/// How long the relay may take to bring the events of a killed process into the log: less than its lease in production,
/// for in the embedded default nobody waits for a dead one.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// How many events of an action on a target there are in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    action: &'static str,
    target: String,
    outcome: &'static str,
    number: usize,
}

impl Count {
    /// So many that tell of a success.
    pub(crate) fn successes(action: &'static str, kind: &str, id: &str, number: usize) -> Self {
        Self { action, target: format!("{kind}/{id}"), outcome: "success", number }
    }

    /// So many that tell of a refusal.
    pub(crate) fn denied(action: &'static str, kind: &str, id: &str, number: usize) -> Self {
        Self { outcome: "denied", ..Self::successes(action, kind, id, number) }
    }

    /// Whether `found` events are enough.
    ///
    /// # Errors
    /// If they are too many.
    fn is_met_by(&self, found: usize) -> anyhow::Result<bool> {
        ensure!(
            found <= self.number,
            "the audit trail has {found} events of {} on {}, and it happened {} times",
            self.action,
            self.target,
            self.number
        );
        Ok(found == self.number)
    }
}

/// Waits until the trail has all of `counts` since `since`.
pub(crate) async fn settle(api: &Api, token: &str, since: Timestamp, counts: &[Count]) -> anyhow::Result<()> {
    let until = Instant::now() + SETTLE_LIMIT;
    for count in counts {
        loop {
            let found = found(api, token, since, count).await?;
            if count.is_met_by(found)? {
                break;
            }
            if Instant::now() > until {
                bail!(
                    "the audit trail has {found} of {} events of {} on {} after {} s",
                    count.number,
                    count.action,
                    count.target,
                    SETTLE_LIMIT.as_secs()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

async fn found(api: &Api, token: &str, since: Timestamp, count: &Count) -> anyhow::Result<usize> {
    let mut found = 0;
    let mut page_token = String::new();
    loop {
        let path = format!(
            "/v1/audit/events?page_size=200&action={}&target={}&occurred_from={}&page_token={page_token}",
            count.action,
            count.target,
            since.as_micros()
        );
        let page = api.get(token, &path).await?;
        let events = page["events"].as_array().context("a page without events")?;
        found += events.iter().filter(|event| event["outcome"] == count.outcome).count();
        match page["next_page_token"].as_str() {
            Some(next) if !next.is_empty() => next.clone_into(&mut page_token),
            _ => return Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_are_found_and_too_few_are_not_enough() {
        let count = Count::successes("job.jobs.submit", "job", "1", 2);
        assert!(!count.is_met_by(1).unwrap());
        assert!(count.is_met_by(2).unwrap());
        assert!(count.is_met_by(3).is_err());
    }
}
