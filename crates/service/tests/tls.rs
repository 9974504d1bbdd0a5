//! A server between services: certificates that end, change hands or are renewed while it runs.
#![expect(clippy::unwrap_used, reason = "a test's own set-up")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gatehouse_client::tls::{Certificates, ClientTls, TlsFiles};
use gatehouse_client::{Channel, ChannelConfig, audience, channel};
use gatehouse_core::{Clock, Entropy, Environment, Secret};
use gatehouse_service::grpc::GrpcConfig;
use gatehouse_service::revocations::Staleness;
use gatehouse_service::{
    AccessLayer, Doorbell, GrpcServer, KeySet, Lifecycle, Readiness, RedisAddress, Revocations, ServerTls,
    Verifier,
};
use gatehouse_testkit::authority::{Authority, Issued, Leaf};
use gatehouse_testkit::proxy::Proxy;
use gatehouse_testkit::{Redis, eventually};
use tokio::net::TcpListener;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const PATIENCE: Duration = Duration::from_secs(60);
const TRUST_DOMAIN: &str = "test.gatehouse.internal";

fn issue(authority: &Authority, folder: &Path, file: &str, service: &str, ends_in_s: i64) -> Issued {
    let uri = format!("spiffe://{TRUST_DOMAIN}/{service}");
    authority.issue(folder, file, &Leaf { uris: &[&uri], ends_in_s, ..Leaf::default() })
}

fn files(issued: &Issued) -> TlsFiles {
    TlsFiles {
        certificate: issued.certificate.clone(),
        key: issued.key.clone(),
        authorities: issued.authorities.clone(),
        trust_domain: TRUST_DOMAIN.to_owned(),
    }
}

/// A server of the service `job` without methods; it has health, as all have.
async fn serve(issued: &Issued, lifecycle: &Lifecycle) -> String {
    serve_with(issued, lifecycle, GrpcConfig::default()).await
}

async fn serve_with(issued: &Issued, lifecycle: &Lifecycle, config: GrpcConfig) -> String {
    let certificates = Certificates::load(files(issued)).unwrap();
    let internal_services = Arc::new(BTreeSet::new());
    let tls = Some(ServerTls { certificates, internal_services });
    let clock = Clock::system();
    let revocations = Revocations::new(clock.clone(), Staleness::default());
    let verifier = Verifier::new("i", audience::JOB, KeySet::default(), revocations, clock.clone());
    let access = AccessLayer::new(&[], verifier, clock, Entropy::system()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = GrpcConfig { tls, ..config };
    let routes = tonic::service::Routes::default();
    GrpcServer::new(config, access, listener).start(routes, lifecycle, &Readiness::new()).unwrap();
    format!("https://{address}")
}

fn health(client: &Certificates, address: &str, server: &str) -> HealthClient<Channel> {
    let tls = ClientTls::to(client, server).unwrap();
    HealthClient::new(channel(&ChannelConfig::to(address).with_tls(tls)).unwrap())
}

#[tokio::test]
async fn a_connection_ends_with_the_certificate_that_it_was_made_with() {
    let place = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let lifecycle = Lifecycle::new();
    let address = serve(&issue(&authority, place.path(), "job", "job", 3600), &lifecycle).await;
    let client = issue(&authority, place.path(), "gateway", "gateway", 3);
    let certificates = Certificates::load(files(&client)).unwrap();
    let mut health = health(&certificates, &address, "job");
    let request = HealthCheckRequest { service: String::new() };
    let mut watch = health.watch(request.clone()).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    // The stream says nothing more by itself: what ends it is the end of the certificate.
    let ended = tokio::time::timeout(PATIENCE, watch.message()).await.expect("the connection ends");
    assert!(ended.is_err(), "{ended:?}");
    // With the same files there is no other; with renewed ones there is, without a restart.
    assert!(health.check(request.clone()).await.is_err(), "it got in again");
    issue(&authority, place.path(), "gateway", "gateway", 3600);
    eventually(PATIENCE, || async { health.clone().check(request.clone()).await.is_ok() }).await;
    assert!(lifecycle.drain(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn an_old_connection_takes_no_new_calls_and_cuts_none_off() {
    let place = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let lifecycle = Lifecycle::new();
    let config = GrpcConfig { max_connection_age_s: 1, ..GrpcConfig::default() };
    let server = issue(&authority, place.path(), "job", "job", 3600);
    let address = serve_with(&server, &lifecycle, config).await;
    let proxy = Proxy::start(address.trim_start_matches("https://")).await.unwrap();
    let client = issue(&authority, place.path(), "gateway", "gateway", 3600);
    let certificates = Certificates::load(files(&client)).unwrap();
    let mut health = health(&certificates, &format!("https://{}", proxy.address()), "job");
    let request = HealthCheckRequest { service: String::new() };
    let mut watch = health.watch(request.clone()).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    assert_eq!(proxy.accepted(), 1);
    // No call fails while the connections change.
    eventually(PATIENCE, || async {
        health.clone().check(request.clone()).await.unwrap();
        proxy.accepted() >= 3
    })
    .await;
    // What was begun on the first goes on.
    let more = tokio::time::timeout(Duration::from_millis(100), watch.message()).await;
    assert!(more.is_err(), "{more:?}");
    drop(watch);
    assert!(lifecycle.drain(Duration::from_secs(10)).await);
}

#[test]
fn files_that_can_not_be_used_change_nothing() {
    let place = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let issued = issue(&authority, place.path(), "job", "job", 3600);
    let certificates = Certificates::load(files(&issued)).unwrap();
    let first = certificates.current();
    assert!(Arc::ptr_eq(&first, &certificates.reload()));
    // Half of a renewal: the certificate is there, its key is not.
    let key = std::fs::read(&issued.key).unwrap();
    issue(&authority, place.path(), "job", "job", 7200);
    let fresh_key = std::fs::read(&issued.key).unwrap();
    std::fs::write(&issued.key, &key).unwrap();
    assert!(Arc::ptr_eq(&first, &certificates.reload()), "a certificate without its key was taken");
    // The other half.
    std::fs::write(&issued.key, &fresh_key).unwrap();
    let renewed = certificates.reload();
    assert!(renewed.ends_at > first.ends_at);
    for (what, authority, service, ends_in_s) in [
        ("another service's", &authority, "gateway", 3600),
        ("one that has ended", &authority, "job", -5),
        ("another authority's", &Authority::new(), "job", 3600),
    ] {
        issue(authority, place.path(), "new", service, ends_in_s);
        for (from, to) in [("new.crt", &issued.certificate), ("new.key", &issued.key)] {
            std::fs::copy(place.path().join(from), to).unwrap();
        }
        assert!(Arc::ptr_eq(&renewed, &certificates.reload()), "{what} was taken");
    }
    std::fs::remove_file(&issued.certificate).unwrap();
    assert!(Arc::ptr_eq(&renewed, &certificates.reload()), "nothing was taken for something");
}

#[tokio::test]
async fn doorbells_ring_through_an_encrypted_redis() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let place = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let redis = Redis::start_with_tls(&authority).unwrap();
    let ca_file = place.path().join("ca.crt");
    std::fs::write(&ca_file, authority.certificate()).unwrap();
    let address = RedisAddress { url: Secret::new(redis.url().to_owned()), ca_file: Some(ca_file) };
    let lifecycle = Lifecycle::new();
    let open = |address: &RedisAddress| {
        Doorbell::redis(address, Environment::Prod, &lifecycle, &Entropy::system()).unwrap()
    };
    let (here, there) = (open(&address), open(&address));
    let mut bell = there.subscribe("jobs");
    eventually(PATIENCE, || {
        here.ring("jobs");
        let mut bell = there.subscribe("jobs");
        async move { tokio::time::timeout(Duration::from_millis(200), bell.rung()).await.is_ok() }
    })
    .await;
    bell.rung().await;
    // Its own ring does not come back to whoever rang: what `there` rings later, on the same connection, comes first.
    let (mut own, mut later) = (here.subscribe("own"), here.subscribe("later"));
    let mut heard = there.subscribe("own");
    here.ring("own");
    own.rung().await;
    heard.rung().await;
    there.ring("later");
    later.rung().await;
    assert!(tokio::time::timeout(Duration::ZERO, own.rung()).await.is_err(), "heard twice");
    // Whoever is not vouched for rings nowhere else.
    std::fs::write(place.path().join("other.crt"), Authority::new().certificate()).unwrap();
    let stranger = RedisAddress { ca_file: Some(place.path().join("other.crt")), ..address.clone() };
    let (stranger, mut bell) = (open(&stranger), there.subscribe("theirs"));
    stranger.ring("theirs");
    assert!(tokio::time::timeout(Duration::from_millis(500), bell.rung()).await.is_err());
    let nowhere = RedisAddress { ca_file: Some("/nowhere.pem".into()), ..address };
    assert!(Doorbell::redis(&nowhere, Environment::Prod, &lifecycle, &Entropy::system()).is_err());
    assert!(lifecycle.drain(Duration::from_secs(10)).await);
}
