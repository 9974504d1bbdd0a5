//! `gatehouse up`: every service as a task of one process, on SQLite, talking real gRPC over loopback.

mod first_admin;
mod settle;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use gatehouse_client::{ChannelConfig, TokenSource, audience};
use gatehouse_core::Environment;
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
use settle::{Made, callback, client_secret};
pub(crate) use settle::{assume_files, defaults_text};

/// How long the services may take to be ready before the start counts as failed.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long a start that is to stop may go on, so that it can stop in order.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Folder for databases, keys and secrets
    #[arg(
        long,
        value_name = "FOLDER",
        default_value = "gatehouse-data",
        env = "GATEHOUSE_DATA",
        hide_env_values = true
    )]
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
    gateway: services::GatewayListeners,
}

/// Starts everything and stays until a signal.
pub(crate) async fn run(args: UpArgs) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    // What is no environment is not repeated.
    match std::env::var("GATEHOUSE_ENV").map(|text| text.parse::<Environment>()) {
        Err(_) | Ok(Ok(Environment::Dev)) => {}
        Ok(Ok(other)) => anyhow::bail!(
            "`gatehouse up` is for dev, and GATEHOUSE_ENV is {other}. Run each service as a process of its own there."
        ),
        Ok(Err(unknown)) => anyhow::bail!("`gatehouse up` is for dev; {unknown}"),
    }
    let environment = Environment::Dev;
    let place = DataFolder::place(&args.data)?;
    let mut config = args.config.load_over(settle::defaults(&place))?;
    settle::check_is_for_one_process(&config)?;
    let own_callback = config.token_broker.callback_url.is_empty();
    let to_make = settle::settle(&mut config, &place, args.free_ports);
    let problems = config.validate(environment, &Service::ALL);
    if !problems.is_empty() {
        anyhow::bail!(gatehouse_service::config::ConfigError(problems));
    }
    // That another process has the folder is the better thing to tell, where it may have. Of a start whose ports are
    // another's nothing stays, not even the folder and its lock.
    let held = DataFolder::was_opened(&place).then(|| DataFolder::open(&args.data)).transpose()?;
    let listeners = bind(&mut config).await?;
    let probes = Process::bind(&config).await?;
    // From here on something is written.
    let folder = match held {
        Some(folder) => folder,
        None => DataFolder::open(&args.data)?,
    };
    if own_callback {
        // The port is known only now.
        config.token_broker.callback_url = callback(&listeners.gateway.http.local_addr()?.to_string());
    }
    let mut process = Process::start("gatehouse", &config, environment, probes)?;
    let limit = Duration::from_secs(config.drain_timeout_s);
    let stages = Stages::of(&process.lifecycle);
    let mut made = Made::default();
    let started = async {
        to_make.make(&folder, &mut made)?;
        Box::pin(start(&args.config, config, listeners, &process, &stages, &folder, environment)).await
    };
    let started = started.await;
    let started = match started {
        Ok(started) => started,
        // What was begun ends in order; the first failure is the one to tell.
        Err(error) => {
            let _ = process.finish(&stages.in_order(), limit).await;
            made.take_back();
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

/// Binds every address and points the services at each other.
async fn bind(config: &mut Config) -> anyhow::Result<Listeners> {
    let listeners = Listeners {
        auth: grpc::bind("auth", &config.listen.auth).await?,
        token_broker: grpc::bind("token-broker", &config.listen.token_broker).await?,
        job: grpc::bind("job", &config.listen.job).await?,
        audit: grpc::bind("audit", &config.listen.audit).await?,
        gateway: services::GatewayListeners::bind(config).await?,
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
        config.client.secret_file = client_secret(&config, service)?;
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
    let to_start = (
        services::start_auth(&auth, listeners.auth),
        services::start_audit(&audit, listeners.audit),
        services::start_token_broker(&broker, listeners.token_broker, true),
        services::start_job(&job, listeners.job),
        async {
            let certificate = folder.folder("certificate")?;
            let listeners = listeners.gateway.with_certificate(&config, environment, Some(&certificate))?;
            services::start_gateway(&gateway, listeners, args).await
        },
    );
    let (auth, gateway) = if settle::lacks_a_key(&config) {
        // One of them will refuse: before that the others must make nothing that does not belong to what is restored then.
        let auth = to_start.0.await?;
        to_start.1.await?;
        to_start.2.await?;
        to_start.3.await?;
        (auth, to_start.4.await?)
    } else {
        // Each opens its own files; the slowest decides.
        let (auth, (), (), (), gateway) =
            tokio::try_join!(to_start.0, to_start.1, to_start.2, to_start.3, to_start.4)?;
        (auth, gateway)
    };
    // The worker comes when the services know auth's keys: before that it would only be sent away.
    let worker = runtime(Service::Optimizer)?;
    // Or all would be ready for a moment, until the worker begins to open its session.
    let session = services::optimizer_session(&worker);
    stages.edge.spawn(async move {
        let stopping = worker.lifecycle.stopping();
        tokio::select! {
            () = session.others() => {}
            () = stopping.cancelled() => return,
        }
        services::start_optimizer(&worker, session);
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
