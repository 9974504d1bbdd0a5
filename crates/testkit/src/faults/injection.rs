//! Carries a plan out, and runs the deployment meanwhile: starts again what ended, if it may have.

use std::collections::BTreeMap;
use std::io::{self, Error};
use std::process::ExitStatus;
use std::time::Duration;

use tokio::time::Instant;

use super::{Fault, Plan};
use crate::cluster::Node;
use crate::{Cluster, LagMeter};

/// How long a process may take from SIGTERM to its end, whatever it waits for is away: its delay (0.5 s), its drain (3 s,
/// as the harness sets it), and 2 s each for its probes and for threads that hang. What the machine was late is added.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(8);

/// How long what depends on a fault may be disturbed after it.
const AFTERWARDS: Duration = Duration::from_secs(5);

/// SIGTERM before a process listens for signals just ends it.
const BEFORE_IT_LISTENS: Duration = Duration::from_secs(3);

/// How often whoever runs a deployment looks for processes that ended.
const SUPERVISION: Duration = Duration::from_millis(200);

/// A fault as it was, from its beginning to its healing.
#[derive(Clone, Debug)]
pub struct Injected {
    /// What failed.
    pub fault: Fault,
    /// When, from the beginning of the load.
    pub from: Duration,
    /// When it was healed, as far as that is up to us: a process that starts takes a while to be ready.
    pub to: Duration,
}

impl Injected {
    fn overlaps(&self, from: Duration, to: Duration) -> bool {
        self.from <= to && self.to >= from
    }
}

/// A process that was told to end.
#[derive(Clone, Copy, Debug)]
struct Drain {
    told: Duration,
    /// From when on its time counts: later than `told` if it was stopped meanwhile.
    counts_from: Duration,
    /// When it had been started.
    started: Duration,
}

/// Whoever runs a cluster in which faults happen.
#[derive(Debug)]
pub struct Supervisor {
    began: Instant,
    lag: LagMeter,
    injected: Vec<Injected>,
    draining: BTreeMap<String, Drain>,
    drained: usize,
    gave_up: usize,
}

impl Supervisor {
    /// Times are counted from `began`.
    #[must_use]
    pub fn new(began: Instant) -> Self {
        Self {
            began,
            lag: LagMeter::start(),
            injected: Vec::new(),
            draining: BTreeMap::new(),
            drained: 0,
            gave_up: 0,
        }
    }

    /// The faults so far.
    #[must_use]
    pub fn injected(&self) -> &[Injected] {
        &self.injected
    }

    /// How late the machine was.
    #[must_use]
    pub const fn lag(&self) -> &LagMeter {
        &self.lag
    }

    /// How many processes ended within their time when they were told to.
    #[must_use]
    pub const fn drained(&self) -> usize {
        self.drained
    }

    /// How many processes gave up their start because of what was away.
    #[must_use]
    pub const fn gave_up(&self) -> usize {
        self.gave_up
    }

    /// Injects every fault of `plan` at its time, and heals each. What was healed may not be ready yet.
    ///
    /// # Errors
    /// A fault could not be injected or healed, a process ended that nobody had ended, or one that was told to end did
    /// not, or not well.
    ///
    /// # Panics
    /// Outside a multi-threaded tokio runtime.
    pub async fn play(&mut self, cluster: &mut Cluster, plan: &Plan) -> io::Result<()> {
        let mut moments: Vec<(Duration, bool, usize)> = plan
            .steps
            .iter()
            .enumerate()
            .flat_map(|(index, step)| [(step.at, false, index), (step.until, true, index)])
            .collect();
        moments.sort();
        let mut places: BTreeMap<usize, usize> = BTreeMap::new();
        for (at, heals, index) in moments {
            while self.began + at > Instant::now() {
                tokio::time::sleep_until((self.began + at).min(Instant::now() + SUPERVISION)).await;
                self.look(cluster)?;
            }
            let fault = &plan.steps[index].fault;
            if heals {
                self.heal(cluster, fault)?;
                if let Some(injected) = places.get(&index).and_then(|place| self.injected.get_mut(*place))
                    && !matches!(fault, Fault::Cut(..))
                {
                    injected.to = self.began.elapsed();
                }
            } else {
                // What ends by itself at this very moment is there to be paused all the same.
                self.look(cluster)?;
                let from = self.began.elapsed();
                let to = if matches!(fault, Fault::Cut(..)) { from } else { Duration::MAX };
                places.insert(index, self.injected.len());
                // Before it happens: what ends of it must find its reason.
                self.injected.push(Injected { fault: fault.clone(), from, to });
                self.begin(cluster, fault)?;
            }
        }
        Ok(())
    }

    /// Waits until whatever was told to end has ended, and was started again.
    ///
    /// # Errors
    /// As [`Supervisor::look`].
    pub async fn drains_end(&mut self, cluster: &mut Cluster) -> io::Result<()> {
        while !self.draining.is_empty() {
            self.look(cluster)?;
            tokio::time::sleep(SUPERVISION / 10).await;
        }
        Ok(())
    }

    /// Starts again what ended.
    ///
    /// # Errors
    /// A process ended that nobody had ended, or one that was told to end did not, or not well.
    pub fn look(&mut self, cluster: &mut Cluster) -> io::Result<()> {
        let (began, now) = (self.began, self.began.elapsed());
        let excused = |node: &Node| {
            let started = node.started_at.map(|at| at.saturating_duration_since(began)).unwrap_or_default();
            may_give_up(&node.name, started, now, &self.injected)
        };
        self.gave_up += cluster.revive(excused)?.len();
        for (name, drain) in self.draining.clone() {
            if let Some(status) = cluster.try_ended(&name)? {
                if let Err(told) = self.judge(&name, drain, now, status) {
                    let end = cluster.node(&name).end_of_log();
                    return Err(Error::other(format!("{told}; its log ends:\n{end}")));
                }
                self.drained += 1;
                self.draining.remove(&name);
                cluster.launch(&name)?;
                continue;
            }
            let took = now.saturating_sub(drain.counts_from);
            let lag = self.lag.worst((began + drain.told).into_std(), Instant::now().into_std());
            if took > DRAIN_LIMIT + lag {
                let end = cluster.node(&name).end_of_log();
                return Err(Error::other(format!(
                    "{name} hangs: it has not ended {took:?} after SIGTERM (the machine was {lag:?} late at most); its log ends:\n{end}"
                )));
            }
        }
        Ok(())
    }

    fn judge(&self, name: &str, drain: Drain, now: Duration, status: ExitStatus) -> Result<(), String> {
        let ends_well = match status.code() {
            Some(0) => true,
            // Not everything was finished in time: that of which something was away.
            Some(1) => is_disturbed(name, drain.told, now, &self.injected),
            Some(_) => may_give_up(name, drain.started, now, &self.injected),
            None => drain.told < drain.started + BEFORE_IT_LISTENS,
        };
        if ends_well {
            Ok(())
        } else {
            Err(format!("{name} was told to end at {:?} and did with {status}", drain.told))
        }
    }

    fn begin(&mut self, cluster: &mut Cluster, fault: &Fault) -> io::Result<()> {
        match fault {
            Fault::Kill(node) => {
                self.draining.remove(node);
                cluster.kill9(node)
            }
            Fault::Terminate(node) => {
                let (began, told) = (self.began, self.began.elapsed());
                let started = cluster.node(node).started_at;
                let started = started.map(|at| at.saturating_duration_since(began)).unwrap_or_default();
                // One that is on its way out already is told once more, and has no more time for it.
                self.draining.entry(node.clone()).or_insert(Drain { told, counts_from: told, started });
                cluster.terminate(node)
            }
            Fault::Pause(node) => cluster.pause(node),
            Fault::Cut(from, to) => {
                cluster.link(from, to).cut();
                Ok(())
            }
            Fault::Link(from, to, weather) => {
                let link = cluster.link(from, to);
                link.set(weather.clone());
                if weather.refuse {
                    link.cut();
                }
                Ok(())
            }
            Fault::RedisAway => tokio::task::block_in_place(|| cluster.redis().stop()),
            Fault::RedisPaused => cluster.redis().pause(),
            Fault::PostgresStopped | Fault::PostgresCrashed => {
                let crash = *fault == Fault::PostgresCrashed;
                tokio::task::block_in_place(|| match cluster.postgres() {
                    Some(postgres) if crash => postgres.crash(),
                    Some(postgres) => postgres.stop(),
                    None => Err(Error::other("PostgreSQL is not this cluster's own")),
                })
            }
        }
    }

    fn heal(&mut self, cluster: &mut Cluster, fault: &Fault) -> io::Result<()> {
        match fault {
            Fault::Kill(node) => cluster.launch(node),
            // Started again when it has ended.
            Fault::Terminate(_) => self.look(cluster),
            Fault::Pause(node) => {
                if let Some(drain) = self.draining.get_mut(node) {
                    drain.counts_from = self.began.elapsed();
                }
                cluster.resume(node)
            }
            Fault::Cut(..) => Ok(()),
            Fault::Link(from, to, _) => {
                cluster.link(from, to).heal();
                Ok(())
            }
            Fault::RedisAway => tokio::task::block_in_place(|| cluster.redis().start_again()),
            Fault::RedisPaused => cluster.redis().resume(),
            Fault::PostgresStopped | Fault::PostgresCrashed => {
                tokio::task::block_in_place(|| match cluster.postgres() {
                    Some(postgres) => postgres.start_again(),
                    None => Err(Error::other("PostgreSQL is not this cluster's own")),
                })
            }
        }
    }
}

/// Whether a process that started and ended then may have given up: PostgreSQL or its way there was disturbed, or it
/// stood still itself while its time ran out.
fn may_give_up(name: &str, started: Duration, ended: Duration, injected: &[Injected]) -> bool {
    injected.iter().filter(|fault| fault.overlaps(started, ended)).any(|injected| match &injected.fault {
        Fault::PostgresStopped | Fault::PostgresCrashed => true,
        Fault::Cut(from, to) | Fault::Link(from, to, _) => from == name && to == "postgres",
        Fault::Pause(node) => node == name,
        Fault::Kill(_) | Fault::Terminate(_) | Fault::RedisAway | Fault::RedisPaused => false,
    })
}

/// Whether anything but its own end was disturbed about a process from `from` to `to`, or had just been: everything
/// depends on the others in some way.
fn is_disturbed(name: &str, from: Duration, to: Duration, injected: &[Injected]) -> bool {
    injected.iter().any(|injected| {
        let own = matches!(&injected.fault, Fault::Terminate(node) if node == name);
        !own && injected.overlaps(from.saturating_sub(AFTERWARDS), to)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;
    use crate::Weather;

    const SECOND: Duration = Duration::from_secs(1);

    fn fault(fault: Fault, from: u32, to: u32) -> Injected {
        Injected { fault, from: SECOND * from, to: SECOND * to }
    }

    fn link(from: &str, to: &str) -> Fault {
        Fault::Link(from.to_owned(), to.to_owned(), Weather::stalled())
    }

    #[test]
    fn only_what_a_start_needs_excuses_its_end() {
        let may = |faults: &[Injected]| may_give_up("job-1", SECOND * 10, SECOND * 14, faults);
        assert!(
            may(&[fault(Fault::PostgresCrashed, 9, 11)]) && may(&[fault(link("job-1", "postgres"), 13, 20)])
        );
        assert!(may(&[fault(Fault::Pause("job-1".to_owned()), 11, 14)]));
        // Over before its start, of another, or nothing that it needs.
        assert!(!may(&[]) && !may(&[fault(Fault::PostgresCrashed, 7, 9)]));
        assert!(!may(&[fault(link("job-2", "postgres"), 9, 20), fault(link("job-1", "audit-1"), 9, 20)]));
        assert!(!may(&[fault(Fault::RedisAway, 9, 20), fault(Fault::Kill("auth-1".to_owned()), 9, 20)]));
    }

    #[tokio::test]
    async fn who_is_told_to_end_ends_well() {
        let mut supervisor = Supervisor::new(Instant::now());
        let drain = Drain { told: SECOND * 30, counts_from: SECOND * 30, started: SECOND };
        let well = |supervisor: &Supervisor, status: ExitStatus, drain: Drain| {
            supervisor.judge("job-1", drain, SECOND * 32, status).is_ok()
        };
        let code = |code: i32| ExitStatus::from_raw(code << 8);
        supervisor.injected = vec![fault(Fault::Terminate("job-1".to_owned()), 30, 32)];
        assert!(well(&supervisor, code(0), drain));
        assert!(!well(&supervisor, code(1), drain) && !well(&supervisor, code(2), drain));
        assert!(!well(&supervisor, ExitStatus::from_raw(15), drain));
        assert!(well(&supervisor, ExitStatus::from_raw(15), Drain { started: SECOND * 29, ..drain }));
        supervisor.injected.push(fault(link("job-1", "audit-1"), 20, 31));
        assert!(well(&supervisor, code(1), drain) && !well(&supervisor, code(2), drain));
        // Without its database it may have given up.
        supervisor.injected.push(fault(Fault::PostgresCrashed, 20, 21));
        assert!(well(&supervisor, code(2), drain));
    }
}
