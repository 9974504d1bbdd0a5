//! The shortest whole use of the crate: connect, migrate, write, read.

use std::sync::Arc;

use gatehouse_core::ids::JobId;
use gatehouse_core::{Clock, Entropy, Timestamp};
use gatehouse_db::{Config, DatabaseUrl, Db, Error, Migrations, migrations, params, read_tx, run_tx, sql};

const MIGRATIONS: Migrations = migrations!["0001_init" => "CREATE TABLE jobs (id UUID PRIMARY KEY, name TEXT NOT NULL, made_at BIGINT NOT NULL)"];

sql! {
    ADD_JOB = "INSERT INTO jobs (id, name, made_at) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING";
    LIST_JOBS = "SELECT id, name, made_at FROM jobs ORDER BY id LIMIT $1";
}

async fn add(db: &Db, id: JobId, name: &str, now: Timestamp) -> Result<bool, Error> {
    run_tx!(db, "job.add", |tx| { Ok(tx.execute(&ADD_JOB, params![id, name, now]).await? == 1) })
}

#[tokio::test]
async fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let url = DatabaseUrl::sqlite(&folder.path().join("job.db"));
    let db = Arc::new(Db::connect(&Config { url, ..Config::default() }, "job").await.unwrap());
    db.migrate(&MIGRATIONS).await.unwrap();
    db.prepare_all(ALL).await.unwrap();

    let id = JobId::new(&Clock::system(), &Entropy::system());
    let now = Timestamp::from_seconds(7);
    // In a spawned task, since that demands a future that is Send.
    let task = tokio::spawn({
        let db = Arc::clone(&db);
        async move { (add(&db, id, "a", now).await, add(&db, id, "b", now).await) }
    });
    let (first, second) = task.await.unwrap();
    assert!(first.unwrap() && !second.unwrap());

    let rows = read_tx!(db, "job.list", |tx| { tx.fetch_all(&LIST_JOBS, params![10]).await }).unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].get::<JobId>("id").unwrap(), id);
    assert_eq!(rows[0].get::<String>("name").unwrap(), "a");
    assert_eq!(rows[0].get::<Timestamp>("made_at").unwrap(), now);
    db.ping().await.unwrap();
    db.close().await;
}
