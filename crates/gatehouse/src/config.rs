//! The whole configuration: one section for each service and for what they share.

use std::net::{IpAddr, SocketAddr};

use gatehouse_core::{Environment, file_problem};
use gatehouse_gateway::StreamChannels;
use gatehouse_service::grpc::GrpcConfig;
use gatehouse_service::telemetry::TelemetryConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::services::{Service, own_certificates};

mod sections;
mod shown;
pub(crate) mod variables;

pub(crate) use sections::{
    ClientConfig, DatabasesConfig, ListenConfig, PeersConfig, ProbesConfig, RedisConfig, RevocationsConfig,
    TlsConfig, default_trust_domain,
};
pub(crate) use shown::{without_credentials, without_nulls};

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
        } else if let Some(problem) = file_problem(secret) {
            problems.push(format!("client.secret_file: {problem}"));
        }
        add(&mut problems, "redis", self.redis.validate(environment));
        add(&mut problems, "tls", self.tls.missing_files());
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
            "sse.max_streams: so many take more than the {MAX_STREAM_CONNECTIONS} connections to the job service that are made at \
             most; allow fewer streams or raise grpc.max_concurrent_streams"
        )]
    }

    fn validate_own(&self, environment: Environment) -> Vec<String> {
        let mut problems = Vec::new();
        let issuer = Url::parse(&self.issuer).ok().filter(|url| {
            url.path() == "/"
                && url.query().is_none()
                && url.username().is_empty()
                && url.password().is_none()
        });
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
                    problems
                        .push(format!("{key}: the address is not loopback; dev listens on loopback only"));
                }
                Ok(_) => {}
                Err(_) => problems.push(format!("{key}: must be an address of the form ip:port")),
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
            if let Some(place) = peer.endpoints.iter().position(|endpoint| endpoint.starts_with("https:")) {
                problems.push(format!(
                    "{key}.endpoints[{place}]: https wants TLS; set tls.cert_file, tls.key_file and tls.ca_file"
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
        let listens = listens.map(|(key, _)| key.to_owned());
        let peers = [
            ("peers.auth", &self.peers.auth),
            ("peers.token_broker", &self.peers.token_broker),
            ("peers.job", &self.peers.job),
            ("peers.audit", &self.peers.audit),
        ];
        let peers = peers.into_iter().flat_map(|(key, peer)| {
            let outside = peer.endpoints.iter().enumerate().filter(|(_, endpoint)| !is_loopback(endpoint));
            outside.map(move |(place, _)| format!("{key}.endpoints[{place}]"))
        });
        listens.chain(peers).map(|key| format!("{key}: {why}")).collect()
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
#[path = "config_file_tests.rs"]
mod file_tests;

#[cfg(test)]
mod tests {
    use gatehouse_client::ChannelConfig;

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
            found[0].starts_with("listen.job: ") && found[1].starts_with("peers.auth.endpoints[0]: "),
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
        assert!(
            problems("rediss://h", "/nowhere.pem", Environment::Prod)[0]
                .contains("is not the path of a file")
        );
    }
}
