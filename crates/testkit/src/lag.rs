//! How far behind a busy machine is: what a bound in wall-clock time must grow by to be sound.
//!
//! A thread sleeps for short times and notes how much later it woke than it asked for. Whoever checks "within a second"
//! adds the worst of the time in question, and so is as strict as the machine lets them be, not as a guess would.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What the thread sleeps.
const NAP: Duration = Duration::from_millis(10);
/// What is not worth noting.
const USUAL: Duration = Duration::from_millis(5);

/// Measures until it is dropped.
#[derive(Debug)]
pub struct LagMeter {
    late: Arc<Mutex<Vec<(Instant, Duration)>>>,
    _stop: Sender<()>,
}

impl LagMeter {
    /// Begins to measure.
    #[must_use]
    pub fn start() -> Self {
        let late = Arc::<Mutex<Vec<(Instant, Duration)>>>::default();
        let (stop, stopped) = mpsc::channel();
        let noted = Arc::clone(&late);
        thread::spawn(move || {
            let mut asked = Instant::now();
            while stopped.recv_timeout(NAP) == Err(RecvTimeoutError::Timeout) {
                let woken = Instant::now();
                let by = woken.duration_since(asked).saturating_sub(NAP);
                if by > USUAL {
                    noted.lock().unwrap_or_else(PoisonError::into_inner).push((woken, by));
                }
                asked = Instant::now();
            }
        });
        Self { late, _stop: stop }
    }

    /// The longest that anything was late between two moments.
    #[must_use]
    pub fn worst(&self, from: Instant, to: Instant) -> Duration {
        let late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        let within = late.iter().filter(|(woken, by)| *woken >= from && *woken <= to + *by);
        within.map(|(_, by)| *by).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_a_time_is_told_and_not_that_of_another() {
        let meter = LagMeter::start();
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        meter.late.lock().unwrap().extend([
            (began + 100 * second, second),
            (began + 200 * second, 3 * second),
            (began + 300 * second, 2 * second),
        ]);
        assert_eq!(meter.worst(began + 150 * second, began + 400 * second), 3 * second);
        assert_eq!(meter.worst(began + 250 * second, began + 400 * second), 2 * second);
        assert_eq!(meter.worst(began + 350 * second, began + 400 * second), Duration::ZERO);
    }
}
