//! A connection whose transaction ended behind the driver's back is not used again.
#![expect(clippy::unwrap_used, reason = "a test")]

use gatehouse_core::ErrorCode;
use gatehouse_db::{Db, Error, Migrations, Sql, migrations, params, run_tx, sql};
use gatehouse_testkit::TestDb;

const MIGRATIONS: Migrations = migrations!["0001_init" =>
    "CREATE TABLE texts (id BIGINT PRIMARY KEY, body TEXT NOT NULL);"];

sql! {
    ADD_TEXT = "INSERT INTO texts (id, body) VALUES ($1, $2)";
    COUNT = "SELECT COUNT(*) AS texts FROM texts";
}

/// The least that the file has now; a new connection has no bound again: then there is room.
const NO_ROOM: Sql = Sql::new("NO_ROOM", "PRAGMA max_page_count = 1");
const PID: Sql = Sql::new("PID", "SELECT CAST(pg_backend_pid() AS BIGINT) AS pid");
const KILL: Sql = Sql::new("KILL", "SELECT pg_terminate_backend(CAST($1 AS INTEGER)) AS killed");

async fn add(db: &Db, id: i64, length: usize) -> Result<u64, Error> {
    let body = "x".repeat(length);
    run_tx!(db, "test.add", |tx| { tx.execute(&ADD_TEXT, params![id, body.as_str()]).await })
}

async fn count(db: &Db) -> i64 {
    run_tx!(db, "test.count", |tx| { tx.fetch_one(&COUNT, params![]).await?.get("texts") }).unwrap()
}

/// SQLite ends the transaction itself when the disk is full; ROLLBACK then fails, and the driver goes on to believe
/// that the connection is inside one.
#[tokio::test(flavor = "multi_thread")]
async fn writes_work_again_once_there_is_room_on_sqlite() {
    let db = TestDb::sqlite(&MIGRATIONS).await;
    for round in 0..3 {
        run_tx!(db.db(), "test.no_room", |tx| { tx.fetch_one(&NO_ROOM, params![]).await.map(drop) }).unwrap();
        let error = add(&db, 1000 + round, 1_000_000).await.unwrap_err();
        assert!(error.is_unavailable(), "{error}");
        assert_eq!(gatehouse_core::Error::from(error).code(), ErrorCode::Unavailable);
        // The single writer, at once and without a restart.
        assert_eq!(add(&db, round, 10).await.unwrap(), 1);
        assert_eq!(count(&db).await, round + 1);
    }
}

/// The same where the caller goes away while the statement runs: nobody is there to roll back.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_goes_away_from_a_full_disk_leaves_no_dead_writer() {
    let db = TestDb::sqlite(&MIGRATIONS).await;
    for round in 0..20_u32 {
        run_tx!(db.db(), "test.no_room", |tx| { tx.fetch_one(&NO_ROOM, params![]).await.map(drop) }).unwrap();
        let waited = std::time::Duration::from_micros(u64::from(round) * 200);
        let _ = tokio::time::timeout(waited, add(&db, 1000 + i64::from(round), 1_000_000)).await;
        // Where it went away before the statement ran, the bound may still be there.
        let first = add(&db, i64::from(round), 10).await;
        assert!(first.as_ref().err().is_none_or(Error::is_unavailable), "{first:?}");
        if first.is_err() {
            add(&db, i64::from(round), 10).await.unwrap();
        }
    }
}

/// A connection that is cut while its transaction commits.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_on_a_dead_connection_is_unavailable_on_postgresql() {
    let db = TestDb::postgres(&MIGRATIONS).await;
    let killer = db.another_replica().await;
    for round in 0..3_i64 {
        let lost = run_tx!(db.db(), "test.lost", |tx| {
            tx.execute(&ADD_TEXT, params![1000 + round, "x"]).await?;
            let pid: i64 = tx.fetch_one(&PID, params![]).await?.get("pid")?;
            run_tx!(killer, "test.kill", |other| { other.fetch_one(&KILL, params![pid]).await.map(drop) })
        });
        let error = lost.unwrap_err();
        assert!(error.is_unavailable(), "{error}");
        assert_eq!(add(&db, round, 10).await.unwrap(), 1);
        assert_eq!(count(&db).await, round + 1);
    }
}
