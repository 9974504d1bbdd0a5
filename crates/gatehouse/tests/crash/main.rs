//! `kill -9` in the middle of a job, start again, and see that nothing was lost, repeated or forked.
//!
//! `GATEHOUSE_SOAK_ROUNDS` says how often (3), `GATEHOUSE_SOAK_SEED` settles each round's plan; a failure prints the
//! seed, with which the same plans come again. `GATEHOUSE_SOAK_PROGRAM` names another build of the program than the one
//! beside the test. `make soak` runs it 100 times.

mod audit;
mod client;
mod plan;
mod server;
#[path = "../shared/mod.rs"]
mod shared;
mod world;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use gatehouse_core::Entropy;

use crate::plan::Plan;
use crate::world::World;

const ROUNDS: u64 = 3;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number; it is {text:?}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_repeated_or_forked_by_kill_9() {
    // Fails only if it was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let rounds = number("GATEHOUSE_SOAK_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("GATEHOUSE_SOAK_SEED").unwrap_or_else(|| Entropy::system().below(1 << 32));
    let folder = tempfile::Builder::new().prefix("gatehouse soak ").tempdir().unwrap();
    println!("{rounds} rounds, GATEHOUSE_SOAK_SEED={seed}");
    if let Err(error) = soak(rounds, seed, folder.path()).await {
        let kept = folder.keep();
        panic!(
            "with GATEHOUSE_SOAK_SEED={seed}: {error:#}\nThe data and the log are kept in {}",
            kept.display()
        );
    }
}

async fn soak(rounds: u64, seed: u64, folder: &Path) -> anyhow::Result<()> {
    let began = Instant::now();
    // Half-made keys, databases and secrets must not keep the next start from going on.
    let entropy = Entropy::seeded(seed);
    let killed_starts: Vec<_> = (0..3).map(|_| Duration::from_millis(entropy.below(700))).collect();
    let mut world = World::new(folder, &killed_starts).await.context("before the first round")?;
    println!("ready after starts killed at {killed_starts:?}; took {:.1} s", began.elapsed().as_secs_f64());
    let mut kills: BTreeMap<_, u64> = BTreeMap::new();
    let (mut in_the_middle, mut refreshes, mut events) = (0, 0, 0);
    for number in 1..=rounds {
        let round_began = Instant::now();
        let plan = Plan::of(seed, number);
        let outcome = world
            .round(number, &plan)
            .await
            .with_context(|| format!("in round {number}, whose plan is {plan:?}"))?;
        *kills.entry(plan.phase).or_default() += 1;
        in_the_middle += u64::from(outcome.in_the_middle);
        refreshes += outcome.refreshes;
        events += outcome.events;
        println!(
            "round {number}/{rounds}: {} after {} iterations and {} ms, {} killed starts; ready after {} ms; {} events, {} attempts, resumed {} times, {} generations of tokens; {:.1} s",
            plan.phase,
            plan.progress,
            plan.delay.as_millis(),
            plan.killed_starts.len(),
            outcome.ready_after.as_millis(),
            outcome.events,
            outcome.attempts,
            outcome.resumed,
            outcome.refreshes,
            round_began.elapsed().as_secs_f64()
        );
    }
    let mut ready: Vec<_> = world.server.ready_after.iter().map(Duration::as_millis).collect();
    ready.sort_unstable();
    let by_phase: Vec<_> = kills.iter().map(|(phase, count)| format!("{phase} {count}")).collect();
    println!(
        "{rounds} rounds in {:.0} s; {} kills ({}; {in_the_middle} in the middle of a job); {events} events; {refreshes} generations of tokens; ready after {} ms at the median, {} at most; {} answers lost, {} put off",
        began.elapsed().as_secs_f64(),
        world.server.kills,
        by_phase.join(", "),
        ready[ready.len() / 2],
        ready[ready.len() - 1],
        world.api.lost.load(std::sync::atomic::Ordering::Relaxed),
        world.api.put_off.load(std::sync::atomic::Ordering::Relaxed),
    );
    Ok(())
}
