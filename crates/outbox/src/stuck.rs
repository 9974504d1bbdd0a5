//! Events that the audit service fails on while it takes others: a damaged key of one subject must not keep the events of
//! all others from the log.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use gatehouse_core::Timestamp;
use uuid::Uuid;

/// The first wait of an event; it doubles from try to try up to the relay's longest backoff.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// Which events wait for how long.
#[derive(Debug, Default)]
pub(crate) struct Stuck(HashMap<Uuid, Waiting>);

#[derive(Debug)]
struct Waiting {
    tries: u32,
    until: Timestamp,
}

impl Stuck {
    /// It failed, perhaps again.
    pub(crate) fn add(&mut self, id: Uuid, now: Timestamp, longest: Duration) {
        let waiting = self.0.entry(id).or_insert(Waiting { tries: 0, until: now });
        let wait = FIRST_WAIT.saturating_mul(1 << waiting.tries.min(16)).min(longest);
        waiting.tries = waiting.tries.saturating_add(1);
        waiting.until = now.plus(wait);
    }

    pub(crate) fn remove(&mut self, ids: &[Uuid]) {
        for id in ids {
            self.0.remove(id);
        }
    }

    /// Those whose time has not come.
    pub(crate) fn waiting(&self, now: Timestamp) -> HashSet<Uuid> {
        self.0.iter().filter(|(_, waiting)| waiting.until > now).map(|(id, _)| *id).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_end() {
        let (mut stuck, id, longest) = (Stuck::default(), Uuid::from_u128(1), Duration::from_secs(10));
        let mut now = Timestamp::from_seconds(5);
        for wait in [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000] {
            stuck.add(id, now, longest);
            let before = now.plus(Duration::from_millis(wait - 1));
            assert!(stuck.waiting(before).contains(&id), "{wait}");
            now = now.plus(Duration::from_millis(wait));
            assert!(stuck.waiting(now).is_empty(), "{wait}");
        }
        stuck.remove(&[id]);
        assert_eq!(stuck.len(), 0);
    }
}
