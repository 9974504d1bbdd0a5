//! Named transactions that run again when they lose a race.

use std::future::Future;
use std::time::Duration;

use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Postgres, Sqlite, Transaction};
use tracing::{Instrument as _, Span, field};

use crate::connect::Pools;
use crate::row::Inner as RowInner;
use crate::{Db, Error, Result, Row, Sql, Value};

/// How often a block is run in all. Ten losses in a row with growing pauses is a design fault, not bad luck.
const MOST_ATTEMPTS: u32 = 10;
/// The longest pause before the second run; it doubles from run to run up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// An open transaction, given to the block of [`run_tx!`](crate::run_tx!) or [`read_tx!`](crate::read_tx!).
/// Store functions take it as `&mut Tx`.
pub struct Tx {
    inner: Inner,
    name: &'static str,
    health: Health,
}

enum Inner {
    Postgres(Transaction<'static, Postgres>),
    Sqlite(Transaction<'static, Sqlite>),
}

/// Whether the transaction may still commit. After an error PostgreSQL answers COMMIT with a silent rollback and
/// SQLite commits the rest: neither is what the caller was told, so neither is let happen.
enum Health {
    Sound,
    /// The named statement failed, or its future was dropped before it ended.
    Broken {
        statement: &'static str,
        retryable: bool,
    },
}

impl Tx {
    /// Runs a statement; returns how many rows it inserted, changed or deleted.
    pub async fn execute(&mut self, sql: &Sql, params: Vec<Value>) -> Result<u64> {
        self.start(sql, &params)?;
        let result = match &mut self.inner {
            Inner::Postgres(tx) => {
                bind_postgres(sql, params).execute(&mut **tx).await.map(|done| done.rows_affected())
            }
            Inner::Sqlite(tx) => {
                bind_sqlite(sql, params).execute(&mut **tx).await.map(|done| done.rows_affected())
            }
        };
        self.finish(sql, result)
    }

    /// Runs a statement that gives one row; `is_no_row` if it gave none.
    pub async fn fetch_one(&mut self, sql: &Sql, params: Vec<Value>) -> Result<Row> {
        self.fetch_optional(sql, params).await?.ok_or_else(|| Error::no_row(sql.name()))
    }

    /// Runs a statement that gives at most one row; of more, the first.
    pub async fn fetch_optional(&mut self, sql: &Sql, params: Vec<Value>) -> Result<Option<Row>> {
        self.start(sql, &params)?;
        let result = match &mut self.inner {
            Inner::Postgres(tx) => bind_postgres(sql, params)
                .fetch_optional(&mut **tx)
                .await
                .map(|row| row.map(|row| Row(RowInner::Postgres(row)))),
            Inner::Sqlite(tx) => bind_sqlite(sql, params)
                .fetch_optional(&mut **tx)
                .await
                .map(|row| row.map(|row| Row(RowInner::Sqlite(row)))),
        };
        self.finish(sql, result)
    }

    /// Runs a statement and gathers all rows that it gives: the statement must bound them (`LIMIT`).
    pub async fn fetch_all(&mut self, sql: &Sql, params: Vec<Value>) -> Result<Vec<Row>> {
        self.start(sql, &params)?;
        let result = match &mut self.inner {
            Inner::Postgres(tx) => bind_postgres(sql, params)
                .fetch_all(&mut **tx)
                .await
                .map(|rows| rows.into_iter().map(|row| Row(RowInner::Postgres(row))).collect()),
            Inner::Sqlite(tx) => bind_sqlite(sql, params)
                .fetch_all(&mut **tx)
                .await
                .map(|rows| rows.into_iter().map(|row| Row(RowInner::Sqlite(row))).collect()),
        };
        self.finish(sql, result)
    }

    /// The transaction's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    fn start(&mut self, sql: &Sql, params: &[Value]) -> Result<()> {
        if let Health::Broken { statement, .. } = self.health {
            return Err(Error::swallowed(self.name, statement));
        }
        if params.iter().any(|value| matches!(value, Value::Text(Some(text)) if text.contains('\0'))) {
            return Err(Error::nul_in_text(sql.name()));
        }
        self.health = Health::Broken { statement: sql.name(), retryable: false };
        Ok(())
    }

    fn finish<T>(&mut self, sql: &Sql, result: Result<T, sqlx::Error>) -> Result<T> {
        let result = result.map_err(|cause| Error::from_driver(sql.name(), cause));
        self.health = match &result {
            Ok(_) => Health::Sound,
            Err(error) => Health::Broken { statement: sql.name(), retryable: error.is_retryable() },
        };
        result
    }

    async fn begin(db: &Db, name: &'static str, read_only: bool) -> Result<Self, BeginError> {
        let inner = match &db.pools {
            Pools::Postgres { pool, .. } => {
                let statement = if read_only {
                    // One snapshot for all statements, as SQLite's readers have.
                    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
                } else {
                    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
                };
                let connection = pool.acquire().await.map_err(BeginError::NoConnection)?;
                Inner::Postgres(begin_in_task(connection, statement).await.map_err(BeginError::Refused)?)
            }
            Pools::Sqlite { writer, readers } => {
                let (pool, statement) =
                    if read_only { (readers, "BEGIN") } else { (writer, "BEGIN IMMEDIATE") };
                let connection = pool.acquire().await.map_err(BeginError::NoConnection)?;
                Inner::Sqlite(begin_in_task(connection, statement).await.map_err(BeginError::Refused)?)
            }
        };
        Ok(Self { inner, name, health: Health::Sound })
    }

    async fn commit(self) -> Result<()> {
        match self.inner {
            Inner::Postgres(tx) => tx.commit().await,
            Inner::Sqlite(tx) => tx.commit().await,
        }
        .map_err(|cause| Error::from_driver(self.name, cause))
    }

    async fn roll_back(self) {
        let result = match self.inner {
            Inner::Postgres(tx) => tx.rollback().await,
            Inner::Sqlite(tx) => tx.rollback().await,
        };
        if let Err(cause) = result {
            // The pool closes such a connection (see `connect`), and with it the transaction ends.
            tracing::debug!(transaction = self.name, error = %cause, "rollback failed");
        }
    }
}

/// Why no transaction was opened.
enum BeginError {
    /// The pool had no connection to give: the server is away or overloaded, and the pool has waited long enough.
    NoConnection(sqlx::Error),
    /// A connection was there, but BEGIN failed on it.
    Refused(sqlx::Error),
}

/// Begins in a task of its own. A BEGIN that is dropped halfway would reach the server while the driver believes
/// that no transaction is open, and so leave the connection inside one. The task ends whatever happens to the
/// caller; then the transaction is dropped, which rolls back.
pub(crate) async fn begin_in_task<DB: sqlx::Database>(
    connection: sqlx::pool::PoolConnection<DB>,
    statement: &'static str,
) -> Result<Transaction<'static, DB>, sqlx::Error> {
    let statement = sqlx::SqlSafeStr::into_sql_str(statement);
    let begin = async move { Transaction::begin(connection, Some(statement)).await };
    tokio::spawn(begin.in_current_span()).await.map_err(|_| sqlx::Error::WorkerCrashed)?
}

fn bind_postgres(sql: &Sql, params: Vec<Value>) -> Query<'static, Postgres, PgArguments> {
    params.into_iter().fold(sqlx::query(sql.postgres()), |query, value| match value {
        Value::Int(value) => query.bind(value),
        Value::Bool(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Uuid(value) => query.bind(value),
        Value::Bytes(value) => query.bind(value),
    })
}

fn bind_sqlite(sql: &Sql, params: Vec<Value>) -> Query<'static, Sqlite, SqliteArguments> {
    params.into_iter().fold(sqlx::query(sql.sqlite()), |query, value| match value {
        Value::Int(value) => query.bind(value),
        Value::Bool(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Uuid(value) => query.bind(value),
        Value::Bytes(value) => query.bind(value),
    })
}

/// The runs of one block. The macros drive it; nobody else does.
#[doc(hidden)]
pub struct Attempts {
    db: Db,
    name: &'static str,
    read_only: bool,
    attempt: u32,
    /// Whether the block was run again because its connection was lost.
    resumed: bool,
}

impl Attempts {
    #[must_use]
    pub fn new(db: &Db, name: &'static str, read_only: bool) -> Self {
        Self { db: db.clone(), name, read_only, attempt: 0, resumed: false }
    }

    /// The span that the whole runs in.
    #[must_use]
    pub fn span(&self) -> Span {
        tracing::info_span!(
            "db.tx",
            tx = self.name,
            read_only = self.read_only,
            attempts = field::Empty,
            outcome = field::Empty
        )
    }

    /// Opens the next transaction.
    pub async fn begin(&mut self) -> Result<Tx> {
        let mut dead_connections = 0;
        loop {
            self.attempt += 1;
            let error = match Tx::begin(&self.db, self.name, self.read_only).await {
                Ok(tx) => return Ok(tx),
                Err(BeginError::NoConnection(cause)) => Error::from_driver(self.name, cause),
                Err(BeginError::Refused(cause)) => {
                    let error = Error::from_driver(self.name, cause);
                    // A pooled connection that died while idle (a failover kills all of them). Nothing was begun and
                    // the pool has dropped it, so the next one is tried at once.
                    if error.is_unavailable() && dead_connections < self.db.pool_size() {
                        dead_connections += 1;
                        self.attempt -= 1;
                        continue;
                    }
                    error
                }
            };
            if !self.may_run_again(&error) {
                return self.close(Err(error), "error");
            }
            self.pause().await;
        }
    }

    /// Ends a run: `None` when the block must run again.
    pub async fn end<T>(&mut self, tx: Tx, result: Result<T>) -> Option<Result<T>> {
        let (error, outcome) = match (result, &tx.health) {
            (Ok(value), Health::Sound) => match tx.commit().await {
                Ok(()) => return Some(self.close(Ok(value), "committed")),
                Err(error) if self.read_only && self.may_resume(&error) => return None,
                Err(error) => (error, "error"),
            },
            (Ok(_), Health::Broken { statement, retryable }) => {
                let (error, again) = (Error::swallowed(self.name, statement), *retryable);
                tx.roll_back().await;
                if again && self.attempt < MOST_ATTEMPTS {
                    self.pause().await;
                    return None;
                }
                return Some(self.close(Err(error), "error"));
            }
            (Err(error), _) => {
                tx.roll_back().await;
                if self.may_resume(&error) {
                    return None;
                }
                (error, "rolled_back")
            }
        };
        if self.may_run_again(&error) {
            self.pause().await;
            return None;
        }
        Some(self.close(Err(error), outcome))
    }

    /// Whether the server went away before the commit was sent: nothing was changed, and it may be back. Once.
    fn may_resume(&mut self, error: &Error) -> bool {
        let may = !self.resumed && error.is_connection_lost();
        self.resumed |= may;
        may
    }

    fn may_run_again(&self, error: &Error) -> bool {
        error.is_retryable() && self.attempt < MOST_ATTEMPTS
    }

    /// Full jitter (Brooker, "Exponential Backoff And Jitter", 2015).
    async fn pause(&self) {
        let longest =
            FIRST_PAUSE.saturating_mul(1 << self.attempt.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
        let micros = self.db.entropy.below(u64::try_from(longest.as_micros()).unwrap_or(u64::MAX));
        tracing::debug!(
            transaction = self.name,
            attempt = self.attempt,
            micros,
            "lost a race; running again"
        );
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }

    fn close<T>(&self, result: Result<T>, outcome: &'static str) -> Result<T> {
        Span::current().record("attempts", self.attempt).record("outcome", outcome);
        result
    }
}

impl Db {
    fn pool_size(&self) -> u32 {
        match &self.pools {
            Pools::Postgres { pool, .. } => pool.options().get_max_connections(),
            Pools::Sqlite { writer, .. } => writer.options().get_max_connections(),
        }
    }
}

/// Tells the compiler a block's error type, so that `?` in it knows what to convert to.
#[doc(hidden)]
pub fn block<T, F: Future<Output = Result<T>>>(block: F) -> F {
    block
}

/// Runs a block in a transaction: `run_tx!(db, "job.submit", |tx| { …?…; Ok(outcome) })`.
///
/// `db` is a [`Db`], a reference to one or an `Arc` of one; the name is `service.use_case`. The block is async, gets
/// `tx: &mut Tx`, and is a `Result<T, gatehouse_db::Error>`; the macro is that result. `Ok` commits, also where the
/// value is a refusal; `Err` rolls back (a `gatehouse_core::Error` may be passed out that way). After a
/// serialization failure, a deadlock or SQLite's BUSY the block RUNS AGAIN, up to ten times in all with jittered
/// pauses, and once if the connection is lost before the commit: it must borrow what it uses and do nothing that can't be done twice (no sending, no pushing to outer lists).
///
/// A statement that failed dooms the transaction, even if the block then returns `Ok`: use `ON CONFLICT` for
/// violations that are expected. An error of the commit itself that is `is_unavailable` leaves open whether it happened.
/// Dropped halfway, the transaction is rolled back.
///
/// A macro rather than a function, because a closure's future that borrows could not be shown to be `Send`.
#[macro_export]
macro_rules! run_tx {
    ($db:expr, $name:expr, |$tx:ident| $block:block $(,)?) => {
        $crate::run_tx!(@run false, $db, $name, |$tx| $block)
    };
    (@run $read_only:literal, $db:expr, $name:expr, |$tx:ident| $block:block) => {{
        let database: &$crate::Db = &$db;
        let mut attempts = $crate::private::Attempts::new(database, $name, $read_only);
        let span = attempts.span();
        let run = async {
            loop {
                let mut transaction = match attempts.begin().await {
                    Ok(transaction) => transaction,
                    Err(error) => break Err(error),
                };
                let result = {
                    let $tx: &mut $crate::Tx = &mut transaction;
                    $crate::private::block(async { $block }).await
                };
                if let Some(result) = attempts.end(transaction, result).await {
                    break result;
                }
            }
        };
        $crate::private::Instrument::instrument(run, span).await
    }};
}

/// Runs a block that only reads: all its statements see one snapshot, and writing fails. On SQLite it does not wait for
/// writers. Else like [`run_tx!`](crate::run_tx!).
#[macro_export]
macro_rules! read_tx {
    ($db:expr, $name:expr, |$tx:ident| $block:block $(,)?) => {
        $crate::run_tx!(@run true, $db, $name, |$tx| $block)
    };
}
