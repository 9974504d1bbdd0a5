//! What the disk, the databases and Redis can do.

use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context as _, Result};
use redis::IntoConnectionInfo as _;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Executor as _, PgPool, SqlitePool};
use uuid::Uuid;

use crate::figure::Sample;
use crate::load::{Caller, Times, drive, rate};
use crate::people::fresh_id;
use crate::session::Session;

/// Bytes of a row, about those of an audit event.
const ROW: &str = "an event of a few hundred bytes an event of a few hundred bytes an event of a few hundred bytes an \
event of a few hundred bytes an event of a few hundred bytes an event of a few hundred bytes an event of a few hundred";
const BATCH: usize = 500;
const INSERT: &str = "INSERT INTO bench_raw (id, body) VALUES ($1, $2)";

/// One file, one writer: append and sync, in the folder where the databases are.
pub(crate) async fn fsync(times: Times) -> Result<Sample> {
    tokio::task::spawn_blocking(move || {
        let mut file = tempfile::tempfile()?;
        let (block, mut syncs) = ([7_u8; 8192], 0);
        let began = Instant::now();
        while began.elapsed() < times.measure {
            file.write_all(&block)?;
            file.sync_data()?;
            syncs += 1;
        }
        Ok(Sample { value: rate(syncs, began.elapsed()), ..Sample::default() })
    })
    .await?
}

/// Connections of our own to the throwaway PostgreSQL, with the table for raw rows.
///
/// # Errors
/// If it does not answer.
pub(crate) async fn postgres_pool(url: &str, connections: u32) -> Result<PgPool> {
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .min_connections(connections)
        .test_before_acquire(false)
        .connect(url)
        .await?;
    pool.execute("CREATE TABLE IF NOT EXISTS bench_raw (id UUID PRIMARY KEY, body TEXT NOT NULL)").await?;
    Ok(pool)
}

struct Committer(PgPool);

impl Caller for Committer {
    async fn call(&mut self) -> Result<u64> {
        sqlx::query(INSERT).bind(fresh_id()).bind(ROW).execute(&self.0).await?;
        Ok(1)
    }
}

pub(crate) async fn postgres_commits(session: &Session, connections: u32) -> Result<Sample> {
    let pool = postgres_pool(&session.postgres()?.url, connections).await?;
    let callers = (0..connections).map(|_| Committer(pool.clone())).collect();
    let (sample, _) = drive(callers, session.times, session.processes()).await?;
    pool.close().await;
    Ok(sample)
}

struct Batcher(PgPool);

impl Caller for Batcher {
    async fn call(&mut self) -> Result<u64> {
        let ids: Vec<Uuid> = (0..BATCH).map(|_| fresh_id()).collect();
        let bodies = vec![ROW; BATCH];
        let rows =
            sqlx::query("INSERT INTO bench_raw (id, body) SELECT * FROM UNNEST($1::UUID[], $2::TEXT[])")
                .bind(ids)
                .bind(bodies)
                .execute(&self.0)
                .await?;
        Ok(rows.rows_affected())
    }
}

pub(crate) async fn postgres_batches(session: &Session) -> Result<Sample> {
    let pool = postgres_pool(&session.postgres()?.url, 1).await?;
    let (sample, _) = drive(vec![Batcher(pool.clone())], session.times, session.processes()).await?;
    pool.close().await;
    Ok(sample)
}

struct SqliteCommitter(SqlitePool);

impl Caller for SqliteCommitter {
    async fn call(&mut self) -> Result<u64> {
        sqlx::query(INSERT).bind(fresh_id()).bind(ROW).execute(&self.0).await?;
        Ok(1)
    }
}

pub(crate) async fn sqlite_commits(session: &Session) -> Result<Sample> {
    let folder = tempfile::tempdir()?;
    // As crates/db opens them.
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("raw.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("secure_delete", "ON");
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
    pool.execute("CREATE TABLE bench_raw (id BLOB PRIMARY KEY, body TEXT NOT NULL)").await?;
    let (sample, _) = drive(vec![SqliteCommitter(pool.clone())], session.times, session.processes()).await?;
    pool.close().await;
    Ok(sample)
}

struct Scripter(ConnectionManager, redis::Script);

impl Caller for Scripter {
    async fn call(&mut self) -> Result<u64> {
        let answer: i64 = self.1.prepare_invoke().invoke_async(&mut self.0).await?;
        Ok(u64::try_from(answer).unwrap_or(1))
    }
}

pub(crate) async fn redis_scripts(session: &Session) -> Result<Sample> {
    // As the limiter connects.
    let settings = TcpSettings::default().set_nodelay(true);
    let client =
        redis::Client::open(session.redis_url()?.into_connection_info()?.set_tcp_settings(settings))?;
    let config = ConnectionManagerConfig::new().set_pipeline_buffer_size(1024);
    let manager =
        ConnectionManager::new_with_config(client, config).await.context("Redis does not answer")?;
    let callers =
        (0..session.callers).map(|_| Scripter(manager.clone(), redis::Script::new("return 1"))).collect();
    Ok(drive(callers, session.times, session.processes()).await?.0)
}
