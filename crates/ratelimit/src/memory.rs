//! The in-process store: the embedded default, and what stands in while Redis is away.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use gatehouse_core::Clock;

use crate::bucket::Key;
use crate::gcra::{Charge, Verdict, decide};

/// Fewer buckets than this are never searched for those that can be forgotten.
const FIRST_SWEEP: usize = 1024;

/// One process's buckets behind one lock, so that a check over several is atomic. A full bucket is no entry:
/// whenever their number has doubled, those that have filled up again are dropped.
#[derive(Debug)]
pub(crate) struct Memory {
    clock: Clock,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    tats: HashMap<Key, i64>,
    sweep_at: usize,
}

impl Memory {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, buckets: Mutex::new(Buckets { tats: HashMap::new(), sweep_at: FIRST_SWEEP }) }
    }

    pub(crate) fn apply(&self, charges: &[Charge]) -> Verdict {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock: two callers then see times in the order in which they decide.
        let now_us = self.clock.now().as_micros();
        let verdict = decide(&mut buckets.tats, charges, now_us);
        if buckets.tats.len() >= buckets.sweep_at {
            buckets.tats.retain(|_, tat| *tat > now_us);
            buckets.sweep_at = (buckets.tats.len() * 2).max(FIRST_SWEEP);
        }
        verdict
    }

    pub(crate) fn len(&self) -> usize {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner).tats.len()
    }
}
