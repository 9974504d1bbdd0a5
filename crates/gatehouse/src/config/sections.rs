//! What the processes share: addresses, peers, stores, certificates.

use std::path::PathBuf;
use std::time::Duration;

use gatehouse_client::ChannelConfig;
use gatehouse_client::tls::{TlsFiles, is_service, is_trust_domain};
use gatehouse_core::{Environment, file_problem};
use gatehouse_db::has_sign_behind_host;
use gatehouse_proto::access::CALLERS;
use gatehouse_service::revocations::Staleness;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use super::is_loopback_host;
use crate::data_folder::read_secret;

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

    /// What forbids a process to start with it. It reads the address, which is a secret, and repeats none of it.
    pub(super) fn validate(&self, environment: Environment) -> Vec<String> {
        if self.url_file.as_os_str().is_empty() {
            return match self.ca_file() {
                Some(_) => vec!["ca_file: there is no address; set url_file".to_owned()],
                None => Vec::new(),
            };
        }
        if let Some(problem) = file_problem(&self.url_file) {
            return vec![format!("url_file: {problem}")];
        }
        let mut problems = Vec::new();
        let url = read_secret(&self.url_file).ok().and_then(|text| Url::parse(text.expose()).ok());
        match url.as_ref().map(Url::scheme) {
            // What stands for the host then is a part of the password.
            Some("redis" | "rediss") if url.as_ref().is_some_and(has_sign_behind_host) => {
                problems.push(
                    "url_file: the address has an @ behind the host; in a user name or password write / as %2F, ? as %3F, # as \
                     %23 and @ as %40"
                        .to_owned(),
                );
            }
            Some("rediss") if url.as_ref().is_some_and(|url| url.fragment().is_some()) => {
                problems.push("url_file: the address has a fragment (#); remove it".to_owned());
            }
            Some("rediss" | "redis+unix" | "unix") => {}
            Some("redis") => {
                let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
                if !environment.is_dev() && !is_loopback_host(host) {
                    problems.push(format!(
                        "url_file: in {environment} the connection to Redis must be encrypted; write rediss:// and name its \
                         authority in redis.ca_file"
                    ));
                }
            }
            _ => problems.push(format!(
                "url_file: {} holds no address of the form rediss://host:6379",
                self.url_file.display()
            )),
        }
        if let Some(file) = self.ca_file() {
            problems.extend(file_problem(&file).map(|problem| format!("ca_file: {problem}")));
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

    fn named_files(&self) -> [(&'static str, &PathBuf); 3] {
        [("cert_file", &self.cert_file), ("key_file", &self.key_file), ("ca_file", &self.ca_file)]
    }

    /// Which of the files are not there; they may be made after the rest of the configuration.
    pub(super) fn missing_files(&self) -> Vec<String> {
        let files = self.named_files().into_iter();
        files
            .filter(|(_, file)| !file.as_os_str().is_empty())
            .filter_map(|(key, file)| file_problem(file).map(|problem| format!("{key}: {problem}")))
            .collect()
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

    pub(super) fn validate(&self, environment: Environment) -> Vec<String> {
        let mut problems = Vec::new();
        if self.is_on() {
            for (key, file) in self.named_files() {
                if file.as_os_str().is_empty() {
                    problems.push(format!("{key}: is not set; cert_file, key_file and ca_file go together"));
                }
            }
        }
        let domain = &self.trust_domain;
        if !domain.is_empty() && !is_trust_domain(domain) {
            problems.push(format!(
                "trust_domain: must be of lower-case letters, digits, dots and hyphens, such as {}",
                default_trust_domain(environment)
            ));
        }
        // What one environment made is worthless in another.
        let named = domain.split('.').next().and_then(|first| first.parse::<Environment>().ok());
        if let Some(other) = named.filter(|other| *other != environment) {
            problems
                .push(format!("trust_domain: it is of the environment {other}, and this is {environment}"));
        }
        for (place, name) in self.internal_services.iter().enumerate() {
            if !is_service(name) || CALLERS.contains(&name.as_str()) {
                problems.push(format!(
                    "internal_services[{place}]: is no name for a service of your own; use lower-case letters, digits and \
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
