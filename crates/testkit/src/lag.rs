//! How far behind a busy machine is: what a bound in wall-clock time must grow by to be sound.
//!
//! A thread sleeps for short times and notes how much later it woke than it asked for. Whoever checks "within a second"
//! adds the worst of the time in question, and so is as strict as the machine lets them be, not as a guess would. Who
//! sleeps much is woken soon, though; what needs the processor for longer waits for its turn. So the thread also counts who
//! else is waiting for one: all but this process and those that it started, directly or not. What is tested is among
//! these, and must not win time by being busy.

mod own;

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What the thread sleeps.
const NAP: Duration = Duration::from_millis(10);
/// What is not worth noting.
const USUAL: Duration = Duration::from_millis(5);

/// How often it counts: each time it looks at every process there is.
const LOOK: Duration = Duration::from_millis(250);

/// What a request keeps a processor busy for, at most.
const WORK: Duration = Duration::from_millis(200);

/// How many threads of the machine run or want to.
fn running() -> Option<i64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let (running, _) = text.split_whitespace().nth(3)?.split_once('/')?;
    running.parse().ok()
}

/// How many of them are others' than ours. The two are not counted at one moment, so it may be less than none.
fn others() -> i64 {
    running().unwrap_or_default() - own::running(std::process::id())
}

/// Measures until it is dropped.
#[derive(Debug)]
pub struct LagMeter {
    /// When the thread woke too late, and by how much.
    late: Arc<Mutex<Vec<(Instant, Duration)>>>,
    /// When it is to wake next.
    due: Arc<Mutex<Instant>>,
    /// How many threads of others wanted a core, and when.
    crowd: Arc<Mutex<Vec<(Instant, i64)>>>,
    cores: i64,
    _stop: Sender<()>,
}

impl LagMeter {
    /// How long an answer may take where nothing is wrong, on a machine that is ours alone.
    pub const ANSWERED: Duration = Duration::from_secs(2);

    /// Begins to measure.
    #[must_use]
    pub fn start() -> Self {
        let late = Arc::<Mutex<Vec<(Instant, Duration)>>>::default();
        let (stop, stopped) = mpsc::channel();
        let crowd = Arc::<Mutex<Vec<(Instant, i64)>>>::default();
        let due = Arc::new(Mutex::new(Instant::now() + NAP));
        let (noted, counted, next) = (Arc::clone(&late), Arc::clone(&crowd), Arc::clone(&due));
        thread::spawn(move || {
            let (mut asked, mut looked) = (Instant::now(), Instant::now());
            *next.lock().unwrap_or_else(PoisonError::into_inner) = asked + NAP;
            while stopped.recv_timeout(NAP) == Err(RecvTimeoutError::Timeout) {
                let woken = Instant::now();
                let by = woken.duration_since(asked).saturating_sub(NAP);
                if by > USUAL {
                    noted.lock().unwrap_or_else(PoisonError::into_inner).push((woken, by));
                }
                if looked.elapsed() > LOOK {
                    looked = Instant::now();
                    counted.lock().unwrap_or_else(PoisonError::into_inner).push((looked, others()));
                }
                asked = Instant::now();
                *next.lock().unwrap_or_else(PoisonError::into_inner) = asked + NAP;
            }
        });
        let cores =
            thread::available_parallelism().map_or(1, |cores| i64::try_from(cores.get()).unwrap_or(1));
        Self { late, due, crowd, cores, _stop: stop }
    }

    /// How many times as long as on a machine that is ours alone anything takes that needs a processor, on average between
    /// two moments: a thread of ours that shares the cores with the threads of others.
    #[must_use]
    pub fn stretch(&self, from: Instant, to: Instant) -> u32 {
        let crowd = self.crowd.lock().unwrap_or_else(PoisonError::into_inner);
        let within: Vec<i64> =
            crowd.iter().filter(|(at, _)| *at >= from && *at <= to).map(|(_, others)| *others).collect();
        let looks = i64::try_from(within.len()).unwrap_or(i64::MAX).max(1);
        let shared = looks + within.iter().sum::<i64>().max(0);
        let stretch =
            shared.div_euclid(looks * self.cores) + i64::from(shared.rem_euclid(looks * self.cores) > 0);
        u32::try_from(stretch).unwrap_or(u32::MAX)
    }

    /// How long an answer may take between two moments where nothing is wrong: 2 s, and what its work takes longer because
    /// others share the processors. What the machine was late meanwhile comes on top.
    #[must_use]
    pub fn answered_within(&self, from: Instant, to: Instant) -> Duration {
        Self::ANSWERED + WORK * (self.stretch(from, to) - 1)
    }

    /// The longest that anything was late between two moments. Of what was late before, while or after that, only the time
    /// in between counts: a process that was stopped until just before it did not lose that time here.
    #[must_use]
    pub fn worst(&self, from: Instant, to: Instant) -> Duration {
        let late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever is late now has not noted it yet.
        let due = *self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let now = (to, to.saturating_duration_since(due));
        let all = late.iter().copied().chain((now.1 > USUAL).then_some(now));
        let within = all.map(|(woken, by)| {
            let since = woken.checked_sub(by).unwrap_or(woken).max(from);
            woken.min(to).saturating_duration_since(since)
        });
        within.max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that is late as told, and never by itself.
    fn late(at: Instant, late: &[(u32, u32)]) -> LagMeter {
        let second = Duration::from_secs(1);
        let late = late.iter().map(|(woken, by)| (at + *woken * second, *by * second)).collect();
        let due = Arc::new(Mutex::new(at + 1_000 * second));
        LagMeter { late: Arc::new(Mutex::new(late)), due, ..LagMeter::start() }
    }

    #[test]
    fn the_worst_of_a_time_is_told_and_not_that_of_another() {
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let meter = late(began, &[(100, 1), (200, 3), (300, 2)]);
        let worst = |from: u32, to: u32| meter.worst(began + from * second, began + to * second);
        assert_eq!((worst(150, 400), worst(250, 400)), (3 * second, 2 * second));
        assert_eq!(worst(350, 400), Duration::ZERO);
    }

    #[test]
    fn of_a_long_stop_only_what_fell_into_the_time_counts() {
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let meter = late(began, &[(120, 20)]);
        let worst = |from: u32, to: u32| meter.worst(began + from * second, began + to * second);
        assert_eq!((worst(119, 130), worst(90, 102)), (second, 2 * second));
        assert_eq!((worst(105, 110), worst(90, 130)), (5 * second, 20 * second));
        assert_eq!((worst(60, 99), worst(121, 130)), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn who_is_late_still_counts() {
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let meter = late(began, &[]);
        assert_eq!(meter.worst(began + 990 * second, began + 1_004 * second), 4 * second);
        assert_eq!(meter.worst(began + 1_003 * second, began + 1_004 * second), second);
    }

    #[test]
    fn a_crowd_of_others_stretches_time() {
        let meter = LagMeter { cores: 2, ..LagMeter::start() };
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let crowd = [(100, 1), (200, 8), (201, 9), (300, 0), (400, -3)];
        meter.crowd.lock().unwrap().extend(crowd.map(|(at, others)| (began + at * second, others)));
        let stretch = |from: u32, to: u32| meter.stretch(began + from * second, began + to * second);
        assert_eq!((stretch(90, 110), stretch(190, 210), stretch(290, 310)), (1, 5, 1));
        assert_eq!((stretch(390, 410), stretch(500, 600)), (1, 1));
        let within = |from: u32, to: u32| meter.answered_within(began + from * second, began + to * second);
        assert_eq!((within(290, 310), within(190, 210)), (2 * second, Duration::from_millis(2_800)));
    }

    #[test]
    fn who_runs_can_be_counted_here() {
        assert!(running().is_some());
    }
}
