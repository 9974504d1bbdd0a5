//! The services under load: separate processes on PostgreSQL and Redis, or `gatehouse up` on SQLite.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use gatehouse_client::Channel;
use gatehouse_client::{Authorized, ChannelConfig, ClientCredentials, TokenSource, channel};
use gatehouse_core::{Clock, Entropy, Secret};
use gatehouse_testkit::cluster::CLIENTS;
use gatehouse_testkit::oauth_provider::Options;
use gatehouse_testkit::{OAuthProvider, free_port};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::processes::Processes;

/// Where the data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Engine {
    /// Each service a process of its own, on PostgreSQL and Redis.
    Postgres,
    /// One process, on SQLite.
    Sqlite,
}

impl Engine {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Sqlite => "sqlite",
        }
    }
}

const SERVICES: [&str; 4] = ["auth", "token-broker", "job", "audit"];
/// What the load may do: it is a client as any internal service is.
const LOAD_PERMISSIONS: &str =
    r#""auth.tokens.exchange", "audit.events.append", "job.jobs.work:bench:*", "job.jobs.work:stream:*""#;
/// The load's name as a client.
pub(crate) const LOAD: &str = "bench";
/// The upstream that people are connected with.
pub(crate) const UPSTREAM: &str = "bench";
/// How long a start and a stop may take; a debug build on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(90);

/// The provider behind [`UPSTREAM`]. Its tokens live too short for who asks for ten minutes: that forces a refresh.
pub(crate) fn provider_options() -> Options {
    Options::default()
}

/// One running process.
struct Process {
    name: String,
    child: Child,
    probes: u16,
    log: PathBuf,
}

/// The running services.
pub(crate) struct Cluster {
    engine: Engine,
    program: PathBuf,
    folder: PathBuf,
    /// The file that all processes were configured with.
    pub(crate) config: PathBuf,
    /// Where the gateway is.
    pub(crate) gateway: SocketAddr,
    ports: [u16; 4],
    processes: Vec<Process>,
    tokens: TokenSource,
}

impl Cluster {
    /// Starts them on data below `folder`. `stores`: the addresses of PostgreSQL and Redis.
    ///
    /// # Errors
    /// What did not start, and where its log is.
    pub(crate) async fn start(
        engine: Engine,
        folder: &Path,
        stores: Option<(&str, &str)>,
        provider: &OAuthProvider,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let program = std::env::current_exe()?.with_file_name("gatehouse");
        ensure!(
            program.exists(),
            "{} is missing: run `make bench`, which builds it first",
            program.display()
        );
        let (mut ports, gateway) = ([0; 4], free_port()?);
        for port in &mut ports {
            *port = free_port()?;
        }
        let config = write_config(engine, folder, stores, provider, ports, gateway)?;
        let mut cluster = Self {
            engine,
            program,
            folder: folder.to_owned(),
            config,
            gateway: ([127, 0, 0, 1], gateway).into(),
            ports,
            processes: Vec::new(),
            tokens: token_source(folder, ports[0])?,
        };
        match engine {
            Engine::Postgres => {
                for service in SERVICES {
                    let process = cluster.spawn(service, service, &[])?;
                    cluster.processes.push(process);
                }
                let process = cluster.spawn("gateway", "gateway", &[])?;
                cluster.processes.push(process);
            }
            Engine::Sqlite => {
                let process = cluster.spawn("up", "embedded", &[])?;
                cluster.processes.push(process);
            }
        }
        for process in &mut cluster.processes {
            is_ready(process).await?;
        }
        Ok(cluster)
    }

    fn spawn(&self, command: &str, name: &str, variables: &[(&str, String)]) -> Result<Process> {
        let probes = free_port()?;
        let log = self.folder.join(format!("{name}.log"));
        let mut starting = Command::new(&self.program);
        starting
            .arg(command)
            .arg("--config")
            .arg(&self.config)
            .env_clear()
            .env("GATEHOUSE_PROBES__ADDRESS", format!("127.0.0.1:{probes}"))
            // A line for each request would be measured too; production logs what went wrong.
            .env("GATEHOUSE_TELEMETRY__LOG_FILTER", "warn")
            .envs(variables.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .kill_on_drop(true);
        if let Some(folder) = std::env::var_os("TMPDIR") {
            starting.env("TMPDIR", folder);
        }
        match self.engine {
            Engine::Postgres => starting
                .env("GATEHOUSE_ENV", "dev")
                .env("GATEHOUSE_CLIENT__SECRET_FILE", secret_file(&self.folder, command)),
            Engine::Sqlite => starting.args(["--json", "--data"]).arg(self.folder.join("data")),
        };
        let child = starting.spawn().with_context(|| format!("{command} can't be started"))?;
        Ok(Process { name: name.to_owned(), child, probes, log })
    }

    /// A second gateway and job service that have served nobody yet, for their memory: the gateway's address, and
    /// the ids of both.
    ///
    /// # Errors
    /// If they do not start.
    pub(crate) async fn fresh_pair(&self) -> Result<FreshPair> {
        let (job_port, gateway_port) = (free_port()?, free_port()?);
        let job_address = format!("127.0.0.1:{job_port}");
        let mut job = self.spawn("job", "job-fresh", &[("GATEHOUSE_LISTEN__JOB", job_address.clone())])?;
        is_ready(&mut job).await?;
        let address = SocketAddr::from(([127, 0, 0, 1], gateway_port));
        let variables = [
            ("GATEHOUSE_GATEWAY__ADDRESS", address.to_string()),
            ("GATEHOUSE_PEERS__JOB__ENDPOINTS", format!("http://{job_address}")),
        ];
        let mut gateway = self.spawn("gateway", "gateway-fresh", &variables)?;
        is_ready(&mut gateway).await?;
        let ids = gateway.child.id().zip(job.child.id()).context("a fresh process ended")?;
        Ok(FreshPair { address, ids, processes: [gateway, job] })
    }

    /// A channel to `service`.
    ///
    /// # Errors
    /// If there is no such service.
    pub(crate) fn channel(&self, service: &str) -> Result<Channel> {
        let place = SERVICES.iter().position(|known| *known == service).context("no such service")?;
        connect(self.ports[place])
    }

    /// A channel that shows the load's own token for `audience`.
    ///
    /// # Errors
    /// As [`Cluster::channel`].
    pub(crate) fn as_client(&self, service: &str, audience: &'static str) -> Result<Authorized> {
        Ok(Authorized::as_client(self.channel(service)?, self.tokens.clone(), audience))
    }

    /// The folder of the data.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The program of the services.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Tells the processes apart.
    pub(crate) fn name_processes(&self, processes: &mut Processes) {
        for process in &self.processes {
            if let Some(id) = process.child.id() {
                processes.name(id, &process.name);
            }
        }
    }

    /// Asks all to end, the gateway first, and waits.
    ///
    /// # Errors
    /// One that did not end well.
    pub(crate) async fn stop(self) -> Result<()> {
        for process in self.processes.into_iter().rev() {
            end(process).await?;
        }
        Ok(())
    }
}

/// Two processes that nobody else uses.
pub(crate) struct FreshPair {
    pub(crate) address: SocketAddr,
    /// Gateway, job service.
    pub(crate) ids: (u32, u32),
    processes: [Process; 2],
}

impl FreshPair {
    /// # Errors
    /// One that did not end well.
    pub(crate) async fn stop(self) -> Result<()> {
        for process in self.processes {
            end(process).await?;
        }
        Ok(())
    }
}

async fn end(mut process: Process) -> Result<()> {
    if let Some(id) = process.child.id().and_then(|id| i32::try_from(id).ok()) {
        kill(Pid::from_raw(id), Signal::SIGTERM)?;
    }
    let ended = tokio::time::timeout(PATIENCE, process.child.wait()).await;
    let status = ended.with_context(|| format!("{} does not end", process.name))??;
    ensure!(status.success(), "{} ended with {status}:\n{}", process.name, tail(&process.log));
    Ok(())
}

async fn is_ready(process: &mut Process) -> Result<()> {
    let began = Instant::now();
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
    let url = format!("http://127.0.0.1:{}/readyz", process.probes);
    loop {
        if http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        let ended = process.child.try_wait()?;
        ensure!(
            ended.is_none() && began.elapsed() < PATIENCE,
            "{} did not become ready:\n{}",
            process.name,
            tail(&process.log)
        );
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

fn connect(port: u16) -> Result<Channel> {
    let config =
        ChannelConfig { request_timeout_ms: 60_000, ..ChannelConfig::to(format!("http://127.0.0.1:{port}")) };
    Ok(channel(&config)?)
}

fn secret_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.secret"))
}

fn token_source(folder: &Path, auth: u16) -> Result<TokenSource> {
    let client_secret = Secret::new(std::fs::read_to_string(secret_file(folder, LOAD))?);
    let credentials = ClientCredentials { client_id: LOAD.into(), client_secret };
    Ok(TokenSource::new(connect(auth)?, credentials, Clock::system()))
}

/// The configuration that all processes share. What differs from the defaults says why.
fn write_config(
    engine: Engine,
    folder: &Path,
    stores: Option<(&str, &str)>,
    provider: &OAuthProvider,
    ports: [u16; 4],
    gateway: u16,
) -> Result<PathBuf> {
    let random = Entropy::system();
    let hex = |bytes: [u8; 16]| bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    // A JSON string is a TOML basic string.
    let quoted = |path: PathBuf| serde_json::to_string(&path);
    let mut text = String::new();
    if engine == Engine::Postgres {
        let (_, redis) = stores.context("separate processes need PostgreSQL and Redis")?;
        std::fs::write(folder.join("redis.url"), redis)?;
        writeln!(text, "redis.url_file = {}", quoted(folder.join("redis.url"))?)?;
        writeln!(text, "auth.key_file = {}", quoted(folder.join("auth-keys.json"))?)?;
        writeln!(text, "audit.subject_keys_dir = {}", quoted(folder.join("subjects"))?)?;
        writeln!(text, "audit.checkpoint_key_file = {}", quoted(folder.join("checkpoint.key"))?)?;
        writeln!(text, "secrets.embedded.folder = {}", quoted(folder.join("secrets/objects"))?)?;
        writeln!(text, "secrets.embedded.key_file = {}", quoted(folder.join("secrets-key.json"))?)?;
    }
    writeln!(text, "gateway.address = \"127.0.0.1:{gateway}\"")?;
    if engine == Engine::Sqlite {
        writeln!(text, "gateway.tls_address = \"127.0.0.1:{}\"", free_port()?)?;
    }
    for (service, port) in SERVICES.iter().zip(ports) {
        let section = service.replace('-', "_");
        writeln!(text, "listen.{section} = \"127.0.0.1:{port}\"")?;
        writeln!(text, "peers.{section}.endpoints = [\"http://127.0.0.1:{port}\"]")?;
        if let (Engine::Postgres, Some((postgres, _))) = (engine, stores) {
            writeln!(text, "databases.{section}.url = {postgres:?}")?;
        }
    }
    // Everything comes from one address and asks as often as it can: the limits are counted, and never reached.
    writeln!(text, "gateway.max_connections = 20000\ngateway.max_connections_per_address = 20000")?;
    let most = "{ capacity = 1000000000, interval_s = 1000 }";
    writeln!(
        text,
        "rate_limits.rules = {{ capacity = 1000000000, interval_s = 1000, classes = {{}}, ip = {most}, person = {most}, api_key = {most}, tenant = {most} }}"
    )?;
    // A busy machine must not turn a figure of Redis into one of the fallback.
    writeln!(text, "rate_limits.timeout_ms = 1000")?;
    for most in ["streams", "streams_per_caller", "streams_per_tenant", "streams_per_job"] {
        writeln!(text, "gateway.sse.max_{most} = 20000")?;
    }
    // Longer than the whole session.
    writeln!(text, "auth.access_token_lifetime_s = 3600\nauth.service_token_lifetime_s = 900")?;
    writeln!(
        text,
        "job.kinds = {{ optimize = {{}}, bench = {{ max_queued_per_tenant = 100000 }}, stream = {{}} }}"
    )?;
    let secret = folder.join("provider.secret");
    std::fs::write(&secret, provider_options().client_secret)?;
    // Each call that asks for more than the provider gives is a refresh: that is what is measured.
    writeln!(text, "token_broker.renew_after_percent = 0")?;
    writeln!(text, "token_broker.callback_url = \"http://127.0.0.1:{gateway}/v1/connections/callback\"")?;
    writeln!(
        text,
        "[token_broker.upstreams.{UPSTREAM}]\ndisplay_name = \"Bench\"\nauthorization_endpoint = \"{}\"\n\
         token_endpoint = \"{}\"\nclient_id = \"{}\"\nclient_secret_file = {}\nscopes = [\"read\"]\nrotation = \"strict\"\n\
         allow = [{{ client = \"person\", scopes = [\"*\"] }}, {{ client = \"{LOAD}\", scopes = [\"*\"] }}, \
         {{ client = \"gateway\", scopes = [\"*\"] }}]",
        provider.authorization_endpoint(),
        provider.token_endpoint(),
        provider_options().client_id,
        quoted(secret)?,
    )?;
    for (name, permissions) in CLIENTS.into_iter().chain([(LOAD, LOAD_PERMISSIONS)]) {
        let file = secret_file(folder, name);
        std::fs::write(&file, hex(random.bytes()) + &hex(random.bytes()))?;
        // `up` makes its own for its services.
        if engine == Engine::Postgres || name == LOAD {
            writeln!(
                text,
                "[[auth.clients]]\nname = \"{name}\"\nsecret_file = {}\npermissions = [{permissions}]",
                quoted(file)?
            )?;
        }
    }
    let file = folder.join("gatehouse.toml");
    std::fs::write(&file, text)?;
    Ok(file)
}
