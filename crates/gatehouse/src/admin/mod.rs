//! `gatehouse admin`: what an administrator does by hand, once.

mod deployment;
mod first_admin;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;
use clap::Subcommand;
use gatehouse_core::{Clock, Entropy, Environment};

use crate::cli::{ConfigArgs, environment};
use crate::config::Config;
use crate::output::say;
use crate::process;

#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// The key ring of the auth service, `auth.key_file`
    #[command(subcommand)]
    Keys(KeyCommand),
    /// The key of the embedded secrets store, `secrets.embedded.key_file`
    #[command(subcommand)]
    SecretsKey(KeyCommand),
    /// The secrets of a whole deployment, for first start
    #[command(subcommand)]
    Secrets(deployment::SecretsCommand),
    /// The first tenant and its owner
    #[command(subcommand)]
    FirstAdmin(first_admin::FirstAdminCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Makes the file that the configuration names; one that exists is left as it is
    #[command(
        after_help = "Example:\n  GATEHOUSE_ENV=prod gatehouse admin keys create --config prod.toml\n\nKeep a copy of the file apart from the backups of the data that it opens: without it they can't be read."
    )]
    Create(ConfigArgs),
}

/// Does it, and says what was made.
pub(crate) fn run(command: &AdminCommand) -> anyhow::Result<ExitCode> {
    match command {
        AdminCommand::Keys(KeyCommand::Create(args)) => {
            key_file(args, |config, environment, clock, entropy| {
                let path = config.auth.key_file.clone();
                ensure!(!path.as_os_str().is_empty(), "auth.key_file: name the file that is to be made");
                ensure!(!path.exists(), "the key file {} exists; it is never overwritten", path.display());
                gatehouse_auth::key_file::create(&path, environment, clock, entropy)?;
                Ok(path)
            })
        }
        AdminCommand::SecretsKey(KeyCommand::Create(args)) => {
            key_file(args, |config, environment, clock, entropy| {
                let path = config.secrets.embedded.key_file.clone();
                gatehouse_secrets::create_key_file(&path, environment, clock, entropy)?;
                Ok(path)
            })
        }
        AdminCommand::Secrets(command) => deployment::run(command),
        AdminCommand::FirstAdmin(command) => process::block_on(first_admin::run(command)),
    }
}

fn key_file(
    args: &ConfigArgs,
    make: impl FnOnce(&Config, Environment, &Clock, &Entropy) -> anyhow::Result<PathBuf>,
) -> anyhow::Result<ExitCode> {
    let (environment, config) = (environment()?, args.load()?);
    let path = make(&config, environment, &Clock::system(), &Entropy::system())?;
    say!("Made {}. Keep a copy apart from the backups of the data that it opens.", path.display())?;
    Ok(ExitCode::SUCCESS)
}
