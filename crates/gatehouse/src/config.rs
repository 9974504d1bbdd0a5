//! The whole configuration: one section for each service and for what they share.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use gatehouse_client::ChannelConfig;
use gatehouse_client::tls::{TlsFiles, is_service, is_trust_domain};
use gatehouse_core::Environment;
use gatehouse_gateway::StreamChannels;
use gatehouse_proto::access::CALLERS;
use gatehouse_service::grpc::GrpcConfig;
use gatehouse_service::revocations::Staleness;
use gatehouse_service::telemetry::TelemetryConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::data_folder::read_secret;
use crate::services::{Service, own_certificates};

/// Most connections that a gateway makes for event streams: each takes a file handle on both sides.
const MAX_STREAM_CONNECTIONS: usize = 2048;

/// Everything that can be set.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Who issues access tokens: an address without a path. The environment is appended as its path.
    pub(crate) issuer: String,
    /// How long a process goes on as before after SIGTERM, while `/readyz` says that it is not ready, milliseconds, 0 to
    /// 60000: longer than the load balancer takes to notice. `gatehouse up` does not wait.
    pub(crate) drain_delay_ms: u64,
    /// How long running work may take to finish after that, seconds, 1 to 600.
    pub(crate) drain_timeout_s: u64,
    /// Logs, traces, metrics.
    pub(crate) telemetry: TelemetryConfig,
    /// The private port with `/healthz`, `/readyz` and `/metrics`.
    pub(crate) probes: ProbesConfig,
    /// Redis.
    pub(crate) redis: RedisConfig,
    /// Who this process is to the other services.
    pub(crate) client: ClientConfig,
    /// Certificates for the connections between services.
    pub(crate) tls: TlsConfig,
    /// Where the services listen.
    pub(crate) listen: ListenConfig,
    /// Where the services are.
    pub(crate) peers: PeersConfig,
    /// Where each service keeps its data. No two share a database, or on PostgreSQL a schema.
    pub(crate) databases: DatabasesConfig,
    /// Whether, outside dev, gRPC between hosts may go unencrypted by us because something else encrypts it (a service
    /// mesh, a tunnel). Without it or the section `tls`, addresses that are not loopback are refused there: tokens and
    /// passwords travel on these connections.
    pub(crate) network_is_encrypted: bool,
    /// Bounds of every gRPC server.
    pub(crate) grpc: GrpcConfig,
    /// How late the news of revocations may be.
    pub(crate) revocations: RevocationsConfig,
    /// The way of audit events from each service to the audit service.
    pub(crate) outbox: gatehouse_outbox::Config,
    /// Rate limits at the gateway.
    pub(crate) rate_limits: gatehouse_ratelimit::Config,
    /// Where the token broker keeps refresh tokens.
    pub(crate) secrets: gatehouse_secrets::Config,
    /// The edge gateway.
    pub(crate) gateway: gatehouse_gateway::Config,
    /// The auth service.
    pub(crate) auth: gatehouse_auth::Config,
    /// The token broker.
    pub(crate) token_broker: gatehouse_token_broker::Config,
    /// The job service.
    pub(crate) job: gatehouse_job::Config,
    /// The audit service.
    pub(crate) audit: gatehouse_audit::Config,
    /// The optimize worker.
    pub(crate) optimizer: gatehouse_optimizer::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            issuer: "https://gatehouse.localhost".to_owned(),
            drain_delay_ms: 500,
            drain_timeout_s: 30,
            telemetry: TelemetryConfig::default(),
            probes: ProbesConfig::default(),
            redis: RedisConfig::default(),
            client: ClientConfig::default(),
            tls: TlsConfig::default(),
            listen: ListenConfig::default(),
            peers: PeersConfig::default(),
            databases: DatabasesConfig::default(),
            network_is_encrypted: false,
            grpc: GrpcConfig::default(),
            revocations: RevocationsConfig::default(),
            outbox: gatehouse_outbox::Config::default(),
            rate_limits: gatehouse_ratelimit::Config::default(),
            secrets: gatehouse_secrets::Config::default(),
            gateway: gatehouse_gateway::Config::default(),
            auth: gatehouse_auth::Config::default(),
            token_broker: gatehouse_token_broker::Config::default(),
            job: gatehouse_job::Config::default(),
            audit: gatehouse_audit::Config::default(),
            optimizer: gatehouse_optimizer::Config::default(),
        }
    }
}

/// The private port.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ProbesConfig {
    /// Address, `ip:port`; port 0 takes a free one. Never publish it.
    pub(crate) address: String,
}

impl Default for ProbesConfig {
    fn default() -> Self {
        Self { address: "127.0.0.1:9464".to_owned() }
    }
}

/// Redis: rate limits and doorbells across replicas.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RedisConfig {
    /// File with the address, `rediss://user:password@host:6379` (TLS) or `redis://…`; empty keeps rate limits and
    /// doorbells within this process, which is right for one process only. Outside dev, `redis://` is for this host only.
    pub(crate) url_file: PathBuf,
    /// PEM file with the authorities that vouch for a `rediss://` server. Default: those of the system.
    pub(crate) ca_file: PathBuf,
}

impl RedisConfig {
    /// The file of the authorities, if one is set.
    pub(crate) fn ca_file(&self) -> Option<PathBuf> {
        Some(self.ca_file.clone()).filter(|file| !file.as_os_str().is_empty())
    }

    /// What forbids a process to start with it. It reads the address, which is a secret, and repeats none of it but the
    /// host.
    fn validate(&self, environment: Environment) -> Vec<String> {
        if self.url_file.as_os_str().is_empty() {
            return match self.ca_file() {
                Some(_) => vec!["ca_file: there is no address; set url_file".to_owned()],
                None => Vec::new(),
            };
        }
        if !self.url_file.is_file() {
            return vec![format!("url_file: {} is not a file", self.url_file.display())];
        }
        let mut problems = Vec::new();
        let url = read_secret(&self.url_file).ok().and_then(|text| Url::parse(text.expose()).ok());
        match url.as_ref().map(Url::scheme) {
            Some("rediss") if url.as_ref().is_some_and(|url| url.fragment().is_some()) => {
                problems.push("url_file: the address has a fragment (#); remove it".to_owned());
            }
            Some("rediss" | "redis+unix" | "unix") => {}
            Some("redis") => {
                let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
                if !environment.is_dev() && !is_loopback_host(host) {
                    problems.push(format!(
                        "url_file: in {environment} the connection to Redis at {host} must be encrypted; write rediss:// and \
                         name its authority in redis.ca_file"
                    ));
                }
            }
            _ => problems.push(format!(
                "url_file: {} holds no address of the form rediss://host:6379",
                self.url_file.display()
            )),
        }
        if let Some(file) = self.ca_file() {
            if !file.is_file() {
                problems.push(format!("ca_file: {} is not a file", file.display()));
            }
            if url.is_some_and(|url| url.scheme() != "rediss") {
                problems.push("ca_file: counts with rediss:// only; write that in url_file".to_owned());
            }
        }
        problems
    }
}

/// Who this process is to the other services (client credentials).
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ClientConfig {
    /// File with this process's secret, as auth's `clients` have it. The name is the service's own.
    pub(crate) secret_file: PathBuf,
}

/// Certificates for gRPC between services (mutual TLS 1.3). With them every gRPC server wants a client certificate and
/// every channel shows one, and each method is called by those services only that its contract names.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TlsConfig {
    /// PEM file with this service's certificate and those between it and the authority. It names the service as
    /// `spiffe://<trust domain>/<service>`; `gatehouse certs` makes such. Renewed files are read again by themselves.
    /// Default: none, no TLS.
    pub(crate) cert_file: PathBuf,
    /// PEM file with its private key.
    pub(crate) key_file: PathBuf,
    /// PEM file with the certificates of the authorities that vouch for the other services.
    pub(crate) ca_file: PathBuf,
    /// Only certificates of this trust domain are believed. Default: `<environment>.gatehouse.internal`.
    pub(crate) trust_domain: String,
    /// Services of your own (workers, say) that may call what the contracts open to `internal` callers, by the names in
    /// their certificates, which are also their names in `auth.clients`. What each may do there, its permissions say.
    pub(crate) internal_services: Vec<String>,
}

impl TlsConfig {
    /// Whether TLS is on.
    pub(crate) fn is_on(&self) -> bool {
        [&self.cert_file, &self.key_file, &self.ca_file].iter().any(|file| !file.as_os_str().is_empty())
    }

    /// What the certificates are read from, where TLS is on.
    pub(crate) fn files(&self, environment: Environment) -> Option<TlsFiles> {
        self.is_on().then(|| TlsFiles {
            certificate: self.cert_file.clone(),
            key: self.key_file.clone(),
            authorities: self.ca_file.clone(),
            trust_domain: if self.trust_domain.is_empty() {
                default_trust_domain(environment)
            } else {
                self.trust_domain.clone()
            },
        })
    }

    fn validate(&self, environment: Environment) -> Vec<String> {
        let mut problems = Vec::new();
        if self.is_on() {
            for (key, file) in
                [("cert_file", &self.cert_file), ("key_file", &self.key_file), ("ca_file", &self.ca_file)]
            {
                if file.as_os_str().is_empty() {
                    problems.push(format!("{key}: is not set; cert_file, key_file and ca_file go together"));
                }
            }
        }
        let domain = &self.trust_domain;
        if !domain.is_empty() && !is_trust_domain(domain) {
            problems.push(format!(
                "trust_domain: {domain:?} is none; use lower-case letters, digits, dots and hyphens, such as {}",
                default_trust_domain(environment)
            ));
        }
        // What one environment made is worthless in another.
        let named = domain.split('.').next().and_then(|first| first.parse::<Environment>().ok());
        if let Some(other) = named.filter(|other| *other != environment) {
            problems.push(format!(
                "trust_domain: {domain} is of the environment {other}, and this is {environment}"
            ));
        }
        for name in &self.internal_services {
            if !is_service(name) || CALLERS.contains(&name.as_str()) {
                problems.push(format!(
                    "internal_services: {name:?} is no name for a service of your own; use lower-case letters, digits and \
                     hyphens, and none of {}",
                    CALLERS.join(", ")
                ));
            }
        }
        // With the authority's key a process can be any service.
        if !environment.is_dev() && self.ca_file.with_extension("key").exists() {
            problems.push(format!(
                "ca_file: the authority's private key lies beside it ({}); give the service a folder without it",
                self.ca_file.with_extension("key").display()
            ));
        }
        problems
    }
}

/// The trust domain of an environment, unless one is configured.
pub(crate) fn default_trust_domain(environment: Environment) -> String {
    format!("{environment}.gatehouse.internal")
}

/// Where the services listen for gRPC, each `ip:port`; port 0 takes a free one.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ListenConfig {
    /// The auth service.
    pub(crate) auth: String,
    /// The token broker.
    pub(crate) token_broker: String,
    /// The job service.
    pub(crate) job: String,
    /// The audit service.
    pub(crate) audit: String,
}

impl Default for ListenConfig {
    fn default() -> Self {
        let address = |port: u16| format!("127.0.0.1:{port}");
        Self { auth: address(7101), token_broker: address(7102), job: address(7103), audit: address(7104) }
    }
}

/// Where the services are.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PeersConfig {
    /// The auth service.
    pub(crate) auth: ChannelConfig,
    /// The token broker.
    pub(crate) token_broker: ChannelConfig,
    /// The job service.
    pub(crate) job: ChannelConfig,
    /// The audit service.
    pub(crate) audit: ChannelConfig,
}

impl Default for PeersConfig {
    fn default() -> Self {
        let peer = |port: u16| ChannelConfig::to(format!("http://127.0.0.1:{port}"));
        Self { auth: peer(7101), token_broker: peer(7102), job: peer(7103), audit: peer(7104) }
    }
}

/// Where each service keeps its data.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct DatabasesConfig {
    /// The auth service's.
    pub(crate) auth: gatehouse_db::Config,
    /// The token broker's.
    pub(crate) token_broker: gatehouse_db::Config,
    /// The job service's.
    pub(crate) job: gatehouse_db::Config,
    /// The audit service's.
    pub(crate) audit: gatehouse_db::Config,
}

/// How late the news of revocations may be, counted from the last word of auth.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RevocationsConfig {
    /// After this, privileged methods refuse, milliseconds, 1000 to 60000.
    pub(crate) privileged_stale_after_ms: u64,
    /// After this, all do, milliseconds, at least as long and at most 600000.
    pub(crate) stale_after_ms: u64,
}

impl Default for RevocationsConfig {
    fn default() -> Self {
        Self { privileged_stale_after_ms: 2_000, stale_after_ms: 30_000 }
    }
}

impl RevocationsConfig {
    /// As the verifiers take it.
    pub(crate) const fn staleness(&self) -> Staleness {
        Staleness {
            privileged: Duration::from_millis(self.privileged_stale_after_ms),
            all: Duration::from_millis(self.stale_after_ms),
        }
    }
}

impl Config {
    /// `iss` of every token.
    pub(crate) fn issuer_in(&self, environment: Environment) -> String {
        format!("{}/{environment}", self.issuer.trim_end_matches('/'))
    }

    /// Everything that forbids a process with `services` to start, each a sentence that begins with the key.
    pub(crate) fn validate(&self, environment: Environment, services: &[Service]) -> Vec<String> {
        let mut problems = Vec::new();
        let sections: [(&str, Vec<String>); 5] = [
            ("", self.validate_own(environment)),
            ("tls", self.tls.validate(environment)),
            ("telemetry", self.telemetry.validate()),
            ("grpc", self.grpc.validate()),
            ("outbox", self.outbox.validate()),
        ];
        for (section, found) in sections {
            add(&mut problems, section, found);
        }
        for service in services {
            self.validate_service(*service, environment, &mut problems);
        }
        problems
    }

    /// As [`Config::validate`] for one service in a process of its own, which has to be told what `up` fills in.
    pub(crate) fn validate_process(&self, environment: Environment, service: Service) -> Vec<String> {
        let mut problems = self.validate(environment, &[service]);
        let secret = &self.client.secret_file;
        if secret.as_os_str().is_empty() {
            problems.push("client.secret_file: name the file that holds this process's secret".to_owned());
        } else if !secret.is_file() {
            problems.push(format!("client.secret_file: {} is not a file", secret.display()));
        }
        add(&mut problems, "redis", self.redis.validate(environment));
        if !problems.iter().any(|problem| problem.starts_with("tls."))
            && let Some(files) = self.tls.files(environment)
            && let Err(problem) = own_certificates(service, files)
        {
            problems.push(format!("tls: {problem}"));
        }
        problems
    }

    fn validate_service(&self, service: Service, environment: Environment, problems: &mut Vec<String>) {
        match service {
            Service::Gateway => {
                add(problems, "gateway", self.gateway.validate(environment));
                add(problems, "gateway", self.validate_stream_connections());
                add(problems, "rate_limits", self.rate_limits.validate(environment));
            }
            Service::Auth => {
                add(problems, "databases.auth", self.databases.auth.validate(environment));
                add(problems, "auth", self.auth.validate(environment, &self.databases.auth));
            }
            Service::TokenBroker => {
                add(problems, "databases.token_broker", self.databases.token_broker.validate(environment));
                add(problems, "token_broker", self.token_broker.validate(environment));
                // Its problems begin with the section themselves.
                add(problems, "", self.secrets.validate(environment));
            }
            Service::Job => {
                add(problems, "databases.job", self.databases.job.validate(environment));
                add(problems, "job", self.job.validate(environment));
            }
            Service::Audit => {
                add(problems, "databases.audit", self.databases.audit.validate(environment));
                add(problems, "audit", self.audit.validate(environment));
            }
            Service::Optimizer => add(problems, "optimizer", self.optimizer.validate(environment)),
        }
    }

    fn validate_stream_connections(&self) -> Vec<String> {
        let (streams, concurrent) = (self.gateway.sse.max_streams, self.grpc.max_concurrent_streams);
        let needed = StreamChannels::needed(streams, concurrent);
        if needed <= MAX_STREAM_CONNECTIONS {
            return Vec::new();
        }
        vec![format!(
            "sse.max_streams: {streams} streams take {needed} connections to the job service, and at most \
             {MAX_STREAM_CONNECTIONS} are made; allow fewer streams or raise grpc.max_concurrent_streams ({concurrent})"
        )]
    }

    fn validate_own(&self, environment: Environment) -> Vec<String> {
        let mut problems = Vec::new();
        let issuer = Url::parse(&self.issuer).ok().filter(|url| url.path() == "/" && url.query().is_none());
        match issuer.as_ref().map(Url::scheme) {
            Some("https") => {}
            Some("http") if environment.is_dev() => {}
            _ => problems.push(
                "issuer: must be an https address without a path, such as https://id.example.com".to_owned(),
            ),
        }
        if self.drain_delay_ms > 60_000 {
            problems.push("drain_delay_ms: must be at most 60000".to_owned());
        }
        if !(1..=600).contains(&self.drain_timeout_s) {
            problems.push("drain_timeout_s: must be from 1 to 600".to_owned());
        }
        let (privileged, all) = (self.revocations.privileged_stale_after_ms, self.revocations.stale_after_ms);
        if !(1_000..=60_000).contains(&privileged) {
            problems.push("revocations.privileged_stale_after_ms: must be from 1000 to 60000".to_owned());
        }
        if !(privileged..=600_000).contains(&all) {
            problems.push(
                "revocations.stale_after_ms: must be from privileged_stale_after_ms to 600000".to_owned(),
            );
        }
        let addresses = [
            ("probes.address", &self.probes.address),
            ("listen.auth", &self.listen.auth),
            ("listen.token_broker", &self.listen.token_broker),
            ("listen.job", &self.listen.job),
            ("listen.audit", &self.listen.audit),
        ];
        for (key, address) in addresses {
            match address.parse::<SocketAddr>() {
                Ok(address) if environment.is_dev() && !address.ip().is_loopback() => {
                    problems.push(format!("{key}: {address} is not loopback; dev listens on loopback only"));
                }
                Ok(_) => {}
                Err(_) => problems.push(format!("{key}: {address:?} is no address of the form ip:port")),
            }
        }
        let peers = [
            ("peers.auth", &self.peers.auth),
            ("peers.token_broker", &self.peers.token_broker),
            ("peers.job", &self.peers.job),
            ("peers.audit", &self.peers.audit),
        ];
        for (key, peer) in peers {
            problems.extend(peer.validate().into_iter().map(|problem| format!("{key}.{problem}")));
        }
        if self.tls.is_on() {
            return problems;
        }
        for (key, peer) in peers {
            if let Some(endpoint) = peer.endpoints.iter().find(|endpoint| endpoint.starts_with("https:")) {
                problems.push(format!(
                    "{key}.endpoints: {endpoint} wants TLS; set tls.cert_file, tls.key_file and tls.ca_file"
                ));
            }
        }
        if !environment.is_dev() && !self.network_is_encrypted {
            problems.extend(self.validate_encryption());
        }
        problems
    }

    /// The addresses between processes that would carry tokens in the clear.
    fn validate_encryption(&self) -> Vec<String> {
        let why = "gRPC would cross the network unencrypted; set tls.cert_file, tls.key_file and tls.ca_file, keep it \
                   on loopback, or set network_is_encrypted = true where a mesh or tunnel encrypts it";
        let listens = [
            ("listen.auth", &self.listen.auth),
            ("listen.token_broker", &self.listen.token_broker),
            ("listen.job", &self.listen.job),
            ("listen.audit", &self.listen.audit),
        ];
        let listens = listens.into_iter().filter(|(_, address)| {
            address.parse::<SocketAddr>().is_ok_and(|address| !address.ip().is_loopback())
        });
        let peers = [
            ("peers.auth.endpoints", &self.peers.auth),
            ("peers.token_broker.endpoints", &self.peers.token_broker),
            ("peers.job.endpoints", &self.peers.job),
            ("peers.audit.endpoints", &self.peers.audit),
        ];
        let peers = peers.into_iter().flat_map(|(key, peer)| peer.endpoints.iter().map(move |at| (key, at)));
        let peers = peers.filter(|(_, endpoint)| !is_loopback(endpoint));
        listens.chain(peers).map(|(key, address)| format!("{key}: {address}: {why}")).collect()
    }
}

/// `host` as it stands in a URL of any scheme.
fn is_loopback_host(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_loopback(endpoint: &str) -> bool {
    match Url::parse(endpoint).ok().as_ref().and_then(Url::host) {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

fn add(problems: &mut Vec<String>, section: &str, found: Vec<String>) {
    let prefix = if section.is_empty() { String::new() } else { format!("{section}.") };
    problems.extend(found.into_iter().map(|problem| format!("{prefix}{problem}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(config: &Config, environment: Environment) -> Vec<String> {
        config.validate_own(environment)
    }

    #[test]
    fn tokens_cross_no_network_in_the_clear_outside_dev() {
        assert_eq!(problems(&Config::default(), Environment::Prod), Vec::<String>::new());
        let mut config = Config::default();
        config.listen.job = "0.0.0.0:7103".to_owned();
        config.peers.auth = ChannelConfig::to("http://10.0.0.5:7101");
        let found = problems(&config, Environment::Prod);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("listen.job: ") && found[1].starts_with("peers.auth.endpoints: "),
            "{found:?}"
        );
        assert!(found[0].contains("tls.cert_file") && found[0].contains("network_is_encrypted"), "{found:?}");
        config.tls.cert_file = "tls.crt".into();
        assert_eq!(problems(&config, Environment::Prod), Vec::<String>::new());
        config.tls = TlsConfig::default();
        config.network_is_encrypted = true;
        assert_eq!(problems(&config, Environment::Prod), Vec::<String>::new());
        // In dev nothing but loopback is listened on, whatever is said of the network.
        assert!(problems(&config, Environment::Dev)[0].contains("dev listens on loopback only"));
    }

    #[test]
    fn redis_on_another_host_is_encrypted_outside_dev() {
        let place = tempfile::tempdir().unwrap();
        let problems = |url: &str, ca_file: &str, environment| {
            let url_file = place.path().join("redis.url");
            std::fs::write(&url_file, url).unwrap();
            RedisConfig { url_file, ca_file: ca_file.into() }.validate(environment)
        };
        for good in [
            "rediss://:hunter2@redis.internal:6379",
            "redis://127.0.0.1:6379",
            "redis://localhost",
            "redis://[::1]:6379/1",
            "redis+unix:///run/redis.sock",
        ] {
            assert_eq!(problems(good, "", Environment::Prod), [""; 0], "{good}");
        }
        for wrong in [
            "redis://:hunter2@redis.internal:6379",
            "redis://127.0.0.1.example",
            "rediss://:hunter2@redis.internal/#insecure",
            "http://:hunter2@redis.internal",
            "hunter2",
            "",
        ] {
            let found = problems(wrong, "", Environment::Staging);
            assert!(found.len() == 1 && !found[0].contains("hunter2"), "{wrong}: {found:?}");
        }
        assert_eq!(problems("redis://redis.internal", "", Environment::Dev), [""; 0]);
        assert!(problems("redis://127.0.0.1", "/dev/null", Environment::Prod).len() == 2);
        assert!(problems("rediss://h", "/nowhere.pem", Environment::Prod)[0].contains("is not a file"));
    }
}
