//! Whoever can write to the database can't have entries pruned before their time: what is removed and signed away is
//! decided by the leaves, which the tree holds.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::time::Duration;

use gatehouse_audit::domain::digest::Digest;
use gatehouse_audit::domain::leaf::Leaf;
use gatehouse_audit::domain::names::LogId;
use gatehouse_audit::domain::verify::Verdict;
use gatehouse_audit::verify_log::{ExitCode, Trust};
use gatehouse_audit::{LogConfig, MIGRATIONS};
use gatehouse_core::{Clock, Timestamp};
use gatehouse_db::{Sql, Value, params, run_tx, sql};
use gatehouse_proto::audit::v1::{GetCheckpointRequest, ListLogsRequest, NewEvent};
use gatehouse_testkit::{TestDb, both_engines, eventually};
use world::{Replica, World, append};

const SIZE: u64 = 10;
const DAY: Duration = Duration::from_secs(86_400);

sql! {
    AGE_COLUMN = "UPDATE audit_events SET recorded_at = 0 WHERE log = 'default' AND seq < 8";
    READ_LEAF = "SELECT leaf FROM audit_events WHERE log = 'default' AND seq = $1";
    CHANGE_LEAF = "UPDATE audit_events SET leaf = $2, recorded_at = $3 WHERE log = 'default' AND seq = $1";
    CHANGE_HEAD = "UPDATE audit_heads SET chain = $1 WHERE log = 'default'";
    DELETE_EVENT = "DELETE FROM audit_events WHERE log = 'default' AND seq = 3";
    FORGE_FRONT = "UPDATE audit_heads SET first_seq = 4, first_chain = $1, pruned_note = 'forged' WHERE log = 'default'";
    DELETE_FRONT = "DELETE FROM audit_events WHERE log = 'default' AND seq < 4";
    DELETE_ROWS_OF_FRONT = "DELETE FROM audit_logs WHERE log = 'default' AND seq < 4";
    CHANGE_TILE = "UPDATE audit_tiles SET hashes = $1 WHERE log = 'default' AND level = 0";
    CUT_DEFAULT = "UPDATE audit_heads SET size = 9 WHERE log = 'default'";
    UNCUT_DEFAULT = "UPDATE audit_heads SET size = 10 WHERE log = 'default'";
    FIRST_OF_SHORT = "SELECT first_seq FROM audit_heads WHERE log = 'short'";
    REMOVALS = "SELECT COUNT(*) AS events FROM audit_logs WHERE action = 'audit.entries.prune'";
    READ_TILE = "SELECT hashes FROM audit_tiles WHERE log = 'default' AND level = 0";
}

struct Scene {
    world: World,
    replica: Replica,
    trust: Trust,
}

/// Ten fresh entries that a replica with an impatient pruner holds.
async fn scene(db: TestDb) -> Scene {
    let mut world = World::new(db);
    world.clock = Clock::settable(Timestamp::from_seconds(1_790_000_000));
    world.config.prune_interval_ms = 1_000;
    let replica = world.replica().await;
    let events: Vec<NewEvent> = (0..SIZE).map(|_| world.event("test.things.do")).collect();
    append(&mut world.emitter(&replica, "job"), events).await;
    let trust = world.keep_checkpoint(&replica).await;
    Scene { world, replica, trust }
}

impl Scene {
    async fn run(&self, sql: &Sql, values: Vec<Value>) {
        let changed = run_tx!(&*self.world.db, "test.tamper", |tx| { tx.execute(sql, values.clone()).await });
        assert!(changed.unwrap() > 0, "{} changed nothing", sql.name());
    }

    async fn bytes(&self, sql: &Sql, column: &str, values: Vec<Value>) -> Vec<u8> {
        run_tx!(&*self.world.db, "test.read", |tx| { tx.fetch_one(sql, values.clone()).await?.get(column) })
            .unwrap()
    }

    async fn first(&self) -> i64 {
        let logs =
            self.world.operator(&self.replica).list_logs(ListLogsRequest {}).await.unwrap().into_inner().logs;
        logs[0].first_index
    }

    /// Waits for two passes of the pruner: each signs the log first, and nothing else signs here.
    async fn two_passes(&self) {
        for _ in 0..2 {
            let event = self.world.event("test.things.do");
            let size = append(&mut self.world.emitter(&self.replica, "job"), vec![event]).await[0].index + 1;
            eventually(Duration::from_secs(30), || async {
                let request = GetCheckpointRequest { log: String::new(), fresh: false };
                let newest = self.world.operator(&self.replica).get_checkpoint(request).await;
                newest.is_ok_and(|newest| {
                    newest.into_inner().checkpoint.lines().nth(1) == Some(&size.to_string())
                })
            })
            .await;
        }
    }

    async fn is_broken(&self) {
        for trust in [&self.trust, &Trust::default()] {
            let report = self.world.verify(trust).await;
            assert_eq!(ExitCode::from(&report), ExitCode::Broken, "{report:?}");
        }
    }
}

both_engines! {
    migrations: MIGRATIONS;

    async fn a_column_that_says_old_prunes_nothing_and_is_found(db: TestDb) {
        let scene = scene(db).await;
        scene.run(&AGE_COLUMN, params![]).await;
        scene.two_passes().await;
        assert_eq!(scene.first().await, 0, "fresh entries were pruned");
        let report = scene.world.verify(&scene.trust).await;
        assert!(matches!(report.verdict, Verdict::Broken { entry: 0, .. }), "{report:?}");
        scene.is_broken().await;
        scene.replica.stop().await;
    }

    async fn a_leaf_that_was_made_old_is_not_pruned(db: TestDb) {
        let scene = scene(db).await;
        let leaf = String::from_utf8(scene.bytes(&READ_LEAF, "leaf", params![0_i64]).await).unwrap();
        let old = leaf.replace("\"recorded_us\":1790000", "\"recorded_us\":1690000");
        assert_ne!(old, leaf);
        let (_, time) = old.split_once("\"recorded_us\":").unwrap();
        let time: i64 = time.split(',').next().unwrap().parse().unwrap();
        scene.run(&CHANGE_LEAF, params![0_i64, old.into_bytes(), time]).await;
        scene.two_passes().await;
        assert_eq!(scene.first().await, 0, "a forged entry was pruned");
        scene.is_broken().await;
        scene.replica.stop().await;
    }

    /// Every leaf made old, and each linked to the one before: only the tree, of which checkpoints were signed, knows.
    async fn a_whole_log_that_was_made_old_is_not_pruned(db: TestDb) {
        let scene = scene(db).await;
        let mut chain = Digest::of_genesis(&LogId::new("default").unwrap());
        for seq in 0..i64::try_from(SIZE).unwrap() {
            let leaf = Leaf::parse(&scene.bytes(&READ_LEAF, "leaf", params![seq]).await).unwrap();
            let old = Leaf { recorded: Timestamp::from_seconds(1_690_000_000), prev_chain: chain, ..leaf };
            scene.run(&CHANGE_LEAF, params![seq, old.encode(), old.recorded]).await;
            chain = Digest::of_chain(&old.encode());
        }
        scene.run(&CHANGE_HEAD, params![*chain.as_bytes()]).await;
        scene.two_passes().await;
        assert_eq!(scene.first().await, 0, "forged entries were pruned");
        scene.is_broken().await;
        scene.replica.stop().await;
    }

    /// Past their time, but not as they were: what would be lost with them is the proof.
    async fn what_was_changed_or_removed_is_not_signed_away_though_it_is_past_its_time(db: TestDb) {
        let scene = scene(db).await;
        scene.run(&DELETE_EVENT, params![]).await;
        scene.world.clock.advance(40 * DAY);
        scene.two_passes().await;
        assert_eq!(scene.first().await, 0);
        scene.is_broken().await;
        scene.replica.stop().await;
    }

    /// A front that somebody else removed must not be covered by the next true statement.
    async fn a_front_that_is_gone_without_a_statement_is_not_signed_later(db: TestDb) {
        let scene = scene(db).await;
        let leaf = scene.bytes(&READ_LEAF, "leaf", params![3_i64]).await;
        let chain = *Digest::of_chain(&leaf).as_bytes();
        scene.run(&DELETE_FRONT, params![]).await;
        scene.run(&DELETE_ROWS_OF_FRONT, params![]).await;
        scene.run(&FORGE_FRONT, params![chain]).await;
        scene.world.clock.advance(40 * DAY);
        scene.two_passes().await;
        assert_eq!(scene.first().await, 4);
        let report = scene.world.verify(&scene.trust).await;
        assert_eq!(ExitCode::from(&report), ExitCode::Broken, "{report:?}");
        scene.replica.stop().await;
    }

    /// The tree that the statement is about is held against the leaves; a changed one is not signed.
    async fn a_tile_that_was_changed_stops_the_pruner(db: TestDb) {
        let scene = scene(db).await;
        let mut tile = scene.bytes(&READ_TILE, "hashes", params![]).await;
        tile[32 * 3] ^= 1;
        scene.run(&CHANGE_TILE, params![tile]).await;
        // Only now: between the two the pruner would rightly remove what is as it was.
        scene.world.clock.advance(40 * DAY);
        // It signs nothing any more, so that its passes can't be counted by what it signs: two intervals go by.
        let started = std::time::Instant::now();
        eventually(Duration::from_secs(30), || async { started.elapsed() > Duration::from_secs(3) }).await;
        assert_eq!(scene.first().await, 0);
        scene.replica.stop().await;
    }

    /// The event that says what went stands in another log: nothing goes that it can't be said of.
    async fn what_can_not_be_said_to_go_stays(db: TestDb) {
        let mut world = World::new(db);
        world.clock = Clock::settable(Timestamp::from_seconds(1_790_000_000));
        world.config.prune_interval_ms = 1_000;
        world.config.logs = vec![LogConfig { name: "short".into(), days: 1 }];
        // In parts: each is said.
        world.config.max_prune = 5;
        let replica = world.replica().await;
        let event = |class: &str| NewEvent { retention_class: class.into(), ..world.event("test.things.do") };
        let of_short = || (0..SIZE).map(|_| event("short")).collect::<Vec<_>>();
        append(&mut world.emitter(&replica, "job"), (0..SIZE).map(|_| event("")).collect()).await;
        append(&mut world.emitter(&replica, "job"), of_short()).await;
        world.keep_checkpoint(&replica).await;
        let number = async |sql: &Sql, column: &str| {
            run_tx!(&*world.db, "test.read", |tx| { tx.fetch_one(sql, params![]).await?.get::<i64>(column) }).unwrap()
        };

        run_tx!(&*world.db, "test.cut", |tx| { tx.execute(&CUT_DEFAULT, params![]).await.map(drop) }).unwrap();
        world.clock.advance(2 * DAY);
        // Each pass signs the log first, and nothing else signs it.
        for _ in 0..2 {
            let size = append(&mut world.emitter(&replica, "job"), vec![event("short")]).await[0].index + 1;
            eventually(Duration::from_secs(30), || async {
                let request = GetCheckpointRequest { log: "short".into(), fresh: false };
                let newest = world.operator(&replica).get_checkpoint(request).await;
                newest.is_ok_and(|newest| newest.into_inner().checkpoint.lines().nth(1) == Some(&size.to_string()))
            })
            .await;
        }
        assert_eq!(number(&FIRST_OF_SHORT, "first_seq").await, 0, "entries went without a word");

        run_tx!(&*world.db, "test.uncut", |tx| { tx.execute(&UNCUT_DEFAULT, params![]).await.map(drop) }).unwrap();
        eventually(Duration::from_secs(30), async || number(&FIRST_OF_SHORT, "first_seq").await == 10).await;
        assert_eq!(number(&REMOVALS, "events").await, 2);
        assert!(replica.readiness.unmet().is_empty());
        replica.stop().await;
    }
}
