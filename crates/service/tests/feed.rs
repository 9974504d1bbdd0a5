//! What a verifier knows of revocations and keys while auth goes back, hangs, and is asked for keys that are not.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fake_auth;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fake_auth::{FakeAuth, HEARTBEAT, calls_to};
use gatehouse_client::audience;
use gatehouse_core::{Clock, Entropy, Timestamp};
use gatehouse_proto::auth::v1::{Revocation, RevocationKind};
use gatehouse_service::revocations::{RevocationFeed, Revocations, Staleness};
use gatehouse_service::verifier::{KeySet, Verifier};
use gatehouse_service::{Lifecycle, Readiness};
use gatehouse_testkit::eventually;
use serde_json::json;
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(30);

/// A process that verifies tokens.
struct Process {
    revocations: Revocations,
    verifier: Verifier,
    readiness: Readiness,
    lifecycle: Lifecycle,
    elsewhere: Runtime,
}

impl Process {
    fn start(auth: &FakeAuth) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (clock, keys) = (Clock::system(), KeySet::default());
        let hour = Duration::from_hours(1);
        let revocations = Revocations::new(clock.clone(), Staleness { privileged: hour, all: hour });
        let (lifecycle, readiness) = (Lifecycle::new(), Readiness::new());
        let calls = calls_to(auth.serve(&runtime));
        RevocationFeed::new(calls, revocations.clone(), keys.clone(), Entropy::system())
            .start("test", &lifecycle, &readiness);
        let verifier = Verifier::new("i", audience::JOB, keys, revocations.clone(), clock);
        Self { revocations, verifier, readiness, lifecycle, elsewhere: runtime }
    }

    async fn ready(&self) {
        eventually(PATIENCE, || async { self.readiness.unmet().is_empty() }).await;
    }

    fn knows(&self, id: &str) -> bool {
        self.revocations.is_revoked_since(RevocationKind::Session, id, Timestamp::from_micros(0))
    }

    /// Shows a token that says to be signed by the key `kid`, and why it was refused.
    fn show(&self, kid: &str) -> String {
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let head = part(json!({"alg": "EdDSA", "typ": "at+jwt", "kid": kid}));
        let token = format!("{head}.{}.{}", part(json!({})), URL_SAFE_NO_PAD.encode([7; 64]));
        let refused = self.verifier.verify(&token, false).unwrap_err();
        std::error::Error::source(&refused).unwrap().to_string()
    }

    fn knows_key(&self, kid: &str) -> bool {
        self.show(kid) != "the key is not known"
    }

    async fn stop(self) {
        assert!(self.lifecycle.drain(PATIENCE).await);
        // A runtime can't be dropped where others run.
        self.elsewhere.shutdown_background();
    }
}

fn session(id: &str) -> Revocation {
    let now = Clock::system().now();
    Revocation {
        sequence: 0,
        kind: RevocationKind::Session.into(),
        id: id.to_owned(),
        not_before: now.as_micros(),
        expires_at: now.plus(Duration::from_mins(10)).as_micros(),
    }
}

fn auth(entries: &[&str]) -> FakeAuth {
    let auth = FakeAuth::default();
    auth.set(|table| {
        table.entries = entries.iter().map(|id| session(id)).collect();
        table.keys = vec!["k1".to_owned()];
        table.keys_max_age = Duration::from_mins(5);
    });
    auth
}

/// Its database was restored: numbers that were given to others are given again.
#[tokio::test]
async fn an_auth_that_comes_back_with_an_older_table_is_heard() {
    let auth = auth(&["a", "b", "c"]);
    let process = Process::start(&auth);
    process.ready().await;
    eventually(PATIENCE, || async { process.knows("c") }).await;
    auth.set(|table| {
        table.process += 1;
        table.entries.truncate(1);
        table.entries.push(session("d"));
    });
    eventually(PATIENCE, || async { process.knows("d") }).await;
    assert_eq!(process.revocations.sequence(), 2, "the number is that of the table that there is");
    for id in ["a", "b", "c"] {
        assert!(process.knows(id), "{id} was revoked and its tokens live");
    }
    process.stop().await;
}

/// Nobody who shows tokens with made-up keys is to make revocations late.
#[tokio::test]
async fn revocations_come_while_the_keys_do_not() {
    let auth = auth(&[]);
    let process = Process::start(&auth);
    process.ready().await;
    auth.set(|table| table.keys_hang = true);
    let mut worst = Duration::ZERO;
    for round in 0..10 {
        let asked = auth.fetches.load(Ordering::SeqCst);
        assert_eq!(process.show(&format!("x{round}")), "the key is not known");
        if round == 0 {
            eventually(PATIENCE, || async { auth.fetches.load(Ordering::SeqCst) > asked }).await;
        }
        let (id, began) = (format!("s{round}"), Instant::now());
        auth.set(|table| table.entries.push(session(&id)));
        eventually(PATIENCE, || async { process.knows(&id) }).await;
        worst = worst.max(began.elapsed());
    }
    assert!(worst < Duration::from_secs(1), "a revocation took {worst:?}");
    process.stop().await;
}

#[tokio::test]
async fn unknown_keys_are_asked_for_at_once_but_not_for_each_token() {
    let auth = auth(&[]);
    let process = Process::start(&auth);
    process.ready().await;
    let before = auth.fetches.load(Ordering::SeqCst);
    // After a quiet time the first is a key that was published since, for all that is known.
    auth.set(|table| table.keys.push("k2".to_owned()));
    let began = Instant::now();
    eventually(PATIENCE, || async { process.knows_key("k2") }).await;
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
    let until = Instant::now() + 10 * HEARTBEAT;
    let mut shown = 0;
    while Instant::now() < until {
        process.show(&format!("x{shown}"));
        shown += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let fetches = auth.fetches.load(Ordering::SeqCst) - before;
    assert!(shown > 50 && fetches <= 2, "{fetches} fetches for {shown} tokens");
    process.stop().await;
}

/// Auth publishes a key long before it signs with it: no good token is to be refused for a key that is not known yet.
#[tokio::test]
async fn a_key_is_known_before_the_first_token_that_it_signed() {
    let auth = auth(&[]);
    auth.set(|table| table.keys_max_age = Duration::from_secs(1));
    let process = Process::start(&auth);
    process.ready().await;
    auth.set(|table| table.keys.push("k2".to_owned()));
    let before = auth.fetches.load(Ordering::SeqCst);
    // Once the second is under way, the first is taken in.
    eventually(PATIENCE, || async { auth.fetches.load(Ordering::SeqCst) > before + 1 }).await;
    assert!(process.knows_key("k2"));
    process.stop().await;
}

/// Restored from before its present key was made: until the keys are fetched anew, every good token is refused.
#[tokio::test]
async fn keys_come_with_the_stream_however_long_auth_was_away() {
    let auth = auth(&[]);
    // They are asked for while it is away, less and less often.
    auth.set(|table| table.keys_max_age = Duration::from_secs(1));
    let process = Process::start(&auth);
    process.ready().await;
    auth.set(|table| {
        table.silent = true;
        table.process += 1;
    });
    let before = auth.fetches.load(Ordering::SeqCst);
    eventually(PATIENCE, || async { auth.fetches.load(Ordering::SeqCst) >= before + 10 }).await;
    auth.set(|table| {
        table.keys = vec!["k2".to_owned()];
        table.entries.push(session("a"));
        table.silent = false;
    });
    eventually(PATIENCE, || async { process.knows("a") }).await;
    let began = Instant::now();
    eventually(PATIENCE, || async { process.knows_key("k2") }).await;
    assert!(began.elapsed() < Duration::from_secs(1), "after the stream it took {:?}", began.elapsed());
    process.stop().await;
}
