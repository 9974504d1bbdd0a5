//! `gatehouse up`: every service as a task of one process, on SQLite, talking real gRPC over loopback.

mod first_admin;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use gatehouse_auth::config::ClientConfig;
use gatehouse_client::{ChannelConfig, TokenSource, audience};
use gatehouse_core::{Entropy, Environment};
use gatehouse_db::DatabaseUrl;
use gatehouse_service::{Doorbell, Lifecycle, grpc};
use serde_json::json;
use tokio::net::TcpListener;

use crate::cli::ConfigArgs;
use crate::config::Config;
use crate::data_folder::DataFolder;
use crate::output::say;
use crate::process::Process;
use crate::services::{self, Runtime, Service};
use first_admin::FirstAdmin;

/// How long the services may take to be ready before the start counts as failed.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long a start that is to stop may go on, so that it can stop in order.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);

/// Where `up` serves HTTPS, with a certificate of its own, unless told otherwise.
const DEV_TLS_ADDRESS: &str = "127.0.0.1:8443";

/// How long `up` keeps the jobs of a worker that is out of touch, unless told otherwise, milliseconds.
const UP_LEASE_TTL_MS: u64 = 3_000;

/// How long `up` keeps the relay of audit events for a process that was killed, unless told otherwise, milliseconds.
const UP_RELAY_LEASE_MS: u64 = 3_000;

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Folder for databases, keys and secrets
    #[arg(long, value_name = "FOLDER", default_value = "gatehouse-data", env = "GATEHOUSE_DATA")]
    data: PathBuf,
    /// Take free ports instead of the configured ones, and say which
    #[arg(long)]
    free_ports: bool,
    /// Say where everything is as one JSON object
    #[arg(long)]
    json: bool,
}

/// Where everything listens: bound before anything starts, so that a port in use is found first.
struct Listeners {
    auth: TcpListener,
    token_broker: TcpListener,
    job: TcpListener,
    audit: TcpListener,
    gateway: gatehouse_gateway::Listeners,
}

/// Starts everything and stays until a signal.
pub(crate) async fn run(args: UpArgs) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    match std::env::var("GATEHOUSE_ENV").as_deref() {
        Err(_) | Ok("dev") => {}
        Ok(other) => anyhow::bail!(
            "`gatehouse up` is for dev, and GATEHOUSE_ENV is {other:?}. Run each service as a process of its own there."
        ),
    }
    let environment = Environment::Dev;
    let mut config = args.config.load()?;
    let folder = DataFolder::open(&args.data)?;
    anyhow::ensure!(
        !config.tls.is_on(),
        "the section tls is for services in processes of their own; `gatehouse up` is one process and needs none. Leave it out."
    );
    let own_callback = config.token_broker.callback_url.is_empty();
    let to_make = settle(&mut config, &folder, args.free_ports);
    let problems = config.validate(environment, &Service::ALL);
    if !problems.is_empty() {
        anyhow::bail!(gatehouse_service::config::ConfigError(problems));
    }
    let listeners = bind(&mut config, &folder, environment).await?;
    if own_callback {
        // The port is known only now.
        config.token_broker.callback_url = callback(&listeners.gateway.http.local_addr()?.to_string());
    }
    let mut process = Process::start("gatehouse", &config, environment).await?;
    let limit = Duration::from_secs(config.drain_timeout_s);
    let stages = Stages::of(&process.lifecycle);
    let started = async {
        to_make.make(&folder)?;
        Box::pin(start(&args.config, config, listeners, &process, &stages, &folder, environment)).await
    };
    let started = started.await;
    let started = match started {
        Ok(started) => started,
        // What was begun ends in order; the first failure is the one to tell.
        Err(error) => {
            let _ = process.finish(&stages.in_order(), limit).await;
            return Err(error);
        }
    };
    process.started.ready();
    let ready = tokio::select! {
        ready = tokio::time::timeout(READY_LIMIT, process.readiness.wait()) => ready.is_ok(),
        signal = process.signals.recv() => {
            tracing::info!(signal, "stopping before everything was ready");
            // What the parts need of each other to end in order, they get by the end of the start.
            let settled = async {
                process.readiness.wait().await;
                started.auth_tokens.token(audience::AUDIT).await
            };
            tokio::select! {
                _ = tokio::time::timeout(SETTLE_LIMIT, settled) => {}
                _ = process.signals.recv() => {}
            }
            return process.finish(&stages.in_order(), limit).await;
        }
    };
    if !ready {
        let waiting: Vec<_> =
            process.readiness.unmet().into_iter().map(|(name, why)| format!("{name}: {why}")).collect();
        let _ = process.finish(&stages.in_order(), limit).await;
        anyhow::bail!("not ready after {} s: {}", READY_LIMIT.as_secs(), waiting.join("; "));
    }
    let text = text(&args, &started, process.probes_address, &folder, began.elapsed());
    if let Err(error) = say!("{text}").map_err(anyhow::Error::from).and_then(|()| first_admin::shown(&folder))
    {
        let _ = process.finish(&stages.in_order(), limit).await;
        return Err(error);
    }
    let code = process.run_until_signal(Duration::ZERO, &stages.in_order(), limit).await;
    drop(folder);
    code
}

/// What is to be made in the data folder before the services start: the rest they make themselves.
#[derive(Default)]
struct ToMake {
    folders: Vec<&'static str>,
    secrets: Vec<String>,
}

impl ToMake {
    fn make(&self, folder: &DataFolder) -> anyhow::Result<()> {
        for name in &self.folders {
            folder.folder(name)?;
        }
        for name in &self.secrets {
            folder.secret_file(name, &Entropy::system())?;
        }
        Ok(())
    }
}

/// What `up` fills in where the configuration says nothing: everything below the data folder, and a client with its
/// own secret for each service. Nothing is made yet: a start that is refused leaves nothing behind.
fn settle(config: &mut Config, folder: &DataFolder, free_ports: bool) -> ToMake {
    let mut to_make = ToMake { folders: vec!["keys"], secrets: Vec::new() };
    let databases = &mut config.databases;
    for (database, name) in [
        (&mut databases.auth, "auth"),
        (&mut databases.token_broker, "token-broker"),
        (&mut databases.job, "job"),
        (&mut databases.audit, "audit"),
    ] {
        if database.url.to_string().is_empty() {
            to_make.folders.push(name);
            let file = folder.path(name).join(format!("{name}.db"));
            database.url = DatabaseUrl::sqlite(&file);
        }
    }
    if config.auth.key_file.as_os_str().is_empty() {
        config.auth.key_file = folder.path("keys/auth.json");
    }
    let defaults = Config::default();
    if config.secrets.embedded.folder == defaults.secrets.embedded.folder {
        to_make.folders.push("secrets");
        config.secrets.embedded.folder = folder.path("secrets");
        config.secrets.embedded.key_file = folder.path("keys/secrets.json");
    }
    if config.audit.subject_keys_dir == defaults.audit.subject_keys_dir {
        to_make.folders.push("keys/audit-subjects");
        config.audit.subject_keys_dir = folder.path("keys/audit-subjects");
        config.audit.checkpoint_key_file = folder.path("keys/audit-checkpoint.key");
    }
    for service in Service::ALL {
        if config.auth.clients.iter().all(|client| client.name != service.name()) {
            config.auth.clients.push(ClientConfig {
                name: service.name().to_owned(),
                secret_file: folder.path(&client_secret(service)),
                permissions: service.permissions(),
            });
            to_make.secrets.push(client_secret(service));
        }
    }
    // The worker dies with the process, so its jobs need not wait long for another.
    if config.job.lease_ttl_ms == defaults.job.lease_ttl_ms {
        config.job.lease_ttl_ms = UP_LEASE_TTL_MS;
    }
    // No other process relays, so none has to be kept out while a call to the audit service lasts.
    if config.outbox.lease_ms == defaults.outbox.lease_ms {
        config.outbox.lease_ms = UP_RELAY_LEASE_MS;
    }
    if config.gateway.tls_address.is_empty() {
        DEV_TLS_ADDRESS.clone_into(&mut config.gateway.tls_address);
    }
    if free_ports {
        let free = || "127.0.0.1:0".to_owned();
        config.gateway.address = free();
        config.gateway.tls_address = free();
        config.probes.address = free();
        for address in [
            &mut config.listen.auth,
            &mut config.listen.token_broker,
            &mut config.listen.job,
            &mut config.listen.audit,
        ] {
            *address = free();
        }
    }
    if config.token_broker.callback_url.is_empty() {
        config.token_broker.callback_url = callback(&config.gateway.address);
    }
    to_make
}

/// Names the files that [`run`] would make, for a check that makes none.
pub(crate) fn assume_files(config: &mut Config) {
    let databases = &mut config.databases;
    for database in
        [&mut databases.auth, &mut databases.token_broker, &mut databases.job, &mut databases.audit]
    {
        if database.url.to_string().is_empty() {
            database.url = DatabaseUrl::sqlite(Path::new("gatehouse-data/gatehouse.db"));
        }
    }
    if config.auth.key_file.as_os_str().is_empty() {
        config.auth.key_file = "gatehouse-data/keys/auth.json".into();
    }
    if config.token_broker.callback_url.is_empty() {
        config.token_broker.callback_url = callback(&config.gateway.address);
    }
}

fn callback(gateway: &str) -> String {
    format!("http://{gateway}/v1/connections/callback")
}

fn client_secret(service: Service) -> String {
    format!("clients/{}.secret", service.name())
}

/// Binds every address and points the services at each other.
async fn bind(
    config: &mut Config,
    folder: &DataFolder,
    environment: Environment,
) -> anyhow::Result<Listeners> {
    let listeners = Listeners {
        auth: grpc::bind("auth", &config.listen.auth).await?,
        token_broker: grpc::bind("token-broker", &config.listen.token_broker).await?,
        job: grpc::bind("job", &config.listen.job).await?,
        audit: grpc::bind("audit", &config.listen.audit).await?,
        gateway: services::gateway_listeners(config, environment, Some(&folder.folder("certificate")?))
            .await?,
    };
    for (peer, listener) in [
        (&mut config.peers.auth, &listeners.auth),
        (&mut config.peers.token_broker, &listeners.token_broker),
        (&mut config.peers.job, &listeners.job),
        (&mut config.peers.audit, &listeners.audit),
    ] {
        peer.endpoints = ChannelConfig::to(format!("http://{}", listener.local_addr()?)).endpoints;
    }
    Ok(listeners)
}

/// What is there once everything started.
struct Started {
    gateway: SocketAddr,
    https: Option<SocketAddr>,
    first_admin: Option<FirstAdmin>,
    /// With these auth sends its audit events. It issues them itself: whoever has none by its stop gets none.
    auth_tokens: TokenSource,
}

/// The parts of the process in the order in which they stop: whoever calls before whoever is called. Stopped all at
/// once, a request that the gateway has half read would find auth gone.
struct Stages {
    edge: Lifecycle,
    work: Lifecycle,
    auth: Lifecycle,
    audit: Lifecycle,
}

impl Stages {
    fn of(process: &Lifecycle) -> Self {
        Self { edge: process.child(), work: process.child(), auth: process.child(), audit: process.child() }
    }

    fn of_service(&self, service: Service) -> &Lifecycle {
        match service {
            Service::Gateway | Service::Optimizer => &self.edge,
            Service::Job | Service::TokenBroker => &self.work,
            Service::Auth => &self.auth,
            Service::Audit => &self.audit,
        }
    }

    fn in_order(self) -> [Lifecycle; 4] {
        [self.edge, self.work, self.auth, self.audit]
    }
}

async fn start(
    args: &ConfigArgs,
    config: Config,
    listeners: Listeners,
    process: &Process,
    stages: &Stages,
    folder: &DataFolder,
    environment: Environment,
) -> anyhow::Result<Started> {
    // One process: a bell that rings in it is heard by all.
    let doorbell = Doorbell::local();
    let runtime = |service: Service| {
        let mut config = config.clone();
        config.client.secret_file = folder.path(&client_secret(service));
        let runtime = Runtime::with_doorbell(service, config, environment, process, doorbell.clone(), None)
            .with_context(|| format!("{} did not start", service.name()))?;
        anyhow::Ok(Runtime { lifecycle: stages.of_service(service).clone(), ..runtime })
    };
    let (auth, audit, job, broker, gateway) = (
        runtime(Service::Auth)?,
        runtime(Service::Audit)?,
        runtime(Service::Job)?,
        runtime(Service::TokenBroker)?,
        runtime(Service::Gateway)?,
    );
    let auth_tokens = auth.tokens.clone();
    // Each opens its own files; the slowest decides.
    let (auth, (), (), (), gateway) = tokio::try_join!(
        services::start_auth(&auth, listeners.auth),
        services::start_audit(&audit, listeners.audit),
        services::start_job(&job, listeners.job),
        services::start_token_broker(&broker, listeners.token_broker, true),
        services::start_gateway(&gateway, listeners.gateway, args),
    )?;
    // The worker comes when the services know auth's keys: before that it would only be sent away.
    let worker = runtime(Service::Optimizer)?;
    let readiness = process.readiness.clone();
    stages.edge.spawn(async move {
        let stopping = worker.lifecycle.stopping();
        tokio::select! {
            () = readiness.wait() => {}
            () = stopping.cancelled() => return,
        }
        services::start_optimizer(&worker);
    });
    let first_admin = first_admin::to_show(&auth.app, folder).await?;
    Ok(Started { gateway: gateway.address(), https: gateway.https_address(), first_admin, auth_tokens })
}

/// What the person who started it is told.
fn text(args: &UpArgs, started: &Started, probes: SocketAddr, folder: &DataFolder, took: Duration) -> String {
    let gateway = format!("http://{}", started.gateway);
    if args.json {
        let admin = started.first_admin.as_ref().map(FirstAdmin::json);
        return json!({
            "event": "ready", "gateway": gateway, "https": started.https.map(|address| format!("https://{address}")),
            "docs": format!("{gateway}/docs"), "probes": format!("http://{probes}"),
            "data": folder.path(""), "first_admin": admin, "start_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        })
        .to_string();
    }
    let https = started.https.map_or_else(String::new, |https| {
        format!("\n              https://{https}  (development certificate)")
    });
    let admin = started.first_admin.as_ref().map_or_else(String::new, |admin| {
        format!(
            "\n\n  First admin, shown this once; change the password after signing in:\n    email     {}\n    password  {}",
            admin.email,
            admin.password.expose()
        )
    });
    format!(
        "Gatehouse is ready after {} ms.\n\n  gateway     {gateway}{https}\n  API pages   {gateway}/docs\n  metrics     \
         http://{probes}/metrics\n  data        {}{admin}\n\nCtrl-C stops it; running work finishes first.",
        took.as_millis(),
        folder.path("").display()
    )
}
