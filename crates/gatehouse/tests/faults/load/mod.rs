//! Clients that go on until they are told to stop, each with the history of what it saw.

pub(crate) mod jobs;
pub(crate) mod rate;
pub(crate) mod refresh;
pub(crate) mod revocation;

use std::time::Duration;

use gatehouse_core::Entropy;

/// A pause that the seed settles.
pub(crate) async fn pause(entropy: &Entropy, longest: Duration) {
    let longest = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
    tokio::time::sleep(Duration::from_micros(entropy.below(longest))).await;
}
