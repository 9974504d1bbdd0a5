//! A channel over real servers: calls spread, and neither a dead, a draining nor a frozen replica costs one.
#![expect(clippy::unwrap_used, reason = "a test's own set-up")]

mod support;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gatehouse_client::{Channel, ChannelConfig, Repeatable, Resolver, channel, from_status};
use gatehouse_core::ErrorCode;
use gatehouse_proto::job::v1::SubmitJobRequest;
use gatehouse_proto::job::v1::job_service_client::JobServiceClient;
use gatehouse_testkit::{LagMeter, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tonic::Request;

use support::{Load, PATIENCE, Replica, channel_to, config, dead_address, get, submit};

async fn spread(channel: &Channel, calls: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..calls {
        *answers.entry(get(channel).await.unwrap()).or_default() += 1;
    }
    answers
}

/// Waits until each of `replicas` answers some calls.
async fn all_answer(channel: &Channel, replicas: usize) {
    eventually(PATIENCE, || async { spread(channel, 20).await.len() == replicas }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_spread_over_the_replicas() {
    let (a, b, c) = (Replica::start("a").await, Replica::start("b").await, Replica::start("c").await);
    let channel = channel_to(&[a.address, b.address, c.address]);
    all_answer(&channel, 3).await;
    let answers = spread(&channel, 300).await;
    assert!(answers.values().all(|&calls| calls > 50), "{answers:?}");
    // One that is slow gets less.
    a.gate();
    let before = a.calls();
    let slow: Vec<_> = (0..20)
        .map(|_| {
            let channel = channel.clone();
            tokio::spawn(async move { get(&channel).await })
        })
        .collect();
    // Those that did not land at `a` are answered; from here on it alone has something to do.
    eventually(PATIENCE, || async {
        let waiting = a.calls() - before;
        waiting > 0 && waiting + slow.iter().filter(|call| call.is_finished()).count() == slow.len()
    })
    .await;
    let before = a.calls();
    let quick = async {
        for _ in 0..50 {
            let channel = channel.clone();
            // A call that lands at `a` waits there; none of the others does.
            let _ = tokio::time::timeout(Duration::from_millis(100), get(&channel)).await;
        }
    };
    quick.await;
    assert!(a.calls() - before < 10, "a slow replica got {} of 50 calls", a.calls() - before);
    a.open_gate();
    for call in slow {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_replica_gets_no_calls() {
    let alive = Replica::start("alive").await;
    let channel = channel_to(&[dead_address(), alive.address, dead_address()]);
    for _ in 0..500 {
        assert_eq!(submit(&channel).await.unwrap(), "alive");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_dies_costs_only_what_it_had_and_comes_back() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let channel = channel_to(&[a.address, b.address]);
    all_answer(&channel, 2).await;
    // Calls that may be repeated are not lost even if the replica was at work on them.
    a.gate();
    let before = a.calls();
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let channel = channel.clone();
            tokio::spawn(async move { get(&channel).await })
        })
        .collect();
    eventually(PATIENCE, || async { a.calls() > before }).await;
    let address = a.address;
    a.kill();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), "b");
    }
    for _ in 0..200 {
        assert_eq!(submit(&channel).await.unwrap(), "b");
    }
    let _a = Replica::start_at("a again", address).await;
    eventually(PATIENCE, || async { spread(&channel, 20).await.contains_key("a again") }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_may_have_acted_is_not_repeated_unless_it_says_so() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let channel = channel_to(&[a.address]);
    get(&channel).await.unwrap();
    a.gate();
    let lost = tokio::spawn({
        let channel = channel.clone();
        async move { submit(&channel).await }
    });
    eventually(PATIENCE, || async { a.calls() == 2 }).await;
    a.kill();
    let error = from_status(lost.await.unwrap().unwrap_err());
    assert_eq!((error.code(), error.reason()), (ErrorCode::Unavailable, "CONNECTION_LOST"));

    let c = Replica::start("c").await;
    let channel = channel_to(&[c.address, b.address]);
    all_answer(&channel, 2).await;
    c.gate();
    b.gate();
    let before = c.calls();
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let mut request = Request::new(SubmitJobRequest::default());
            request.extensions_mut().insert(Repeatable);
            let mut client = JobServiceClient::new(channel.clone());
            tokio::spawn(async move { client.submit_job(request).await })
        })
        .collect();
    eventually(PATIENCE, || async { c.calls() > before }).await;
    c.kill();
    b.open_gate();
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_drain_one_after_the_other_under_load_cost_no_call() {
    let mut replicas = vec![Replica::start("0").await, Replica::start("1").await];
    let channel = channel_to(&[replicas[0].address, replicas[1].address]);
    all_answer(&channel, 2).await;
    let load = Load::start(&channel, 16);
    for round in 0..10 {
        let old = replicas.remove(0);
        let (address, calls) = (old.address, old.calls());
        eventually(PATIENCE, || async { old.calls() > calls + 20 }).await;
        old.drain().await;
        let new = Replica::start_at(&round.to_string(), address).await;
        replicas.push(new);
    }
    let (good, failed) = load.stop().await;
    assert!(failed.is_empty(), "{} of {good} failed: {:?}", failed.len(), failed[0]);
    assert!(good > 200, "only {good} calls");
}

/// The only replica restarts: calls wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_absence_of_all_is_waited_for() {
    let only = Replica::start("first").await;
    let (address, channel) = (only.address, channel_to(&[only.address]));
    get(&channel).await.unwrap();
    only.drain().await;
    let waiting = tokio::spawn({
        let channel = channel.clone();
        async move { submit(&channel).await }
    });
    tokio::task::yield_now().await;
    let _again = Replica::start_at("second", address).await;
    assert_eq!(waiting.await.unwrap().unwrap(), "second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_not_ready_passes_its_calls_on() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    // Nobody waits for what is there and says no: a call that did would take this long.
    let config = ChannelConfig { connect_timeout_ms: 10_000, ..config(&[a.address, b.address]) };
    let channel = channel(&config).unwrap();
    all_answer(&channel, 2).await;
    a.behaviour.unready.store(true, Ordering::SeqCst);
    for _ in 0..100 {
        assert_eq!(submit(&channel).await.unwrap(), "b");
    }
    b.behaviour.unready.store(true, Ordering::SeqCst);
    let began = Instant::now();
    assert_eq!(submit(&channel).await.unwrap_err().message(), "not yet");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_dead_is_said_soon() {
    let config = ChannelConfig { connect_timeout_ms: 3_000, ..config(&[dead_address(), dead_address()]) };
    let channel = channel(&config).unwrap();
    for limit_ms in [10_000, 2_000] {
        let began = Instant::now();
        let error = from_status(get(&channel).await.unwrap_err());
        assert_eq!((error.code(), error.reason()), (ErrorCode::Unavailable, "SERVICE_UNAVAILABLE"));
        assert!(error.retry_after_hint().is_some());
        // Once it is known, the next is told at once.
        assert!(began.elapsed() < Duration::from_millis(limit_ms), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_name_stands_for_may_change() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let names: Arc<Mutex<Vec<SocketAddr>>> = Arc::new(Mutex::new(vec![a.address]));
    let resolver = Resolver::new({
        let names = Arc::clone(&names);
        move |host: String, _| {
            let found = names.lock().unwrap().clone();
            async move {
                if host == "job.test" && !found.is_empty() {
                    Ok(found)
                } else {
                    Err(io::ErrorKind::NotFound.into())
                }
            }
        }
    });
    let config = ChannelConfig { resolve_interval_ms: 500, ..ChannelConfig::to("http://job.test:7103") };
    let channel = Channel::builder(&config).resolver(resolver).build().unwrap();
    assert_eq!(spread(&channel, 10).await.into_keys().collect::<Vec<_>>(), ["a"]);
    // One more replica is found by itself.
    names.lock().unwrap().push(b.address);
    all_answer(&channel, 2).await;
    // One that left gets nothing, although it could still be called.
    *names.lock().unwrap() = vec![b.address];
    eventually(PATIENCE, || async { !spread(&channel, 20).await.contains_key("a") }).await;
    // A name that can't be resolved for a while leaves things as they were.
    names.lock().unwrap().clear();
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(spread(&channel, 10).await.into_keys().collect::<Vec<_>>(), ["b"]);
    // Replaced by one elsewhere, as a container is.
    let c = Replica::start("c").await;
    *names.lock().unwrap() = vec![c.address];
    b.drain().await;
    assert_eq!(submit(&channel).await.unwrap(), "c");
}

/// Passes connections on until it is told to freeze: then nothing moves and nothing closes, as with a stopped process.
struct Proxy {
    address: SocketAddr,
    frozen: tokio::sync::watch::Sender<bool>,
}

impl Proxy {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let frozen = tokio::sync::watch::Sender::new(false);
        let state = frozen.subscribe();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(target).await.unwrap();
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(pass(from_client, to_server, state.clone()));
                tokio::spawn(pass(from_server, to_client, state.clone()));
            }
        });
        Self { address, frozen }
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut frozen: tokio::sync::watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if frozen.wait_for(|frozen| !frozen).await.is_err() || to.write_all(&buffer[..length]).await.is_err()
        {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_replica_is_found_out() {
    let (a, b) = (Replica::start("a").await, Replica::start("b").await);
    let proxy = Proxy::to(a.address).await;
    let config = ChannelConfig {
        // Long enough that a replica that only has to wait for a processor is not taken for a frozen one.
        keep_alive_interval_ms: 1_000,
        keep_alive_timeout_ms: 1_500,
        connect_timeout_ms: 5_000,
        ..config(&[proxy.address, b.address])
    };
    let channel = channel(&config).unwrap();
    all_answer(&channel, 2).await;
    // What the machine stood still for is neither replica's doing.
    let lag = LagMeter::start();
    let took = |began: Instant| {
        let ended = Instant::now();
        (ended - began).saturating_sub(lag.worst(began, ended))
    };
    proxy.frozen.send_replace(true);
    let began = Instant::now();
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let channel = channel.clone();
            tokio::spawn(async move { get(&channel).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), "b");
    }
    assert!(took(began) < Duration::from_secs(10), "{:?}", began.elapsed());
    // From now on it gets none, although its port still takes connections.
    for _ in 0..100 {
        let began = Instant::now();
        assert_eq!(submit(&channel).await.unwrap(), "b");
        assert!(took(began) < Duration::from_secs(1), "{:?}", began.elapsed());
    }
    proxy.frozen.send_replace(false);
    all_answer(&channel, 2).await;
}

/// Channels are used from runtimes that come and go (each thread of the gateway has one).
#[test]
fn a_channel_outlives_the_runtime_of_a_caller() {
    let home = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (channel, _a) = home.block_on(async {
        let a = Replica::start("a").await;
        (channel_to(&[a.address]), a)
    });
    for _ in 0..3 {
        let visitor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert_eq!(visitor.block_on(get(&channel)).unwrap(), "a");
    }
}
