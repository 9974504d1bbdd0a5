//! Who is next.

use std::time::Duration;

use gatehouse_core::Timestamp;

/// A job's place in the queue: jobs are leased in order of their turn.
///
/// A tenant's jobs stand `share` apart from one another, however fast they come in, and none stands before the
/// present (virtual-clock queueing: Zhang, "Virtual Clock", SIGCOMM 1990). So of a tenant that submits a thousand
/// jobs at once, all but the first few stand behind the one job that another tenant submits a moment later.
///
/// `last_queued`: the latest turn of the tenant's jobs of this kind that still wait.
#[must_use]
pub fn fair_turn(now: Timestamp, last_queued: Option<Timestamp>, share: Duration) -> Timestamp {
    last_queued.map_or(now, |last| last.plus(share).max(now))
}

/// How long a job waits after its failed attempt number `attempt` (from 1): `first` doubled each time, an hour at
/// most.
#[must_use]
pub fn retry_pause(attempt: u32, first: Duration) -> Duration {
    let doubled = first.saturating_mul(1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(Duration::from_hours(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_tenant_stands_behind_the_next_of_another() {
        let share = Duration::from_millis(100);
        let start = Timestamp::from_seconds(1000);
        let mut last = None;
        for _ in 0..1000 {
            last = Some(fair_turn(start, last, share));
        }
        let other = fair_turn(start.plus(Duration::from_secs(1)), None, share);
        assert!(other < last.unwrap());
        assert_eq!(last.unwrap().since(start), Duration::from_millis(99_900));
        assert_eq!(fair_turn(Timestamp::from_seconds(5000), last, share), Timestamp::from_seconds(5000));
    }

    #[test]
    fn pauses_double_up_to_an_hour() {
        let first = Duration::from_secs(1);
        assert_eq!(retry_pause(1, first), first);
        assert_eq!(retry_pause(4, first), Duration::from_secs(8));
        assert_eq!(retry_pause(u32::MAX, first), Duration::from_hours(1));
    }
}
