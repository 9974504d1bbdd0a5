//! The generic cell rate algorithm, in its virtual scheduling form (ATM Forum, Traffic Management Specification
//! 4.0, section 4.4.2; ITU-T I.371, annex A), over several buckets at once.
//!
//! A bucket is one number: its theoretical arrival time (TAT), the instant at which it will be full again. A
//! request of `n` tokens conforms if `TAT + n*T - capacity*T <= now`; it then moves TAT, or `now` if that is
//! later, on by `n*T`. An absent bucket is a full one, so that a bucket may be forgotten once TAT has passed.
//!
//! `script.lua` is this function's twin; the contract suite holds the two together.

use std::collections::HashMap;

use crate::bucket::Key;
use crate::quota::Quota;

/// What to take from one bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Charge {
    pub(crate) key: Key,
    pub(crate) quota: Quota,
    /// Fewer tokens than this deny the whole.
    pub(crate) least: u64,
    /// As many as there are, up to this.
    pub(crate) most: u64,
    /// Tokens of an earlier grant that were not used; given back even where the whole is denied.
    pub(crate) back: u64,
}

/// What became of one charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) granted: u64,
    /// Microseconds until the bucket is full.
    pub(crate) level_us: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The charge that has to wait longest, and for how many microseconds.
    pub(crate) denied: Option<(usize, u64)>,
    pub(crate) slots: Vec<Slot>,
}

/// Decides over all `charges` at `now_us`; either all are granted or none is. `tats` maps a bucket to its TAT.
///
/// A TAT further ahead than a full bucket allows means that the clock went back or the quota shrank: it counts
/// as an empty bucket, so that no caller waits for longer than one interval. That is written down even where the
/// whole is denied, or the wait would start anew each time.
pub(crate) fn decide(tats: &mut HashMap<Key, i64>, charges: &[Charge], now_us: i64) -> Verdict {
    let mut pending: Vec<(Key, i64)> = Vec::with_capacity(charges.len());
    let mut before: Vec<i64> = Vec::with_capacity(charges.len());
    let mut write_anyway: Vec<bool> = Vec::with_capacity(charges.len());
    let mut granted: Vec<u64> = Vec::with_capacity(charges.len());
    let mut denied: Option<(usize, u64)> = None;
    for (index, charge) in charges.iter().enumerate() {
        let emission = signed(charge.quota.emission_us());
        let full = emission.saturating_mul(signed(charge.quota.capacity()));
        // A bucket named twice is charged twice.
        let known = pending.iter().rev().find(|(key, _)| *key == charge.key).map(|(_, tat)| *tat);
        let stored = known.unwrap_or_else(|| tats.get(&charge.key).copied().unwrap_or(now_us));
        let furthest = now_us.saturating_add(full);
        write_anyway.push(charge.back > 0 || stored > furthest);
        let tat =
            stored.min(furthest).saturating_sub(emission.saturating_mul(signed(charge.back))).max(now_us);
        let free = u64::try_from(furthest.saturating_sub(tat) / emission).unwrap_or(0);
        let mut after = tat;
        let mut grant = 0;
        if free < charge.least {
            let missing = tat
                .saturating_add(emission.saturating_mul(signed(charge.least)))
                .saturating_sub(full)
                .saturating_sub(now_us);
            let wait = u64::try_from(missing).unwrap_or(0);
            if denied.is_none_or(|(_, longest)| wait > longest) {
                denied = Some((index, wait));
            }
        } else {
            grant = free.min(charge.most);
            after = tat.saturating_add(emission.saturating_mul(signed(grant)));
        }
        before.push(tat);
        granted.push(grant);
        pending.push((charge.key, after));
    }
    let refused = denied.is_some();
    let mut slots = Vec::with_capacity(charges.len());
    for (index, charge) in charges.iter().enumerate() {
        let tat = if refused { before[index] } else { pending[index].1 };
        if !refused || write_anyway[index] {
            if tat > now_us {
                tats.insert(charge.key, tat);
            } else {
                tats.remove(&charge.key);
            }
        }
        let level_us = u64::try_from(tat.saturating_sub(now_us)).unwrap_or(0);
        slots.push(Slot { granted: if refused { 0 } else { granted[index] }, level_us });
    }
    Verdict { denied, slots }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
