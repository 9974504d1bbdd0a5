//! How many of each there are, and the configuration that makes them one cluster.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Error};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use gatehouse_core::Entropy;
use url::Url;

use super::Node;
use crate::{OpenBao, Proxy, lasting_port};

/// The services of a cluster, as the program's subcommands are called, in the order in which they start.
pub const SERVICES: [&str; 6] = ["auth", "token-broker", "job", "audit", "gateway", "optimizer"];

/// Those that others call.
const CALLED: [&str; 4] = ["auth", "token-broker", "job", "audit"];

/// Whether one service calls another.
fn calls(from: &str, to: &str) -> bool {
    match from {
        "gateway" => CALLED.contains(&to),
        "optimizer" => to == "auth" || to == "job",
        // News of revocations, and the audit events of its outbox.
        _ => to == "auth" || to == "audit",
    }
}

/// Whether a service connects to a server.
fn uses(service: &str, server: &str) -> bool {
    match server {
        "openbao" => service == "token-broker",
        _ => CALLED.contains(&service) || (service == "gateway" && server == "redis"),
    }
}

/// Who holds a client secret in a deployment, and what it may do: names and the items of a TOML array.
pub const CLIENTS: [(&str, &str); 6] = [
    ("auth", r#""audit.events.append""#),
    ("token-broker", r#""auth.revocations.watch", "audit.events.append""#),
    ("job", r#""auth.revocations.watch", "audit.events.append""#),
    ("audit", r#""auth.revocations.watch""#),
    (
        "gateway",
        r#""auth.tokens.exchange", "auth.tokens.impersonate", "auth.origin.assert", "auth.revocations.watch""#,
    ),
    ("optimizer", r#""job.jobs.work:optimize:*""#),
];

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Layout {
    program: PathBuf,
    replicas: BTreeMap<&'static str, usize>,
    variables: Vec<(Option<String>, String, String)>,
    tables: Vec<(Option<String>, String)>,
    certificates: bool,
    pub(super) own_servers: bool,
    pub(super) openbao: bool,
}

/// What comes of it.
pub(super) struct Laid {
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) links: BTreeMap<(String, String), Proxy>,
    pub(super) config: PathBuf,
    pub(super) run: String,
}

impl Layout {
    /// One replica of each service, of the program there (`env!("CARGO_BIN_EXE_gatehouse")`).
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            replicas: SERVICES.into_iter().map(|service| (service, 1)).collect(),
            variables: Vec::new(),
            tables: Vec::new(),
            certificates: false,
            own_servers: false,
            openbao: false,
        }
    }

    /// So many replicas of a service; 0 leaves it out.
    ///
    /// # Panics
    /// If there is no such service.
    #[must_use]
    pub fn replicas(mut self, service: &str, number: usize) -> Self {
        let known = self.replicas.iter_mut().find(|(known, _)| **known == service);
        *known.unwrap_or_else(|| panic!("there is no service {service}")).1 = number;
        self
    }

    /// An environment variable of every process, such as `GATEHOUSE_JOB__LEASE_TTL_MS`.
    #[must_use]
    pub fn set(mut self, variable: &str, value: impl Into<String>) -> Self {
        self.variables.push((None, variable.to_owned(), value.into()));
        self
    }

    /// An environment variable of one node, such as `gateway-1`, or of all replicas of a service.
    #[must_use]
    pub fn set_of(mut self, node: &str, variable: &str, value: impl Into<String>) -> Self {
        self.variables.push((Some(node.to_owned()), variable.to_owned(), value.into()));
        self
    }

    /// Tables (TOML) that stand in every process's configuration, such as a client.
    #[must_use]
    pub fn tables(mut self, text: &str) -> Self {
        self.tables.push((None, text.to_owned()));
        self
    }

    /// Tables of one node's configuration, such as an upstream of `token-broker-1`.
    #[must_use]
    pub fn tables_of(mut self, node: &str, text: &str) -> Self {
        self.tables.push((Some(node.to_owned()), text.to_owned()));
        self
    }

    /// Keeps the token brokers' secrets in an OpenBao of this cluster's own instead of the embedded store, which belongs
    /// to one process.
    #[must_use]
    pub const fn with_openbao(mut self) -> Self {
        self.openbao = true;
        self
    }

    /// PostgreSQL and Redis of its own, which can be stopped and started, instead of those that tests share.
    #[must_use]
    pub const fn with_own_servers(mut self) -> Self {
        self.own_servers = true;
        self
    }

    /// Certificates of an authority of its own, as `gatehouse certs` makes them: processes know each other by these and talk
    /// by TLS only.
    #[must_use]
    pub const fn with_certificates(mut self) -> Self {
        self.certificates = true;
        self
    }

    /// Makes the certificates; where they are.
    async fn certify(&self, place: &Path) -> io::Result<PathBuf> {
        let folder = place.join("certs");
        let mut command = tokio::process::Command::new(&self.program);
        command.env("GATEHOUSE_ENV", "dev").args(["certs", "--json", "--out"]).arg(&folder);
        let output = command.stdin(std::process::Stdio::null()).output().await?;
        if output.status.success() {
            return Ok(folder);
        }
        Err(Error::other(format!("no certificates: {}", String::from_utf8_lossy(&output.stderr))))
    }

    /// Settles ports, starts the proxies, and writes every process's configuration below `place`.
    pub(super) async fn lay(
        &self,
        place: &Path,
        postgres: &str,
        redis: &str,
        openbao: Option<&OpenBao>,
    ) -> io::Result<Laid> {
        let random = Entropy::system();
        let run = hex(random.bytes::<4>());
        let secret = |name: &str| place.join(format!("{name}.secret"));
        for (name, _) in CLIENTS {
            std::fs::write(secret(name), hex(random.bytes::<32>()))?;
        }
        let mut nodes = BTreeMap::new();
        for service in SERVICES {
            for number in 1..=self.replicas[service] {
                let node = self.node(service, number, place)?;
                nodes.insert(node.name.clone(), node);
            }
        }
        let mut links = BTreeMap::new();
        for node in nodes.values() {
            if node.service == "gateway" {
                let link = Proxy::start(node.address.to_string()).await?;
                links.insert(("client".to_owned(), node.name.clone()), link);
            }
            for target in nodes.values().filter(|other| calls(node.service, other.service)) {
                let link = Proxy::start(target.address.to_string()).await?;
                links.insert((node.name.clone(), target.name.clone()), link);
            }
            let openbao = openbao.map(OpenBao::address);
            let servers =
                [("postgres", Some(postgres)), ("redis", Some(redis)), ("openbao", openbao.as_deref())];
            for (server, url) in servers {
                let Some(url) = url else { continue };
                if !uses(node.service, server) {
                    continue;
                }
                let link = Proxy::start(host_and_port(url)?).await?;
                links.insert((node.name.clone(), server.to_owned()), link);
            }
        }
        let common = common(place, &run, &secret) + "\n";
        let tables = |name: &str| -> String {
            let of = |whose: &Option<String>| whose.as_ref().is_none_or(|whose| whose == name);
            self.tables.iter().filter(|(whose, _)| of(whose)).map(|(_, text)| text.as_str()).collect()
        };
        let token_file = place.join("openbao.token");
        if openbao.is_some() {
            std::fs::write(&token_file, OpenBao::token())?;
        }
        let certificates = if self.certificates { Some(self.certify(place).await?) } else { None };
        for node in nodes.values() {
            let through = |to: &str| links.get(&(node.name.clone(), to.to_owned())).map(Proxy::address);
            let mut text = String::new();
            let redis_file = place.join(format!("{}.redis-url", node.name));
            std::fs::write(&redis_file, at(redis, through("redis"))?)?;
            let _ = writeln!(text, "redis.url_file = {}", quoted(&redis_file));
            let _ = writeln!(text, "client.secret_file = {}", quoted(&secret(node.service)));
            let _ = writeln!(text, "probes.address = \"{}\"", node.probes);
            let _ = writeln!(text, "gateway.address = \"{}\"", node.address);
            // All clients come through a proxy, and have its address.
            let _ = writeln!(text, "gateway.max_connections_per_address = 10000");
            for called in CALLED {
                let section = called.replace('-', "_");
                let replicas = nodes.values().filter(|other| other.service == called);
                // Whoever does not call it is told where it is all the same: a section wants an address.
                let reached = |other: &Node| through(&other.name).unwrap_or(other.address);
                let endpoints: Vec<_> =
                    replicas.map(|other| format!("\"http://{}\"", reached(other))).collect();
                if !endpoints.is_empty() {
                    let _ = writeln!(text, "peers.{section}.endpoints = [{}]", endpoints.join(", "));
                }
                let _ = writeln!(text, "databases.{section}.url = {:?}", at(postgres, through("postgres"))?);
                if called == node.service {
                    let _ = writeln!(text, "listen.{section} = \"{}\"", node.address);
                }
            }
            if let Some(address) = through("openbao") {
                let _ = writeln!(
                    text,
                    "secrets.backend = \"vault\"\nsecrets.vault.address = \"http://{address}\""
                );
                let _ = writeln!(text, "secrets.vault.token_file = {}", quoted(&token_file));
            }
            if let Some(folder) = &certificates {
                for (key, file) in [("cert_file", "tls.crt"), ("key_file", "tls.key"), ("ca_file", "ca.crt")]
                {
                    let _ = writeln!(text, "tls.{key} = {}", quoted(&folder.join(node.service).join(file)));
                }
            }
            std::fs::write(&node.config, text + &common + &tables(&node.name))?;
        }
        let config = place.join("administrator.toml");
        let databases =
            CALLED.map(|called| format!("databases.{}.url = {postgres:?}\n", called.replace('-', "_")));
        std::fs::write(&config, databases.concat() + &common)?;
        Ok(Laid { nodes, links, config, run })
    }

    fn node(&self, service: &'static str, number: usize, place: &Path) -> io::Result<Node> {
        let name = format!("{service}-{number}");
        let mut variables = BTreeMap::from([("GATEHOUSE_ENV".to_owned(), "dev".to_owned())]);
        for (whose, variable, value) in &self.variables {
            if whose.as_ref().is_none_or(|whose| *whose == name || whose == service) {
                variables.insert(variable.clone(), value.clone());
            }
        }
        Ok(Node {
            address: loopback(lasting_port()?),
            probes: loopback(lasting_port()?),
            starts: 0,
            program: self.program.clone(),
            config: place.join(format!("{name}.toml")),
            log: place.join(format!("{name}.log")),
            variables,
            child: None,
            started_at: None,
            is_ending: false,
            service,
            name,
        })
    }
}

/// What all processes share: files, schemas and clients.
fn common(place: &Path, run: &str, secret: &impl Fn(&str) -> PathBuf) -> String {
    let mut text = String::new();
    for (key, file) in [
        ("auth.key_file", "auth-keys.json"),
        ("audit.subject_keys_dir", "subjects"),
        ("audit.checkpoint_key_file", "checkpoint.key"),
        ("secrets.embedded.folder", "secrets/objects"),
        ("secrets.embedded.key_file", "secrets-key.json"),
    ] {
        let _ = writeln!(text, "{key} = {}", quoted(&place.join(file)));
    }
    for service in CALLED {
        let section = service.replace('-', "_");
        let _ = writeln!(text, "databases.{section}.schema = {:?}", schema(run, service));
    }
    for (name, permissions) in CLIENTS {
        let file = quoted(&secret(name));
        let _ = writeln!(
            text,
            "[[auth.clients]]\nname = \"{name}\"\nsecret_file = {file}\npermissions = [{permissions}]"
        );
    }
    text
}

/// Where a service's tables are.
pub(super) fn schema(run: &str, service: &str) -> String {
    format!("cluster_{run}_{}", service.replace('-', "_"))
}

/// As a TOML string.
fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

fn hex<const N: usize>(bytes: [u8; N]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

fn host_and_port(url: &str) -> io::Result<String> {
    let url = Url::parse(url).map_err(Error::other)?;
    let default = if url.scheme().starts_with("redis") { 6379 } else { 5432 };
    let host = url.host_str().ok_or_else(|| Error::other("an address without a host"))?;
    Ok(format!("{host}:{}", url.port().unwrap_or(default)))
}

/// The same server, reached at `address` if there is one.
fn at(url: &str, address: Option<SocketAddr>) -> io::Result<String> {
    let Some(address) = address else { return Ok(url.to_owned()) };
    let mut url = Url::parse(url).map_err(Error::other)?;
    url.set_host(Some(&address.ip().to_string())).map_err(Error::other)?;
    url.set_port(Some(address.port())).map_err(|()| Error::other("an address that can't have a port"))?;
    Ok(url.into())
}
