//! TLS to Redis: an authority that is named is believed, no other.
#![expect(clippy::unwrap_used, reason = "a test's own set-up")]

use std::path::PathBuf;
use std::time::Duration;

use gatehouse_ratelimit::{Limiter, Mode, RedisOptions, SubjectKey};
use gatehouse_testkit::{Authority, Redis};

async fn mode(url: &str, ca_file: Option<PathBuf>) -> Mode {
    let options = RedisOptions { ca_file, timeout: Duration::from_secs(5), ..RedisOptions::new(url, "t") };
    Limiter::redis(options, SubjectKey::new([7; 32])).await.unwrap().status().mode
}

#[tokio::test]
async fn only_a_server_that_our_authority_vouches_for_is_used() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let place = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(), Authority::new());
    let write = |name: &str, authority: &Authority| Some(authority.write_certificate(place.path(), name));
    let (ours, others) = (write("ca.crt", &authority), write("other.crt", &other));
    let redis = Redis::start_with_tls(&authority).unwrap();
    assert!(redis.url().starts_with("rediss://"), "{}", redis.url());
    assert_eq!(mode(redis.url(), ours.clone()).await, Mode::Shared);
    assert_eq!(mode(&redis.url().replace("127.0.0.1", "localhost"), ours.clone()).await, Mode::Shared);
    // Away, as if it did not answer: another authority, none, another name, no TLS where TLS is.
    assert_eq!(mode(redis.url(), others.clone()).await, Mode::LocalShare);
    assert_eq!(mode(redis.url(), None).await, Mode::LocalShare);
    assert_eq!(
        mode(&redis.url().replace("127.0.0.1", "[::ffff:127.0.0.1]"), ours.clone()).await,
        Mode::LocalShare
    );
    assert_eq!(mode(&redis.url().replace("rediss", "redis"), None).await, Mode::LocalShare);
    // What can't work is told at once.
    for (url, ca_file) in [(redis.url(), Some("/nowhere.pem".into())), ("redis://127.0.0.1:1/", ours)] {
        let options = RedisOptions { ca_file, ..RedisOptions::new(url, "t") };
        assert!(Limiter::redis(options, SubjectKey::new([7; 32])).await.is_err());
    }
}
