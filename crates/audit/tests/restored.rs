//! A database that is restored from an older backup: what was signed of it is known outside of it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::path::{Path, PathBuf};
use std::time::Duration;

use gatehouse_audit::domain::checkpoint::Checkpoint;
use gatehouse_audit::domain::verify::{Fault, Verdict};
use gatehouse_audit::verify_log::Trust;
use gatehouse_audit::{LogConfig, MIGRATIONS};
use gatehouse_client::from_status;
use gatehouse_core::{Error, ErrorCode};
use gatehouse_db::{params, read_tx, run_tx, sql};
use gatehouse_proto::audit::v1::{AppendEventsRequest, GetCheckpointRequest, NewEvent};
use gatehouse_testkit::{TestDb, both_engines, eventually};
use world::{Replica, World, append};

sql! {
    KEEP_HEADS = "CREATE TABLE kept_heads AS SELECT * FROM audit_heads";
    KEEP_EVENTS = "CREATE TABLE kept_events AS SELECT * FROM audit_events";
    KEEP_ROWS = "CREATE TABLE kept_logs AS SELECT * FROM audit_logs";
    KEEP_TILES = "CREATE TABLE kept_tiles AS SELECT * FROM audit_tiles";
    KEEP_CHECKPOINTS = "CREATE TABLE kept_checkpoints AS SELECT * FROM audit_checkpoints";
    EMPTY_HEADS = "DELETE FROM audit_heads";
    EMPTY_EVENTS = "DELETE FROM audit_events";
    EMPTY_ROWS = "DELETE FROM audit_logs";
    EMPTY_TILES = "DELETE FROM audit_tiles";
    EMPTY_CHECKPOINTS = "DELETE FROM audit_checkpoints";
    RESTORE_HEADS = "INSERT INTO audit_heads SELECT * FROM kept_heads";
    RESTORE_EVENTS = "INSERT INTO audit_events SELECT * FROM kept_events";
    RESTORE_ROWS = "INSERT INTO audit_logs SELECT * FROM kept_logs";
    RESTORE_TILES = "INSERT INTO audit_tiles SELECT * FROM kept_tiles";
    RESTORE_CHECKPOINTS = "INSERT INTO audit_checkpoints SELECT * FROM kept_checkpoints";
    CUT = "UPDATE audit_heads SET size = 3";
    UNCUT = "UPDATE audit_heads SET size = 5";
    SIZE = "SELECT size FROM audit_heads WHERE log = 'default'";
    TILE = "SELECT hashes FROM audit_tiles WHERE log = 'default' AND level = 0";
    CHANGE_TILE = "UPDATE audit_tiles SET hashes = $1 WHERE log = 'default' AND level = 0";
    SIGN_AT_SIX = "INSERT INTO audit_checkpoints (log, size, signed_at, note) VALUES ('default', 6, 0, '')";
    GIVEN_UP = "SELECT COUNT(*) AS events FROM audit_logs WHERE action = 'audit.states.give_up'";
}

async fn log(world: &World, replica: &Replica, events: usize) {
    let events = (0..events).map(|_| world.event("test.things.do")).collect();
    append(&mut world.emitter(replica, "job"), events).await;
}

async fn back_up(world: &World) {
    run_tx!(&*world.db, "test.back_up", |tx| {
        for sql in [KEEP_HEADS, KEEP_EVENTS, KEEP_ROWS, KEEP_TILES, KEEP_CHECKPOINTS] {
            tx.execute(&sql, params![]).await?;
        }
        Ok(())
    })
    .unwrap();
}

async fn empty(world: &World) {
    run_tx!(&*world.db, "test.empty", |tx| {
        for sql in [EMPTY_HEADS, EMPTY_EVENTS, EMPTY_ROWS, EMPTY_TILES, EMPTY_CHECKPOINTS] {
            tx.execute(&sql, params![]).await?;
        }
        Ok(())
    })
    .unwrap();
}

async fn restore(world: &World) {
    empty(world).await;
    run_tx!(&*world.db, "test.restore", |tx| {
        for sql in [RESTORE_HEADS, RESTORE_EVENTS, RESTORE_ROWS, RESTORE_TILES, RESTORE_CHECKPOINTS] {
            tx.execute(&sql, params![]).await?;
        }
        Ok(())
    })
    .unwrap();
}

async fn refusal(world: &World) -> Error {
    match world.try_replica().await {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

async fn given_up(world: &World) -> i64 {
    read_tx!(&*world.db, "test.given_up", |tx| { tx.fetch_one(&GIVEN_UP, params![]).await?.get("events") })
        .unwrap()
}

async fn run(world: &World, sql: gatehouse_db::Sql) {
    run_tx!(&*world.db, "test.run", |tx| { tx.execute(&sql, params![]).await.map(drop) }).unwrap();
}

async fn size(world: &World) -> i64 {
    read_tx!(&*world.db, "test.size", |tx| { tx.fetch_one(&SIZE, params![]).await?.get("size") }).unwrap()
}

/// Why no event is taken.
async fn append_refused(world: &World, replica: &Replica) -> Error {
    let events = vec![world.event("test.things.do")];
    from_status(
        world.emitter(replica, "job").append_events(AppendEventsRequest { events }).await.unwrap_err(),
    )
}

/// Whether a state was signed just now.
async fn is_signed(world: &World, replica: &Replica) -> bool {
    let fresh = GetCheckpointRequest { log: String::new(), fresh: true };
    world.operator(replica).get_checkpoint(fresh).await.is_ok()
}

/// Changes one hash of the tree; changes it back the next time.
async fn change_tile(world: &World) {
    run_tx!(&*world.db, "test.tile", |tx| {
        let mut hashes: Vec<u8> = tx.fetch_one(&TILE, params![]).await?.get("hashes")?;
        hashes[0] ^= 1;
        tx.execute(&CHANGE_TILE, params![hashes]).await.map(drop)
    })
    .unwrap();
}

/// How often this process has `path` open.
fn opened(path: &Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    open.filter(|file| std::fs::read_link(file.as_ref().unwrap().path()).is_ok_and(|at| at == path)).count()
}

/// The file that says what was signed last.
fn state_file(world: &World) -> PathBuf {
    let folder = std::fs::read_dir(world.config.subject_keys_dir.join("signed")).unwrap();
    let mut files = folder.map(|file| file.unwrap().path());
    files.find(|path| path.extension().is_some_and(|extension| extension == "checkpoint")).unwrap()
}

/// The size in it.
fn state_in(file: &Path) -> u64 {
    Checkpoint::read_unsigned(&std::fs::read_to_string(file).unwrap()).unwrap().size
}

/// A log of 5 entries, signed at 3 and at 5, with a backup of 3 and what somebody kept at 5. The service has stopped.
async fn signed_beyond_its_backup(db: TestDb) -> (World, Trust) {
    let world = World::new(db);
    let replica = world.replica().await;
    log(&world, &replica, 3).await;
    world.keep_checkpoint(&replica).await;
    back_up(&world).await;
    log(&world, &replica, 2).await;
    let trust = world.keep_checkpoint(&replica).await;
    replica.stop().await;
    (world, trust)
}

both_engines! {
    migrations: MIGRATIONS;

    async fn a_log_with_fewer_entries_than_were_signed_is_refused(db: TestDb) {
        let (mut world, trust) = signed_beyond_its_backup(db).await;
        world.replica().await.stop().await;
        restore(&world).await;
        let error = refusal(&world).await;
        assert_eq!(error.reason(), "AUDIT_LOG_BEHIND");
        let signed = Checkpoint::read_unsigned(&trust.checkpoints[0]).unwrap();
        let state = format!("{} 5 {}", signed.origin, signed.root.to_base64());
        let text = error.to_string();
        for words in ["has 3 entries, and 5 were signed", &format!("audit.given_up_states = [\"{state}\"]")] {
            assert!(text.contains(words), "{text}");
        }
        assert!(text.contains(state_file(&world).to_str().unwrap()), "{text}");

        // An empty one is no other.
        empty(&world).await;
        assert_eq!(refusal(&world).await.reason(), "AUDIT_LOG_BEHIND");
        restore(&world).await;

        // On purpose: it goes on, says so, and later starts need no word any more.
        world.config.given_up_states = vec![state];
        let replica = world.replica().await;
        assert_eq!(given_up(&world).await, 1);
        let later = world.keep_checkpoint(&replica).await;
        replica.stop().await;
        world.config.given_up_states.clear();
        let replica = world.replica().await;
        assert_eq!(given_up(&world).await, 1);
        assert_eq!(world.verify(&later).await.verdict, Verdict::Verified { proven: 4 });
        // Whoever kept what was given up finds that it is gone.
        let report = world.verify(&trust).await;
        assert!(
            matches!(report.verdict, Verdict::Broken { fault: Fault::Missing { known_size: 5 }, .. }),
            "{report:?}"
        );
        replica.stop().await;
    }

    /// It was restored, and went on under a service that did not know, or was rewritten.
    async fn a_second_history_is_not_signed_and_takes_events(db: TestDb) {
        let (world, _) = signed_beyond_its_backup(db).await;
        let file = state_file(&world);
        let state = std::fs::read(&file).unwrap();
        restore(&world).await;
        std::fs::remove_file(&file).unwrap();
        let replica = world.replica().await;
        log(&world, &replica, 4).await;
        replica.stop().await;
        std::fs::write(&file, state).unwrap();
        let replica = world.replica().await;
        log(&world, &replica, 1).await;
        let fresh = GetCheckpointRequest { log: String::new(), fresh: true };
        assert_eq!(world.operator(&replica).get_checkpoint(fresh).await.unwrap_err().code(), tonic::Code::Internal);
        // It started with that, and said so: what is found again changes nothing.
        log(&world, &replica, 1).await;
        assert!(replica.readiness.unmet().is_empty(), "{:?}", replica.readiness.unmet());
        replica.stop().await;
    }

    /// Another history, as long or longer, with the file of it or with none: the process still remembers its own.
    async fn a_second_history_is_not_signed_though_the_file_went_with_the_database(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        log(&world, &replica, 9).await;
        world.keep_checkpoint(&replica).await;
        let file = state_file(&world);
        let theirs = std::fs::read(&file).unwrap();
        back_up(&world).await;
        replica.stop().await;
        for theirs in [None, Some(theirs)] {
            empty(&world).await;
            std::fs::remove_file(&file).unwrap();
            let replica = world.replica().await;
            log(&world, &replica, 6).await;
            world.keep_checkpoint(&replica).await;
            let ours = std::fs::read(&file).unwrap();
            restore(&world).await;
            match &theirs {
                Some(theirs) => std::fs::write(&file, theirs).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            log(&world, &replica, 2).await;
            for _ in 0..2 {
                assert!(!is_signed(&world, &replica).await, "a second history was signed");
            }
            let unmet = replica.readiness.unmet();
            assert_eq!(unmet["audit.logs.default"], "it does not extend its state of 6 entries, which was signed");
            assert_eq!(append_refused(&world, &replica).await.reason(), "AUDIT_NOT_STORED");
            assert_eq!(size(&world).await, 11);
            replica.stop().await;
            std::fs::write(&file, ours).unwrap();
        }
    }

    /// Whoever signs finds that the log is another one, and takes no more events until it is the right one again.
    async fn a_log_that_becomes_another_takes_no_events_until_it_is_the_right_one_again(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        log(&world, &replica, 3).await;
        world.keep_checkpoint(&replica).await;
        log(&world, &replica, 1).await;
        change_tile(&world).await;
        assert!(!is_signed(&world, &replica).await);
        let unmet = replica.readiness.unmet();
        assert_eq!(unmet["audit.logs.default"], "it does not extend its state of 3 entries, which was signed");
        for _ in 0..2 {
            assert_eq!(append_refused(&world, &replica).await.reason(), "AUDIT_NOT_STORED");
        }
        assert!(!replica.readiness.unmet().is_empty());
        change_tile(&world).await;
        world.keep_checkpoint(&replica).await;
        assert!(replica.readiness.unmet().is_empty());
        log(&world, &replica, 1).await;
        replica.stop().await;
    }

    /// It went back over what another replica signed since this one read the file.
    async fn an_event_takes_no_place_that_another_replica_signed(db: TestDb) {
        let world = World::new(db);
        let (one, two) = (world.replica().await, world.replica().await);
        log(&world, &one, 3).await;
        world.keep_checkpoint(&two).await;
        log(&world, &two, 1).await;
        back_up(&world).await;
        log(&world, &one, 2).await;
        world.keep_checkpoint(&one).await;
        restore(&world).await;
        assert_eq!(append_refused(&world, &two).await.reason(), "AUDIT_NOT_STORED");
        assert_eq!(two.readiness.unmet()["audit.logs.default"], "it has 4 entries, and 6 were signed");
        assert_eq!(size(&world).await, 4);
        one.stop().await;
        two.stop().await;
    }

    /// Another replica signs something else between the look at the log and the word about it.
    async fn what_was_signed_since_the_log_was_looked_at_is_compared_with_it(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        log(&world, &replica, 1).await;
        world.keep_checkpoint(&replica).await;
        let (file, lock) = (state_file(&world), world.config.subject_keys_dir.join("signed/.lock"));
        let ours = Checkpoint::read_unsigned(&std::fs::read_to_string(&file).unwrap()).unwrap();
        replica.stop().await;
        for size in [2, 5, 90] {
            std::fs::write(&file, ours.to_string()).unwrap();
            let replica = world.replica().await;
            let entries = if size == 2 { 3 } else { 1 };
            log(&world, &replica, entries).await;
            let held = std::fs::File::open(&lock).unwrap();
            held.lock().unwrap();
            let mut operator = world.operator(&replica);
            let signing = tokio::spawn(async move {
                let fresh = GetCheckpointRequest { log: String::new(), fresh: true };
                operator.get_checkpoint(fresh).await
            });
            eventually(Duration::from_secs(60), async || opened(&lock) > 1).await;
            let theirs = Checkpoint { size, ..ours.clone() };
            std::fs::write(&file, theirs.to_string()).unwrap();
            drop(held);
            assert!(signing.await.unwrap().is_err(), "a second history was signed");
            assert_eq!(Checkpoint::read_unsigned(&std::fs::read_to_string(&file).unwrap()), Ok(theirs));
            assert!(!replica.readiness.unmet().is_empty());
            assert_eq!(append_refused(&world, &replica).await.reason(), "AUDIT_NOT_STORED");
            replica.stop().await;
        }
    }

    /// As where another replica signed, with a folder of its own, or the folder was restored from a backup too.
    async fn a_file_that_is_behind_only_knows_less(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        log(&world, &replica, 3).await;
        world.keep_checkpoint(&replica).await;
        let file = state_file(&world);
        let (size, behind) = (|| Checkpoint::read_unsigned(&std::fs::read_to_string(&file).unwrap()).unwrap().size, std::fs::read(&file).unwrap());
        log(&world, &replica, 2).await;
        world.keep_checkpoint(&replica).await;
        assert_eq!(size(), 5);
        std::fs::write(&file, &behind).unwrap();
        // It learns what was signed without it, though there is nothing to sign.
        world.keep_checkpoint(&replica).await;
        assert_eq!(size(), 5);
        replica.stop().await;
        for old in [Some(&behind), None] {
            match old {
                Some(old) => std::fs::write(&file, old).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            let (one, two) = (world.replica().await, world.replica().await);
            log(&world, &one, 1).await;
            let ours = world.keep_checkpoint(&one).await;
            log(&world, &two, 1).await;
            let theirs = world.keep_checkpoint(&two).await;
            world.keep_checkpoint(&one).await;
            for trust in [ours, theirs] {
                assert!(matches!(world.verify(&trust).await.verdict, Verdict::Verified { .. }));
            }
            one.stop().await;
            two.stop().await;
        }
    }

    /// Nothing is signed that could not be written down before.
    async fn what_can_not_be_written_down_is_not_signed(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        log(&world, &replica, 1).await;
        std::fs::write(world.config.subject_keys_dir.join("signed"), "in the way").unwrap();
        let fresh = GetCheckpointRequest { log: String::new(), fresh: true };
        assert!(world.operator(&replica).get_checkpoint(fresh.clone()).await.is_err());
        let last = GetCheckpointRequest { log: String::new(), fresh: false };
        assert!(world.operator(&replica).get_checkpoint(last).await.is_err(), "a signature was handed out");
        std::fs::remove_file(world.config.subject_keys_dir.join("signed")).unwrap();
        world.operator(&replica).get_checkpoint(fresh).await.unwrap();
        std::fs::write(state_file(&world), "garbage").unwrap();
        replica.stop().await;
        assert_eq!(refusal(&world).await.reason(), "SIGNED_STATE_UNREADABLE");
    }

    /// The database goes back under a service that runs: a standby takes over that lagged.
    async fn a_log_that_falls_behind_takes_no_events_until_it_is_whole_again(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        log(&world, &replica, 3).await;
        back_up(&world).await;
        log(&world, &replica, 2).await;
        world.keep_checkpoint(&replica).await;
        assert!(replica.readiness.unmet().is_empty());

        // Who appends finds it, though nothing is signed meanwhile.
        run(&world, CUT).await;
        let error = append_refused(&world, &replica).await;
        assert_eq!((error.code(), error.reason()), (ErrorCode::Unavailable, "AUDIT_NOT_STORED"));
        let unmet = replica.readiness.unmet();
        assert_eq!(unmet["audit.logs.default"], "it has 3 entries, and 5 were signed");
        assert_eq!(size(&world).await, 3);
        run(&world, UNCUT).await;
        world.keep_checkpoint(&replica).await;
        assert!(replica.readiness.unmet().is_empty());
        log(&world, &replica, 1).await;

        // Who signs finds it, though nothing is appended meanwhile, and though the file went back too.
        world.keep_checkpoint(&replica).await;
        restore(&world).await;
        std::fs::remove_file(state_file(&world)).unwrap();
        let fresh = GetCheckpointRequest { log: String::new(), fresh: true };
        assert!(world.operator(&replica).get_checkpoint(fresh).await.is_err());
        assert_eq!(replica.readiness.unmet()["audit.logs.default"], "it has 3 entries, and 6 were signed");
        assert_eq!(append_refused(&world, &replica).await.reason(), "AUDIT_NOT_STORED");
        assert_eq!(size(&world).await, 3);
        replica.stop().await;
    }

    /// Whoever signs while others append and sign more knows the log as it was a moment ago: that is no log that went back.
    async fn signing_while_others_append_and_sign_refuses_nothing(db: TestDb) {
        let world = World::new(db);
        let replicas = [world.replica().await, world.replica().await];
        log(&world, &replicas[0], 1).await;
        let done = tokio_util::sync::CancellationToken::new();
        let signers = (0..6).map(|number| {
            let (mut operator, done) = (world.operator(&replicas[number % 2]), done.clone());
            tokio::spawn(async move {
                while !done.is_cancelled() {
                    let fresh = GetCheckpointRequest { log: String::new(), fresh: true };
                    operator.get_checkpoint(fresh).await.unwrap();
                }
            })
        });
        let signers: Vec<_> = signers.collect();
        for round in 0..200 {
            log(&world, &replicas[round % 2], 1).await;
            for replica in &replicas {
                assert!(replica.readiness.unmet().is_empty(), "{:?}", replica.readiness.unmet());
            }
        }
        done.cancel();
        for signer in signers {
            signer.await.unwrap();
        }
        for replica in replicas {
            replica.stop().await;
        }
    }

    async fn a_log_that_can_not_be_signed_keeps_no_other_from_being_looked_at(db: TestDb) {
        let mut world = World::new(db);
        world.config.logs = vec![LogConfig { name: "aaa".into(), days: 30 }];
        world.config.checkpoint_interval_ms = 100;
        let replica = world.replica().await;
        log(&world, &replica, 5).await;
        let file = |log: &str| {
            let folder = std::fs::read_dir(world.config.subject_keys_dir.join("signed")).into_iter().flatten();
            let mut files = folder.map(|file| file.unwrap().path());
            files.find(|file| file.file_name().unwrap().to_str().unwrap().starts_with(&format!("{log}-")))
        };
        eventually(Duration::from_secs(60), async || {
            file("aaa").is_some() && file("default").is_some_and(|file| state_in(&file) == 5)
        })
        .await;
        // What was signed of it is something else.
        let other = std::fs::read_to_string(file("aaa").unwrap()).unwrap();
        let (other, _) = other.trim_end().rsplit_once('\n').unwrap();
        std::fs::write(file("aaa").unwrap(), format!("{other}\n{}=\n", "A".repeat(43))).unwrap();
        let fresh = GetCheckpointRequest { log: "aaa".into(), fresh: true };
        assert!(world.operator(&replica).get_checkpoint(fresh).await.is_err());

        run(&world, CUT).await;
        eventually(Duration::from_secs(60), async || !replica.readiness.unmet().is_empty()).await;
        run(&world, UNCUT).await;
        eventually(Duration::from_secs(60), async || replica.readiness.unmet().is_empty()).await;
        replica.stop().await;
    }

    /// A replica that stands still in the middle of writing down what it signs.
    async fn a_lock_that_is_not_let_go_keeps_nobody_from_signing(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        log(&world, &replica, 1).await;
        world.keep_checkpoint(&replica).await;
        let held = std::fs::File::open(world.config.subject_keys_dir.join("signed/.lock")).unwrap();
        held.lock().unwrap();
        for entries in 2..4 {
            log(&world, &replica, 1).await;
            let trust = tokio::time::timeout(Duration::from_secs(60), world.keep_checkpoint(&replica)).await.unwrap();
            assert_eq!(world.verify(&trust).await.verdict, Verdict::Verified { proven: entries });
            assert_eq!(state_in(&state_file(&world)), entries);
        }
        drop(held);
        replica.stop().await;
    }

    /// One that stood still goes on, and puts its older state over the newer one of a replica that did not wait.
    async fn what_was_put_over_by_an_older_state_is_written_down_again(db: TestDb) {
        let world = World::new(db);
        let replica = world.replica().await;
        log(&world, &replica, 3).await;
        world.keep_checkpoint(&replica).await;
        let file = state_file(&world);
        let older = std::fs::read(&file).unwrap();
        log(&world, &replica, 3).await;
        // The signature waits for this transaction, once it is written down.
        let mut signing = None;
        let undone: gatehouse_db::Result<()> = run_tx!(&*world.db, "test.hold", |tx| {
            tx.execute(&SIGN_AT_SIX, params![]).await?;
            let mut operator = world.operator(&replica);
            signing = Some(tokio::spawn(async move {
                let fresh = GetCheckpointRequest { log: String::new(), fresh: true };
                operator.get_checkpoint(fresh).await
            }));
            eventually(Duration::from_secs(60), async || state_in(&file) == 6).await;
            std::fs::write(&file, &older).unwrap();
            Err(Error::failed_precondition("HELD", "It is taken back.").into())
        });
        undone.unwrap_err();
        signing.unwrap().await.unwrap().unwrap();
        assert_eq!(state_in(&file), 6);
        replica.stop().await;
    }

    /// The event that says so goes into the default log, which must not take it if it is refused itself.
    async fn what_is_given_up_of_one_log_writes_nothing_into_another_that_is_behind(db: TestDb) {
        let mut world = World::new(db);
        world.config.logs = vec![LogConfig { name: "aaa".into(), days: 30 }];
        let replica = world.replica().await;
        for round in 0..2 {
            let events = ["aaa", ""].map(|class| NewEvent { retention_class: class.into(), ..world.event("test.things.do") });
            append(&mut world.emitter(&replica, "job"), events.into()).await;
            for log in ["aaa", ""] {
                let fresh = GetCheckpointRequest { log: log.into(), fresh: true };
                world.operator(&replica).get_checkpoint(fresh).await.unwrap();
            }
            if round == 0 {
                back_up(&world).await;
            }
        }
        replica.stop().await;
        restore(&world).await;
        let mut files = std::fs::read_dir(world.config.subject_keys_dir.join("signed")).unwrap().map(|file| file.unwrap().path());
        let file = files.find(|file| file.file_name().unwrap().to_str().unwrap().starts_with("aaa-")).unwrap();
        let state = std::fs::read_to_string(file).unwrap().trim().replace('\n', " ");
        world.config.given_up_states = vec![state];
        let error = refusal(&world).await;
        assert!(error.reason() == "AUDIT_LOG_BEHIND" && error.to_string().contains("The log default has 1"), "{error}");
        assert_eq!((size(&world).await, given_up(&world).await), (1, 0));
    }
}
