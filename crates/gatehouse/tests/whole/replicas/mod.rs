//! Two replicas of everything under load: they restart one by one and nobody notices; they are killed and nobody but
//! those whom they were answering notices; Redis goes away or hangs, PostgreSQL restarts, and all of it is got over.
//!
//! What must hold in time is asserted with what the machine was late (`LagMeter`) on top: as strict as the machine lets it
//! be. What a request takes in calm weather has a bound of its own, and excuses nothing later.

mod broker;
mod load;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gatehouse_testkit::authority::Leaf;
use gatehouse_testkit::cluster::SERVICES;
use gatehouse_testkit::{Authority, Backend, Balancer, Cluster, LagMeter, Layout, eventually, lasting_port};

use crate::support::PATIENCE;
use load::{Book, Load, Over, PEOPLE, timed};

/// How long a gateway that leaves takes connections: `drain_delay_ms`.
const LEAVES_FOR: Duration = Duration::from_millis(500);
/// How often a gateway's restart is tried in which only what a late balancer explains went wrong.
const TRIES: usize = 5;
/// Within which everything goes on once PostgreSQL is back.
const RECOVERY: Duration = Duration::from_secs(5);

fn layout(replicas: usize) -> Layout {
    let mut layout = Layout::new(env!("CARGO_BIN_EXE_gatehouse"))
        .set("GATEHOUSE_OPTIMIZER__MIN_ITERATION_MS", "100")
        .set("GATEHOUSE_JOB__LEASE_TTL_MS", "3000")
        .set("GATEHOUSE_RATE_LIMITS__RULES__CLASSES", "{}");
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

/// Certificates as in a deployment; a cluster in which all is in the clear does not show their cost.
fn certified(replicas: usize) -> Layout {
    layout(replicas).with_certificates()
}

/// The same with HTTPS at both gateways: where they take it, and the certificate of the authority that vouches for them.
fn with_https(mut layout: Layout, folder: &Path) -> (Layout, [(&'static str, SocketAddr); 2], PathBuf) {
    let issued = Authority::new().issue(folder, "https", &Leaf::default());
    let addresses = ["gateway-1", "gateway-2"]
        .map(|gateway| (gateway, SocketAddr::from(([127, 0, 0, 1], lasting_port().unwrap()))));
    for (gateway, address) in addresses {
        for (field, value) in [
            ("ADDRESS", address.to_string()),
            ("CERTIFICATE_FILE", issued.certificate.display().to_string()),
            ("KEY_FILE", issued.key.display().to_string()),
        ] {
            layout = layout.set_of(gateway, &format!("GATEHOUSE_GATEWAY__TLS_{field}"), value);
        }
    }
    (layout, addresses, issued.authorities)
}

/// The cluster's processes take both cores: one such test at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_come_and_go_unnoticed() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let (layout, addresses, authority) = with_https(certified(2), folder.path());
    let mut cluster = timed("start", Cluster::start(layout)).await.unwrap();
    let https = addresses
        .into_iter()
        .map(|(gateway, address)| Backend { address, probes: Some(cluster.node(gateway).probes) });
    let https = Balancer::start(https.collect()).await.unwrap();
    eventually(PATIENCE, || async { https.ready() == 2 }).await;
    let mut load = Load::start(cluster.url());
    load.also_over_https(format!("https://localhost:{}", https.address().port()), &authority);
    load.goes_on(50).await;
    load.https_goes_on().await;

    // Each process in turn, as a rolling update does. The gateways last: their streams end, all others' do not.
    let (gateways, others): (Vec<_>, Vec<_>) =
        cluster.names().into_iter().partition(|name| name.starts_with("gateway"));
    for name in &others {
        timed(name, async {
            let status = cluster.restart(name, PATIENCE).await.unwrap();
            assert!(status.success(), "{name}: {status}");
            cluster.ready(name, PATIENCE).await.unwrap();
            load.goes_on(20).await;
            load.https_goes_on().await;
        })
        .await;
        let failures = load.book().failures();
        assert!(failures.is_empty(), "{name}: {failures:#?}");
    }
    assert_eq!(Book::count(&load.book().closed), 0, "a stream ended although its gateway stayed");
    for name in &gateways {
        for tries in 1.. {
            let stopped = Instant::now();
            let seen = timed(name, async {
                cluster.terminate(name).unwrap();
                let seen = eventually(PATIENCE, || async {
                    (cluster.balancer().ready() < 2 && https.ready() < 2).then(Instant::now)
                })
                .await;
                let status = cluster.ended(name, PATIENCE).await.unwrap();
                assert!(status.success(), "{name}: {status}");
                cluster.launch(name).unwrap();
                cluster.all_ready(PATIENCE).await.unwrap();
                eventually(PATIENCE, || async { https.ready() == 2 }).await;
                load.goes_on(20).await;
                load.https_goes_on().await;
                seen
            })
            .await;
            // The balancers look five times a second, and see in time that a gateway goes. Where the machine was later than
            // that, they sent connections to one that was gone; this alone it explains, and proves nothing: once more.
            let was_late = seen - stopped > LEAVES_FOR;
            let forgiven = load.book().forgive(|failure| {
                was_late && failure.is_unanswered && failure.began >= stopped && failure.began <= seen
            });
            eprintln!(
                "         try {tries}: seen after {:?}, {} failures forgiven {forgiven:#?}",
                seen - stopped,
                forgiven.len()
            );
            let failures = load.book().failures();
            assert!(failures.is_empty(), "{name}: {failures:#?}");
            if forgiven.is_empty() {
                break;
            }
            assert!(tries < TRIES, "{name}: the balancer was too late each time");
        }
    }
    let connections = https.connections();
    eprintln!("         connections over HTTPS: {connections:?}");

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
    let mut cluster = timed("start", Cluster::start(certified(2).with_own_servers())).await.unwrap();
    let mut load = Load::start(cluster.url());
    let (lag, began) = (LagMeter::start(), Instant::now());
    load.goes_on(50).await;
    let longest = |over: Vec<Over>| over.iter().map(|over| over.ended - over.began).max().unwrap();
    // What nobody notices has the bound of when nothing is wrong: the time in which a limiter gives up on Redis is far less.
    let unnoticed = |what: &str, since: Instant| {
        let (longest, now) = (longest(load.book().over_since(since)), Instant::now());
        let (bound, late) = (lag.answered_within(since, now), lag.worst(since, now));
        eprintln!(
            "         the slowest answer took {longest:?} of {bound:?}, the machine was late by {late:?}"
        );
        assert!(longest < bound + late, "{what}: {longest:?} of {bound:?}, with {late:?}");
    };
    unnoticed("nothing is wrong", began);

    for how in ["stopped", "hung"] {
        let gone = Instant::now();
        timed(&format!("Redis {how}"), async {
            match how {
                "stopped" => cluster.redis().stop(),
                _ => cluster.redis().pause(),
            }
            .unwrap();
            let followed = Book::count(&load.book().followed);
            load.goes_on(100).await;
            eventually(PATIENCE, || async { Book::count(&load.book().followed) >= followed + 2 }).await;
            match how {
                "stopped" => cluster.redis().start_again(),
                _ => cluster.redis().resume(),
            }
            .unwrap();
            load.goes_on(50).await;
        })
        .await;
        assert!(load.book().failures().is_empty(), "Redis was {how}: {:#?}", load.book().failures());
        unnoticed(&format!("Redis was {how}"), gone);
    }

    for how in ["stop", "crash"] {
        timed(&format!("PostgreSQL: {how}"), async {
            let gone = Instant::now();
            let postgres = cluster.postgres().expect("it is this cluster's own");
            tokio::task::block_in_place(|| {
                if how == "stop" { postgres.stop() } else { postgres.crash() }.unwrap();
            });
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            tokio::task::block_in_place(|| cluster.postgres().expect("as before").start_again().unwrap());
            let back = Instant::now();
            load.goes_on(60).await;
            // Everybody again, in their own time.
            eventually(PATIENCE, || async {
                let over = load.book().over_since(back);
                PEOPLE
                    .iter()
                    .all(|who| over.iter().any(|over| over.who == *who && over.began > back && over.is_well))
            })
            .await;
            let now = Instant::now();
            let stood = lag.worst(gone, now);
            let late = stood + RECOVERY * (lag.stretch(back, now) - 1);
            recovers(&load, gone, back, [stood, late]);
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

/// Checks what PostgreSQL's absence from `gone` to `back` came to, on a machine that `stood` still and is so `late` in all: only 503s that say when to
/// come again, for each who does so one a second and one more, and nothing later than 5 s after its return.
fn recovers(load: &Load, gone: Instant, back: Instant, [stood, late]: [Duration; 2]) {
    let (failures, over) = (load.book().failures(), load.book().over_since(back));
    for failure in &failures {
        let put_off = failure.status == Some(503) && failure.retry_after;
        assert!(put_off, "{failure:#?}");
        assert!(failure.began < back + RECOVERY + late, "late, with {late:?}: {failure:#?}");
    }
    // Also who asked while it was away is answered by then, one way or the other.
    let waits = over.iter().map(|over| (over.ended - over.began.max(back), over));
    let (longest, slowest) = waits.max_by_key(|(waited, _)| *waited).expect("waited for");
    assert!(longest < RECOVERY + late, "{longest:?}, with {late:?}: {slowest:?}");
    let last = failures.iter().map(|failure| failure.began).max().unwrap_or(gone);
    let most = usize::try_from((back - gone + stood).as_secs()).unwrap() + 2;
    let put_off = PEOPLE.map(|who| failures.iter().filter(|failure| failure.who == who).count());
    eprintln!(
        "         {put_off:?} requests of each were put off, {most} may have been; the last {:?} after the return; nobody waited longer than {longest:?} after it; late by {late:?}",
        last.saturating_duration_since(back)
    );
    assert!(put_off.iter().all(|put_off| *put_off <= most), "{put_off:?} of {most}: {failures:#?}");
    assert_eq!(put_off.iter().sum::<usize>(), failures.len(), "somebody else failed: {failures:#?}");
    load.book().forget_failures();
}
