//! `gatehouse migrate`: schemas brought to this version, service by service.

use std::process::ExitCode;

use clap::Args;
use gatehouse_db::{Db, MigrationState, MigrationStatus, Migrations};
use serde::Serialize;

use crate::cli::{ConfigArgs, environment};
use crate::output::say;

#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only this service: auth, token-broker, job or audit
    #[arg(long, value_name = "NAME", value_parser = ["auth", "token-broker", "job", "audit"])]
    service: Option<String>,
    /// Change nothing; exit status 1 if anything is to be done
    #[arg(long)]
    status: bool,
    /// Print one line of JSON for each migration
    #[arg(long)]
    json: bool,
}

/// What `--json` prints of a migration.
#[derive(Serialize)]
struct Line<'a> {
    service: &'a str,
    #[serde(flatten)]
    migration: MigrationStatus,
}

/// Migrates, or says what would be.
pub(crate) async fn run(args: MigrateArgs) -> anyhow::Result<ExitCode> {
    let environment = environment()?;
    let config = args.config.load()?;
    // Fails only if it was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let databases: [(&str, &gatehouse_db::Config, Migrations); 4] = [
        ("auth", &config.databases.auth, gatehouse_auth::MIGRATIONS),
        ("token-broker", &config.databases.token_broker, gatehouse_token_broker::MIGRATIONS),
        ("job", &config.databases.job, gatehouse_job::MIGRATIONS),
        ("audit", &config.databases.audit, gatehouse_audit::MIGRATIONS),
    ];
    let mut behind = false;
    for (service, database, migrations) in databases {
        if args.service.as_deref().is_some_and(|only| only != service) {
            continue;
        }
        let problems = database.validate(environment);
        anyhow::ensure!(problems.is_empty(), "databases.{service}: {}", problems.join("; "));
        let db = Db::connect(database, service).await?;
        if !args.status {
            db.migrate(&migrations).await?;
        }
        for migration in db.migration_status(&migrations).await? {
            behind |= matches!(migration.state, MigrationState::Pending | MigrationState::Changed);
            if args.json {
                say!("{}", serde_json::to_string(&Line { service, migration })?)?;
            } else {
                let name = migration.name.unwrap_or("of a newer version");
                say!("{service:<14} {name:<40} {:?}", migration.state)?;
            }
        }
        db.close().await;
    }
    Ok(if behind { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
