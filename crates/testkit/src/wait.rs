//! Waiting for a condition instead of for a time.

use std::future::Future;
use std::panic::Location;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// What a condition answers: `bool`, or `Option` of what the test wants to see.
pub trait Condition {
    /// What [`eventually`] returns.
    type Seen;

    /// What was seen, if the condition holds.
    fn seen(self) -> Option<Self::Seen>;
}

impl Condition for bool {
    type Seen = ();

    fn seen(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Condition for Option<T> {
    type Seen = T;

    fn seen(self) -> Self {
        self
    }
}

/// Asks `condition` again and again until it holds, and returns what it saw.
///
/// # Panics
/// If it does not hold within `timeout`; the message names the place of the call.
#[track_caller]
pub fn eventually<C, F>(timeout: Duration, mut condition: impl FnMut() -> F) -> impl Future<Output = C::Seen>
where
    F: Future<Output = C>,
    C: Condition,
{
    let place = Location::caller();
    async move {
        let deadline = Instant::now() + timeout;
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(seen) = condition().await.seen() {
                return seen;
            }
            assert!(Instant::now() < deadline, "the condition at {place} did not hold within {timeout:?}");
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_returns_what_was_seen() {
        let mut asked = 0;
        let seen = eventually(Duration::from_secs(5), || {
            asked += 1;
            let answer = (asked == 3).then_some(asked);
            async move { answer }
        });
        assert_eq!(seen.await, 3);
    }

    #[tokio::test]
    #[should_panic(expected = "wait.rs")]
    async fn it_gives_up_and_says_where() {
        eventually(Duration::from_millis(5), || async { false }).await;
    }
}
