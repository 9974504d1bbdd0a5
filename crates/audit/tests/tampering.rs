//! Whoever can write to the database changes rows directly: verification finds it and names the entry.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use gatehouse_audit::MIGRATIONS;
use gatehouse_audit::domain::checkpoint::Checkpoint;
use gatehouse_audit::domain::digest::Digest;
use gatehouse_audit::domain::merkle::{Frontier, leaf_hash};
use gatehouse_audit::domain::note::SignerKey;
use gatehouse_audit::domain::verify::{Fault, Report, Verdict};
use gatehouse_audit::verify_log::{ExitCode, Trust, logs_in, verify_database};
use gatehouse_core::ids::TenantId;
use gatehouse_db::{Sql, params, run_tx, sql};
use gatehouse_proto::audit::v1::{GetEventRequest, GetInclusionProofRequest, ListEventsRequest, NewEvent};
use gatehouse_testkit::{TestDb, both_engines};
use uuid::Uuid;
use world::{Replica, World, append};

/// Each log has this many entries; entry 4 is the one that is tampered with.
const SIZE: u64 = 10;
const PLATFORM: TenantId = TenantId::from_uuid(Uuid::nil());

sql! {
    READ_LEAF = "SELECT leaf, payload FROM audit_events WHERE log = 'default' AND seq = $1";
    CHANGE_LEAF = "UPDATE audit_events SET leaf = $2 WHERE log = 'default' AND seq = $1";
    CHANGE_PAYLOAD = "UPDATE audit_events SET payload = $2 WHERE log = 'default' AND seq = $1";
    DELETE_EVENT = "DELETE FROM audit_events WHERE log = 'default' AND seq = 4";
    DELETE_TAIL = "DELETE FROM audit_events WHERE log = 'default' AND seq >= 8";
    MOVE_AWAY = "UPDATE audit_events SET seq = 1000 WHERE log = 'default' AND seq = 4";
    MOVE_NEXT = "UPDATE audit_events SET seq = 4 WHERE log = 'default' AND seq = 5";
    MOVE_BACK = "UPDATE audit_events SET seq = 5 WHERE log = 'default' AND seq = 1000";
    CLOSE_GAP = "UPDATE audit_events SET seq = 4 WHERE log = 'default' AND seq = 9";
    INSERT_EVENT = "INSERT INTO audit_events (log, seq, event_id, recorded_at, leaf, payload)
        SELECT log, 10, $1, recorded_at, leaf, payload FROM audit_events WHERE log = 'default' AND seq = 4";
    GROW_HEAD = "UPDATE audit_heads SET size = 11 WHERE log = 'default'";
    SHRINK_HEAD = "UPDATE audit_heads SET size = 8 WHERE log = 'default'";
    CHANGE_HEAD = "UPDATE audit_heads SET chain = $1 WHERE log = 'default'";
    FORGE_PRUNE = "UPDATE audit_heads SET first_seq = 4, first_chain = $1 WHERE log = 'default'";
    DELETE_FRONT = "DELETE FROM audit_events WHERE log = 'default' AND seq < 4";
    CHANGE_TILE = "UPDATE audit_tiles SET hashes = $1 WHERE log = 'default'";
    DELETE_TILE = "DELETE FROM audit_tiles WHERE log = 'default'";
    CHANGE_ACTION = "UPDATE audit_logs SET action = 'test.nothing.happened' WHERE log = 'default' AND seq = 4";
    CHANGE_OUTCOME = "UPDATE audit_logs SET outcome = 'denied' WHERE log = 'default' AND seq = 4";
    CHANGE_ACTOR = "UPDATE audit_logs SET actor = 'client:nobody' WHERE log = 'default' AND seq = 4";
    DELETE_ROW = "DELETE FROM audit_logs WHERE log = 'default' AND seq = 4";
    MOVE_EVENT_ID = "UPDATE audit_events SET event_id = $1 WHERE log = 'default' AND seq = 4";
    HEAD_TO_EIGHT = "UPDATE audit_heads SET size = 8, chain = $1 WHERE log = 'default'";
    DELETE_ROWS_OF_FRONT = "DELETE FROM audit_logs WHERE log = 'default' AND seq < 4";
    FORGE_PRUNED = "UPDATE audit_heads SET first_seq = 4, first_chain = $1, pruned_note = $2 WHERE log = 'default'";
    ADD_ROW_BEYOND = "INSERT INTO audit_logs (tenant_id, occurred_at, event_id, log, seq, recorded_at, service, action,
        outcome, actor) SELECT tenant_id, occurred_at, $1, log, 12, recorded_at, service, action, outcome, actor
        FROM audit_logs WHERE log = 'default' AND seq = 4";
    ADD_EVENT_AT = "INSERT INTO audit_events (log, seq, event_id, recorded_at, leaf, payload)
        SELECT $3, $1, $2, recorded_at, leaf, payload FROM audit_events WHERE log = 'default' AND seq = 4";
    ADD_ROW_AT = "INSERT INTO audit_logs (tenant_id, occurred_at, event_id, log, seq, recorded_at, service, action,
        outcome, actor) SELECT $3, occurred_at + 1, $2, log, $1, recorded_at, service, 'forged.things.do', outcome, actor
        FROM audit_logs WHERE log = 'default' AND seq = 4";
    DELETE_EVENT_AT = "DELETE FROM audit_events WHERE log = 'default' AND seq = $1";
    DELETE_ROW_AT = "DELETE FROM audit_logs WHERE log = 'default' AND seq = $1";
    NO_UNIQUE_PLACE = "DROP INDEX audit_logs_by_place";
    SECOND_EVENT = "INSERT INTO audit_events SELECT log, seq, event_id, recorded_at, leaf, payload
        FROM audit_events WHERE log = 'default' AND seq = $1";
    SECOND_HEAD = "INSERT INTO audit_heads SELECT log, size, chain, epoch + 1, first_seq, first_chain, pruned_note
        FROM audit_heads WHERE log = 'default'";
    SECOND_TILE = "INSERT INTO audit_tiles (log, level, tile, hashes) VALUES ('default', 0, 0, $1)";
    KEEP_EVENTS = "ALTER TABLE audit_events RENAME TO kept_events";
    COPY_EVENTS = "CREATE TABLE audit_events AS SELECT log, seq, event_id, recorded_at, leaf, payload FROM kept_events";
    KEEP_HEADS = "ALTER TABLE audit_heads RENAME TO kept_heads";
    COPY_HEADS = "CREATE TABLE audit_heads AS SELECT log, size, chain, epoch, first_seq, first_chain, pruned_note
        FROM kept_heads";
    KEEP_TILES = "ALTER TABLE audit_tiles RENAME TO kept_tiles";
    COPY_TILES = "CREATE TABLE audit_tiles AS SELECT log, level, tile, hashes FROM kept_tiles";
    RESTORE_EVENT = "INSERT INTO audit_events SELECT log, seq, event_id, recorded_at, leaf, payload
        FROM kept_events WHERE log = 'default' AND seq = $1";
    RESTORE_TILES = "INSERT INTO audit_tiles SELECT log, level, tile, hashes FROM kept_tiles";
    READ_ID = "SELECT event_id FROM audit_events WHERE log = 'default' AND seq = $1";
    DELETE_FORGED = "DELETE FROM audit_logs WHERE action = 'forged.things.do'";
    RENAME_IN_ROWS = "UPDATE audit_logs SET log = $1 WHERE log = 'default' AND seq = 4";
    CHANGE_ACTION_AT = "UPDATE audit_logs SET action = $2 WHERE log = 'default' AND seq = $1";
    CHANGE_TILE_AT = "UPDATE audit_tiles SET hashes = $3 WHERE log = 'default' AND level = $1 AND tile = $2";
    DELETE_HEAD = "DELETE FROM audit_heads WHERE log = 'default'";
    DELETE_EVENTS = "DELETE FROM audit_events";
    DELETE_ROWS = "DELETE FROM audit_logs";
    DELETE_CHECKPOINTS = "DELETE FROM audit_checkpoints";
    DELETE_ROWS_OF_TAIL = "DELETE FROM audit_logs WHERE log = 'default' AND seq >= 8";
}

struct Scene {
    world: World,
    replica: Replica,
    trust: Trust,
}

async fn scene(db: TestDb) -> Scene {
    scene_of(db, SIZE).await
}

async fn scene_of(db: TestDb, size: u64) -> Scene {
    let world = World::new(db);
    let replica = world.replica().await;
    let events: Vec<NewEvent> = (0..size).map(|_| world.event("test.things.do")).collect();
    for events in events.chunks(500) {
        append(&mut world.emitter(&replica, "job"), events.to_vec()).await;
    }
    let trust = world.keep_checkpoint(&replica).await;
    Scene { world, replica, trust }
}

impl Scene {
    async fn run(&self, statements: &[(&Sql, Vec<gatehouse_db::Value>)]) {
        run_tx!(&*self.world.db, "test.tamper", |tx| {
            for (sql, values) in statements {
                assert!(tx.execute(sql, values.clone()).await? > 0, "{} changed nothing", sql.name());
            }
            Ok(())
        })
        .unwrap();
    }

    /// Statements on tables, which change no rows.
    async fn run_freely(&self, statements: &[&Sql]) {
        run_tx!(&*self.world.db, "test.tamper", |tx| {
            for sql in statements {
                tx.execute(sql, params![]).await?;
            }
            Ok(())
        })
        .unwrap();
    }

    async fn event_id(&self, seq: i64) -> Uuid {
        run_tx!(&*self.world.db, "test.read", |tx| {
            tx.fetch_one(&READ_ID, params![seq]).await?.get("event_id")
        })
        .unwrap()
    }

    async fn stored(&self, seq: i64) -> (Vec<u8>, Vec<u8>) {
        run_tx!(&*self.world.db, "test.read", |tx| {
            let row = tx.fetch_one(&READ_LEAF, params![seq]).await?;
            Ok((row.get("leaf")?, row.get("payload")?))
        })
        .unwrap()
    }

    async fn report(&self) -> Report {
        self.world.verify(&Trust::default()).await
    }

    /// Broken at this entry, without a checkpoint as with one.
    async fn is_broken_at(&self, entry: u64) {
        for trust in [&Trust::default(), &self.trust] {
            let report = self.world.verify(trust).await;
            assert_eq!(ExitCode::from(&report), ExitCode::Broken, "{report:?}");
            assert!(
                matches!(report.verdict, Verdict::Broken { entry: found, .. } if found == entry),
                "{report:?}"
            );
        }
    }
}

both_engines! {
    migrations: MIGRATIONS;

    /// Longer than what is read at once, and checked by several threads: each entry is held against its own row and
    /// tile.
    async fn changes_in_a_long_log_are_found_where_they_are(db: TestDb) {
        let scene = scene_of(db, 2_300).await;
        assert_eq!(scene.world.verify(&scene.trust).await.verdict, Verdict::Verified { proven: 2_300 });
        for at in [0_i64, 499, 500, 999, 1_000, 1_001, 2_299] {
            scene.run(&[(&CHANGE_ACTION_AT, params![at, "test.nothing.happened"])]).await;
            scene.is_broken_at(u64::try_from(at).unwrap()).await;
            scene.run(&[(&CHANGE_ACTION_AT, params![at, "test.things.do"])]).await;
            let (leaf, payload) = scene.stored(at).await;
            scene.run(&[(&CHANGE_LEAF, params![at, [&leaf[..], b" "].concat()])]).await;
            scene.is_broken_at(u64::try_from(at).unwrap()).await;
            scene.run(&[(&CHANGE_LEAF, params![at, leaf]), (&CHANGE_PAYLOAD, params![at, [1_u8; 9]])]).await;
            scene.is_broken_at(u64::try_from(at).unwrap()).await;
            scene.run(&[(&CHANGE_PAYLOAD, params![at, payload])]).await;
        }
        assert_eq!(scene.world.verify(&scene.trust).await.verdict, Verdict::Verified { proven: 2_300 });
        // Of the second page, and one that every page goes on with.
        for (level, tile, first) in [(0_i64, 7_i64, 7 * 256), (1, 0, 0)] {
            scene.run(&[(&CHANGE_TILE_AT, params![level, tile, [0_u8; 64]])]).await;
            let report = scene.report().await;
            assert!(
                matches!(&report.verdict, Verdict::Broken { entry, fault: Fault::TileChanged { .. }, .. } if *entry == first),
                "{report:?}"
            );
        }
        scene.replica.stop().await;
    }

    async fn nothing_was_changed(db: TestDb) {
        let scene = scene(db).await;
        let report = scene.world.verify(&scene.trust).await;
        assert_eq!((report.verdict.clone(), report.notes.len()), (Verdict::Verified { proven: SIZE }, 0));
        assert_eq!(ExitCode::from(&report), ExitCode::Verified);
        assert_eq!(ExitCode::from(&scene.report().await), ExitCode::NotProven);
        scene.replica.stop().await;
    }

    async fn changed_leaves_and_payloads_are_found(db: TestDb) {
        let scene = scene(db).await;
        for seq in [0, 4, 9] {
            let (leaf, payload) = scene.stored(seq).await;
            let entry = u64::try_from(seq).unwrap();
            for place in (0..leaf.len()).step_by(37) {
                let mut changed = leaf.clone();
                changed[place] ^= 1;
                scene.run(&[(&CHANGE_LEAF, params![seq, changed])]).await;
                scene.is_broken_at(entry).await;
            }
            scene.run(&[(&CHANGE_LEAF, params![seq, leaf])]).await;
            for place in (0..payload.len()).step_by(17) {
                let mut changed = payload.clone();
                changed[place] ^= 1;
                scene.run(&[(&CHANGE_PAYLOAD, params![seq, changed])]).await;
                scene.is_broken_at(entry).await;
            }
            scene.run(&[(&CHANGE_PAYLOAD, params![seq, payload])]).await;
        }
        assert_eq!(scene.report().await.verdict, Verdict::TailNotProven);
        scene.replica.stop().await;
    }

    async fn a_deleted_entry_is_found(db: TestDb) {
        let scene = scene(db).await;
        scene.run(&[(&DELETE_EVENT, params![])]).await;
        scene.is_broken_at(4).await;
        scene.run(&[(&CLOSE_GAP, params![])]).await;
        scene.is_broken_at(4).await;
        scene.replica.stop().await;
    }

    async fn swapped_entries_are_found(db: TestDb) {
        let scene = scene(db).await;
        scene.run(&[(&MOVE_AWAY, params![]), (&MOVE_NEXT, params![]), (&MOVE_BACK, params![])]).await;
        scene.is_broken_at(4).await;
        scene.replica.stop().await;
    }

    async fn an_inserted_entry_is_found(db: TestDb) {
        let scene = scene(db).await;
        scene.run(&[(&INSERT_EVENT, params![scene.world.person().as_uuid()]), (&GROW_HEAD, params![])]).await;
        scene.is_broken_at(10).await;
        scene.replica.stop().await;
    }

    async fn a_cut_tail_is_found(db: TestDb) {
        let scene = scene(db).await;
        scene.run(&[(&DELETE_TAIL, params![])]).await;
        scene.is_broken_at(8).await;
        scene.run(&[(&SHRINK_HEAD, params![])]).await;
        // The head's link still is that of the last entry.
        assert_eq!(ExitCode::from(&scene.report().await), ExitCode::Broken);
        // Mended with care, only the checkpoint knows.
        let (leaf, _) = scene.stored(7).await;
        let chain = *Digest::of_chain(&leaf).as_bytes();
        scene.run(&[(&HEAD_TO_EIGHT, params![chain]), (&DELETE_ROWS_OF_TAIL, params![])]).await;
        let found = scene.world.verify(&Trust::default()).await;
        assert_ne!(ExitCode::from(&found), ExitCode::Verified);
        let report = scene.world.verify(&scene.trust).await;
        let missing = Fault::Missing { known_size: SIZE };
        assert_eq!(report.verdict, Verdict::Broken { entry: 8, up_to: None, fault: missing });
        scene.replica.stop().await;
    }

    async fn a_changed_head_is_found(db: TestDb) {
        let scene = scene(db).await;
        scene.run(&[(&CHANGE_HEAD, params![[7_u8; 32]])]).await;
        scene.is_broken_at(9).await;
        scene.replica.stop().await;
    }

    async fn a_prefix_removed_without_leave_is_found(db: TestDb) {
        let scene = scene(db).await;
        let (leaf, _) = scene.stored(3).await;
        let chain = *Digest::of_chain(&leaf).as_bytes();
        scene.run(&[(&DELETE_FRONT, params![]), (&FORGE_PRUNE, params![chain])]).await;
        scene.is_broken_at(0).await;
        scene.replica.stop().await;
    }

    async fn a_forged_statement_that_a_prefix_was_pruned_is_not_believed(db: TestDb) {
        let scene = scene(db).await;
        let mut frontier = Frontier::empty();
        let mut chain = [0; 32];
        for seq in 0..4 {
            let (leaf, _) = scene.stored(seq).await;
            frontier.push(leaf_hash(&leaf));
            chain = *Digest::of_chain(&leaf).as_bytes();
        }
        let origin = "gatehouse.test/dev/audit/default/pruned".to_owned();
        let statement = Checkpoint { origin: origin.clone(), size: 4, root: frontier.root() };
        // Signed with the forger's own key, under the right name.
        let forger = SignerKey::generate(&origin, &scene.world.entropy).unwrap();
        let note = statement.sign(&forger).unwrap();
        let forge = [
            (&DELETE_FRONT, params![]),
            (&DELETE_ROWS_OF_FRONT, params![]),
            (&FORGE_PRUNED, params![chain, note]),
        ];
        scene.run(&forge).await;
        let with_key = scene.world.verify(&scene.trust).await;
        let removed = Verdict::Broken { entry: 0, up_to: None, fault: Fault::PrefixRemoved };
        assert_eq!(with_key.verdict, removed);
        let keyless = Trust { keys: Vec::new(), ..scene.trust.clone() };
        for (trust, proven) in [(&keyless, Some(SIZE)), (&Trust::default(), None)] {
            let report = scene.world.verify(trust).await;
            assert_eq!(report.verdict, Verdict::PrefixNotProven { proven });
            assert_eq!(ExitCode::from(&report), ExitCode::NotProven);
        }
        scene.replica.stop().await;
    }

    async fn a_log_without_its_head_or_without_anything_is_broken(db: TestDb) {
        let scene = scene(db).await;
        let configured = Trust { configured: true, ..Trust::default() };
        let broken = |fault| Verdict::Broken { entry: 0, up_to: None, fault };
        scene.run(&[(&DELETE_HEAD, params![])]).await;
        for (rows, statement) in
            [&DELETE_EVENTS, &DELETE_TILE, &DELETE_ROWS, &DELETE_CHECKPOINTS].into_iter().enumerate()
        {
            for trust in [&scene.trust, &configured, &Trust::default()] {
                let report = scene.world.verify(trust).await;
                assert_eq!(report.verdict, broken(Fault::HeadMissing), "{rows} tables were emptied");
            }
            assert!(logs_in(&scene.world.db).await.unwrap().contains("default"));
            scene.run(&[(statement, params![])]).await;
        }
        assert!(logs_in(&scene.world.db).await.unwrap().is_empty());
        let known = Fault::Missing { known_size: SIZE };
        assert_eq!(scene.world.verify(&scene.trust).await.verdict, broken(known));
        assert_eq!(scene.world.verify(&configured).await.verdict, broken(Fault::LogMissing));
        let nothing = verify_database(&scene.world.db, "default", &Trust::default()).await;
        assert_eq!(nothing.unwrap_err().reason(), "LOG_NOT_FOUND");
        scene.replica.stop().await;
    }

    async fn a_plain_row_without_an_entry_is_found(db: TestDb) {
        let scene = scene(db).await;
        scene.run(&[(&ADD_ROW_BEYOND, params![scene.world.person().as_uuid()])]).await;
        scene.is_broken_at(12).await;
        scene.replica.stop().await;
    }

    /// Beyond the end and before the beginning, as an entry with its row, which the service would show.
    async fn an_entry_outside_of_the_log_is_found_and_not_shown(db: TestDb) {
        let scene = scene(db).await;
        let mut reader = scene.world.operator(&scene.replica);
        for (place, entry) in [(1_000_000_000_i64, 1_000_000_000), (10, 10), (-7, 0), (i64::MIN, 0), (i64::MAX, i64::MAX)] {
            let id = scene.world.person();
            let forge =
                [(&ADD_EVENT_AT, params![place, id, "default"]), (&ADD_ROW_AT, params![place, id, PLATFORM])];
            scene.run(&forge).await;
            scene.is_broken_at(u64::try_from(entry).unwrap()).await;
            let fault = match scene.report().await.verdict {
                Verdict::Broken { fault, .. } => fault,
                other => panic!("{other:?}"),
            };
            let before = Fault::BeforeFirst { stored_seq: place };
            assert_eq!(fault, if place < 0 { before } else { Fault::BeyondHead });
            // It is the newest of all that is listed, and hides nothing that comes after it.
            let (mut listed, mut page_token) = (Vec::new(), String::new());
            loop {
                let request = ListEventsRequest { page_size: 1, page_token, ..ListEventsRequest::default() };
                let page = reader.list_events(request).await.unwrap().into_inner();
                listed.extend(page.events.into_iter().map(|event| event.action));
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            assert_eq!(listed, ["test.things.do"; 10]);
            let request = GetEventRequest { event_id: id.to_string() };
            assert_eq!(reader.get_event(request).await.unwrap_err().code(), tonic::Code::NotFound);
            let request = GetInclusionProofRequest { event_id: id.to_string(), size: 0 };
            assert_eq!(reader.get_inclusion_proof(request).await.unwrap_err().code(), tonic::Code::NotFound);
            scene.run(&[(&DELETE_EVENT_AT, params![place])]).await;
            scene.is_broken_at(u64::try_from(entry).unwrap()).await;
            scene.run(&[(&DELETE_ROW_AT, params![place])]).await;
            assert_eq!(scene.world.verify(&scene.trust).await.verdict, Verdict::Verified { proven: SIZE });
        }
        scene.replica.stop().await;
    }

    /// The index that forbids it is no hindrance to whoever can write to the database.
    async fn a_second_row_at_a_place_is_found(db: TestDb) {
        let scene = scene_of(db, 1_100).await;
        scene.run_freely(&[&NO_UNIQUE_PLACE]).await;
        for place in [0_i64, 4, 999, 1_000, 1_099] {
            let row = params![place, scene.world.person(), scene.world.tenant()];
            scene.run(&[(&ADD_ROW_AT, row)]).await;
            scene.is_broken_at(u64::try_from(place).unwrap()).await;
            let Verdict::Broken { fault, .. } = scene.report().await.verdict else { panic!("not broken") };
            assert_eq!(fault, Fault::PlainRowRepeated);
            scene.run(&[(&DELETE_FORGED, params![])]).await;
        }
        assert_eq!(scene.world.verify(&scene.trust).await.verdict, Verdict::Verified { proven: 1_100 });
        scene.replica.stop().await;
    }

    async fn a_second_entry_at_a_place_is_found(db: TestDb) {
        let scene = scene_of(db, 1_100).await;
        scene.run_freely(&[&KEEP_EVENTS, &COPY_EVENTS]).await;
        for place in [4_i64, 998, 999, 1_000, 1_098] {
            scene.run(&[(&SECOND_EVENT, params![place])]).await;
            scene.is_broken_at(u64::try_from(place + 1).unwrap()).await;
            scene.run(&[(&DELETE_EVENT_AT, params![place])]).await;
            scene.run(&[(&RESTORE_EVENT, params![place])]).await;
        }
        assert_eq!(scene.world.verify(&scene.trust).await.verdict, Verdict::Verified { proven: 1_100 });
        scene.replica.stop().await;
    }

    async fn an_event_that_stands_in_another_log_too_is_found(db: TestDb) {
        let scene = scene(db).await;
        let id = scene.event_id(4).await;
        scene.run_freely(&[&KEEP_EVENTS, &COPY_EVENTS]).await;
        scene.run(&[(&ADD_EVENT_AT, params![4_i64, id, "other"])]).await;
        scene.is_broken_at(4).await;
        scene.replica.stop().await;
    }

    async fn a_second_head_or_tile_is_found(db: TestDb) {
        let scene = scene(db).await;
        scene.run_freely(&[&KEEP_TILES, &COPY_TILES]).await;
        scene.run(&[(&SECOND_TILE, params![vec![7_u8; 320]])]).await;
        scene.is_broken_at(0).await;
        scene.run(&[(&DELETE_TILE, params![])]).await;
        scene.run_freely(&[&RESTORE_TILES]).await;
        assert_eq!(scene.world.verify(&scene.trust).await.verdict, Verdict::Verified { proven: SIZE });
        scene.run_freely(&[&KEEP_HEADS, &COPY_HEADS]).await;
        scene.run(&[(&SECOND_HEAD, params![])]).await;
        let twice = Verdict::Broken { entry: 0, up_to: None, fault: Fault::HeadRepeated };
        assert_eq!(scene.world.verify(&scene.trust).await.verdict, twice);
        scene.replica.stop().await;
    }

    async fn rows_under_a_name_that_no_log_can_have_are_found(db: TestDb) {
        let scene = scene(db).await;
        let refused = verify_database(&scene.world.db, "Default", &Trust::default()).await;
        assert_eq!(refused.unwrap_err().reason(), "INVALID_FIELD");
        scene.run(&[(&RENAME_IN_ROWS, params!["Default"])]).await;
        scene.is_broken_at(4).await;
        assert!(logs_in(&scene.world.db).await.unwrap().contains("Default"));
        let report = verify_database(&scene.world.db, "Default", &Trust::default()).await.unwrap();
        assert_eq!(report.verdict, Verdict::Broken { entry: 0, up_to: None, fault: Fault::NotALog });
        scene.replica.stop().await;
    }

    /// Without the key nothing else tells it from one of this log, which was then rewritten.
    async fn a_checkpoint_of_another_installation_is_refused_where_the_origin_is_known(db: TestDb) {
        let scene = scene(db).await;
        let own = scene.trust.checkpoints[0].clone();
        let foreign = own.replace("gatehouse.test/dev", "gatehouse.test/prod");
        let origins = vec!["gatehouse.test/dev/audit/default".to_owned()];
        let trust = |note: &String, origins: &[String]| Trust {
            checkpoints: vec![note.clone()],
            keys: Vec::new(),
            origins: origins.to_vec(),
            ..scene.trust.clone()
        };
        let verified = Verdict::Verified { proven: SIZE };
        assert_eq!(scene.world.verify(&trust(&own, &origins)).await.verdict, verified);
        assert_eq!(scene.world.verify(&trust(&foreign, &[])).await.verdict, verified);
        let refused = verify_database(&scene.world.db, "default", &trust(&foreign, &origins)).await.unwrap_err();
        assert_eq!(refused.reason(), "CHECKPOINT_INVALID");
        assert!(refused.to_string().contains("another installation"), "{refused}");
        // A key says itself which origin it is for.
        let keyed = Trust { origins: vec!["other".into()], ..scene.trust.clone() };
        assert_eq!(scene.world.verify(&keyed).await.verdict, verified);
        scene.replica.stop().await;
    }

    async fn a_checkpoint_of_another_log_is_refused(db: TestDb) {
        let scene = scene(db).await;
        let elsewhere = scene.trust.checkpoints[0].replace("/default", "/long");
        let trust = Trust { checkpoints: vec![elsewhere], ..scene.trust.clone() };
        let refused = verify_database(&scene.world.db, "default", &trust).await;
        assert_eq!(refused.unwrap_err().reason(), "CHECKPOINT_INVALID");
        // What is about one log leaves the others' out, and knows the key by the log's name.
        let both = Trust { checkpoints: [trust.checkpoints, scene.trust.checkpoints.clone()].concat(), ..trust };
        let report = scene.world.verify(&both.about("default").unwrap()).await;
        assert_eq!(report.verdict, Verdict::Verified { proven: SIZE });
        let long = both.about("long").unwrap();
        assert_eq!((long.checkpoints.len(), long.keys[0].name()), (1, "gatehouse.test/dev/audit/long"));
        scene.replica.stop().await;
    }

    async fn a_changed_tree_is_found_and_not_signed(db: TestDb) {
        let scene = scene(db).await;
        scene.run(&[(&CHANGE_TILE, params![vec![7_u8; 32 * 10]])]).await;
        assert!(matches!(
            scene.report().await.verdict,
            Verdict::Broken { fault: Fault::TileChanged { .. }, .. }
        ));
        // A second history gets no signature: neither now nor after more entries, from a replica that reads anew.
        append(&mut scene.world.emitter(&scene.replica, "job"), vec![scene.world.event("test.things.do")]).await;
        let fresh = scene.world.replica().await;
        scene.run(&[(&CHANGE_TILE, params![vec![7_u8; 32 * 11]])]).await;
        let request = gatehouse_proto::audit::v1::GetCheckpointRequest { log: String::new(), fresh: true };
        assert!(scene.world.operator(&fresh).get_checkpoint(request).await.is_err());
        scene.run(&[(&DELETE_TILE, params![])]).await;
        assert!(matches!(
            scene.report().await.verdict,
            Verdict::Broken { fault: Fault::TileChanged { .. }, .. }
        ));
        fresh.stop().await;
        scene.replica.stop().await;
    }

    async fn changed_plain_rows_are_found(db: TestDb) {
        for change in [&CHANGE_ACTION, &CHANGE_OUTCOME, &CHANGE_ACTOR, &DELETE_ROW] {
            let migrated = match db.engine() {
                gatehouse_db::Engine::Sqlite => TestDb::sqlite(&MIGRATIONS).await,
                gatehouse_db::Engine::Postgres => TestDb::postgres(&MIGRATIONS).await,
            };
            let scene = scene(migrated).await;
            scene.run(&[(change, params![])]).await;
            scene.is_broken_at(4).await;
            scene.replica.stop().await;
        }
    }

    async fn a_changed_event_id_is_found(db: TestDb) {
        let scene = scene(db).await;
        scene.run(&[(&MOVE_EVENT_ID, params![scene.world.person().as_uuid()])]).await;
        scene.is_broken_at(4).await;
        scene.replica.stop().await;
    }
}
