//! The services as processes, and what each is given.

mod audit;
mod auth;
mod gateway;
mod job;
mod migrate;
mod optimizer;
mod runtime;
mod token_broker;

use std::process::ExitCode;
use std::time::Duration;

use gatehouse_core::Environment;

pub(crate) use audit::start as start_audit;
pub(crate) use auth::start as start_auth;
pub(crate) use gateway::{GatewayListeners, start as start_gateway};
pub(crate) use job::start as start_job;
pub(crate) use migrate::{MigrateArgs, run as migrate};
pub(crate) use optimizer::{session as optimizer_session, start as start_optimizer};
pub(crate) use runtime::{Runtime, own_certificates};
pub(crate) use token_broker::start as start_token_broker;

use crate::cli::{ConfigArgs, environment};
use crate::config::Config;
use crate::process::{self, Process};

/// One of the programs that a Gatehouse consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Gateway,
    Auth,
    TokenBroker,
    Job,
    Audit,
    Optimizer,
}

impl Service {
    /// All of them.
    pub(crate) const ALL: [Self; 6] =
        [Self::Auth, Self::Audit, Self::Job, Self::TokenBroker, Self::Gateway, Self::Optimizer];

    /// Its name: of its subcommand, its client, its telemetry.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Auth => "auth",
            Self::TokenBroker => "token-broker",
            Self::Job => "job",
            Self::Audit => "audit",
            Self::Optimizer => "optimizer",
        }
    }

    /// Whether others call it by gRPC. Each calls auth, at least.
    pub(crate) const fn serves_grpc(self) -> bool {
        matches!(self, Self::Auth | Self::TokenBroker | Self::Job | Self::Audit)
    }

    /// What it may do at the others: the permissions of its client.
    pub(crate) fn permissions(self) -> Vec<String> {
        let permissions: &[&str] = match self {
            Self::Gateway => &[
                "auth.tokens.exchange",
                "auth.tokens.impersonate",
                "auth.tokens.introspect",
                "auth.origin.assert",
                "auth.revocations.watch",
            ],
            Self::Auth => &["audit.events.append"],
            Self::TokenBroker | Self::Job => &["auth.revocations.watch", "audit.events.append"],
            Self::Audit => &["auth.revocations.watch"],
            Self::Optimizer => &["job.jobs.work:optimize:*"],
        };
        permissions.iter().map(|&permission| permission.to_owned()).collect()
    }
}

/// Runs one service as a process of its own, until a signal.
pub(crate) fn run(service: Service, args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let environment = environment()?;
    let config = args.load()?;
    let problems = config.validate_process(environment, service);
    if !problems.is_empty() {
        anyhow::bail!(gatehouse_service::config::ConfigError(problems));
    }
    process::block_on(serve(service, args, config, environment))
}

async fn serve(
    service: Service,
    args: &ConfigArgs,
    config: Config,
    environment: Environment,
) -> anyhow::Result<ExitCode> {
    let process = Process::start(service.name(), &config, environment, Process::bind(&config).await?)?;
    let limit = Duration::from_secs(config.drain_timeout_s);
    let delay = Duration::from_millis(config.drain_delay_ms);
    let runtime = Runtime::new(service, config, environment, &process)?;
    match service {
        Service::Gateway => {
            let listeners = GatewayListeners::bind(&runtime.config).await?;
            let listeners = listeners.with_certificate(&runtime.config, environment, None)?;
            start_gateway(&runtime, listeners, args).await?;
        }
        Service::Auth => {
            let listener = runtime.bind(&runtime.config.listen.auth).await?;
            start_auth(&runtime, listener).await?;
        }
        Service::TokenBroker => {
            let listener = runtime.bind(&runtime.config.listen.token_broker).await?;
            start_token_broker(&runtime, listener, false).await?;
        }
        Service::Job => {
            let listener = runtime.bind(&runtime.config.listen.job).await?;
            start_job(&runtime, listener).await?;
        }
        Service::Audit => {
            let listener = runtime.bind(&runtime.config.listen.audit).await?;
            start_audit(&runtime, listener).await?;
        }
        Service::Optimizer => start_optimizer(&runtime, optimizer_session(&runtime)),
    }
    process.started.ready();
    process.run_until_signal(delay, &[], limit).await
}
