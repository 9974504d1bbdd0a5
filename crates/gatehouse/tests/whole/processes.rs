//! Each service as a process of its own, on PostgreSQL and Redis, with two gateways: the way it is deployed.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use gatehouse_core::Entropy;
use gatehouse_testkit::cluster::CLIENTS;
use gatehouse_testkit::{Postgres, Redis, eventually, lasting_port};
use reqwest::Method;
use serde_json::json;

use crate::support::{Gatehouse, PATIENCE, folder, good_search, program};

pub(crate) const SERVICES: [&str; 4] = ["auth", "token-broker", "job", "audit"];

fn secret(place: &Path, name: &str) -> PathBuf {
    place.join(format!("{name}.secret"))
}

/// The configuration that all processes share.
pub(crate) fn configuration(place: &Path, redis: &str, postgres: &str) -> PathBuf {
    let random = Entropy::system();
    let hex = |bytes: [u8; 16]| bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let run = hex(random.bytes())[..8].to_owned();
    std::fs::write(place.join("redis.url"), redis).unwrap();
    // A JSON string is a TOML basic string.
    let quoted = |path: PathBuf| serde_json::to_string(&path).unwrap();
    let mut text = format!("redis.url_file = {}\n", quoted(place.join("redis.url")));
    let _ = writeln!(text, "auth.key_file = {}", quoted(place.join("auth-keys.json")));
    let _ = writeln!(text, "audit.subject_keys_dir = {}", quoted(place.join("subjects")));
    let _ = writeln!(text, "audit.checkpoint_key_file = {}", quoted(place.join("checkpoint.key")));
    let _ = writeln!(text, "secrets.embedded.folder = {}", quoted(place.join("secrets/objects")));
    let _ = writeln!(text, "secrets.embedded.key_file = {}", quoted(place.join("secrets-key.json")));
    for service in SERVICES {
        let (section, port) = (service.replace('-', "_"), lasting_port().unwrap());
        let _ = writeln!(text, "listen.{section} = \"127.0.0.1:{port}\"");
        let _ = writeln!(text, "peers.{section}.endpoints = [\"http://127.0.0.1:{port}\"]");
        let _ = writeln!(text, "databases.{section}.url = {postgres:?}");
        let _ = writeln!(text, "databases.{section}.schema = \"whole_{run}_{section}\"");
    }
    for (name, permissions) in CLIENTS {
        let file = secret(place, name);
        std::fs::write(&file, hex(random.bytes()) + &hex(random.bytes())).unwrap();
        let _ = write!(
            text,
            "[[auth.clients]]\nname = \"{name}\"\nsecret_file = {}\npermissions = [{permissions}]\n",
            quoted(file)
        );
    }
    let file = place.join("gatehouse.toml");
    std::fs::write(&file, text).unwrap();
    file
}

/// Starts one process; `is_ready` waits for it.
pub(crate) fn start(
    place: &Path,
    config: &Path,
    service: &str,
    number: u32,
    variables: &[(&str, PathBuf)],
) -> Gatehouse {
    let (probes, port) = (lasting_port().unwrap(), lasting_port().unwrap());
    let log = std::fs::File::create(place.join(format!("{service}-{number}.log"))).unwrap();
    let child = program()
        .arg(service)
        .arg("--config")
        .arg(config)
        .env("GATEHOUSE_ENV", "dev")
        .env("GATEHOUSE_CLIENT__SECRET_FILE", secret(place, service))
        .env("GATEHOUSE_PROBES__ADDRESS", format!("127.0.0.1:{probes}"))
        .env("GATEHOUSE_GATEWAY__ADDRESS", format!("127.0.0.1:{port}"))
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let ready = json!({"gateway": format!("http://127.0.0.1:{port}"), "probes": format!("http://127.0.0.1:{probes}")});
    Gatehouse::of(child, ready)
}

pub(crate) async fn is_ready(process: &Gatehouse) {
    let url = format!("{}/readyz", process.ready["probes"].as_str().unwrap());
    eventually(PATIENCE, || async {
        process.http().get(&url).send().await.is_ok_and(|answer| answer.status().is_success())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn separate_processes_do_the_main_job_on_postgresql_and_redis() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let place = folder();
    let place = place.path();
    let redis = Redis::shared().unwrap();
    let config = configuration(place, redis.url(), Postgres::shared().unwrap().url());
    let start = |service: &str, number| start(place, &config, service, number, &[]);
    let mut processes: Vec<_> = SERVICES.iter().map(|service| start(service, 1)).collect();
    let (one, two) = (start("gateway", 1), start("gateway", 2));
    processes.push(start("optimizer", 1));
    for process in processes.iter().chain([&one, &two]) {
        is_ready(process).await;
    }

    do_the_main_job(&one, &two).await;

    for process in [one, two].into_iter().chain(processes.into_iter().rev()) {
        let status = process.stop().await;
        assert!(status.success(), "{status}");
    }
}

/// A person signs in, runs a job and follows it at the other gateway; the audit log tells of it; signing out counts at
/// both gateways.
pub(crate) async fn do_the_main_job(one: &Gatehouse, two: &Gatehouse) {
    let ada = one.account(&format!("ada-{}", lasting_port().unwrap())).await;
    let job = ada.optimize(&good_search()).await;
    // Followed at the other gateway, from the first event to the last.
    let events = two
        .request(Method::GET, &format!("/v1/jobs/{job}/events"))
        .bearer_auth(ada.token())
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let ids: Vec<u64> = events
        .lines()
        .filter_map(|line| line.strip_prefix("id:"))
        .map(|id| id.trim().parse().unwrap())
        .collect();
    assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>(), "{events}");
    assert!(events.contains("event: end") || events.contains("event:end"), "{events}");
    assert_eq!(ada.finished(&job).await["state"], "succeeded");

    // Each service's outbox reaches the one log.
    eventually(PATIENCE, || async {
        let (status, page) = ada.get("/v1/audit/events?page_size=200").await;
        let actions = page.to_string();
        status == 200
            && ["auth.sessions.create", "job.jobs.submit", "job.jobs.finish"]
                .iter()
                .all(|action| actions.contains(action))
    })
    .await;

    // A session that ends at one gateway ends at the other.
    let (status, _) = ada.post("/v1/auth/sign-out", &json!({})).await;
    assert!(status.is_success(), "{status}");
    eventually(Duration::from_secs(5), || async {
        let answer = two.request(Method::GET, "/v1/auth/me").bearer_auth(ada.token()).send().await.unwrap();
        answer.status() == 401
    })
    .await;
}
