//! What auth said of revocations while this process stood still is not news of this moment when it goes on.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake_auth;

use std::time::Duration;

use fake_auth::{FakeAuth, HEARTBEAT, calls_to};
use gatehouse_core::{Clock, Entropy};
use gatehouse_service::revocations::{RevocationFeed, Revocations, Staleness};
use gatehouse_service::verifier::KeySet;
use gatehouse_service::{Lifecycle, Readiness};
use gatehouse_testkit::eventually;

const PATIENCE: Duration = Duration::from_secs(30);
/// How old news may be.
const LIMIT: Duration = Duration::from_millis(300);

#[test]
fn what_waited_while_the_process_stood_still_is_not_new() {
    let elsewhere =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let here = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let auth = FakeAuth::default();
    auth.set(|table| table.keys = vec!["k".to_owned()]);
    // Its threads go on when this one stands still.
    let address = auth.serve(&elsewhere);
    here.block_on(async {
        let revocations = Revocations::new(Clock::system(), Staleness { privileged: LIMIT, all: LIMIT });
        let lifecycle = Lifecycle::new();
        RevocationFeed::new(calls_to(address), revocations.clone(), KeySet::default(), Entropy::system())
            .start("test", &lifecycle, &Readiness::new());
        eventually(PATIENCE, || async { revocations.is_fresh() }).await;

        // This thread is all that this process has: auth goes on for a while, and is gone.
        std::thread::sleep(2 * HEARTBEAT);
        auth.set(|table| table.silent = true);
        std::thread::sleep(2 * LIMIT);
        for _ in 0..50 {
            assert!(!revocations.is_fresh(), "what lay in the socket for longer than {LIMIT:?} was believed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        lifecycle.drain(PATIENCE).await;
    });
}
