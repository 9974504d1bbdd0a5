//! What fails, when, and for how long.

use std::fmt;
use std::time::Duration;

use gatehouse_core::Entropy;

use crate::{Cluster, Flow, Weather};

/// Faults at one time, at most.
const AT_ONCE: usize = 3;
/// From the beginning of one fault to that of the next.
const PAUSE_MS: std::ops::Range<u64> = 100..900;
/// The last part of the time, in which no fault begins.
const LAST: Duration = Duration::from_secs(1);
/// How PostgreSQL says that a transaction was committed.
const COMMITTED: &[u8] = b"COMMIT\0";
/// Longer than the leases of jobs that the harness configures.
const PAST_A_LEASE_MS: u64 = 2_000;
/// How long a fault lasts at most.
pub(super) const LONGEST: Duration = Duration::from_secs(4);

/// One thing that fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`, and a start at the end.
    Kill(String),
    /// SIGTERM, and a start at the end.
    Terminate(String),
    /// SIGSTOP, and SIGCONT at the end.
    Pause(String),
    /// All connections from one to another are cut once, at the beginning.
    Cut(String, String),
    /// The connections from one to another fare badly.
    Link(String, String, Weather),
    /// Redis crashes and comes back empty.
    RedisAway,
    /// Redis answers nobody, and goes on later.
    RedisPaused,
    /// PostgreSQL is stopped and started again.
    PostgresStopped,
    /// PostgreSQL crashes, and recovers when it starts again.
    PostgresCrashed,
}

impl Fault {
    /// What it happens to; no two faults happen to the same at one time.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Kill(node) | Self::Terminate(node) | Self::Pause(node) => node.clone(),
            Self::Cut(from, to) | Self::Link(from, to, _) => format!("{from}>{to}"),
            Self::RedisAway | Self::RedisPaused => "redis".to_owned(),
            Self::PostgresStopped | Self::PostgresCrashed => "postgres".to_owned(),
        }
    }

    /// Whether it concerns a node: itself, or what it connects to.
    #[must_use]
    pub fn concerns(&self, name: &str) -> bool {
        match self {
            Self::Kill(node) | Self::Terminate(node) | Self::Pause(node) => node == name,
            Self::Cut(from, to) | Self::Link(from, to, _) => from == name || to == name,
            Self::RedisAway | Self::RedisPaused => name == "redis",
            Self::PostgresStopped | Self::PostgresCrashed => name == "postgres",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(node) => write!(f, "kill -9 {node}"),
            Self::Terminate(node) => write!(f, "SIGTERM {node}"),
            Self::Pause(node) => write!(f, "SIGSTOP {node}"),
            Self::Cut(from, to) => write!(f, "cut {from} > {to}"),
            Self::Link(from, to, weather) if weather.refuse => write!(f, "refuse {from} > {to}"),
            Self::Link(from, to, weather) => match (&weather.requests, &weather.answers) {
                (Flow::Stall, _) => write!(f, "stall {from} > {to}"),
                (Flow::Late(by), _) => write!(f, "{from} > {to} late by {by:?}"),
                (_, Flow::Lose) => write!(f, "lose the answers of {from} > {to}"),
                (_, Flow::CutAt([])) => write!(f, "cut {from} > {to} at each answer"),
                (_, Flow::CutAt(pattern)) => {
                    write!(f, "cut {from} > {to} at each answer {:?}", String::from_utf8_lossy(pattern))
                }
                _ => write!(f, "{from} > {to}: {weather:?}"),
            },
            Self::RedisAway => f.write_str("Redis away"),
            Self::RedisPaused => f.write_str("Redis paused"),
            Self::PostgresStopped => f.write_str("PostgreSQL restarted"),
            Self::PostgresCrashed => f.write_str("PostgreSQL crashed"),
        }
    }
}

/// One fault at its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// When it begins, from the beginning of the load.
    pub at: Duration,
    /// When it is healed.
    pub until: Duration,
    /// What fails.
    pub fault: Fault,
}

/// What a plan can be made for.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Names of the processes.
    pub nodes: Vec<String>,
    /// From whom to whom there are connections.
    pub links: Vec<(String, String)>,
    /// How long the plan takes.
    pub length: Duration,
}

impl Shape {
    /// That of a cluster.
    #[must_use]
    pub fn of(cluster: &Cluster, length: Duration) -> Self {
        Self { nodes: cluster.names(), links: cluster.link_ends(), length }
    }
}

/// Everything that fails under one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What settles it.
    pub seed: u64,
    /// In order of their beginning.
    pub steps: Vec<Step>,
    /// When everything is healed.
    pub length: Duration,
}

impl Plan {
    /// The plan of a seed: always the same for the same shape.
    #[must_use]
    pub fn of(seed: u64, shape: &Shape) -> Self {
        let entropy = Entropy::seeded(seed);
        let mut steps: Vec<Step> = Vec::new();
        let mut at = Duration::from_millis(300);
        while at + LAST < shape.length {
            let fault = fault(&entropy, shape);
            let longest = match fault {
                Fault::PostgresStopped | Fault::PostgresCrashed => LONGEST / 2,
                _ => LONGEST,
            };
            let mut lasts = 50 + entropy.below(u64::try_from(longest.as_millis()).unwrap_or(0) - 50);
            // Half of what stands still outlasts a lease, so that who wakes up finds that others went on.
            let stands_still = match &fault {
                Fault::Pause(_) => true,
                Fault::Link(_, to, weather) => to == "postgres" && weather.requests == Flow::Stall,
                _ => false,
            };
            if stands_still && entropy.below(2) == 0 {
                lasts = lasts.max(PAST_A_LEASE_MS);
            }
            let until = (at + Duration::from_millis(lasts)).min(shape.length);
            let now: Vec<_> = steps.iter().filter(|step| step.until >= at).collect();
            if now.len() < AT_ONCE && now.iter().all(|step| step.fault.place() != fault.place()) {
                steps.push(Step { at, until, fault });
            }
            let pause = PAUSE_MS.start + entropy.below(PAUSE_MS.end - PAUSE_MS.start);
            at += Duration::from_millis(pause);
        }
        Self { seed, steps, length: shape.length }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan of seed {}, {:?} long:", self.seed, self.length)?;
        for Step { at, until, fault } in &self.steps {
            writeln!(f, "  {:6.2} s to {:6.2} s  {fault}", at.as_secs_f64(), until.as_secs_f64())?;
        }
        Ok(())
    }
}

fn fault(entropy: &Entropy, shape: &Shape) -> Fault {
    let node = || pick(entropy, &shape.nodes).cloned().unwrap_or_default();
    match entropy.below(100) {
        0..18 => Fault::Kill(node()),
        18..38 => Fault::Pause(if entropy.below(3) == 0 { node() } else { holder(entropy, shape) }),
        38..45 => Fault::Terminate(node()),
        45..51 => Fault::RedisAway,
        51..55 => Fault::RedisPaused,
        55..59 => Fault::PostgresStopped,
        59..63 => Fault::PostgresCrashed,
        63..71 => held_back(entropy, shape),
        _ => link(entropy, shape),
    }
}

/// One of those between whom leases are held; mostly one that writes what a worker sent it before its lease was lost: what
/// it then finds waiting, nothing but the fence keeps out.
fn holder(entropy: &Entropy, shape: &Shape) -> String {
    let kind = if entropy.below(4) == 0 { "optimizer-" } else { "job-" };
    let holds = |name: &&String| name.starts_with(kind);
    let holders: Vec<_> = shape.nodes.iter().filter(holds).collect();
    pick(entropy, &holders).map(|name| (*name).clone()).unwrap_or_default()
}

/// A service of jobs whose writes are under way and arrive later: past their leases, nothing but the fence keeps them out.
fn held_back(entropy: &Entropy, shape: &Shape) -> Fault {
    let writes = |(from, to): &&(String, String)| from.starts_with("job-") && to == "postgres";
    let links: Vec<_> = shape.links.iter().filter(writes).collect();
    let Some((from, to)) = pick(entropy, &links).map(|link| (link.0.clone(), link.1.clone())) else {
        return Fault::RedisAway;
    };
    Fault::Link(from, to, Weather::stalled())
}

fn link(entropy: &Entropy, shape: &Shape) -> Fault {
    // Each kind of connection gets its part, however many there are of it.
    let kind = entropy.below(100);
    let wanted = |(from, to): &&(String, String)| match kind {
        0..35 => to == "postgres",
        35..50 => to == "redis",
        50..75 => from.starts_with("gateway-") && to != "redis" && to != "postgres",
        75..85 => from.starts_with("optimizer-") && to.starts_with("job-"),
        85..90 => from == "client",
        _ => to.starts_with("audit-") || to.starts_with("auth-"),
    };
    let links: Vec<_> = shape.links.iter().filter(wanted).collect();
    let Some((from, to)) = pick(entropy, &links).map(|link| (link.0.clone(), link.1.clone())) else {
        return Fault::RedisAway;
    };
    let at_answers = if to == "postgres" { COMMITTED } else { b"" };
    let weather = match entropy.below(100) {
        0..15 => return Fault::Cut(from, to),
        15..30 => Weather::refusing(),
        30..45 => Weather::stalled(),
        45..60 => Weather::answers_lost(),
        60..85 => Weather::cut_at_answer(at_answers),
        _ => Weather::late(Duration::from_millis(5 + entropy.below(200))),
    };
    Fault::Link(from, to, weather)
}

fn pick<'a, T>(entropy: &Entropy, from: &'a [T]) -> Option<&'a T> {
    from.get(usize::try_from(entropy.below(from.len() as u64)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn shape() -> Shape {
        let nodes: Vec<String> = ["auth-1", "gateway-1", "job-1", "optimizer-1"].map(str::to_owned).into();
        let ends =
            [("gateway-1", "auth-1"), ("optimizer-1", "job-1"), ("job-1", "postgres"), ("job-1", "redis")];
        let links = ends.map(|(from, to)| (from.to_owned(), to.to_owned())).into();
        Shape { nodes, links, length: Duration::from_secs(12) }
    }

    #[test]
    fn a_seed_settles_the_plan() {
        let plan = Plan::of(7, &shape());
        assert_eq!(plan, Plan::of(7, &shape()));
        assert_ne!(plan.steps, Plan::of(8, &shape()).steps);
        assert!(plan.to_string().starts_with("plan of seed 7"));
    }

    #[test]
    fn faults_are_bounded_apart_and_healed() {
        for seed in 0..300 {
            let plan = Plan::of(seed, &shape());
            assert!(!plan.steps.is_empty());
            for step in &plan.steps {
                assert!(step.until <= plan.length && step.until <= step.at + LONGEST);
                let same_time =
                    plan.steps.iter().filter(|other| other.at <= step.at && other.until >= step.at);
                let places: Vec<_> = same_time.map(|other| other.fault.place()).collect();
                assert!(places.len() <= AT_ONCE, "seed {seed}: {places:?}");
                assert_eq!(places.iter().collect::<BTreeSet<_>>().len(), places.len(), "seed {seed}");
            }
        }
    }

    #[test]
    fn every_kind_of_fault_comes() {
        let all: Vec<_> = (0..300).flat_map(|seed| Plan::of(seed, &shape()).steps).collect();
        let kinds: BTreeSet<_> = all
            .iter()
            .map(|step| match &step.fault {
                Fault::Link(_, _, weather) if weather.refuse => "refuse".to_owned(),
                Fault::Link(_, _, weather) => format!("link {:?}", std::mem::discriminant(&weather.answers)),
                other => format!("{:?}", std::mem::discriminant(other)),
            })
            .collect();
        // Eight kinds besides links, and five of those.
        assert_eq!(kinds.len(), 13, "{kinds:?}");
    }
}
