//! Columns hold what they are not made for, or are gone: that is a change like any other, and has its place.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use gatehouse_audit::MIGRATIONS;
use gatehouse_audit::domain::verify::{Fault, Report, Verdict};
use gatehouse_audit::verify_log::{ExitCode, Trust, logs_in, verify_database};
use gatehouse_db::{Sql, params, run_tx, sql};
use gatehouse_testkit::TestDb;
use world::{Replica, World, append};

sql! {
    EVENT_ID_BYTES = "UPDATE audit_events SET event_id = x'00' WHERE seq = 4";
    EVENT_ID_TEXT = "UPDATE audit_events SET event_id = 'abc' WHERE seq = 4";
    RECORDED = "UPDATE audit_events SET recorded_at = 'abc' WHERE seq = 4";
    HALF_SEQ = "UPDATE audit_events SET seq = 4.5 WHERE seq = 4";
    TEXT_SEQ = "UPDATE audit_events SET seq = 'abc' WHERE seq = 4";
    LEAF_NUMBER = "UPDATE audit_events SET leaf = 7 WHERE seq = 4";
    PAYLOAD_NUMBER = "UPDATE audit_events SET payload = 7.5 WHERE seq = 4";
    LOG_BYTES = "UPDATE audit_events SET log = x'ff' WHERE seq = 4";
    TENANT = "UPDATE audit_logs SET tenant_id = x'00' WHERE seq = 4";
    OCCURRED = "UPDATE audit_logs SET occurred_at = 'abc' WHERE seq = 4";
    ACTION = "UPDATE audit_logs SET action = x'ff' WHERE seq = 4";
    ROW_SEQ = "UPDATE audit_logs SET seq = 4.5 WHERE seq = 4";
    ROW_LOG = "UPDATE audit_logs SET log = x'ff' WHERE seq = 4";
    HEAD_CHAIN = "UPDATE audit_heads SET chain = x'00'";
    HEAD_FIRST = "UPDATE audit_heads SET first_chain = x'00'";
    HEAD_SIZE = "UPDATE audit_heads SET size = -1";
    HEAD_TEXT = "UPDATE audit_heads SET size = 'abc'";
    TILE = "UPDATE audit_tiles SET hashes = 7";
    TILE_PLACE = "UPDATE audit_tiles SET tile = 0.5";
    DROP_EVENTS = "DROP TABLE audit_events";
    DROP_ROWS = "DROP TABLE audit_logs";
    DROP_HEADS = "DROP TABLE audit_heads";
    DROP_TILES = "DROP TABLE audit_tiles";
    DROP_CHECKPOINTS = "DROP TABLE audit_checkpoints";
    DROP_RECORD = "DROP TABLE _sqlx_migrations";
    ADD_HALF_EVENT = "INSERT INTO audit_events SELECT log, seq + 10000.5, x'00', recorded_at, leaf, payload
        FROM audit_events WHERE seq = 4";
    ADD_HALF_ROW = "INSERT INTO audit_logs (tenant_id, occurred_at, event_id, log, seq, recorded_at, service, action,
        outcome, actor) SELECT tenant_id, occurred_at + 1, x'00', log, 4.5, recorded_at, service, action, outcome, actor
        FROM audit_logs WHERE seq = 4";
    CHECKPOINT_SIZE = "UPDATE audit_checkpoints SET size = 'abc'";
    CHECKPOINT_NOTE = "UPDATE audit_checkpoints SET note = 'garbage'";
    ID_AS_TEXT = "ALTER TABLE audit_events ALTER COLUMN event_id TYPE TEXT USING CAST(event_id AS TEXT)";
    LOG_AS_BYTES = "ALTER TABLE audit_events ALTER COLUMN log TYPE BYTEA USING CAST(log AS BYTEA)";
}

struct Scene {
    world: World,
    replica: Replica,
    trust: Trust,
}

async fn scene(db: TestDb) -> Scene {
    let world = World::new(db);
    let replica = world.replica().await;
    let events = (0..10).map(|_| world.event("test.things.do")).collect();
    append(&mut world.emitter(&replica, "job"), events).await;
    let trust = world.keep_checkpoint(&replica).await;
    Scene { world, replica, trust }
}

impl Scene {
    async fn run(&self, sql: &Sql) {
        run_tx!(&*self.world.db, "test.tamper", |tx| { tx.execute(sql, params![]).await }).unwrap();
    }

    /// What each log turns out to be, as the command finds out which logs there are.
    async fn reports(&self, trust: &Trust) -> Vec<Report> {
        let mut names = logs_in(&self.world.db).await.unwrap();
        names.insert("default".to_owned());
        let mut reports = Vec::new();
        for name in names {
            reports.push(verify_database(&self.world.db, &name, trust).await.unwrap());
        }
        reports
    }

    /// With all that there is to know and with nothing, `default` is broken at this entry.
    async fn is_broken_at(&self, entry: u64, what: &Sql) {
        for trust in [self.world.with_subjects(&self.trust), Trust::default()] {
            let reports = self.reports(&trust).await;
            let report = reports.iter().find(|report| report.log == "default").unwrap();
            assert_eq!(ExitCode::from(report), ExitCode::Broken, "{}: {report:?}", what.name());
            assert!(
                matches!(report.verdict, Verdict::Broken { entry: found, .. } if found == entry),
                "{}: {report:?}",
                what.name()
            );
        }
    }
}

/// SQLite takes anything in any column.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_another_type_is_a_fault_of_its_entry() {
    let at_4 = [
        EVENT_ID_BYTES,
        EVENT_ID_TEXT,
        RECORDED,
        HALF_SEQ,
        TEXT_SEQ,
        LEAF_NUMBER,
        PAYLOAD_NUMBER,
        LOG_BYTES,
        TENANT,
        OCCURRED,
        ACTION,
        ROW_SEQ,
        ROW_LOG,
        ADD_HALF_ROW,
    ];
    let at_0 = [HEAD_CHAIN, HEAD_FIRST, HEAD_SIZE, HEAD_TEXT, TILE, TILE_PLACE];
    let dropped = [DROP_EVENTS, DROP_ROWS, DROP_HEADS, DROP_TILES, DROP_CHECKPOINTS];
    let beyond = [ADD_HALF_EVENT];
    let all = at_4.map(|sql| (sql, 4)).into_iter().chain(at_0.map(|sql| (sql, 0)));
    for (sql, entry) in all.chain(dropped.map(|sql| (sql, 0))).chain(beyond.map(|sql| (sql, 10_004))) {
        let scene = scene(TestDb::sqlite(&MIGRATIONS).await).await;
        scene.run(&sql).await;
        scene.is_broken_at(entry, &sql).await;
        scene.replica.stop().await;
    }
}

/// Of a log under a name that is no text nothing is shown, but that something stands there.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_no_text_is_told() {
    let scene = scene(TestDb::sqlite(&MIGRATIONS).await).await;
    scene.run(&ROW_LOG).await;
    let reports = scene.reports(&scene.trust).await;
    let faults = reports.iter().map(|report| match &report.verdict {
        Verdict::Broken { fault, .. } => (report.log.as_str(), fault.clone()),
        other => panic!("{other:?}"),
    });
    let expected = [("(not text)", Fault::NotALog), ("default", Fault::PlainRowDiffers)];
    assert_eq!(faults.collect::<Vec<_>>(), expected);
    scene.replica.stop().await;
}

/// Without the record of its migrations a log still is one, as long as anything is left of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_the_record_of_its_migrations_is_looked_at() {
    let scene = scene(TestDb::sqlite(&MIGRATIONS).await).await;
    scene.run(&DROP_RECORD).await;
    assert_eq!(scene.reports(&scene.trust).await[0].verdict, Verdict::Verified { proven: 10 });
    for sql in [DROP_EVENTS, DROP_ROWS, DROP_HEADS, DROP_TILES] {
        scene.run(&sql).await;
        scene.is_broken_at(0, &sql).await;
    }
    scene.run(&DROP_CHECKPOINTS).await;
    assert_eq!(logs_in(&scene.world.db).await.unwrap_err().reason(), "NO_AUDIT_LOG");
    scene.replica.stop().await;
}

/// Whether or not the key is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_checkpoint_that_is_none_is_told() {
    for sql in [CHECKPOINT_SIZE, CHECKPOINT_NOTE] {
        let scene = scene(TestDb::sqlite(&MIGRATIONS).await).await;
        let trusted = &scene.trust;
        let without_key = Trust { keys: Vec::new(), ..trusted.clone() };
        for trust in [trusted, &without_key] {
            assert!(scene.world.verify(trust).await.notes.is_empty());
        }
        scene.run(&sql).await;
        for trust in [trusted, &without_key] {
            let report = scene.world.verify(trust).await;
            assert_eq!(report.verdict, Verdict::Verified { proven: 10 }, "{}", sql.name());
            assert!(matches!(&report.notes[..], [note] if note.contains("stored checkpoint")), "{report:?}");
        }
        scene.replica.stop().await;
    }
}

/// PostgreSQL holds to its types, but whoever owns a table can change them.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_another_type_is_a_fault() {
    for sql in [ID_AS_TEXT, LOG_AS_BYTES, DROP_TILES] {
        let scene = scene(TestDb::postgres(&MIGRATIONS).await).await;
        scene.run(&sql).await;
        scene.is_broken_at(0, &sql).await;
        scene.replica.stop().await;
    }
}
