//! `gatehouse admin first-admin create`: the one account that nobody could invite.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use gatehouse_auth::app::bootstrap::{self, Deps, FirstAdmin};
use gatehouse_auth::hashing::Hasher;
use gatehouse_auth::key_file::Keys;
use gatehouse_core::{Clock, Entropy};
use gatehouse_db::Db;
use gatehouse_outbox::Outbox;
use gatehouse_service::config::ConfigError;
use serde_json::json;

use crate::cli::{ConfigArgs, environment};
use crate::output::{complain, say};
use crate::services::Service;

#[derive(Debug, Subcommand)]
pub(crate) enum FirstAdminCommand {
    /// Makes the first tenant and its owner, and prints the owner's password, this once. Exit status 1 if it was done
    /// before
    #[command(
        after_help = "It works on auth's database with auth's key file, so run it where auth runs:\n  docker-compose exec auth gatehouse admin first-admin create --email ada@example.com --tenant Example"
    )]
    Create(CreateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// E-mail address to sign in with
    #[arg(long, value_name = "ADDRESS")]
    email: String,
    /// Name of the first tenant
    #[arg(long, value_name = "NAME")]
    tenant: String,
    /// Say it as one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(FirstAdminCommand::Create(args): &FirstAdminCommand) -> anyhow::Result<ExitCode> {
    // Fails only if it was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (environment, config) = (environment()?, args.config.load()?);
    let problems = config.validate(environment, &[Service::Auth]);
    anyhow::ensure!(problems.is_empty(), ConfigError(problems));
    let (clock, entropy) = (Clock::system(), Entropy::system());
    let db = Db::connect(&config.databases.auth, Service::Auth.name()).await?;
    let keys = Keys::open(&config.auth.key_file, &db, environment, &clock, &entropy).await?;
    let cost = config.auth.hash_cost();
    let hasher = Hasher::new(&config.auth.hashing, cost, keys, clock.clone(), entropy.clone());
    let outbox = Outbox::new(clock.clone(), entropy.clone());
    let deps = Deps { db: &db, hasher: &hasher, outbox: &outbox, clock: &clock, entropy: &entropy };
    let mut shown = false;
    let made = bootstrap::first_admin(&deps, &args.email, &args.tenant, |admin| {
        shown = true;
        say!("{}", text(admin, args.json)).map_err(anyhow::Error::from)
    })
    .await;
    db.close().await;
    if shown && !matches!(made, Ok(Some(_))) {
        complain!("The password above is not in force.");
    }
    if made?.is_some() {
        return Ok(ExitCode::SUCCESS);
    }
    complain!("There is a first admin already; nothing was changed.");
    Ok(ExitCode::FAILURE)
}

fn text(admin: &FirstAdmin, json: bool) -> String {
    if json {
        return json!({"email": admin.email, "password": admin.password.expose(), "tenant_id": admin.tenant})
            .to_string();
    }
    format!(
        "The tenant {} and its owner, shown this once; change the password after signing in:\n  email     {}\n  password  {}",
        admin.tenant,
        admin.email,
        admin.password.expose()
    )
}
