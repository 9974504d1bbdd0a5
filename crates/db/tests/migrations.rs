//! Migrating: once, together, and never differently.
#![expect(clippy::unwrap_used, reason = "a test")]

use gatehouse_db::{Db, MigrationState, Migrations, migrations, params, read_tx, sql};
use gatehouse_testkit::{TestDb, both_engines};
use tokio::task::JoinSet;

const NONE: Migrations = migrations![];
const ONE: Migrations =
    migrations!["0001_init" => "CREATE TABLE a (id BIGINT PRIMARY KEY); INSERT INTO a (id) VALUES (1)"];
const TWO: Migrations = migrations![
    "0001_init" => "CREATE TABLE a (id BIGINT PRIMARY KEY); INSERT INTO a (id) VALUES (1)",
    "0002_more" => "INSERT INTO a (id) VALUES (2)",
];
const ONE_CHANGED: Migrations = migrations!["0001_init" => "CREATE TABLE a (id BIGINT PRIMARY KEY)"];
const SECOND_WRONG: Migrations = migrations![
    "0001_init" => "CREATE TABLE a (id BIGINT PRIMARY KEY)",
    "0002_wrong" => "CREATE TABLE b (id BIGINT PRIMARY KEY); CREATE NONSENSE",
];

sql! {
    COUNT = "SELECT COUNT(*) AS rows FROM a";
}

async fn rows(db: &Db) -> i64 {
    read_tx!(db, "test.count", |tx| { tx.fetch_one(&COUNT, params![]).await?.get("rows") }).unwrap()
}

async fn states(db: &Db, migrations: &Migrations) -> Vec<(i64, MigrationState)> {
    let status = db.migration_status(migrations).await.unwrap();
    status.iter().map(|status| (status.version, status.state)).collect()
}

both_engines! {
    migrations: NONE;

    async fn each_is_applied_once_and_in_order(db: TestDb) {
        use MigrationState::{Applied, Newer, Pending};
        assert_eq!(states(&db, &TWO).await, [(1, Pending), (2, Pending)]);
        db.migrate(&ONE).await.unwrap();
        db.migrate(&ONE).await.unwrap();
        assert_eq!(rows(&db).await, 1);
        assert_eq!(states(&db, &TWO).await, [(1, Applied), (2, Pending)]);
        db.migrate(&TWO).await.unwrap();
        assert_eq!(rows(&db).await, 2);
        // The program before the last migration still starts: replicas are replaced one by one.
        db.migrate(&ONE).await.unwrap();
        assert_eq!(states(&db, &ONE).await, [(1, Applied), (2, Newer)]);
    }

    async fn replicas_may_migrate_at_once(db: TestDb) {
        let mut tasks = JoinSet::new();
        for _ in 0..6 {
            let replica = db.another_replica().await;
            tasks.spawn(async move { replica.migrate(&TWO).await.unwrap() });
        }
        tasks.join_all().await;
        assert_eq!(rows(&db).await, 2);
    }

    async fn a_changed_text_is_refused_and_named(db: TestDb) {
        db.migrate(&ONE).await.unwrap();
        let error = db.migrate(&ONE_CHANGED).await.unwrap_err().to_string();
        assert!(error.contains("0001_init was changed after it was applied"), "{error}");
        assert_eq!(states(&db, &ONE_CHANGED).await, [(1, MigrationState::Changed)]);
        // The refusal holds no lock.
        db.migrate(&TWO).await.unwrap();
    }

    async fn a_failing_one_changes_nothing_and_is_named(db: TestDb) {
        let error = db.migrate(&SECOND_WRONG).await.unwrap_err().to_string();
        assert!(error.contains("0002_wrong failed, nothing was changed"), "{error}");
        assert_eq!(states(&db, &ONE).await, [(1, MigrationState::Pending)]);
        db.migrate(&ONE).await.unwrap();
        assert_eq!(rows(&db).await, 1);
    }

    async fn names_must_be_numbered_upwards(db: TestDb) {
        for wrong in [
            migrations!["init" => "SELECT 1"],
            migrations!["2_a" => "SELECT 1", "1_b" => "SELECT 1"],
            migrations!["1_a" => "SELECT 1", "1_b" => "SELECT 1"],
        ] {
            assert!(db.migrate(&wrong).await.unwrap_err().to_string().contains("the name must be"), "{wrong:?}");
        }
    }
}
