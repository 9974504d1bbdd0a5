//! Two replicas of everything under load: they restart one by one and nobody notices; they are killed and nobody but
//! those whom they were answering notices; Redis goes away, PostgreSQL restarts, and both are got over.

mod load;

use std::time::{Duration, Instant};

use gatehouse_testkit::cluster::SERVICES;
use gatehouse_testkit::{Cluster, Layout, eventually};

use crate::support::PATIENCE;
use load::{Book, Load, timed};

fn layout(replicas: usize) -> Layout {
    let mut layout = Layout::new(env!("CARGO_BIN_EXE_gatehouse"))
        .set("GATEHOUSE_OPTIMIZER__MIN_ITERATION_MS", "100")
        .set("GATEHOUSE_JOB__LEASE_TTL_MS", "3000")
        .set("GATEHOUSE_RATE_LIMITS__RULES__CLASSES", "{}")
        // The balancer looks five times a second, and gets its answer late on a busy machine.
        .set_of("gateway", "GATEHOUSE_DRAIN_DELAY_MS", "2000");
    for quota in ["IP", "PERSON", "TENANT"] {
        let name = format!("GATEHOUSE_RATE_LIMITS__RULES__{quota}");
        layout = layout.set(&format!("{name}__CAPACITY"), "100000").set(&format!("{name}__INTERVAL_S"), "60");
    }
    // The embedded store of the token broker is one process's.
    for service in SERVICES.into_iter().filter(|service| *service != "token-broker") {
        layout = layout.replicas(service, replicas);
    }
    layout
}

/// The cluster's processes take both cores: one such test at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_come_and_go_unnoticed() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let _alone = ALONE.lock().await;
    let mut cluster = timed("start", Cluster::start(layout(2))).await.unwrap();
    let mut load = Load::start(cluster.url());
    load.goes_on(50).await;

    // Each process in turn, as a rolling update does. The gateways last: their streams end, all others' do not.
    let (gateways, others): (Vec<_>, Vec<_>) =
        cluster.names().into_iter().partition(|name| name.starts_with("gateway"));
    for name in &others {
        timed(name, async {
            let status = cluster.restart(name, PATIENCE).await.unwrap();
            assert!(status.success(), "{name}: {status}");
            cluster.ready(name, PATIENCE).await.unwrap();
            load.goes_on(20).await;
        })
        .await;
        let failures = load.book().failures();
        assert!(failures.is_empty(), "{name}: {failures:#?}");
    }
    assert_eq!(Book::count(&load.book().closed), 0, "a stream ended although its gateway stayed");
    for name in &gateways {
        timed(name, async {
            cluster.restart(name, PATIENCE).await.unwrap();
            cluster.all_ready(PATIENCE).await.unwrap();
            load.goes_on(20).await;
        })
        .await;
        let failures = load.book().failures();
        assert!(failures.is_empty(), "{name}: {failures:#?}");
    }

    // Killed, one of each: what it was at is lost, nothing else.
    for service in SERVICES {
        let name = format!("{service}-1");
        timed(&format!("kill -9 {name}"), async {
            load.book().forget_failures();
            let began = Instant::now();
            cluster.kill9(&name).unwrap();
            let killed = Instant::now();
            load.goes_on(40).await;
            let mut failures = load.book().failures();
            // A request may have been on its way to the killed process, and the balancer needs a moment to see that a
            // gateway is gone.
            let excused = if service == "gateway" { killed + Duration::from_secs(1) } else { killed };
            failures.retain(|failure| failure.began > excused);
            assert!(failures.is_empty(), "{name} (took {:?}): {failures:#?}", began.elapsed());
            cluster.launch(&name).unwrap();
            cluster.all_ready(PATIENCE).await.unwrap();
        })
        .await;
    }
    load.book().forget_failures();
    timed("the rest", load.stop()).await;
    let jobs = timed("the jobs", load.all_jobs_succeed()).await;
    let (answered, followed) = (Book::count(&load.book().answered), Book::count(&load.book().followed));
    eprintln!("{answered} requests answered, {followed} jobs followed, {jobs} jobs done");
    assert!(load.book().failures().is_empty(), "{:#?}", load.book().failures());
    assert!(followed >= 4, "only {followed} jobs were followed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_gone_is_not_noticed_and_postgresql_restarted_is_got_over() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let _alone = ALONE.lock().await;
    let mut cluster = timed("start", Cluster::start(layout(1).with_own_servers())).await.unwrap();
    let mut load = Load::start(cluster.url());
    load.goes_on(50).await;

    timed("without Redis", async {
        cluster.redis().stop().unwrap();
        let followed = Book::count(&load.book().followed);
        load.goes_on(100).await;
        eventually(PATIENCE, || async { Book::count(&load.book().followed) >= followed + 2 }).await;
        cluster.redis().start_again().unwrap();
        load.goes_on(50).await;
    })
    .await;
    assert!(load.book().failures().is_empty(), "Redis was away: {:#?}", load.book().failures());

    for how in ["stop", "crash"] {
        timed(&format!("PostgreSQL: {how}"), async {
            let postgres = cluster.postgres().expect("it is this cluster's own");
            tokio::task::block_in_place(|| {
                if how == "stop" { postgres.stop() } else { postgres.crash() }.unwrap();
            });
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            tokio::task::block_in_place(|| cluster.postgres().expect("as before").start_again().unwrap());
            let back = Instant::now();
            load.goes_on(60).await;
            let failures = load.book().failures();
            eprintln!("         {} requests were put off", failures.len());
            for failure in failures {
                let put_off = failure.status == Some(503) && failure.retry_after;
                assert!(put_off, "{how}: {failure:#?}");
                assert!(failure.began < back + Duration::from_secs(15), "late: {failure:#?}");
            }
            load.book().forget_failures();
        })
        .await;
    }
    timed("the rest", load.stop()).await;
    // Nothing that was accepted is lost, nor is its audit event.
    timed("the jobs", load.all_jobs_succeed()).await;
    timed("the audit log", load.all_jobs_are_audited()).await;
    assert_eq!(Book::count(&load.book().closed), 0, "an event stream ended before its job did");
    assert!(load.book().failures().is_empty(), "{:#?}", load.book().failures());
}
