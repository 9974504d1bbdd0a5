//! Connections to either engine.

use std::fmt;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use gatehouse_core::{Entropy, shown_path};
use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Pool, Postgres, Sqlite};
use tokio::time::{Instant, sleep};

use crate::config::{Target, is_local, is_schema_name};
use crate::{Config, Error, Result, Sql};

/// Readers of one SQLite file; each is a thread, and more than the cores of a small machine gain nothing.
const MOST_SQLITE_READERS: u32 = 4;
/// What a connection to a SQLite file may keep of it in memory, in KiB. Its own default, 2000, times five connections a
/// file, is most of what an embedded Gatehouse would hold after some work; behind it stands the operating system's cache,
/// which every connection shares.
const SQLITE_READER_CACHE_KIB: u32 = 256;
/// The one that writes: a transaction with more changed pages than this spills into the log before it commits.
const SQLITE_WRITER_CACHE_KIB: u32 = 1024;
/// A transaction that its process forgot about holds locks and stops vacuum: the server ends it.
const IDLE_IN_TRANSACTION_TIMEOUT: &str = "60s";

/// Which database is behind a [`Db`]. For reports and tests; no code may branch on it to do different work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// PostgreSQL.
    Postgres,
    /// SQLite.
    Sqlite,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "PostgreSQL",
            Self::Sqlite => "SQLite",
        })
    }
}

/// A service's database. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct Db {
    pub(crate) pools: Pools,
    pub(crate) entropy: Entropy,
}

#[derive(Clone)]
pub(crate) enum Pools {
    Postgres {
        pool: Pool<Postgres>,
        schema: String,
    },
    Sqlite {
        /// Exactly one connection: SQLite has one writer, and a queue here is fairer than its busy loop.
        writer: Pool<Sqlite>,
        readers: Pool<Sqlite>,
    },
}

impl Db {
    /// Connects `service` (such as `token-broker`; it names the schema and the application) to its database. Creates
    /// a missing SQLite file, not a missing folder; the tables are [`Db::migrate`]'s.
    ///
    /// Tries a PostgreSQL that does not answer yet again for `acquire_timeout_ms`. The error's text says what to do.
    pub async fn connect(config: &Config, service: &str) -> Result<Self> {
        let pools = match config.url.target().map_err(Error::setup)? {
            Target::Postgres(options) => connect_postgres(config, service, *options).await?,
            Target::Sqlite(path) => connect_sqlite(config, &path).await?,
        };
        Ok(Self { pools, entropy: Entropy::system() })
    }

    /// Connects to a database that is there, to read only: nothing of it is changed, nothing is made, and writing fails.
    ///
    /// A SQLite file is left as it is, with the log (`-wal`) beside it; an index (`-shm`) may be laid beside both. Where
    /// that can't be, as on read-only media, a file without a log is read as one that nobody writes to. The error's text
    /// says what to do.
    pub async fn connect_read_only(config: &Config, service: &str) -> Result<Self> {
        let pools = match config.url.target().map_err(Error::setup)? {
            Target::Postgres(options) => {
                let options = options.options([("default_transaction_read_only", "on")]);
                connect_postgres(config, service, options).await?
            }
            Target::Sqlite(path) => connect_sqlite_read_only(config, &path).await?,
        };
        Ok(Self { pools, entropy: Entropy::system() })
    }

    /// The engine behind.
    #[must_use]
    pub fn engine(&self) -> Engine {
        match self.pools {
            Pools::Postgres { .. } => Engine::Postgres,
            Pools::Sqlite { .. } => Engine::Sqlite,
        }
    }

    /// Whether the database answers now; for readiness.
    pub async fn ping(&self) -> Result<()> {
        match &self.pools {
            Pools::Postgres { pool, .. } => pool.execute("SELECT 1").await.map(drop),
            Pools::Sqlite { readers, .. } => readers.execute("SELECT 1").await.map(drop),
        }
        .map_err(|cause| Error::from_driver("db.ping", cause))
    }

    /// Closes every connection, waiting for those in use. Work that comes later fails as unavailable.
    pub async fn close(&self) {
        match &self.pools {
            Pools::Postgres { pool, .. } => pool.close().await,
            Pools::Sqlite { writer, readers } => {
                readers.close().await;
                writer.close().await;
            }
        }
    }

    /// Prepares every statement without running it: finds wrong SQL, tables, columns and, on PostgreSQL, types. For
    /// tests; the error names each statement that failed.
    pub async fn prepare_all(&self, statements: &[Sql]) -> Result<()> {
        let mut problems = Vec::new();
        for sql in statements {
            let prepared = match &self.pools {
                Pools::Postgres { pool, .. } => pool.prepare(sql.postgres().into_str()).await.map(drop),
                Pools::Sqlite { writer, .. } => writer.prepare(sql.sqlite().into_str()).await.map(drop),
            };
            if let Err(cause) = prepared {
                problems.push(format!("{}: {cause}", sql.name()));
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::setup(problems.join("\n"))) }
    }
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Db({})", self.engine())
    }
}

/// `&'static str` is what the driver takes as audited SQL; this only names the conversion.
trait IntoStr {
    fn into_str(self) -> sqlx::SqlStr;
}

impl IntoStr for &'static str {
    fn into_str(self) -> sqlx::SqlStr {
        sqlx::SqlSafeStr::into_sql_str(self)
    }
}

async fn connect_postgres(config: &Config, service: &str, options: PgConnectOptions) -> Result<Pools> {
    let schema = config.schema_for(service);
    if !is_schema_name(&schema) {
        return Err(Error::setup(format!("{schema:?} is not a schema name")));
    }
    let mut options = options
        .application_name(&format!("gatehouse-{service}"))
        .options([("search_path", schema.as_str())])
        .options([("statement_timeout", config.statement_timeout_ms)])
        .options([("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT)]);
    if let Some(path) = &config.password_file {
        let password = std::fs::read_to_string(path).map_err(|cause| {
            Error::setup_caused_by(
                format!(
                    "can't read the file with the database password, {}: {cause}. Check password_file.",
                    shown_path(path)
                ),
                cause,
            )
        })?;
        options = options.password(password.trim_end_matches(['\r', '\n']));
    }
    if let Some(file) = &config.ca_file {
        // The driver reads it at each connection and tells a missing file from a server that is away by nothing.
        std::fs::File::open(file).map_err(|cause| {
            let message = format!(
                "can't read the authorities of PostgreSQL, {}: {cause}. Check ca_file.",
                shown_path(file)
            );
            Error::setup_caused_by(message, cause)
        })?;
        options = options.ssl_root_cert(file);
    }
    if matches!(options.get_ssl_mode(), PgSslMode::Require) && !is_local(&options) {
        tracing::warn!(
            host = options.get_host(),
            "the connection to PostgreSQL is encrypted, but whoever answers at its address is believed: use \
             sslmode=verify-full and ca_file"
        );
    }
    // The pool would retry and then tell only that it timed out; one connection of our own tells why.
    first_connection(config, &options)
        .await?
        .close()
        .await
        .map_err(|cause| Error::from_driver("db.connect", cause))?;
    let pool = pool_options::<Postgres>(config.max_connections, config)
        // Released connections were tested, and `Attempts::begin` tries another when one has died since.
        .test_before_acquire(false)
        .after_release(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
        .connect_lazy_with(options);
    Ok(Pools::Postgres { pool, schema })
}

async fn first_connection(config: &Config, options: &PgConnectOptions) -> Result<PgConnection> {
    let deadline = Instant::now() + config.acquire_timeout();
    loop {
        let attempt = tokio::time::timeout_at(deadline, options.connect()).await;
        let cause = match attempt {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(cause)) => cause,
            Err(_) => {
                return Err(Error::setup(format!(
                    "{} within {} ms",
                    unreachable(options),
                    config.acquire_timeout_ms
                )));
            }
        };
        let starting = match &cause {
            sqlx::Error::Io(_) => !is_handshake(&cause),
            sqlx::Error::Database(error) => error.code().as_deref() == Some("57P03"),
            _ => false,
        };
        if !starting || Instant::now() + Duration::from_millis(200) >= deadline {
            return Err(explain_postgres(options, cause));
        }
        sleep(Duration::from_millis(200)).await;
    }
}

fn address(options: &PgConnectOptions) -> String {
    format!("{}:{}", options.get_host(), options.get_port())
}

fn unreachable(options: &PgConnectOptions) -> String {
    format!(
        "PostgreSQL at {} did not answer (is it running, are host and port right, does a firewall allow it?)",
        address(options)
    )
}

fn explain_postgres(options: &PgConnectOptions, cause: sqlx::Error) -> Error {
    let code = code(&cause);
    let (user, database) = (options.get_username(), options.get_database().unwrap_or(options.get_username()));
    let message = match (code.as_str(), &cause) {
        ("28P01" | "28000", _) => {
            format!(
                "PostgreSQL at {} refused user {user:?}: {cause}. Check the user, its password and pg_hba.conf.",
                address(options)
            )
        }
        ("3D000", _) => {
            format!(
                "PostgreSQL at {} has no database {database:?}. Create it: createdb {database}",
                address(options)
            )
        }
        (_, sqlx::Error::Io(_)) if !is_handshake(&cause) => format!("{}: {cause}", unreachable(options)),
        (_, sqlx::Error::Tls(_) | sqlx::Error::Io(_)) => {
            format!(
                "no encrypted connection to PostgreSQL at {}: {cause}. Check its certificate, sslmode and ca_file.",
                address(options)
            )
        }
        _ => format!("can't connect to PostgreSQL at {}: {cause}", address(options)),
    };
    Error::setup_caused_by(message, cause)
}

/// Whether the TLS handshake failed: the server answers, and trying again changes nothing.
fn is_handshake(cause: &sqlx::Error) -> bool {
    matches!(cause, sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData)
}

/// The engine's own code for what happened; empty where it was not the engine that spoke.
fn code(cause: &sqlx::Error) -> String {
    cause
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .map_or_else(String::new, std::borrow::Cow::into_owned)
}

async fn connect_sqlite(config: &Config, path: &Path) -> Result<Pools> {
    create_private(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        // WAL with FULL: what was committed survives a power cut.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(config.acquire_timeout())
        // What was deleted is overwritten, not left in free pages.
        .pragma("secure_delete", "ON")
        .pragma("trusted_schema", "OFF");
    let explain = |cause: sqlx::Error| explain_sqlite(path, cause);
    let of_writer = options.clone().pragma("cache_size", cache_size(SQLITE_WRITER_CACHE_KIB));
    let writer = sqlite_pool(1, config).connect_with(of_writer).await.map_err(explain)?;
    // Opening reads nothing; this reads the header and the schema.
    writer.execute("SELECT COUNT(*) FROM sqlite_master").await.map_err(explain)?;
    let readers = sqlite_pool(config.max_connections.min(MOST_SQLITE_READERS), config)
        .connect_with(
            options.pragma("query_only", "ON").pragma("cache_size", cache_size(SQLITE_READER_CACHE_KIB)),
        )
        .await
        .map_err(explain)?;
    Ok(Pools::Sqlite { writer, readers })
}

/// For SQLite a negative number is KiB; a positive one is pages.
fn cache_size(kib: u32) -> String {
    format!("-{kib}")
}

async fn connect_sqlite_read_only(config: &Config, path: &Path) -> Result<Pools> {
    std::fs::File::open(path).map_err(|cause| {
        let message =
            format!("{} can't be read: {cause}. Check the path and who may read it.", path.display());
        Error::setup_caused_by(message, cause)
    })?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(config.acquire_timeout())
        .pragma("query_only", "ON")
        .pragma("trusted_schema", "OFF");
    let connections = config.max_connections.min(MOST_SQLITE_READERS);
    let open = async |options: SqliteConnectOptions| {
        let readers = sqlite_pool(connections, config).connect_with(options).await?;
        readers.execute("SELECT COUNT(*) FROM sqlite_master").await.map(|_| readers)
    };
    let readers = match open(options.clone()).await {
        Ok(readers) => readers,
        // Neither an index can be made nor, so, can anybody be writing here.
        Err(cause) if !is_cant_open(&cause) => return Err(explain_sqlite(path, cause)),
        Err(_) if !has_log(path) => {
            open(options.immutable(true)).await.map_err(|cause| explain_sqlite(path, cause))?
        }
        Err(cause) => {
            let message = format!(
                "{}-wal holds a part of the database, and can't be read where nothing can be written. Copy the file and \
                 what lies beside it under its name (-wal, -shm) to a folder that you may write to.",
                path.display()
            );
            return Err(Error::setup_caused_by(message, cause));
        }
    };
    Ok(Pools::Sqlite { writer: readers.clone(), readers })
}

/// SQLite's CANTOPEN and READONLY, with what they are extended by.
fn is_cant_open(cause: &sqlx::Error) -> bool {
    code(cause).parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 8 | 14))
}

/// Whether there is a write-ahead log of the SQLite file `path` with anything in it.
fn has_log(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).is_ok_and(|log| log.len() > 0)
}

/// A pool that keeps only connections which are outside a transaction. SQLite ends one itself when the disk is full or
/// fails or memory runs out; COMMIT and ROLLBACK then fail, and the driver would believe for ever that the connection
/// is inside: no transaction could begin on it again.
fn sqlite_pool(connections: u32, config: &Config) -> PoolOptions<Sqlite> {
    pool_options::<Sqlite>(connections, config).after_release(|connection, _| {
        Box::pin(async move {
            // Waits until a ROLLBACK that was only queued, because its caller went away, was done or failed.
            connection.ping().await?;
            Ok(!connection.is_in_transaction())
        })
    })
}

fn pool_options<DB: sqlx::Database>(connections: u32, config: &Config) -> PoolOptions<DB> {
    PoolOptions::new().max_connections(connections).acquire_timeout(config.acquire_timeout())
}

/// Makes sure that the file is there and that only its owner may read it; SQLite gives its `-wal` and `-shm` the
/// same mode.
fn create_private(path: &Path) -> Result<()> {
    let explain = |cause: std::io::Error| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let message = if folder.is_dir() {
            format!(
                "can't open the database file {}: {cause}. Check who owns it and its folder.",
                path.display()
            )
        } else {
            format!(
                "the folder of the database file, {}, can't be used: {cause}. Create it or change the url.",
                folder.display()
            )
        };
        Error::setup_caused_by(message, cause)
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(explain)?;
    let mode = file.metadata().map_err(explain)?.permissions().mode();
    if mode & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(mode & 0o700)).map_err(explain)?;
    }
    Ok(())
}

fn explain_sqlite(path: &Path, cause: sqlx::Error) -> Error {
    let code = code(&cause);
    let message = match code.as_str() {
        "26" => format!("{} is not a SQLite database. Check the url; nothing was changed.", path.display()),
        "11" => {
            format!("the SQLite database {} is damaged: {cause}. Restore it from a backup.", path.display())
        }
        "5" => format!(
            "the SQLite database {} is in use by another process: {cause}. Stop that one first.",
            path.display()
        ),
        _ => format!(
            "can't open the SQLite database {}: {cause}. Check the file and its folder's permissions.",
            path.display()
        ),
    };
    Error::setup_caused_by(message, cause)
}
