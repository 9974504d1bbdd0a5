//! Bringing a database's tables to where this program wants them.

use serde::Serialize;
use sqlx::migrate::{Migrate as _, MigrateError, Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection, SqlSafeStr as _};

use crate::connect::Pools;
use crate::tx::begin_in_task;
use crate::{Db, Error, Result};

const TABLE: &str = "_sqlx_migrations";

/// A service's migrations, oldest first; made by [`migrations!`](crate::migrations!).
#[derive(Clone, Copy, Debug)]
pub struct Migrations(&'static [(&'static str, &'static str)]);

impl Migrations {
    /// From pairs of name (`0001_init`: number, `_`, words) and text.
    #[must_use]
    pub const fn new(migrations: &'static [(&'static str, &'static str)]) -> Self {
        Self(migrations)
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|(name, _)| *name)
    }

    fn migrator(&self) -> Result<Migrator> {
        let mut migrations = Vec::with_capacity(self.0.len());
        for (name, text) in self.0 {
            let version = version_of(name)
                .filter(|version| migrations.last().is_none_or(|last: &Migration| last.version < *version))
                .ok_or_else(|| {
                    Error::setup(format!(
                        "migration {name}: the name must be a number higher than the last, _ and words"
                    ))
                })?;
            migrations.push(Migration::new(
                version,
                (*name).into(),
                MigrationType::Simple,
                text.into_sql_str(),
                false,
            ));
        }
        let mut migrator = Migrator::with_migrations(migrations);
        migrator
            // A newer replica may have migrated already; migrations are made so that we tolerate it.
            .set_ignore_missing(true)
            // We lock ourselves, in a way that ends with the transaction whatever happens.
            .set_locking(false);
        Ok(migrator)
    }

    fn name(&self, version: i64) -> &'static str {
        self.names().find(|name| version_of(name) == Some(version)).unwrap_or("?")
    }
}

fn version_of(name: &str) -> Option<i64> {
    name.split_once('_')?.0.parse().ok()
}

/// Lists a service's migrations, oldest first:
/// `migrations!["0001_init" => include_str!("../../../migrations/job/0001_init.sql")]`.
#[macro_export]
macro_rules! migrations {
    ($($name:literal => $text:expr),* $(,)?) => { $crate::Migrations::new(&[$(($name, $text)),*]) };
}

/// Where one migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MigrationState {
    /// Done.
    Applied,
    /// Not done yet.
    Pending,
    /// Done with another text than this program has: refused by [`Db::migrate`].
    Changed,
    /// Done by a newer program.
    Newer,
}

/// One line of [`Db::migration_status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MigrationStatus {
    /// Its number.
    pub version: i64,
    /// Its name; unknown where a newer program applied it.
    pub name: Option<&'static str>,
    /// Where it stands.
    pub state: MigrationState,
}

impl Db {
    /// Applies the migrations that are missing, all or none, and creates the schema on PostgreSQL. Replicas may do so at
    /// once: one works, the others wait and find it done. A migration whose text changed since is refused.
    pub async fn migrate(&self, migrations: &Migrations) -> Result<()> {
        let migrator = migrations.migrator()?;
        let explain = |cause: MigrateError| explain(migrations, cause);
        let driver = |cause: sqlx::Error| Error::from_driver("db.migrate", cause);
        match &self.pools {
            Pools::Postgres { pool, schema } => {
                let connection = pool.acquire().await.map_err(driver)?;
                let mut tx = begin_in_task(connection, "BEGIN").await.map_err(driver)?;
                prepare_schema(&mut tx, schema).await?;
                migrator.run_direct(None, &mut *tx, false).await.map_err(explain)?;
                tx.commit().await.map_err(driver)
            }
            Pools::Sqlite { writer, .. } => {
                let connection = writer.acquire().await.map_err(driver)?;
                let mut tx = begin_in_task(connection, "BEGIN IMMEDIATE").await.map_err(driver)?;
                migrator.run_direct(None, &mut *tx, false).await.map_err(explain)?;
                tx.commit().await.map_err(driver)
            }
        }
    }

    /// Where each migration stands, in order, those of newer programs included. Changes nothing.
    pub async fn migration_status(&self, migrations: &Migrations) -> Result<Vec<MigrationStatus>> {
        let migrator = migrations.migrator()?;
        let explain = |cause: MigrateError| explain(migrations, cause);
        let driver = |cause: sqlx::Error| Error::from_driver("db.migration_status", cause);
        let applied = match &self.pools {
            Pools::Postgres { pool, .. } => {
                let mut connection = pool.acquire().await.map_err(driver)?;
                match connection
                    .fetch_optional("SELECT 1 WHERE to_regclass('_sqlx_migrations') IS NOT NULL")
                    .await
                {
                    Ok(None) => Vec::new(),
                    Ok(Some(_)) => connection.list_applied_migrations(TABLE).await.map_err(explain)?,
                    Err(cause) => return Err(driver(cause)),
                }
            }
            Pools::Sqlite { readers, .. } => {
                let mut connection = readers.acquire().await.map_err(driver)?;
                match connection
                    .fetch_optional("SELECT 1 FROM sqlite_master WHERE name = '_sqlx_migrations'")
                    .await
                {
                    Ok(None) => Vec::new(),
                    Ok(Some(_)) => connection.list_applied_migrations(TABLE).await.map_err(explain)?,
                    Err(cause) => return Err(driver(cause)),
                }
            }
        };
        let mut status: Vec<_> = migrator
            .iter()
            .map(|migration| {
                let state = match applied.iter().find(|applied| applied.version == migration.version) {
                    None => MigrationState::Pending,
                    Some(applied) if applied.checksum == migration.checksum => MigrationState::Applied,
                    Some(_) => MigrationState::Changed,
                };
                let version = migration.version;
                MigrationStatus { version, name: Some(migrations.name(version)), state }
            })
            .collect();
        status.extend(applied.iter().filter(|applied| !migrator.version_exists(applied.version)).map(
            |applied| MigrationStatus { version: applied.version, name: None, state: MigrationState::Newer },
        ));
        status.sort_by_key(|status| status.version);
        Ok(status)
    }
}

/// Takes the lock that lets one replica migrate at a time, until the transaction ends, and creates the schema.
async fn prepare_schema(tx: &mut PgConnection, schema: &str) -> Result<()> {
    let driver = |cause: sqlx::Error| Error::from_driver("db.migrate", cause);
    // A large table takes its time, and so does waiting for another replica that works on one.
    tx.execute("SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0")
        .await
        .map_err(driver)?;
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 4843))")
        .bind(schema)
        .execute(&mut *tx)
        .await
        .map_err(driver)?;
    let exists = sqlx::query("SELECT 1 FROM pg_namespace WHERE nspname = $1")
        .bind(schema)
        .fetch_optional(&mut *tx)
        .await
        .map_err(driver)?;
    if exists.is_none() {
        // Asked for only where needed, since even IF NOT EXISTS wants the right to create. The name was checked.
        tx.execute(AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).await.map_err(|cause| {
            Error::setup_caused_by(
                format!(
                    "can't create the schema {schema}: {cause}. Create it, owned by the user that migrates."
                ),
                cause,
            )
        })?;
    }
    Ok(())
}

fn explain(migrations: &Migrations, cause: MigrateError) -> Error {
    let message = match &cause {
        MigrateError::VersionMismatch(version) => format!(
            "migration {} was changed after it was applied to this database. Restore its text and put the change into a new migration.",
            migrations.name(*version)
        ),
        MigrateError::ExecuteMigration(cause, version) => {
            format!("migration {} failed, nothing was changed: {cause}", migrations.name(*version))
        }
        _ => format!("migrating failed, nothing was changed: {cause}"),
    };
    Error::setup_caused_by(message, cause)
}
