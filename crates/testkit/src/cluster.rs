//! Gatehouse as it is deployed: every replica of every service a process of its own, on PostgreSQL and Redis, with a
//! load balancer before the gateways and a [`Proxy`] on every connection between any two of them.
//!
//! [`Cluster::start`] takes a [`Layout`] and the path of the program (`env!("CARGO_BIN_EXE_gatehouse")` in its own
//! tests). Nodes are named `service-number`, such as `auth-1`; links by their ends, such as `gateway-2` and `auth-1`,
//! `job-1` and `postgres`, `client` and `gateway-1`. Dropping the cluster ends every process by its id; a watcher does so
//! when the test itself is killed. The logs stay behind where a test panics or says [`Cluster::keep`].

mod layout;
mod node;

use std::collections::BTreeMap;
use std::io::{self, Error, Write as _};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::time::Instant;

pub use self::layout::{CLIENTS, Layout, SERVICES};
pub use self::node::Node;
use crate::{Backend, Balancer, OpenBao, Postgres, Proxy, Redis, Weather, balancer};

/// How long a debug build may take to be ready on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(120);

/// How long a process may try to start before it gives up, on a busy machine.
const LONGEST_START: Duration = Duration::from_secs(30);

/// The status of a process that can't start.
const GAVE_UP: i32 = 2;

/// Whether the end of a log says why a process ended: a line of its own that is no log line.
fn says_why(end_of_log: &str) -> bool {
    end_of_log.lines().rev().take(10).any(|line| line.starts_with("gatehouse: "))
}

/// Ends what is left when the test process is gone: it reads `+id` and `-id`, and kills at the end of its input. `$1` is
/// the cluster's folder, which goes too, unless it was told to `keep` it.
const WATCHER: &str = r#"
trap '' INT TERM HUP
ids= keep=
while read -r word; do
  id=${word#?}
  case $word in
    keep) keep=1 ;;
    +*) ids="$ids $id" ;;
    -*) left=; for other in $ids; do [ "$other" = "$id" ] || left="$left $other"; done; ids=$left ;;
  esac
done
[ -z "$ids" ] || { kill -KILL $ids 2>/dev/null; [ -n "$keep" ] || rm -rf "$1"; }
"#;

/// A running cluster.
pub struct Cluster {
    nodes: BTreeMap<String, Node>,
    links: BTreeMap<(String, String), Proxy>,
    balancer: Balancer,
    postgres: Option<Postgres>,
    redis: Redis,
    watcher: Watcher,
    config: PathBuf,
    /// What tells this cluster's schemas from others' in a shared database.
    run: String,
    postgres_url: String,
    openbao: Option<OpenBao>,
    /// Last: the others have files in it.
    folder: Option<TempDir>,
}

struct Watcher {
    child: Child,
    input: Option<ChildStdin>,
}

impl Cluster {
    /// Starts everything and waits until every process is ready.
    ///
    /// # Errors
    /// PostgreSQL, Redis or OpenBao is not installed, or a process does not become ready; the message holds the end of its log.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn start(layout: Layout) -> io::Result<Self> {
        let (own, openbao) = (layout.own_servers, layout.openbao);
        let servers = tokio::task::spawn_blocking(move || {
            let openbao = openbao.then(OpenBao::start).transpose()?;
            if own {
                Ok::<_, Error>((Some(Postgres::start_lasting()?), Redis::start_lasting()?, openbao))
            } else {
                Postgres::shared()?;
                Ok((None, Redis::shared()?, openbao))
            }
        });
        let (postgres, redis, openbao) = servers.await.map_err(Error::other)??;
        let folder = tempfile::Builder::new().prefix("gatehouse-cluster-").tempdir()?;
        let postgres_url = match &postgres {
            Some(own) => own.url().to_owned(),
            None => Postgres::shared()?.url().to_owned(),
        };
        let laid = layout.lay(folder.path(), &postgres_url, redis.url(), openbao.as_ref()).await?;
        let backends = laid.nodes.values().filter(|node| node.service == "gateway").map(|node| Backend {
            address: laid.links[&("client".to_owned(), node.name.clone())].address(),
            probes: Some(node.probes),
        });
        let mut cluster = Self {
            balancer: Balancer::start(backends.collect()).await?,
            watcher: Watcher::start(folder.path())?,
            nodes: laid.nodes,
            links: laid.links,
            config: laid.config,
            run: laid.run,
            postgres_url,
            openbao,
            folder: Some(folder),
            postgres,
            redis,
        };
        // The first of each service makes keys and tables, which only one may; the others come then.
        let names = cluster.names();
        let (first, others): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.ends_with("-1"));
        for wave in [first, others] {
            for name in &wave {
                cluster.launch(name)?;
            }
            for name in wave {
                cluster.ready(name, START_LIMIT).await?;
            }
        }
        cluster.all_ready(START_LIMIT).await?;
        Ok(cluster)
    }

    /// Where clients connect: the balancer, `http://…`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.balancer.address())
    }

    /// The balancer before the gateways.
    #[must_use]
    pub const fn balancer(&self) -> &Balancer {
        &self.balancer
    }

    /// Names of all nodes, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// Names of the replicas of a service.
    #[must_use]
    pub fn replicas(&self, service: &str) -> Vec<String> {
        self.nodes.values().filter(|node| node.service == service).map(|node| node.name.clone()).collect()
    }

    /// One node.
    ///
    /// # Panics
    /// If there is none of this name.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.get(name).unwrap_or_else(|| panic!("there is no node {name}"))
    }

    fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes.get_mut(name).unwrap_or_else(|| panic!("there is no node {name}"))
    }

    /// The proxy between two of them: from who connects to whom.
    ///
    /// # Panics
    /// If these two do not talk.
    #[must_use]
    pub fn link(&self, from: &str, to: &str) -> &Proxy {
        let ends = (from.to_owned(), to.to_owned());
        self.links.get(&ends).unwrap_or_else(|| panic!("there is no link from {from} to {to}"))
    }

    /// The ends of all links, in order.
    #[must_use]
    pub fn link_ends(&self) -> Vec<(String, String)> {
        self.links.keys().cloned().collect()
    }

    /// Cuts a node off from all it connects to, or lets it talk again.
    pub fn cut_off(&self, name: &str, off: bool) {
        for ((from, _), link) in &self.links {
            if from == name {
                link.set(if off { Weather::refusing() } else { Weather::default() });
                if off {
                    link.cut();
                }
            }
        }
    }

    /// Starts a node that does not run; [`Cluster::ready`] waits for it.
    ///
    /// # Errors
    /// The program can't be run, or it runs.
    pub fn launch(&mut self, name: &str) -> io::Result<()> {
        let id = self.node_mut(name).launch()?;
        self.watcher.tell('+', id);
        Ok(())
    }

    /// `kill -9`, and waits until the process is gone. Does nothing to one that does not run.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill9(&mut self, name: &str) -> io::Result<()> {
        if let Some(id) = self.node_mut(name).kill9()? {
            self.watcher.tell('-', id);
        }
        Ok(())
    }

    /// SIGSTOP: its connections stay open and nothing is answered.
    ///
    /// # Errors
    /// It does not run.
    pub fn pause(&mut self, name: &str) -> io::Result<()> {
        self.node(name).signal(Signal::SIGSTOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// It does not run.
    pub fn resume(&mut self, name: &str) -> io::Result<()> {
        self.node(name).signal(Signal::SIGCONT)
    }

    /// SIGTERM, without waiting; [`Cluster::ended`] does.
    ///
    /// # Errors
    /// It does not run.
    pub fn terminate(&mut self, name: &str) -> io::Result<()> {
        self.node(name).signal(Signal::SIGTERM)?;
        self.node_mut(name).is_ending = true;
        Ok(())
    }

    /// Waits until a node has ended by itself; how.
    ///
    /// # Errors
    /// It does not run, or still does after `limit`.
    pub async fn ended(&mut self, name: &str, limit: Duration) -> io::Result<std::process::ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_ended(name)? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(Error::other(format!("{name} does not end within {limit:?}")));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGTERM, waits for the end, and starts again; how it ended.
    ///
    /// # Errors
    /// It does not end within `limit`, or can't be started.
    pub async fn restart(&mut self, name: &str, limit: Duration) -> io::Result<std::process::ExitStatus> {
        self.terminate(name)?;
        let status = self.ended(name, limit).await?;
        self.launch(name)?;
        Ok(status)
    }

    /// Waits until a node says that it is ready.
    ///
    /// # Errors
    /// It ended, or is not ready within `limit`; the message holds the end of its log.
    pub async fn ready(&mut self, name: &str, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let node = self.node_mut(name);
            if balancer::is_ready(node.probes).await {
                return Ok(());
            }
            // Left to be told by whoever deals with it.
            let ended = node.child.as_mut().map(std::process::Child::try_wait).transpose()?.flatten();
            if ended.is_some() || Instant::now() > deadline {
                let end = node.end_of_log();
                return Err(Error::other(format!(
                    "{name} is not ready (ended: {ended:?}); its log ends:\n{end}"
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until every node is ready and the balancer knows it.
    ///
    /// # Errors
    /// As [`Cluster::ready`].
    pub async fn all_ready(&mut self, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        for name in self.names() {
            self.ready(&name, deadline.saturating_duration_since(Instant::now())).await?;
        }
        while self.balancer.ready() < self.replicas("gateway").len() {
            if Instant::now() > deadline {
                return Err(Error::other("the balancer does not see every gateway ready"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Starts again what gave up its start, as whoever runs a deployment does; names of those. A process may give up when
    /// what it needs is away at its start, which `excused` tells of it, and at no other time: with a message and status 2.
    ///
    /// # Errors
    /// One ended otherwise; the message holds the end of its log.
    pub fn revive(&mut self, excused: impl Fn(&Node) -> bool) -> io::Result<Vec<String>> {
        let mut revived = Vec::new();
        for node in self.nodes.values_mut().filter(|node| !node.is_ending) {
            let id = node.id();
            if let Some(status) = node.has_ended()? {
                let ran = node.ran();
                let (name, end) = (&node.name, node.end_of_log());
                let gave_up = status.code() == Some(GAVE_UP) && ran < LONGEST_START && says_why(&end);
                if !gave_up || !excused(node) {
                    return Err(Error::other(format!(
                        "{name} ended by itself with {status} after {ran:?} although nothing was away that it needs at its start; its log ends:\n{end}"
                    )));
                }
                if let Some(id) = id {
                    self.watcher.tell('-', id);
                }
                revived.push(node.name.clone());
            }
        }
        for name in &revived {
            self.launch(name)?;
        }
        Ok(revived)
    }

    /// How a node that was told to end has ended, if it has; told once.
    ///
    /// # Errors
    /// The system refuses.
    pub fn try_ended(&mut self, name: &str) -> io::Result<Option<std::process::ExitStatus>> {
        let node = self.node_mut(name);
        let id = node.id();
        let status = node.has_ended()?;
        if let (Some(_), Some(id)) = (status, id) {
            self.watcher.tell('-', id);
        }
        Ok(status)
    }

    /// The PostgreSQL server, where it is this cluster's own ([`Layout::own_servers`]).
    pub const fn postgres(&mut self) -> Option<&mut Postgres> {
        self.postgres.as_mut()
    }

    /// The Redis server.
    pub const fn redis(&mut self) -> &mut Redis {
        &mut self.redis
    }

    /// The `OpenBao` server, where there is one ([`Layout::with_openbao`]).
    #[must_use]
    pub const fn openbao(&self) -> Option<&OpenBao> {
        self.openbao.as_ref()
    }

    /// The database, past all proxies, for whoever looks into it.
    #[must_use]
    pub fn postgres_url(&self) -> &str {
        &self.postgres_url
    }

    /// Redis, past all proxies.
    #[must_use]
    pub fn redis_url(&self) -> &str {
        self.redis.url()
    }

    /// The schema in which a service has its tables.
    #[must_use]
    pub fn schema(&self, service: &str) -> String {
        layout::schema(&self.run, service)
    }

    /// A configuration file with which administrators' commands reach the databases, past all proxies.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Where secrets, keys and logs are.
    ///
    /// # Panics
    /// Never while the cluster lives.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().expect("it is taken at the drop only").path()
    }

    /// Where a gateway itself takes HTTP connections, past balancer and proxy.
    #[must_use]
    pub fn address(&self, name: &str) -> SocketAddr {
        self.node(name).address
    }

    /// Keeps the folder, logs and all; where it is.
    pub fn keep(&mut self) -> PathBuf {
        if let Some(folder) = &mut self.folder {
            folder.disable_cleanup(true);
        }
        self.watcher.keep();
        self.folder().to_owned()
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("nodes", &self.nodes.keys()).finish_non_exhaustive()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in self.nodes.values_mut() {
            if let Ok(Some(id)) = node.kill9() {
                self.watcher.tell('-', id);
            }
        }
        if std::thread::panicking() {
            eprintln!("the logs of the cluster's processes are kept in {}", self.keep().display());
        }
    }
}

impl Watcher {
    fn start(folder: &Path) -> io::Result<Self> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", WATCHER, "cluster-watcher"])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: a signal to the test's whole group must not take it along.
            .process_group(0)
            .spawn()?;
        let input = child.stdin.take();
        Ok(Self { child, input })
    }

    fn keep(&mut self) {
        if let Some(input) = &mut self.input {
            let _ = writeln!(input, "keep");
        }
    }

    fn tell(&mut self, sign: char, id: u32) {
        if let Some(input) = &mut self.input {
            // Without a watcher the drop still ends what runs.
            let _ = writeln!(input, "{sign}{id}");
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}
