//! `gatehouse admin`: what an administrator does by hand, once.

use std::path::Path;
use std::process::ExitCode;

use anyhow::ensure;
use clap::Subcommand;
use gatehouse_core::{Clock, Entropy};

use crate::cli::{ConfigArgs, environment};

#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// The key ring of the auth service, `auth.key_file`
    #[command(subcommand)]
    Keys(KeyCommand),
    /// The key of the embedded secrets store, `secrets.embedded.key_file`
    #[command(subcommand)]
    SecretsKey(KeyCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Makes the file that the configuration names; one that exists is left as it is
    #[command(
        after_help = "Example:\n  GATEHOUSE_ENV=prod gatehouse admin keys create --config prod.toml\n\nKeep a copy of the file apart from the backups of the data that it opens: without it they can't be read."
    )]
    Create(ConfigArgs),
}

/// Does it, and says which file was made.
pub(crate) fn run(command: &AdminCommand) -> anyhow::Result<ExitCode> {
    let (AdminCommand::Keys(KeyCommand::Create(args)) | AdminCommand::SecretsKey(KeyCommand::Create(args))) =
        command;
    let (environment, config) = (environment()?, args.load()?);
    let (clock, entropy) = (Clock::system(), Entropy::system());
    let path: &Path = match command {
        AdminCommand::Keys(_) => {
            let path = &config.auth.key_file;
            ensure!(!path.as_os_str().is_empty(), "auth.key_file: name the file that is to be made");
            ensure!(!path.exists(), "the key file {} exists; it is never overwritten", path.display());
            gatehouse_auth::key_file::create(path, environment, &clock, &entropy)?;
            path
        }
        AdminCommand::SecretsKey(_) => {
            let path = &config.secrets.embedded.key_file;
            gatehouse_secrets::create_key_file(path, environment, &clock, &entropy)?;
            path
        }
    };
    println!("Made {}. Keep a copy apart from the backups of the data that it opens.", path.display());
    Ok(ExitCode::SUCCESS)
}
