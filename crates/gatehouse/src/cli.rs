//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use gatehouse_core::Environment;
use gatehouse_service::config::{Sources, load};

use crate::config::{self, Config, without_credentials, without_nulls};
use crate::output::{complain, say};
use crate::services::Service;
use crate::{admin, certs, docs, healthcheck, process, services, submit, up, verify};

/// Gatehouse stands between a product and the internet: an edge gateway, auth, a token broker, jobs and a provable
/// audit log.
#[derive(Debug, Parser)]
#[command(name = "gatehouse", version, propagate_version = true)]
#[command(
    after_help = "Begin with:\n  gatehouse up                 everything in one process, data in ./gatehouse-data\n  gatehouse config docs        every setting, with its meaning and default\n\nExit status: 0 done, 1 checked and found wrong, 2 could not be done; 3 not proven (verify-audit-chain only)."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What every process reads.
#[derive(Clone, Debug, Args)]
pub(crate) struct ConfigArgs {
    /// TOML file with the configuration; the environment stands over it
    #[arg(long, value_name = "FILE", env = "GATEHOUSE_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
}

impl ConfigArgs {
    /// The configuration of file and environment.
    pub(crate) fn load(&self) -> anyhow::Result<Config> {
        self.load_over(toml::Table::new())
    }

    /// As [`ConfigArgs::load`], with other defaults where neither says anything.
    pub(crate) fn load_over(&self, defaults: toml::Table) -> anyhow::Result<Config> {
        let sources =
            Sources { defaults, file: self.config.as_deref(), others: &config::variables::others() };
        Ok(load(&sources, std::env::vars_os())?)
    }
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only what this service needs as a process of its own
    #[arg(long, value_name = "NAME", value_parser = Service::ALL.map(Service::name))]
    service: Option<String>,
    /// Say it as one line of JSON: `sound` and `problems`
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ShowArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print JSON instead of TOML
    #[arg(long)]
    json: bool,
}

/// `GATEHOUSE_ENV`; there is no default.
pub(crate) fn environment() -> anyhow::Result<Environment> {
    let text = std::env::var("GATEHOUSE_ENV").map_err(|_| {
        anyhow::anyhow!("GATEHOUSE_ENV is not set. Set it to dev, staging or prod; nothing is assumed.")
    })?;
    Ok(text.parse()?)
}

const SERVICE_EXAMPLE: &str = "Example, each service as a process of its own:\n  GATEHOUSE_ENV=prod gatehouse migrate --config prod.toml\n  GATEHOUSE_ENV=prod gatehouse job --config prod.toml";

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs everything in one process on this machine, on SQLite, for development
    #[command(
        after_help = "Examples:\n  gatehouse up\n  gatehouse up --data /srv/gatehouse --config gatehouse.toml\n  gatehouse up --free-ports --json"
    )]
    Up(up::UpArgs),
    /// Runs the edge gateway
    #[command(after_help = SERVICE_EXAMPLE)]
    Gateway(ConfigArgs),
    /// Runs the auth service
    #[command(after_help = SERVICE_EXAMPLE)]
    Auth(ConfigArgs),
    /// Runs the token broker
    #[command(after_help = SERVICE_EXAMPLE)]
    TokenBroker(ConfigArgs),
    /// Runs the job service
    #[command(after_help = SERVICE_EXAMPLE)]
    Job(ConfigArgs),
    /// Runs the audit service
    #[command(after_help = SERVICE_EXAMPLE)]
    Audit(ConfigArgs),
    /// Runs the optimize worker
    #[command(after_help = SERVICE_EXAMPLE)]
    Optimizer(ConfigArgs),
    /// Brings the databases to this version's schema
    #[command(
        after_help = "Examples:\n  GATEHOUSE_ENV=prod gatehouse migrate --config prod.toml\n  GATEHOUSE_ENV=prod gatehouse migrate --config prod.toml --service job --status"
    )]
    Migrate(services::MigrateArgs),
    /// Proves that an audit log was not changed, or names the first bad entry
    #[command(
        after_help = "Examples:\n  gatehouse verify-audit-chain --data gatehouse-data\n  gatehouse verify-audit-chain --data gatehouse-data --checkpoint kept-elsewhere.txt --verifier-key-file kept-key.txt --json\n\nExit status: 0 verified, 1 broken, 2 could not be done, 3 not proven: all that is there agrees, but without a checkpoint that was kept elsewhere nothing shows that the end is there, and without the verifier key nothing shows that a missing front was pruned. Several logs: the worst counts."
    )]
    VerifyAuditChain(verify::VerifyArgs),
    /// Checks, shows and documents the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Does what an administrator does by hand, once: secrets, key files, the first admin
    #[command(subcommand)]
    Admin(admin::AdminCommand),
    /// Asks the Gatehouse process beside it whether it is ready; for containers, which have no other program to ask with
    #[command(after_help = "Exit status: 0 ready, 1 not ready, 2 nobody answers.")]
    Healthcheck(ConfigArgs),
    /// Makes the certificates with which services know each other, and renews them
    #[command(after_help = certs::EXAMPLES)]
    Certs(certs::CertsArgs),
    /// Submits a job through the gateway and follows it live
    #[command(
        after_help = "Examples:\n  gatehouse submit --url http://127.0.0.1:8080 --token-file token.txt optimize problem.json\n  echo '{\"objective\": \"(x-1)^2\", \"variables\": [{\"name\": \"x\", \"lower\": -5, \"upper\": 5}]}' | gatehouse submit optimize -"
    )]
    Submit(submit::SubmitArgs),
    /// Writes the generated pages of docs/
    #[command(hide = true)]
    Docs(docs::DocsArgs),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Says what is wrong with the configuration; exit status 1 if anything is
    #[command(
        after_help = "Examples:\n  GATEHOUSE_ENV=prod gatehouse config check --config prod.toml\n  GATEHOUSE_ENV=prod gatehouse config check --config prod.toml --service job --json"
    )]
    Check(CheckArgs),
    /// Prints the configuration in force as TOML, secrets left out
    #[command(
        after_help = "Examples:\n  MAX_ITERATIONS=500 gatehouse config show --config prod.toml\n  gatehouse config show --json"
    )]
    Show(ShowArgs),
    /// Prints every setting with its meaning as a Markdown table
    Docs,
}

/// Does what the command line says.
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Up(args) => process::block_on(up::run(args)),
        Command::Gateway(args) => services::run(Service::Gateway, &args),
        Command::Auth(args) => services::run(Service::Auth, &args),
        Command::TokenBroker(args) => services::run(Service::TokenBroker, &args),
        Command::Job(args) => services::run(Service::Job, &args),
        Command::Audit(args) => services::run(Service::Audit, &args),
        Command::Optimizer(args) => services::run(Service::Optimizer, &args),
        Command::Migrate(args) => process::block_on(services::migrate(args)),
        Command::VerifyAuditChain(args) => process::block_on(verify::run(args)),
        Command::Config(ConfigCommand::Check(args)) => check(&args),
        Command::Config(ConfigCommand::Show(args)) => {
            let config = args.config.load()?;
            let shown = without_credentials(&config)?;
            let text = if args.json {
                serde_json::to_string_pretty(&shown)?
            } else {
                toml::to_string_pretty(&without_nulls(shown))?
            };
            say!("{}", text.trim_end())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(ConfigCommand::Docs) => {
            say!("{}", gatehouse_service::config::markdown::<Config>().trim_end())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Admin(command) => admin::run(&command),
        Command::Healthcheck(args) => healthcheck::run(&args),
        Command::Certs(args) => certs::run(&args),
        Command::Submit(args) => process::block_on(submit::run(args)),
        Command::Docs(args) => docs::run(&args),
    }
}

fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let environment = environment()?;
    let service = Service::ALL.into_iter().find(|service| args.service.as_deref() == Some(service.name()));
    let problems = match (args.config.load(), service) {
        (Ok(config), Some(service)) => config.validate_process(environment, service),
        (Ok(mut config), None) => {
            if environment.is_dev() {
                up::assume_files(&mut config);
            }
            config.validate(environment, &Service::ALL)
        }
        (Err(error), _) => vec![error.to_string()],
    };
    let sound = problems.is_empty();
    if args.json {
        say!("{}", serde_json::json!({ "sound": sound, "problems": problems }))?;
    } else if sound {
        say!("The configuration is sound.")?;
    } else {
        for problem in problems {
            complain!("{problem}");
        }
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
