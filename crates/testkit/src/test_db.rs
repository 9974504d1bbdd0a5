//! A fresh database for each test, on either engine.

use std::any::Any;
use std::ops::Deref;
use std::thread;

use gatehouse_core::Entropy;
use gatehouse_db::{Config, DatabaseUrl, Db, Migrations};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::Postgres;

/// The service that test databases say to belong to.
pub const SERVICE: &str = "test";

/// A migrated database that no other test sees: a SQLite file, or a schema of the test PostgreSQL. It is a [`Db`] by
/// `Deref`; dropping it removes the file or schema.
#[derive(Debug)]
pub struct TestDb {
    db: Db,
    config: Config,
    /// Removes the place when dropped, after the connections.
    _place: Box<dyn Any + Send + Sync>,
}

#[derive(Debug)]
struct Schema {
    name: String,
}

impl TestDb {
    /// A file of its own.
    ///
    /// # Panics
    /// If it can't be made or migrated.
    pub async fn sqlite(migrations: &Migrations) -> Self {
        let folder = tempfile::tempdir().expect("the test can make a folder");
        let url = DatabaseUrl::sqlite(&folder.path().join("test.db"));
        Self::open(Config { url, ..patient() }, Box::new(folder), migrations).await
    }

    /// A schema of its own in the shared PostgreSQL.
    ///
    /// # Panics
    /// If there is no PostgreSQL (the message says what to install), or it can't be migrated.
    pub async fn postgres(migrations: &Migrations) -> Self {
        let server =
            tokio::task::spawn_blocking(Postgres::shared).await.expect("starting PostgreSQL does not panic");
        let server = server.unwrap_or_else(|error| panic!("{error}"));
        let name = format!("test_{:016x}", u64::from_le_bytes(Entropy::system().bytes()));
        let config = Config { url: DatabaseUrl::new(server.url()), schema: Some(name.clone()), ..patient() };
        Self::open(config, Box::new(Schema { name }), migrations).await
    }

    async fn open(config: Config, place: Box<dyn Any + Send + Sync>, migrations: &Migrations) -> Self {
        let db = Db::connect(&config, SERVICE).await.unwrap_or_else(|error| panic!("{error}"));
        db.migrate(migrations).await.unwrap_or_else(|error| panic!("{error}"));
        Self { db, config, _place: place }
    }

    /// The database as a service gets it.
    #[must_use]
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// How to connect to it again.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Connections of their own to the same database, as a second replica has.
    ///
    /// # Panics
    /// If it can't connect.
    pub async fn another_replica(&self) -> Db {
        Db::connect(&self.config, SERVICE).await.unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Machines that run tests are busy ones; what a test wants to time out, it configures.
fn patient() -> Config {
    Config { acquire_timeout_ms: 60_000, statement_timeout_ms: 60_000, ..Config::default() }
}

impl Deref for TestDb {
    type Target = Db;

    fn deref(&self) -> &Db {
        &self.db
    }
}

impl Drop for Schema {
    /// In a thread with a runtime of its own: the test's runtime may be ending. Failure leaves a schema with a random
    /// name in a throwaway server.
    fn drop(&mut self) {
        let Ok(server) = Postgres::shared() else { return };
        let drop_schema = AssertSqlSafe(format!(
            "SET client_min_messages = error; SET lock_timeout = '2s'; DROP SCHEMA IF EXISTS {} CASCADE",
            self.name
        ));
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(async {
                let mut connection = PgConnection::connect(server.url()).await.ok()?;
                connection.execute(drop_schema).await.ok()?;
                connection.close().await.ok()
            })
        };
        let _ = thread::spawn(work).join();
    }
}

/// Makes two tests of one function: `name::sqlite` and `name::postgres`, each on a [`TestDb`] of its own. Use it
/// once in a module, with all its tests.
///
/// ```ignore
/// both_engines! {
///     migrations: MIGRATIONS;
///
///     /// What the test shows.
///     async fn a_job_is_claimed_once(db: TestDb) { … }
/// }
/// ```
#[macro_export]
macro_rules! both_engines {
    (migrations: $migrations:expr; $($(#[$meta:meta])* async fn $name:ident($db:ident: $type:ty) $body:block)+) => {
        const MIGRATIONS_UNDER_TEST: &gatehouse_db::Migrations = &$migrations;

        $(
        $(#[$meta])*
        async fn $name($db: $type) $body

        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn sqlite() {
                super::$name($crate::TestDb::sqlite(super::MIGRATIONS_UNDER_TEST).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn postgres() {
                super::$name($crate::TestDb::postgres(super::MIGRATIONS_UNDER_TEST).await).await;
            }
        }
        )+
    };
}
