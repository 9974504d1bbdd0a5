//! Waiting between tries.

use std::time::Duration;

use gatehouse_core::Entropy;

/// Exponential backoff with full jitter (Brooker, "Exponential Backoff and Jitter", 2015): the n-th wait is
/// uniform in `0..=min(max, first * 2^n)`, but never under a tenth of that bound, so that a loop can't spin.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    tries: u32,
    entropy: Entropy,
}

impl Backoff {
    /// Waits that grow from `first` to `max`.
    #[must_use]
    pub fn new(first: Duration, max: Duration, entropy: Entropy) -> Self {
        Self { first, max, tries: 0, entropy }
    }

    /// How long to wait before the next try.
    pub fn next_wait(&mut self) -> Duration {
        let bound = self.first.saturating_mul(1 << self.tries.min(20)).min(self.max);
        self.tries = self.tries.saturating_add(1);
        let micros = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(micros / 10 + self.entropy.below(micros - micros / 10 + 1))
    }

    /// Sleeps for [`Backoff::next_wait`].
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_wait()).await;
    }

    /// Begins again at the first wait, after a success.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_and_no_further() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1), Entropy::seeded(1));
        for attempt in 0..40u32 {
            let bound = Duration::from_millis(10 * (1 << attempt.min(20))).min(Duration::from_secs(1));
            let wait = backoff.next_wait();
            assert!(wait <= bound && wait >= bound / 10, "try {attempt}: {wait:?} of {bound:?}");
        }
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(10));
    }
}
