//! What `/readyz` and `gatehouse healthcheck` say while something is away that a process can't work without.

use std::path::Path;
use std::time::Duration;

use gatehouse_testkit::{Postgres, Redis, eventually};

use crate::processes::{configuration, is_ready, start};
use crate::support::{Gatehouse, PATIENCE, ended, folder, program};

/// The exit status of `gatehouse healthcheck` beside `process`, and what it says.
async fn healthcheck(process: &Gatehouse) -> (Option<i32>, String) {
    let probes = process.ready["probes"].as_str().unwrap().trim_start_matches("http://");
    let mut command = program();
    command.arg("healthcheck").env("GATEHOUSE_ENV", "dev").env("GATEHOUSE_PROBES__ADDRESS", probes);
    let said = ended(&mut command).await;
    (said.code, said.stderr)
}

/// Waits until `process` says that it lacks `condition`.
async fn lacks(process: &Gatehouse, condition: &str) {
    eventually(PATIENCE, || async {
        let (code, said) = healthcheck(process).await;
        code == Some(1) && said.contains(&format!("\"{condition}\""))
    })
    .await;
    // It lives: what is away comes back without a restart of this one.
    assert_eq!(process.probe("/healthz").await, "alive\n");
}

async fn is_healthy(process: &Gatehouse) {
    eventually(PATIENCE, || async { healthcheck(process).await.0 == Some(0) }).await;
}

fn start_one(place: &Path, config: &Path, service: &str, number: u32) -> Gatehouse {
    // Refused soon enough for a test.
    start(place, config, service, number, &[("GATEHOUSE_REVOCATIONS__STALE_AFTER_MS", "3000".into())])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_can_do_nothing_says_so_until_it_can() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let place = folder();
    let place = place.path();
    let mut postgres = Postgres::start_lasting().unwrap();
    let config = configuration(place, Redis::shared().unwrap().url(), postgres.url());
    let start = |service: &str, number| start_one(place, &config, service, number);

    // A worker without a service.
    let optimizer = start("optimizer", 1);
    lacks(&optimizer, "optimizer.session").await;

    let auth = start("auth", 1);
    let job = start("job", 1);
    let gateway = start("gateway", 1);
    for process in [&optimizer, &auth, &job, &gateway] {
        is_healthy(process).await;
    }

    // Auth is gone: nobody is let in any more.
    drop(auth);
    lacks(&gateway, "gateway.revocations").await;
    lacks(&job, "job.revocations").await;
    let auth = start("auth", 2);
    for process in [&auth, &gateway, &job] {
        is_healthy(process).await;
    }

    // The job service is gone, and comes back.
    drop(job);
    lacks(&optimizer, "optimizer.session").await;
    let job = start("job", 2);
    is_healthy(&optimizer).await;
    is_ready(&job).await;

    // The database: a restart is too short to be told of.
    postgres.stop().unwrap();
    lacks(&job, "job.database").await;
    lacks(&auth, "auth.database").await;
    postgres.start_again().unwrap();
    for process in [&auth, &job, &gateway, &optimizer] {
        eventually(Duration::from_secs(60), || async { healthcheck(process).await.0 == Some(0) }).await;
    }
}
