//! Prepaid leases: a node takes tokens of a large bucket in batches and spends them without asking.
//!
//! **Bound.** A lease is charged to the shared bucket when it is granted, never after. Let `B` be the burst, `r`
//! the rate, `N` the replicas. A node never holds or is owed more than one batch of `B / 10 / N` unspent tokens
//! of a bucket, so that all nodes together hold at most `B / 10`. In any window of length `w`, what is spent is at
//! most what was held at its start plus what was granted within it less what was given back, so at most
//! `B / 10 + B + r * w`. Giving back is safe in this sum: the bucket never rises above full by it.
//!
//! Tokens that a node doesn't spend within the lease's time go back with its next call for that bucket. Those of
//! a node that dies are simply spent: the error is on the strict side. So it is with a call whose answer is lost.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::bucket::{Bucket, Key};
use crate::decision::{DecidedBy, Decision, Standing, standing};
use crate::gcra::{Charge, Verdict};
use crate::quota::Quota;

/// A batch smaller than this saves too few calls to be worth its error.
const SMALLEST_BATCH: u64 = 16;
/// The longest wait before a bucket that ran dry is asked for again.
const LONGEST_PAUSE_US: u64 = 100_000;
/// Entries beyond this number are searched for empty ones.
const SWEEP_AT: usize = 4096;

/// How leases are dealt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseOptions {
    /// All nodes together may hold 1/`divisor` of a burst. 10 gives the bound that the crate documents.
    pub divisor: u64,
    /// How long a node may keep unspent tokens.
    pub lifetime: Duration,
}

impl Default for LeaseOptions {
    fn default() -> Self {
        Self { divisor: 10, lifetime: Duration::from_secs(1) }
    }
}

/// One node's leases. Time comes in as microseconds of any clock that does not go back.
#[derive(Debug)]
pub(crate) struct LeaseBook {
    options: LeaseOptions,
    replicas: u32,
    entries: Mutex<HashMap<Key, Lease>>,
}

#[derive(Debug)]
struct Lease {
    quota: Quota,
    /// Tokens to spend until `expires_us`.
    balance: u64,
    expires_us: u64,
    /// Expired tokens, to go back with the next call.
    back: u64,
    /// Tokens asked for beyond their request's own cost, in calls under way.
    in_flight: u64,
    /// Until then the store is taken to have nothing.
    denied_until_us: u64,
    /// What the store said last, and when.
    level_us: u64,
    level_at_us: u64,
}

/// What a check still needs from the store. Dropped unsettled, it puts everything back as it was.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    book: Option<&'a LeaseBook>,
    steps: Vec<Step>,
    /// The bucket that this node knows to be empty, and for how many microseconds.
    denied: Option<(usize, u64)>,
    pub(crate) charges: Vec<Charge>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Spent from the lease at hand.
    Local { key: Key, quota: Quota, cost: u64 },
    /// Charge number `charge` of the call; `extra` tokens of it are for the lease.
    Ask { charge: usize, extra: u64, leased: bool },
}

impl LeaseBook {
    pub(crate) fn new(options: LeaseOptions, replicas: u32) -> Self {
        Self { options, replicas, entries: Mutex::new(HashMap::new()) }
    }

    fn batch(&self, quota: Quota) -> Option<u64> {
        let batch = quota.capacity() / self.options.divisor.max(1) / u64::from(self.replicas.max(1));
        (batch >= SMALLEST_BATCH).then_some(batch)
    }

    fn lifetime_us(&self) -> u64 {
        u64::try_from(self.options.lifetime.as_micros()).unwrap_or(u64::MAX)
    }

    /// How long not to ask again once the store had less than was asked for. A bucket in overload would otherwise
    /// be asked for each single token that comes back; they gather in the store meanwhile.
    fn pause_us(&self, quota: Quota) -> u64 {
        let eighth = self.batch(quota).unwrap_or(0) / 8;
        quota.emission_us().saturating_mul(eighth).min(LONGEST_PAUSE_US)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Lease>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Spends what it can from leases and says what to ask the store for.
    pub(crate) fn plan(&self, buckets: &[Bucket], keys: &[Key], now_us: u64) -> Plan<'_> {
        let mut entries = self.lock();
        let mut plan = Plan { book: Some(self), steps: Vec::new(), denied: None, charges: Vec::new() };
        plan.denied = self.known_denial(&mut entries, buckets, keys, now_us);
        if plan.denied.is_some() {
            return plan;
        }
        if entries.len() > SWEEP_AT {
            entries.retain(|_, lease| lease.balance + lease.back + lease.in_flight > 0);
        }
        for (bucket, key) in buckets.iter().zip(keys) {
            let (quota, cost) = (bucket.quota(), bucket.cost());
            let Some(batch) = self.batch(quota) else {
                plan.ask(*key, quota, cost, 0, 0, false);
                continue;
            };
            let lease = entries.entry(*key).or_insert_with(|| Lease::new(quota));
            lease.turn(quota, now_us);
            if lease.balance >= cost {
                lease.balance -= cost;
                plan.steps.push(Step::Local { key: *key, quota, cost });
            } else {
                let extra = batch.saturating_sub(lease.balance + lease.in_flight);
                lease.in_flight += extra;
                plan.ask(*key, quota, cost, extra, std::mem::take(&mut lease.back), true);
            }
        }
        plan
    }

    fn known_denial(
        &self,
        entries: &mut HashMap<Key, Lease>,
        buckets: &[Bucket],
        keys: &[Key],
        now_us: u64,
    ) -> Option<(usize, u64)> {
        let mut denied: Option<(usize, u64)> = None;
        for (index, (bucket, key)) in buckets.iter().zip(keys).enumerate() {
            if self.batch(bucket.quota()).is_none() {
                continue;
            }
            let Some(lease) = entries.get_mut(key) else { continue };
            lease.turn(bucket.quota(), now_us);
            if lease.balance < bucket.cost() && now_us < lease.denied_until_us {
                let wait = lease.denied_until_us - now_us;
                if denied.is_none_or(|(_, longest)| wait > longest) {
                    denied = Some((index, wait));
                }
            }
        }
        denied
    }

    /// Takes every unspent token out of the book, as charges that give them back.
    pub(crate) fn drain(&self) -> Vec<Charge> {
        self.lock()
            .drain()
            .filter(|(_, lease)| lease.balance + lease.back > 0)
            .map(|(key, lease)| {
                let back = lease.balance + lease.back;
                Charge { key, quota: lease.quota, least: 0, most: 0, back }
            })
            .collect()
    }

    fn standing(&self, bucket: &Bucket, key: Key, now_us: u64) -> Standing {
        let entries = self.lock();
        let (level_us, balance) = entries.get(&key).map_or((0, 0), |lease| {
            (lease.level_us.saturating_sub(now_us.saturating_sub(lease.level_at_us)), lease.balance)
        });
        let mut standing = standing(bucket, level_us);
        standing.remaining = standing.remaining.saturating_add(balance).min(standing.limit);
        standing
    }
}

impl Lease {
    fn new(quota: Quota) -> Self {
        Self {
            quota,
            balance: 0,
            expires_us: 0,
            back: 0,
            in_flight: 0,
            denied_until_us: 0,
            level_us: 0,
            level_at_us: 0,
        }
    }

    /// Brings the lease to `now_us`: a changed quota ends it, and so does its time.
    fn turn(&mut self, quota: Quota, now_us: u64) {
        if self.quota != quota {
            // Tokens of the old quota have another price: they are not given back.
            *self = Self { in_flight: self.in_flight, ..Self::new(quota) };
        }
        if self.balance > 0 && now_us >= self.expires_us {
            self.back += std::mem::take(&mut self.balance);
        }
    }
}

impl Plan<'_> {
    /// A plan that asks the store for everything.
    pub(crate) fn without_leases(buckets: &[Bucket], keys: &[Key]) -> Self {
        let mut plan = Plan { book: None, steps: Vec::new(), denied: None, charges: Vec::new() };
        for (bucket, key) in buckets.iter().zip(keys) {
            plan.ask(*key, bucket.quota(), bucket.cost(), 0, 0, false);
        }
        plan
    }

    fn ask(&mut self, key: Key, quota: Quota, cost: u64, extra: u64, back: u64, leased: bool) {
        self.steps.push(Step::Ask { charge: self.charges.len(), extra, leased });
        self.charges.push(Charge { key, quota, least: cost, most: cost + extra, back });
    }

    /// Ends the plan with the store's verdict on its charges (an empty one if it has none).
    pub(crate) fn settle(
        mut self,
        buckets: &[Bucket],
        keys: &[Key],
        verdict: &Verdict,
        now_us: u64,
    ) -> Decision {
        let Some(book) = self.book else {
            return Decision::from_verdict(buckets, verdict, DecidedBy::Store);
        };
        let mut denied = self.denied;
        if let Some((charge, wait_us)) = verdict.denied {
            let bucket = self
                .steps
                .iter()
                .position(|step| matches!(step, Step::Ask { charge: c, .. } if *c == charge));
            denied = bucket.map(|bucket| (bucket, wait_us));
        }
        let decided_by = if self.charges.is_empty() { DecidedBy::Lease } else { DecidedBy::Store };
        self.book_grants(book, buckets, verdict, now_us);
        if verdict.denied.is_none() {
            // Spent for good: nothing is left for the drop to put back.
            self.steps.clear();
        }
        let levels: Vec<Standing> = buckets
            .iter()
            .zip(keys)
            .map(|(bucket, key)| {
                let charge = self.charges.iter().position(|charge| charge.key == *key);
                match charge.and_then(|charge| verdict.slots.get(charge)) {
                    Some(slot) => standing(bucket, slot.level_us),
                    None => book.standing(bucket, *key, now_us),
                }
            })
            .collect();
        Decision::assemble(levels.into_iter(), denied, decided_by)
    }

    fn book_grants(&mut self, book: &LeaseBook, buckets: &[Bucket], verdict: &Verdict, now_us: u64) {
        let mut entries = book.lock();
        for (step, bucket) in self.steps.iter_mut().zip(buckets) {
            let Step::Ask { charge, extra, leased: true } = step else { continue };
            let (Some(asked), Some(slot)) = (self.charges.get(*charge), verdict.slots.get(*charge)) else {
                continue;
            };
            let Some(lease) = entries.get_mut(&asked.key) else { continue };
            lease.in_flight = lease.in_flight.saturating_sub(std::mem::take(extra));
            if lease.quota != asked.quota {
                continue;
            }
            lease.level_us = slot.level_us;
            lease.level_at_us = now_us;
            let gained = slot.granted.saturating_sub(bucket.cost());
            if gained > 0 {
                lease.balance += gained;
                lease.expires_us = now_us.saturating_add(book.lifetime_us());
            }
            let denied_for_us =
                verdict.denied.filter(|(denier, _)| *denier == *charge).map(|(_, wait_us)| wait_us);
            if denied_for_us.is_some() || (verdict.denied.is_none() && slot.granted < asked.most) {
                let pause_us = denied_for_us.unwrap_or(0).max(book.pause_us(asked.quota));
                // No longer than a lease lives: others may give tokens back earlier than the store expects.
                lease.denied_until_us = now_us.saturating_add(pause_us.min(book.lifetime_us()));
            }
        }
    }
}

impl Drop for Plan<'_> {
    fn drop(&mut self) {
        let Some(book) = self.book else { return };
        if self.steps.is_empty() {
            return;
        }
        let mut entries = book.lock();
        for step in &self.steps {
            match *step {
                Step::Local { key, quota, cost } => {
                    if let Some(lease) = entries.get_mut(&key).filter(|lease| lease.quota == quota) {
                        // What no longer fits beside a batch asked for meanwhile goes back to the store.
                        let batch = book.batch(quota).unwrap_or(0);
                        let kept = cost.min(batch.saturating_sub(lease.balance + lease.in_flight));
                        lease.balance += kept;
                        lease.back += cost - kept;
                    }
                }
                Step::Ask { charge, extra, leased: true } => {
                    if let Some(lease) =
                        self.charges.get(charge).and_then(|charge| entries.get_mut(&charge.key))
                    {
                        lease.in_flight = lease.in_flight.saturating_sub(extra);
                    }
                }
                Step::Ask { .. } => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "lease_simulation.rs"]
mod simulation;
