//! Group commit, replicas, idempotence, crashes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gatehouse_audit::domain::verify::Verdict;
use gatehouse_audit::verify_log::{Trust, verify_database};
use gatehouse_audit::{LogConfig, MIGRATIONS, all_sql};
use gatehouse_core::{Clock, Entropy};
use gatehouse_db::run_tx;
use gatehouse_outbox::{Config as RelayConfig, MIGRATION as OUTBOX, Outbox, Relay, Status};
use gatehouse_proto::audit::v1::{AppendEventsRequest, ListEventsRequest, NewEvent};
use gatehouse_testkit::{TestDb, both_engines, eventually};
use serde_json::json;
use world::{World, append};

/// Appends from many tasks at once; returns the place of each event.
async fn storm(
    world: &World,
    clients: Vec<world::AuditClient>,
    each: usize,
    batch: usize,
) -> BTreeMap<i64, String> {
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            let batches: Vec<Vec<NewEvent>> =
                (0..each).map(|_| (0..batch).map(|_| world.event("test.things.do")).collect()).collect();
            tokio::spawn(async move {
                let mut places = Vec::new();
                for events in batches {
                    places.extend(append(&mut client, events).await);
                }
                places
            })
        })
        .collect();
    let mut places = BTreeMap::new();
    for task in tasks {
        for place in task.await.unwrap() {
            assert!(places.insert(place.index, place.event_id).is_none(), "two events at one place");
        }
    }
    places
}

fn is_contiguous(places: &BTreeMap<i64, String>) -> bool {
    places.keys().copied().eq(0..i64::try_from(places.len()).unwrap())
}

both_engines! {
    migrations: MIGRATIONS;

    async fn every_statement_prepares(db: TestDb) {
        db.prepare_all(&all_sql()).await.unwrap();
    }

    async fn group_commit_gives_contiguous_numbers_and_a_chain_that_verifies(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        let clients = (0..8).map(|_| world.emitter(&replica, "job")).collect();
        let places = storm(&world, clients, 12, 3).await;
        assert_eq!(places.len(), 288);
        assert!(is_contiguous(&places));
        let trust = world.keep_checkpoint(&replica).await;
        assert_eq!(world.verify(&trust).await.verdict, Verdict::Verified { proven: 288 });
        assert_eq!(world.verify(&Trust::default()).await.verdict, Verdict::TailNotProven);
        replica.stop().await;
    }

    async fn two_replicas_on_one_database_do_not_fork(db: TestDb) {
        let world = World::new(db);
        let (one, two) = (world.replica().await, world.replica().await);
        let clients = (0..8).map(|i| world.emitter(if i % 2 == 0 { &one } else { &two }, "job")).collect();
        let places = storm(&world, clients, 10, 2).await;
        assert_eq!(places.len(), 160);
        assert!(is_contiguous(&places));
        let (first, second) = (world.keep_checkpoint(&one).await, world.keep_checkpoint(&two).await);
        assert_eq!(first.checkpoints, second.checkpoints);
        assert_eq!(world.verify(&first).await.verdict, Verdict::Verified { proven: 160 });
        one.stop().await;
        two.stop().await;
    }

    async fn an_event_is_taken_once(db: TestDb) {
        let world = World::new(db);
        let (one, two) = (world.replica().await, world.replica().await);
        let events: Vec<NewEvent> = (0..20).map(|_| world.event("test.things.do")).collect();
        // The same events from both sides at once, some of them twice in one call.
        let twice: Vec<NewEvent> = events.iter().chain(&events[5..10]).cloned().collect();
        let (mut left, mut right) = (world.emitter(&one, "job"), world.emitter(&two, "job"));
        let (a, b) = tokio::join!(append(&mut left, events.clone()), append(&mut right, twice));
        assert_eq!(a, b[..20]);
        assert_eq!(b[20..], b[5..10]);
        assert_eq!(append(&mut left, events).await, a);
        let report = world.verify(&Trust::default()).await;
        assert_eq!((report.size, report.verdict), (20, Verdict::TailNotProven));
        one.stop().await;
        two.stop().await;
    }

    /// Entries are stored in groups; what is there already may stand anywhere in one, and takes no place again.
    async fn of_a_batch_only_what_is_new_is_added(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        let mut client = world.emitter(&replica, "job");
        let mut known: Vec<NewEvent> = Vec::new();
        let mut places = BTreeMap::new();
        for more in [1, 2, 63, 64, 65, 200] {
            let mut events: Vec<NewEvent> = (0..more).map(|_| world.event("test.things.do")).collect();
            let added = events.clone();
            for (at, event) in known.iter().enumerate().step_by(7) {
                events.insert(events.len() * at / known.len(), event.clone());
            }
            for (event, place) in events.iter().zip(append(&mut client, events.clone()).await) {
                assert_eq!(event.event_id, place.event_id);
                assert_eq!(*places.entry(place.event_id).or_insert(place.index), place.index);
            }
            known.extend(added);
        }
        let in_order: Vec<i64> = known.iter().map(|event| places[&event.event_id]).collect();
        assert!(in_order.into_iter().eq(0..395));
        let trust = world.keep_checkpoint(&replica).await;
        assert_eq!(world.verify(&trust).await.verdict, Verdict::Verified { proven: 395 });
        replica.stop().await;
    }

    /// Two logs may be asked for the same events at the same time; each then stands in one of them.
    async fn an_event_is_in_one_log_only(db: TestDb) {
        let mut world = World::new(db);
        world.config.logs = vec![LogConfig { name: "long".into(), days: 365 }];
        let (one, two) = (world.replica().await, world.replica().await);
        for _ in 0..10 {
            let events: Vec<NewEvent> = (0..30).map(|_| world.event("test.things.do")).collect();
            let to_long = |event: &NewEvent| NewEvent { retention_class: "long".into(), ..event.clone() };
            let own = world.event("test.things.do");
            let longer = events.iter().skip(10).chain([&own]).map(to_long).collect();
            let (mut left, mut right) = (world.emitter(&one, "job"), world.emitter(&two, "job"));
            let (a, b) = tokio::join!(append(&mut left, events.clone()), append(&mut right, longer));
            assert_eq!(a[10..], b[..20]);
            assert_eq!(b[20].log, "long");
        }
        for log in ["default", "long"] {
            let report = verify_database(&world.db, log, &Trust::default()).await.unwrap();
            assert_eq!(report.verdict, Verdict::TailNotProven, "{log}");
        }
        one.stop().await;
        two.stop().await;
    }

    async fn a_crash_between_commit_and_answer_neither_loses_nor_doubles(db: TestDb) {
        let world = World::new(db);
        let mut sent: Vec<NewEvent> = Vec::new();
        let mut answered = BTreeMap::new();
        for round in 0..12_u64 {
            sent.extend((0..5).map(|_| world.event("test.things.do")));
            // A process of its own, as far as tasks go: it is torn down at some point of the commit.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let crashing = world.replica_in(&runtime).await;
            let mut client = world.emitter(&crashing, "job");
            let request = AppendEventsRequest { events: sent.clone() };
            let call = tokio::spawn(async move { client.append_events(request).await });
            tokio::time::sleep(Duration::from_micros(round * 1_500)).await;
            runtime.shutdown_background();
            if let Ok(Ok(Ok(answer))) = tokio::time::timeout(Duration::from_secs(5), call).await {
                answered.extend(answer.into_inner().events.into_iter().map(|place| (place.event_id, place.index)));
            }
        }
        let replica = world.replica().await;
        let places = append(&mut world.emitter(&replica, "job"), sent.clone()).await;
        for place in &places {
            // What was answered once stays true.
            assert_eq!(answered.get(&place.event_id).unwrap_or(&place.index), &place.index);
        }
        let report = world.verify(&Trust::default()).await;
        assert_eq!((report.size, report.verdict), (60, Verdict::TailNotProven));
        replica.stop().await;
    }

    async fn a_caller_who_goes_away_changes_nothing(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        let events: Vec<NewEvent> = (0..50).map(|_| world.event("test.things.do")).collect();
        for event in &events {
            let mut client = world.emitter(&replica, "job");
            let request = AppendEventsRequest { events: vec![event.clone()] };
            // Dropped after a time that grows from nothing to longer than a call takes.
            let _ = tokio::time::timeout(Duration::from_micros(200), client.append_events(request)).await;
        }
        assert_eq!(append(&mut world.emitter(&replica, "job"), events).await.len(), 50);
        let report = world.verify(&Trust::default()).await;
        assert_eq!((report.size, report.verdict), (50, Verdict::TailNotProven));
        replica.stop().await;
    }

    async fn the_relay_brings_everything_once_though_the_service_was_away(db: TestDb) {
        let world = World::new(db);
        let outbox_migrations = gatehouse_db::Migrations::new(&[("0001_init", OUTBOX)]);
        let emitting = match world.db.engine() {
            gatehouse_db::Engine::Sqlite => TestDb::sqlite(&outbox_migrations).await,
            gatehouse_db::Engine::Postgres => TestDb::postgres(&outbox_migrations).await,
        };
        let outbox = Outbox::new(Clock::system(), Entropy::system());
        let replica = world.replica().await;
        let address = replica.address;
        let lifecycle = gatehouse_service::Lifecycle::new();
        let config = RelayConfig { batch: 10, poll_ms: 20, max_backoff_ms: 50, ..RelayConfig::default() };
        let relays: Vec<Relay> = [emitting.db().clone(), emitting.another_replica().await]
            .into_iter()
            .map(|db| {
                let audit = world.emitter_channel(address, "job");
                let relay =
                    Relay::new("job", db, audit, &outbox, config.clone(), Clock::system(), Entropy::system());
                relay.clone().start(&lifecycle);
                relay
            })
            .collect();
        let tenant = world.tenant();
        let mut replica = Some(replica);
        for round in 0..4 {
            if let Some(running) = replica.take() {
                running.stop().await;
            } else {
                replica = Some(world.replica_on(world.db.another_replica().await, address).await);
            }
            for number in 0..15 {
                let event = outbox
                    .event("job.jobs.submit")
                    .tenant(tenant)
                    .target_named("round", &format!("r{round}.{number}"))
                    .payload(json!({"number": number}));
                run_tx!(emitting.db(), "test.emit", |tx| { outbox.emit(tx, &event).await }).unwrap();
            }
        }
        let replica = match replica {
            Some(running) => running,
            None => world.replica_on(world.db.another_replica().await, address).await,
        };
        eventually(Duration::from_secs(30), || async { relays[0].status().await.unwrap() == Status::default() }).await;
        assert!(lifecycle.drain(Duration::from_secs(10)).await);
        let request = ListEventsRequest { page_size: 200, ..ListEventsRequest::default() };
        let events = world.reader(&replica, tenant).list_events(request).await.unwrap().into_inner().events;
        let targets: Vec<String> = events.into_iter().rev().map(|event| event.target).collect();
        let expected: Vec<String> =
            (0..4).flat_map(|round| (0..15).map(move |number| format!("round/r{round}.{number}"))).collect();
        assert_eq!(targets, expected);
        let trust = world.keep_checkpoint(&replica).await;
        assert_eq!(world.verify(&trust).await.verdict, Verdict::Verified { proven: 60 });
        replica.stop().await;
    }

    /// The whole way: a subject's key file is damaged, and the events of all others arrive.
    async fn a_damaged_key_holds_up_the_events_of_its_subject_only(db: TestDb) {
        let world = World::new(db);
        let outbox_migrations = gatehouse_db::Migrations::new(&[("0001_init", OUTBOX)]);
        let emitting = match world.db.engine() {
            gatehouse_db::Engine::Sqlite => TestDb::sqlite(&outbox_migrations).await,
            gatehouse_db::Engine::Postgres => TestDb::postgres(&outbox_migrations).await,
        };
        let replica = world.replica().await;
        let (tenant, ada) = (world.tenant(), world.person());
        // The only person's key so far, and so the only file.
        append(&mut world.emitter(&replica, "job"), vec![NewEvent { actor: ada.to_string(), ..world.event("test.a") }]).await;
        let folders = std::fs::read_dir(&world.config.subject_keys_dir).unwrap();
        let keys: Vec<_> = folders
            .map(|place| place.unwrap().path())
            .filter(|place| place.is_dir())
            .flat_map(|folder| std::fs::read_dir(folder).unwrap())
            .map(|file| file.unwrap().path())
            .collect();
        assert_eq!(keys.len(), 1, "{keys:?}");
        let sound = std::fs::read(&keys[0]).unwrap();
        std::fs::write(&keys[0], "damaged").unwrap();
        replica.stop().await;
        // Another process, which has not read the key yet.
        let replica = world.replica().await;

        let outbox = Outbox::new(Clock::system(), Entropy::system());
        for number in 0..6 {
            let event = outbox.event("test.things.do").tenant(tenant).target_named("number", &format!("n{number}"));
            let event = if number % 3 == 0 { event.by_person(ada) } else { event };
            run_tx!(emitting.db(), "test.emit", |tx| { outbox.emit(tx, &event).await }).unwrap();
        }
        let lifecycle = gatehouse_service::Lifecycle::new();
        let config = RelayConfig { poll_ms: 20, max_backoff_ms: 50, ..RelayConfig::default() };
        let audit = world.emitter_channel(replica.address, "job");
        let db = emitting.db().clone();
        let relay = Relay::new("job", db, audit, &outbox, config, Clock::system(), Entropy::system());
        relay.clone().start(&lifecycle);
        let arrived = async || {
            let request = ListEventsRequest { page_size: 200, ..ListEventsRequest::default() };
            world.reader(&replica, tenant).list_events(request).await.unwrap().into_inner().events.len()
        };
        eventually(Duration::from_secs(20), || async { arrived().await == 4 }).await;
        assert_eq!(relay.status().await.unwrap().waiting, 2);
        std::fs::write(&keys[0], sound).unwrap();
        eventually(Duration::from_secs(20), || async { arrived().await == 6 }).await;
        assert!(lifecycle.drain(Duration::from_secs(10)).await);
        assert_eq!(relay.status().await.unwrap(), Status::default());
        replica.stop().await;
    }

    /// Prints figures where `GATEHOUSE_BENCH` is set (with `--nocapture`).
    async fn how_many_appends_a_second(db: TestDb) {
        if std::env::var_os("GATEHOUSE_BENCH").is_none() {
            return;
        }
        let world = World::new(db);
        let replica = world.replica().await;
        for (clients, each, batch) in [(1, 50, 1), (16, 60, 1), (4, 20, 100)] {
            let started = Instant::now();
            let emitters = (0..clients).map(|_| world.emitter(&replica, "job")).collect::<Vec<_>>();
            let tasks: Vec<_> = emitters
                .into_iter()
                .map(|mut client| {
                    let batches: Vec<Vec<NewEvent>> =
                        (0..each).map(|_| (0..batch).map(|_| world.event("test.things.do")).collect()).collect();
                    tokio::spawn(async move {
                        for events in batches {
                            append(&mut client, events).await;
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            let events = clients * each * batch;
            eprintln!(
                "{}: {clients} clients, batches of {batch}: {:.0} events/s",
                world.db.engine(),
                f64::from(events) / started.elapsed().as_secs_f64()
            );
        }
        replica.stop().await;
    }
}
