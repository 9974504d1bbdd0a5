//! Who did it, to whom and about whom can't be rewritten in the rows that people read.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gatehouse_audit::MIGRATIONS;
use gatehouse_audit::domain::verify::{Persons, Report, Verdict};
use gatehouse_audit::verify_log::{ExitCode, Trust};
use gatehouse_core::ids::PersonId;
use gatehouse_db::{Engine, Sql, Value, params, read_tx, run_tx, sql};
use gatehouse_proto::audit::v1::{EraseSubjectRequest, GetEventRequest, NewEvent};
use gatehouse_testkit::{TestDb, both_engines, eventually};
use world::{Replica, World, append};

sql! {
    SET_ACTOR = "UPDATE audit_logs SET actor = $1 WHERE log = 'default' AND seq = 1";
    SET_TARGET = "UPDATE audit_logs SET target = $1 WHERE log = 'default' AND seq = 1";
    SET_SUBJECT = "UPDATE audit_logs SET subject_id = $1 WHERE log = 'default' AND seq = 1";
    NO_SUBJECT = "UPDATE audit_logs SET subject_id = NULL WHERE log = 'default' AND seq = 1";
    SET_REQUEST = "UPDATE audit_logs SET request_id = $1 WHERE log = 'default' AND seq = 1";
    NAMING = "SELECT seq FROM audit_logs WHERE actor = $1 OR target = $2 OR subject_id = $3 ORDER BY seq";
    LOCK_TILES = "LOCK TABLE audit_tiles IN EXCLUSIVE MODE";
    WAITS_FOR_TILES = "SELECT COUNT(*) AS waiting FROM pg_locks
        WHERE NOT granted AND relation = CAST('audit_tiles' AS regclass)";
    WAITS_FOR_ROW = "SELECT COUNT(*) AS waiting FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'";
    SET_LAST_ACTOR = "UPDATE audit_logs SET actor = $1 WHERE log = 'default' AND seq = 3";
    LEAF = "SELECT leaf FROM audit_events WHERE log = 'default' AND seq = $1";
    LAST_IDS = "SELECT request_id, trace_id FROM audit_logs WHERE log = 'default' AND seq = 3";
    SET_LAST_REQUEST = "UPDATE audit_logs SET request_id = $1 WHERE log = 'default' AND seq = 3";
    SET_TRACE = "UPDATE audit_logs SET trace_id = $1 WHERE log = 'default' AND seq = 1";
}

struct Scene {
    world: World,
    replica: Replica,
    trust: Trust,
    ada: PersonId,
    bob: PersonId,
    request: String,
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Bob did something, then Ada something about herself to Bob, then the platform.
async fn scene(db: TestDb) -> Scene {
    let world = World::new(db);
    let replica = world.replica().await;
    let (ada, bob, request) = (world.person(), world.person(), world.person().to_string());
    let event =
        || NewEvent { request_id: request.clone(), trace_id: TRACE.into(), ..world.event("test.things.do") };
    let events = vec![
        NewEvent { actor: bob.to_string(), ..event() },
        NewEvent { actor: ada.to_string(), target: format!("person/{bob}"), ..event() },
        NewEvent { payload_json: String::new(), ..world.event("test.things.do") },
    ];
    append(&mut world.emitter(&replica, "job"), events).await;
    let trust = world.keep_checkpoint(&replica).await;
    Scene { world, replica, trust, ada, bob, request }
}

impl Scene {
    async fn run(&self, sql: &Sql, values: Vec<Value>) {
        let changed = run_tx!(&*self.world.db, "test.tamper", |tx| { tx.execute(sql, values.clone()).await });
        assert_eq!(changed.unwrap(), 1, "{} changed nothing", sql.name());
    }

    async fn with_keys(&self) -> Report {
        self.world.verify(&self.world.with_subjects(&self.trust)).await
    }

    async fn is_verified(&self) {
        let report = self.with_keys().await;
        assert_eq!(report.verdict, Verdict::Verified { proven: 3 });
        assert_eq!(report.persons, Persons::Compared { unknown: 0, nameless: 0 });
        assert_eq!(ExitCode::from(&report), ExitCode::Verified);
        assert!(report.notes.is_empty(), "{:?}", report.notes);
    }

    async fn is_broken(&self, what: &str) {
        let report = self.with_keys().await;
        assert!(matches!(report.verdict, Verdict::Broken { entry: 1, .. }), "{what}: {report:?}");
    }
}

both_engines! {
    migrations: MIGRATIONS;

    async fn without_the_keys_the_verdict_says_that_persons_were_not_compared(db: TestDb) {
        let scene = scene(db).await;
        scene.is_verified().await;
        let report = scene.world.verify(&scene.trust).await;
        assert_eq!((report.persons, ExitCode::from(&report)), (Persons::NotCompared, ExitCode::Verified));
        assert!(report.notes.iter().any(|note| note.starts_with("persons not compared")), "{:?}", report.notes);
        scene.replica.stop().await;
    }

    async fn another_person_in_a_row_is_found(db: TestDb) {
        let scene = scene(db).await;
        let (ada, bob) = (scene.ada, scene.bob);
        scene.run(&SET_ACTOR, params![bob.to_string()]).await;
        scene.is_broken("another actor").await;
        // Without a key nothing shows that it is not she.
        scene.run(&SET_ACTOR, params![scene.world.person().to_string()]).await;
        let report = scene.with_keys().await;
        assert_eq!(report.persons, Persons::Compared { unknown: 1, nameless: 0 });
        assert_eq!(ExitCode::from(&report), ExitCode::NotProven, "{report:?}");
        scene.run(&SET_ACTOR, params![ada.to_string()]).await;
        scene.is_verified().await;

        scene.run(&SET_TARGET, params![format!("person/{ada}")]).await;
        scene.is_broken("another target").await;
        scene.run(&SET_TARGET, params![format!("person/{bob}")]).await;

        scene.run(&SET_SUBJECT, params![bob]).await;
        scene.is_broken("another subject").await;
        scene.run(&NO_SUBJECT, params![]).await;
        scene.is_broken("no subject").await;
        scene.run(&SET_SUBJECT, params![ada]).await;
        scene.is_verified().await;
        scene.replica.stop().await;
    }

    /// What an erasure would leave, where nobody was erased.
    async fn who_is_taken_out_of_the_rows_is_missed(db: TestDb) {
        let scene = scene(db).await;
        let rows = async |sql, person: PersonId| {
            let values = params![person.to_string(), format!("person/{person}"), person];
            run_tx!(&*scene.world.db, "test.rows", |tx| { tx.fetch_optional(sql, values.clone()).await }).unwrap()
        };
        let leaf = async |seq: i64| {
            let leaf = run_tx!(&*scene.world.db, "test.leaf", |tx| {
                tx.fetch_one(&LEAF, params![seq]).await?.get::<Vec<u8>>("leaf")
            });
            serde_json::from_slice::<serde_json::Value>(&leaf.unwrap()).unwrap()
        };
        let (first, second) = (leaf(0).await, leaf(1).await);
        let name = |leaf: &serde_json::Value, member: &str| leaf[member].as_str().unwrap().to_owned();

        // One of them in one row: others still name her.
        scene.run(&SET_ACTOR, params![name(&second, "actor")]).await;
        scene.is_broken("the actor as a pseudonym").await;
        scene.run(&SET_ACTOR, params!["person:erased"]).await;
        scene.is_broken("the actor as erased").await;
        scene.run(&SET_ACTOR, params![scene.ada.to_string()]).await;
        scene.run(&SET_TARGET, params![name(&second, "target")]).await;
        scene.is_broken("the target as a pseudonym").await;
        scene.run(&SET_TARGET, params![format!("person/{}", scene.bob)]).await;
        scene.is_verified().await;

        // Ada in all of them: what was sealed with her key tells.
        scene.run(&SET_ACTOR, params![name(&second, "actor")]).await;
        scene.run(&NO_SUBJECT, params![]).await;
        assert!(rows(&NAMING, scene.ada).await.is_none());
        scene.is_broken("all of Ada").await;
        scene.run(&SET_ACTOR, params![scene.ada.to_string()]).await;
        scene.run(&SET_SUBJECT, params![scene.ada]).await;
        scene.is_verified().await;

        // Somebody who acted only, upon somebody else: their own part of the payload tells.
        assert_eq!(name(&first, "outcome"), "success");
        let (eve, carl) = (scene.world.person(), scene.world.person());
        let event = NewEvent {
            actor: eve.to_string(),
            subject_id: carl.to_string(),
            actor_json: r#"{"ip":"192.0.2.2"}"#.into(),
            ..scene.world.event("test.things.do")
        };
        append(&mut scene.world.emitter(&scene.replica, "job"), vec![event]).await;
        scene.run(&SET_LAST_ACTOR, params![name(&leaf(3).await, "actor")]).await;
        let report = scene.with_keys().await;
        assert!(matches!(report.verdict, Verdict::Broken { entry: 3, .. }), "{report:?}");
        scene.replica.stop().await;
    }

    async fn another_request_or_trace_is_found(db: TestDb) {
        let scene = scene(db).await;
        for other in [scene.world.person().to_string(), "hand-made".to_owned()] {
            scene.run(&SET_REQUEST, params![other]).await;
            scene.is_broken("another request").await;
            // The leaf itself has it.
            let report = scene.world.verify(&scene.trust).await;
            assert_eq!(ExitCode::from(&report), ExitCode::Broken);
        }
        scene.run(&SET_REQUEST, params![&scene.request]).await;
        scene.run(&SET_TRACE, params!["00000000000000000000000000000001"]).await;
        scene.is_broken("another trace").await;
        scene.run(&SET_TRACE, params![TRACE]).await;
        scene.is_verified().await;
        scene.replica.stop().await;
    }

    /// It may be a name, a number, or a part of a credential.
    async fn an_id_of_the_callers_own_is_sealed(db: TestDb) {
        let scene = scene(db).await;
        let (world, own) = (&scene.world, "ada.lovelace-4111111111111111");
        let tenant = world.tenant();
        let event = NewEvent {
            actor: scene.ada.to_string(),
            tenant_id: tenant.to_string(),
            request_id: own.into(),
            trace_id: "of-ada".into(),
            ..world.event("test.things.do")
        };
        let id = event.event_id.clone();
        append(&mut world.emitter(&scene.replica, "job"), vec![event]).await;
        let row = read_tx!(&*world.db, "test.row", |tx| { tx.fetch_one(&LAST_IDS, params![]).await }).unwrap();
        let ids = ["request_id", "trace_id"].map(|column| row.get::<Option<String>>(column).unwrap());
        assert_eq!(ids, [None, None]);
        let trust = world.with_subjects(&world.keep_checkpoint(&scene.replica).await);
        let report = world.verify(&trust).await;
        assert_eq!(ExitCode::from(&report), ExitCode::Verified, "{report:?}");
        let get = || GetEventRequest { event_id: id.clone() };
        let mut reader = world.reader(&scene.replica, tenant);
        let shown = reader.get_event(get()).await.unwrap().into_inner();
        assert_eq!(shown.event.unwrap().request_id, own);
        // Rows of before have it in clear.
        scene.run(&SET_LAST_REQUEST, params![own]).await;
        let report = world.verify(&trust).await;
        assert_eq!(ExitCode::from(&report), ExitCode::Verified, "{report:?}");
        scene.run(&SET_LAST_REQUEST, params!["another"]).await;
        assert!(matches!(world.verify(&trust).await.verdict, Verdict::Broken { entry: 3, .. }));
        scene.run(&SET_LAST_REQUEST, params![None::<&str>]).await;

        let request = EraseSubjectRequest { subject_id: scene.ada.to_string() };
        world.operator(&scene.replica).erase_subject(request).await.unwrap();
        let shown = reader.get_event(get()).await.unwrap().into_inner().event.unwrap();
        assert_eq!((shown.request_id.as_str(), shown.erased), ("", true));
        scene.replica.stop().await;
    }

    async fn an_erased_person_is_no_damage(db: TestDb) {
        let scene = scene(db).await;
        let request = EraseSubjectRequest { subject_id: scene.ada.to_string() };
        scene.world.operator(&scene.replica).erase_subject(request).await.unwrap();
        let report = scene.with_keys().await;
        // Her own entry, and that of the erasure.
        assert_eq!(report.persons, Persons::Compared { unknown: 0, nameless: 2 });
        assert_eq!(report.verdict, Verdict::Verified { proven: 3 });
        assert!(report.notes.iter().any(|note| note.starts_with("2 rows, the first of entry 1")), "{:?}", report.notes);
        assert_eq!(ExitCode::from(&report), ExitCode::Verified);
        scene.replica.stop().await;
    }

    /// Events of hers arrive at two replicas all the while.
    async fn who_is_erased_while_their_events_arrive_is_named_nowhere(db: TestDb) {
        let world = World::new(db);
        let (one, two) = (world.replica().await, world.replica().await);
        for _ in 0..3 {
            let ada = world.person();
            let done = Arc::new(AtomicBool::new(false));
            let storm: Vec<_> = (0..6)
                .map(|number| {
                    let mut client = world.emitter(if number % 2 == 0 { &one } else { &two }, "job");
                    let done = Arc::clone(&done);
                    let events: Vec<NewEvent> = (0..400)
                        .map(|number| match number % 3 {
                            0 => NewEvent { actor: ada.to_string(), ..world.event("test.things.do") },
                            1 => NewEvent { target: format!("person/{ada}"), ..world.event("test.things.do") },
                            _ => NewEvent { subject_id: ada.to_string(), ..world.event("test.things.do") },
                        })
                        .collect();
                    tokio::spawn(async move {
                        let mut sent = 0;
                        for events in events.chunks(2) {
                            append(&mut client, events.to_vec()).await;
                            sent += 1;
                            if done.load(Ordering::Relaxed) {
                                break;
                            }
                        }
                        sent
                    })
                })
                .collect();
            eventually(Duration::from_secs(20), || async { !rows_of(&world, ada).await.is_empty() }).await;
            let request = EraseSubjectRequest { subject_id: ada.to_string() };
            world.operator(&one).erase_subject(request).await.unwrap();
            done.store(true, Ordering::Relaxed);
            for task in storm {
                // Otherwise nothing arrived while she was erased.
                assert!(task.await.unwrap() < 200);
            }
            assert_eq!(rows_of(&world, ada).await, Vec::<i64>::new());
        }
        let trust = world.keep_checkpoint(&one).await;
        let report = world.verify(&world.with_subjects(&trust)).await;
        assert!(matches!(report.persons, Persons::Compared { unknown: 0, nameless: 1.. }), "{report:?}");
        assert_eq!(ExitCode::from(&report), ExitCode::Verified, "{report:?}");
        one.stop().await;
        two.stop().await;
    }

    /// An append that looked for the mark just before it was made: the erasure waits for it. (SQLite has one writer at
    /// a time anyway.)
    async fn an_erasure_waits_for_what_is_being_appended(db: TestDb) {
        if db.engine() == Engine::Sqlite {
            return;
        }
        let world = World::new(db);
        let (one, two) = (world.replica().await, world.replica().await);
        let ada = world.person();
        let event = NewEvent { actor: ada.to_string(), ..world.event("test.things.do") };
        append(&mut world.emitter(&one, "job"), vec![event]).await;
        let (emitter, operator) = (world.emitter(&one, "job"), world.operator(&two));
        let (appending, erasing) = run_tx!(&*world.db, "test.hold", |tx| {
            // An append stores its tiles last, long after it has looked.
            tx.execute(&LOCK_TILES, params![]).await?;
            let (mut emitter, mut operator) = (emitter.clone(), operator.clone());
            let event = NewEvent { actor: ada.to_string(), ..world.event("test.things.do") };
            let appending = tokio::spawn(async move { append(&mut emitter, vec![event]).await });
            waits(&world, &WAITS_FOR_TILES).await;
            let request = EraseSubjectRequest { subject_id: ada.to_string() };
            let erasing = tokio::spawn(async move { operator.erase_subject(request).await.unwrap() });
            waits(&world, &WAITS_FOR_ROW).await;
            Ok((appending, erasing))
        })
        .unwrap();
        appending.await.unwrap();
        erasing.await.unwrap();
        assert_eq!(rows_of(&world, ada).await, Vec::<i64>::new());
        one.stop().await;
        two.stop().await;
    }
}

/// Returns once a transaction waits as `sql` counts.
async fn waits(world: &World, sql: &Sql) {
    eventually(Duration::from_secs(20), || async {
        let row = read_tx!(&*world.db, "test.waits", |tx| { tx.fetch_one(sql, params![]).await }).unwrap();
        row.get::<i64>("waiting").unwrap() > 0
    })
    .await;
}

/// The entries whose rows name `person`.
async fn rows_of(world: &World, person: PersonId) -> Vec<i64> {
    let values = params![person.to_string(), format!("person/{person}"), person];
    let rows =
        run_tx!(&*world.db, "test.rows", |tx| { tx.fetch_all(&NAMING, values.clone()).await }).unwrap();
    rows.iter().map(|row| row.get("seq").unwrap()).collect()
}
