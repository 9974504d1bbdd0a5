//! Faults in a cluster of real processes: no job lost or done twice, no event missing or repeated, one successor for each
//! refresh token, an audit trail that is complete and unforked, rate limits and revocations within their bounds.
//!
//! `GATEHOUSE_SEED=n` plays a seed's plan again. `GATEHOUSE_FAULT_SEEDS` says how many random ones (1), or how often that one;
//! `GATEHOUSE_FAULT_SECONDS` for how long instead. `GATEHOUSE_FAULT_PROGRAM` names another build of the program. docs/faults.md says what must hold.

mod account;
mod client;
mod load;
mod quiet;
#[path = "../shared/mod.rs"]
mod shared;
mod world;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use gatehouse_core::Entropy;

use crate::world::{Outcome, World};

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number; it is {text:?}")))
}

fn program() -> PathBuf {
    std::env::var_os("GATEHOUSE_FAULT_PROGRAM").unwrap_or(env!("CARGO_BIN_EXE_gatehouse").into()).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_repeated_or_forked_by_faults() {
    // Fails only if it was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let replayed = number("GATEHOUSE_SEED");
    let (began, limit) = (Instant::now(), number("GATEHOUSE_FAULT_SECONDS").map(Duration::from_secs));
    let seeds = number("GATEHOUSE_FAULT_SEEDS").unwrap_or(1);
    let (mut done, mut failed) = (0, Vec::new());
    loop {
        let seed = replayed.unwrap_or_else(|| Entropy::system().below(1 << 32));
        if let Err(error) = one(seed, &[]).await {
            // One is enough, unless the question is how often.
            assert!(replayed.is_some(), "{error:#}\nAgain with: GATEHOUSE_SEED={seed} make faults");
            eprintln!("{error:#}");
            failed.push(format!("{error:#}"));
        }
        done += 1;
        let enough = match limit {
            Some(limit) => began.elapsed() >= limit,
            None => done >= seeds,
        };
        if enough {
            break;
        }
    }
    assert!(failed.is_empty(), "{} of {done} runs of this seed found something: {failed:#?}", failed.len());
    println!("{done} seeds in {:.0} s, no violation", began.elapsed().as_secs_f64());
}

/// Runs one seed and says what it came to.
async fn one(seed: u64, variables: &[(&str, &str)]) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    let settings = std::env::var("GATEHOUSE_FAULT_SETTINGS").unwrap_or_default();
    let settings = settings.split_whitespace().filter_map(|setting| setting.split_once('='));
    let variables: Vec<_> = settings.chain(variables.iter().copied()).collect();
    let mut world = World::new(program(), seed, &variables).await?;
    let started = began.elapsed();
    let plan = world.plan();
    print!("GATEHOUSE_SEED={seed}: {plan}");
    let outcome = match world.run().await {
        Ok(outcome) => outcome,
        Err(error) => {
            let folder = world.cluster.keep();
            return Err(error)
                .with_context(|| format!("seed {seed}; logs and histories are in {}", folder.display()));
        }
    };
    println!(
        "seed {seed}: {} faults, {} drains, {} starts given up; {} requests, {} answers lost, {} put off; {} jobs in {} attempts, readers resumed {} times; {} generations of tokens, {} hasty sessions ended; {} admitted, {} windows of refusals checked; {} revocations, the slowest seen {:.2} s later, {:.2} s in calm; all ready after {:.2} s, recovered after {:.2} s, then no answer slower than {:.2} s of {:.1} s, the machine {:.2} s late; {} audit entries, {} checkpoints; cluster up in {:.1} s, {:.1} s in all",
        outcome.faults,
        outcome.drained,
        outcome.gave_up,
        outcome.sent,
        outcome.lost,
        outcome.put_off,
        outcome.jobs,
        outcome.attempts,
        outcome.resumed,
        outcome.generations,
        outcome.taken_for_thieves,
        outcome.admitted,
        outcome.rates_checked,
        outcome.revocations,
        outcome.slowest_revocation.as_secs_f64(),
        outcome.slowest_calm_revocation.as_secs_f64(),
        outcome.ready.as_secs_f64(),
        outcome.recovered.as_secs_f64(),
        outcome.slowest_answer.as_secs_f64(),
        outcome.answered_within.as_secs_f64(),
        outcome.lag.as_secs_f64(),
        outcome.entries,
        outcome.checkpoints,
        started.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    Ok(outcome)
}

/// What each planted bug breaks, as the checks say it and say of nothing else; and what is planted in the control run, where
/// nothing may be found: all of the bug but what is wrong with it.
const PLANTED: [(&str, &[&str], &str); 3] = [
    (
        "refresh",
        &["a refresh token has two different successors", "a client that behaves was sent away with"],
        "",
    ),
    (
        "worker",
        &["an attempt did not go on where the last was", "told of other iterations than job"],
        "worker-held-back",
    ),
    ("audit", &["BROKEN at entry"], ""),
];
/// Seeds within which each must be found.
const SEEDS_FOR_EACH: u64 = 20;

/// The harness finds what it is for: each bug, planted, is caught within a few seeds, and without it the same seed, on the
/// same build, finds nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a build with planted bugs: make faults-planted"]
async fn every_planted_bug_is_caught() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let binary = std::fs::read(program()).unwrap();
    assert!(holds(&binary, b"PLANTED_BUG"), "{} has no planted bugs", program().display());
    let only = std::env::var("PLANTED_BUG").unwrap_or_default();
    for (bug, signs, control) in PLANTED.into_iter().filter(|(bug, ..)| only.is_empty() || only == *bug) {
        let mut caught = None;
        let first = number("GATEHOUSE_SEED").unwrap_or_else(|| Entropy::system().below(1 << 32));
        for seed in first..first + SEEDS_FOR_EACH {
            if let Err(error) = one(seed, &[("PLANTED_BUG", bug)]).await {
                caught = Some((seed, format!("{error:#}")));
                break;
            }
        }
        let (seed, told) = caught
            .unwrap_or_else(|| panic!("bug {bug} was not caught in {SEEDS_FOR_EACH} seeds from {first}"));
        println!("bug {bug} was caught with seed {seed}, the {}. tried: {told}\n", seed - first + 1);
        assert!(
            signs.iter().any(|sign| told.contains(sign)),
            "bug {bug} was caught by something else: {told}"
        );
        if let Err(error) = one(seed, &[("PLANTED_BUG", control)]).await {
            panic!("seed {seed} finds something without bug {bug} too: {error:#}");
        }
        println!("seed {seed} finds nothing without bug {bug}\n");
    }
}

/// What ships has no planted bugs: they are behind a feature that nothing turns on.
#[test]
fn the_program_has_no_planted_bugs() {
    let binary = std::fs::read(env!("CARGO_BIN_EXE_gatehouse")).unwrap();
    assert!(!holds(&binary, b"PLANTED_BUG"));
    // The name of another variable is there: the search can find something.
    assert!(holds(&binary, b"GATEHOUSE_ENV"));
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}
