//! How far behind a busy machine is: what a bound in wall-clock time must grow by to be sound.
//!
//! A thread sleeps for short times and notes how much later it woke than it asked for. Whoever checks "within a second"
//! adds the worst of the time in question, and so is as strict as the machine lets them be, not as a guess would. Who
//! sleeps much is woken soon, though; what needs the processor for longer waits for its turn. So the thread also counts who
//! is waiting for one.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What the thread sleeps.
const NAP: Duration = Duration::from_millis(10);
/// What is not worth noting.
const USUAL: Duration = Duration::from_millis(5);

/// How often it counts.
const LOOK: Duration = Duration::from_millis(100);

/// How many threads of the machine run or want to, besides this one.
fn running() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let (running, _) = text.split_whitespace().nth(3)?.split_once('/')?;
    Some(running.parse::<u32>().ok()?.saturating_sub(1))
}

/// Measures until it is dropped.
#[derive(Debug)]
pub struct LagMeter {
    /// When the thread woke too late, and by how much.
    late: Arc<Mutex<Vec<(Instant, Duration)>>>,
    /// When it is to wake next.
    due: Arc<Mutex<Instant>>,
    crowd: Arc<Mutex<Vec<(Instant, u32)>>>,
    cores: u32,
    _stop: Sender<()>,
}

impl LagMeter {
    /// Begins to measure.
    #[must_use]
    pub fn start() -> Self {
        let late = Arc::<Mutex<Vec<(Instant, Duration)>>>::default();
        let (stop, stopped) = mpsc::channel();
        let crowd = Arc::<Mutex<Vec<(Instant, u32)>>>::default();
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
                    let running = running().unwrap_or_default();
                    counted.lock().unwrap_or_else(PoisonError::into_inner).push((looked, running));
                }
                asked = Instant::now();
                *next.lock().unwrap_or_else(PoisonError::into_inner) = asked + NAP;
            }
        });
        let cores =
            thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
        Self { late, due, crowd, cores, _stop: stop }
    }

    /// How many times as long as on an idle machine anything takes that needs the processor, on average between two
    /// moments: 1 if there are no more threads at work than cores.
    #[must_use]
    pub fn stretch(&self, from: Instant, to: Instant) -> u32 {
        let crowd = self.crowd.lock().unwrap_or_else(PoisonError::into_inner);
        let within: Vec<u32> =
            crowd.iter().filter(|(at, _)| *at >= from && *at <= to).map(|(_, running)| *running).collect();
        let looks = u32::try_from(within.len()).unwrap_or(u32::MAX).max(1);
        within.iter().sum::<u32>().div_ceil(looks * self.cores).max(1)
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
    fn a_crowd_stretches_time() {
        let meter = LagMeter { cores: 2, ..LagMeter::start() };
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let crowd = [(100, 2), (200, 8), (201, 11), (300, 1)];
        meter.crowd.lock().unwrap().extend(crowd.map(|(at, running)| (began + at * second, running)));
        let stretch = |from: u32, to: u32| meter.stretch(began + from * second, began + to * second);
        assert_eq!((stretch(90, 110), stretch(190, 210), stretch(290, 310), stretch(400, 500)), (1, 5, 1, 1));
    }

    #[test]
    fn who_runs_can_be_counted_here() {
        assert!(running().is_some());
    }
}
