//! The bound of `lease.rs`, by simulation: nodes, a shared store, random traffic, seeds.

use std::collections::HashMap;

use gatehouse_core::Entropy;
use proptest::prelude::*;

use super::*;
use crate::bucket::{Dimension, SubjectKey};
use crate::gcra::decide;
use crate::quota::QuotaConfig;

const START_US: i64 = 1_700_000_000_000_000;

struct Outcome {
    admitted_at_us: Vec<u64>,
    calls: u64,
    decisions: u64,
}

struct Traffic {
    seed: u64,
    nodes: u32,
    quota: Quota,
    rounds: usize,
    mean_gap_us: u64,
    /// One in so many calls is lost; 0 for none.
    lose_one_in: u64,
    /// One in so many rounds is followed by up to 5 s of silence; 0 for none.
    rest_one_in: u64,
    divisor: u64,
}

/// Runs the nodes over one store. Each round one node makes one check; its call may stay under way for some
/// rounds before it is settled, and may be lost.
fn simulate(traffic: &Traffic) -> Outcome {
    let &Traffic { seed, nodes, quota, rounds, mean_gap_us, lose_one_in, rest_one_in, divisor } = traffic;
    let chance = Entropy::seeded(seed);
    let one_in = |number: u64| number > 0 && chance.below(number) == 0;
    let options = LeaseOptions { divisor, ..LeaseOptions::default() };
    let books: Vec<LeaseBook> = (0..nodes).map(|_| LeaseBook::new(options, nodes)).collect();
    let bucket = [Bucket::new(Dimension::Global, "", quota)];
    let keys = [SubjectKey::new([0]).digest(&bucket[0])];
    let mut store = HashMap::new();
    let mut under_way: Vec<(usize, Plan<'_>, Verdict)> = Vec::new();
    let mut outcome = Outcome { admitted_at_us: Vec::new(), calls: 0, decisions: 0 };
    let mut now_us = 0_u64;
    for _ in 0..rounds {
        now_us += chance.below(2 * mean_gap_us + 1);
        if one_in(rest_one_in) {
            now_us += chance.below(5_000_000);
        }
        let plan =
            books[usize::try_from(chance.below(u64::from(nodes))).unwrap()].plan(&bucket, &keys, now_us);
        outcome.decisions += 1;
        if plan.charges.is_empty() {
            let nothing = Verdict { denied: None, slots: Vec::new() };
            if plan.settle(&bucket, &keys, &nothing, now_us).allowed {
                outcome.admitted_at_us.push(now_us);
            }
        } else {
            outcome.calls += 1;
            let verdict = decide(&mut store, &plan.charges, START_US + i64::try_from(now_us).unwrap());
            under_way.push((usize::try_from(chance.below(4)).unwrap(), plan, verdict));
        }
        let mut later = Vec::new();
        for (rounds_left, plan, verdict) in under_way.drain(..) {
            if rounds_left > 0 {
                later.push((rounds_left - 1, plan, verdict));
            } else if one_in(lose_one_in) {
                drop(plan);
            } else if plan.settle(&bucket, &keys, &verdict, now_us).allowed {
                outcome.admitted_at_us.push(now_us);
            }
        }
        under_way = later;
    }
    outcome
}

/// The largest excess over `burst + rate * window`, over all windows: each start against the running minimum.
fn worst_excess(admitted_at_us: &[u64], quota: Quota) -> i128 {
    let emission = i128::from(quota.emission_us());
    let mut highest = 0;
    let mut worst = i128::MIN;
    // Count times T less the time passed, kept above 0, is the level of a bucket without a bottom.
    let mut last = 0;
    for at in admitted_at_us {
        highest = (highest - i128::from(at - last)).max(0) + emission;
        last = *at;
        worst = worst.max(highest - emission * i128::from(quota.capacity()));
    }
    worst.div_euclid(emission)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn overshoot_stays_within_a_tenth_of_the_burst(
        seed in any::<u64>(),
        nodes in 1_u32..8,
        capacity in 200_u64..5000,
        load in 1_u64..40,
        lose_one_in in prop_oneof![Just(0_u64), 2_u64..50],
    ) {
        let quota = QuotaConfig::new(capacity, 10).checked().unwrap();
        // From a tenth of the limit to four times it.
        let mean_gap_us = quota.emission_us() * 10 / load;
        let traffic = Traffic {
            seed, nodes, quota, rounds: 15_000, mean_gap_us, lose_one_in, rest_one_in: 5000, divisor: 10,
        };
        let outcome = simulate(&traffic);
        let excess = worst_excess(&outcome.admitted_at_us, quota);
        prop_assert!(excess <= i128::from(capacity / 10), "excess {} of {}", excess, capacity);
    }
}

#[test]
fn leases_save_most_calls_and_waste_little() {
    let quota = QuotaConfig::new(100_000, 60).checked().unwrap();
    // Three nodes at twice the limit, past the first burst.
    let outcome = simulate(&Traffic {
        seed: 1,
        nodes: 3,
        quota,
        rounds: 600_000,
        mean_gap_us: quota.emission_us() / 2,
        lose_one_in: 0,
        rest_one_in: 0,
        divisor: 10,
    });
    let elapsed_us = *outcome.admitted_at_us.last().unwrap();
    let allowed = quota.capacity() + elapsed_us / quota.emission_us();
    let admitted = outcome.admitted_at_us.len() as u64;
    assert!(admitted * 100 >= allowed * 97, "admitted {admitted} of {allowed}");
    assert!(
        outcome.calls * 20 <= outcome.decisions,
        "{} calls in {} decisions",
        outcome.calls,
        outcome.decisions
    );
}

/// The simulation would see a broken bound: batches of a whole burst break it.
#[test]
fn batches_that_are_too_large_overshoot() {
    let quota = QuotaConfig::new(1000, 10).checked().unwrap();
    let outcome = simulate(&Traffic {
        seed: 3,
        nodes: 2,
        quota,
        rounds: 100_000,
        mean_gap_us: quota.emission_us() / 2,
        lose_one_in: 0,
        rest_one_in: 2000,
        divisor: 1,
    });
    let excess = worst_excess(&outcome.admitted_at_us, quota);
    assert!(excess > 100, "{excess}");
}

#[test]
fn a_dropped_plan_puts_everything_back() {
    let quota = QuotaConfig::new(1000, 10).checked().unwrap();
    let book = LeaseBook::new(LeaseOptions::default(), 1);
    let buckets = [Bucket::new(Dimension::Global, "", quota)];
    let keys = [SubjectKey::new([0]).digest(&buckets[0])];
    let mut store = HashMap::new();
    let plan = book.plan(&buckets, &keys, 0);
    assert_eq!(plan.charges[0].most, 101);
    // While that call is under way no second batch is asked for.
    assert_eq!(book.plan(&buckets, &keys, 0).charges[0].most, 1);
    let verdict = decide(&mut store, &plan.charges, START_US);
    assert!(plan.settle(&buckets, &keys, &verdict, 0).allowed);
    for _ in 0..500 {
        let plan = book.plan(&buckets, &keys, 1);
        assert!(plan.charges.is_empty());
        drop(plan);
    }
    let back = book.drain();
    assert_eq!((back.len(), back[0].back), (1, 100));
}

#[test]
fn unspent_tokens_go_back_after_the_leases_time() {
    let quota = QuotaConfig::new(1000, 10).checked().unwrap();
    let book = LeaseBook::new(LeaseOptions::default(), 1);
    let buckets = [Bucket::new(Dimension::Global, "", quota)];
    let keys = [SubjectKey::new([0]).digest(&buckets[0])];
    let plan = book.plan(&buckets, &keys, 0);
    let verdict = decide(&mut HashMap::new(), &plan.charges, START_US);
    plan.settle(&buckets, &keys, &verdict, 0);
    assert!(book.plan(&buckets, &keys, 999_999).charges.is_empty());
    assert_eq!(book.plan(&buckets, &keys, 1_000_000).charges[0].back, 100);
}
