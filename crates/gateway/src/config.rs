//! What can be set, and what is wrong with it.

use std::net::SocketAddr;
use std::path::Path;

use gatehouse_core::{Environment, file_problem};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

/// The edge gateway.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address to serve HTTP on, `ip:port`; port 0 takes a free one. Loopback only in dev.
    pub address: String,
    /// Address to serve HTTPS on, `ip:port`; empty for none. Needs `tls`, but in dev, where a certificate is made.
    pub tls_address: String,
    /// Certificate chain for HTTPS, path of a PEM file. Under it, browsers are told to come by HTTPS alone from then on
    /// (HSTS), unless they came by a name of their own machine, such as `localhost`.
    pub tls_certificate_file: String,
    /// Its private key, path of a PEM file.
    pub tls_key_file: String,
    /// Threads that serve requests; 0 takes one for each core, 256 at most.
    pub workers: usize,
    /// The address that clients know this gateway by, without a path: `https://api.example.com`. Needed outside dev;
    /// there, empty takes that of the request.
    pub public_url: String,
    /// Whether every route that is not public needs a credential. Must be true in this version.
    #[schemars(extend("x-env" = "REQUIRE_AUTH"))]
    pub require_auth: bool,
    /// Longest request body, bytes, 1024 to 16777216.
    #[schemars(extend("x-env" = "MAX_REQUEST_BYTES"))]
    pub max_request_bytes: usize,
    /// Longest time for a body to arrive, milliseconds, 100 to 600000.
    pub body_timeout_ms: u64,
    /// Longest URI, bytes, 256 to 65536.
    pub max_uri_bytes: usize,
    /// Longest value of one query parameter as it is sent, bytes, 16 to 65536. An upstream's authorization code comes as
    /// one, and may have 4096 bytes before it is percent-encoded.
    pub max_query_value_bytes: usize,
    /// Longest head of a request over HTTP/2, counted as RFC 9113, section 6.5.2 says (names, values and 32 each), bytes,
    /// from twice `max_uri_bytes` to 1048576; longer ones are answered with 431. Over HTTP/1.1 it is 131072 bytes and 96
    /// headers.
    pub max_header_list_bytes: u32,
    /// Most connections of clients at a time, 16 to 1000000; one more is closed at once. Each is an open file: where the
    /// process may not open so many and 512 for everything else (`ulimit -n`; the hard limit counts), they are fewer, and
    /// a warning at start says how many.
    pub max_connections: usize,
    /// Most of them from one address (of IPv6, one /64), 1 to 1000000; one more is closed at once. The `trusted_proxies`
    /// may have any number. Behind a proxy that is not named there all clients together have one address.
    pub max_connections_per_address: usize,
    /// Longest time that a connection may go without a request at work, seconds, 1 to 3600: for the whole head of the next
    /// one to come, over HTTP/2 for any. Over HTTP/2 its client is told to go first, and one that does not answer a ping for
    /// as long is cut off with its requests. A balancer in front should close its idle connections earlier.
    pub keep_alive_s: u64,
    /// Longest time for the head of a connection's first request to arrive, seconds, 1 to 600.
    pub first_request_timeout_s: u64,
    /// Most requests at a time over one HTTP/2 connection, at work or with an answer that has not left, 1 to 100000.
    /// Clients are told; more are refused. A proxy in front may need more than a client.
    pub max_requests_per_connection: u32,
    /// Networks in CIDR form, those of the proxies in front, whose word on a request's client is believed: the header
    /// `trusted_proxy_header`. Behind one that is not named here, or that passes on TCP only, all clients have its address
    /// and share the limits of one.
    #[schemars(extend("x-env" = "TRUSTED_PROXIES"))]
    pub trusted_proxies: Vec<String>,
    /// The header that those proxies write: `x-forwarded-for` (with `X-Forwarded-Proto`) or `forwarded` (RFC 7239). The
    /// other one is ignored: a proxy that does not write it passes on what a client made up.
    pub trusted_proxy_header: ProxyHeader,
    /// Origins whose pages may call this API, such as `https://app.example.com`. Empty denies all; `*` allows all
    /// and is warned of in prod. In dev, empty allows `http://localhost:3000`.
    #[schemars(extend("x-env" = "CORS_ALLOWED_ORIGINS"))]
    pub cors_allowed_origins: Vec<String>,
    /// Whether state-changing requests of browsers must come from this origin or an allowed one.
    pub csrf: bool,
    /// Longest time that an exchanged token is kept in memory, seconds, 1 to 60.
    pub exchange_cache_seconds: u64,
    /// Most exchanged tokens kept in memory, 16 to 1000000.
    pub exchange_cache_entries: usize,
    /// Longest time that running requests may take to finish after SIGTERM, seconds, 1 to 600.
    pub drain_timeout_s: u64,
    /// Server-sent events.
    pub sse: SseConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:8080".to_owned(),
            tls_address: String::new(),
            tls_certificate_file: String::new(),
            tls_key_file: String::new(),
            workers: 0,
            public_url: String::new(),
            require_auth: true,
            max_request_bytes: 64 * 1024,
            body_timeout_ms: 30_000,
            max_uri_bytes: 8192,
            max_query_value_bytes: 6144,
            max_header_list_bytes: 32 * 1024,
            max_connections: 10_000,
            max_connections_per_address: 256,
            keep_alive_s: 75,
            first_request_timeout_s: 10,
            max_requests_per_connection: 256,
            trusted_proxies: Vec::new(),
            trusted_proxy_header: ProxyHeader::default(),
            cors_allowed_origins: Vec::new(),
            csrf: true,
            exchange_cache_seconds: 60,
            exchange_cache_entries: 10_000,
            drain_timeout_s: 30,
            sse: SseConfig::default(),
        }
    }
}

/// The header in which proxies say whom they speak for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyHeader {
    /// `X-Forwarded-For`, and `X-Forwarded-Proto` beside it.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Server-sent events.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SseConfig {
    /// Most events that wait for one reader, 1 to 65536.
    #[schemars(extend("x-env" = "SSE_QUEUE_MAXSIZE"))]
    pub queue_maxsize: usize,
    /// Longest time that an event may wait for a reader before the reader is cut off, seconds, 1 to 3600.
    #[schemars(extend("x-env" = "SSE_BACKPRESSURE_FAIL_TIMEOUT_S"))]
    pub backpressure_fail_timeout_s: u64,
    /// Longest silence before a comment is sent, seconds, 1 to 300.
    pub keep_alive_s: u64,
    /// What readers are told to wait before they come back, milliseconds, 100 to 60000.
    pub retry_ms: u64,
    /// Longest time to look for the job service again after a stream broke, seconds, 0 to 600. Then the answer
    /// ends, and the reader resumes by itself.
    pub reconnect_for_s: u64,
    /// Most streams at a time in this process, 1 to 1000000. They go over connections of their own to the job service,
    /// one for each half of `grpc.max_concurrent_streams`.
    pub max_streams: usize,
    /// Most streams at a time of one person or API key in this process, 1 to 100000.
    pub max_streams_per_caller: usize,
    /// Most streams at a time of one tenant in this process, 1 to 1000000.
    pub max_streams_per_tenant: usize,
    /// Most streams at a time of one job in this process, 1 to 100000.
    pub max_streams_per_job: usize,
}

impl Default for SseConfig {
    fn default() -> Self {
        Self {
            queue_maxsize: 256,
            backpressure_fail_timeout_s: 30,
            keep_alive_s: 15,
            retry_ms: 2000,
            reconnect_for_s: 30,
            max_streams: 4096,
            max_streams_per_caller: 32,
            max_streams_per_tenant: 512,
            max_streams_per_job: 128,
        }
    }
}

impl Config {
    /// What is wrong with it in `environment`, each as a sentence that begins with the field; empty if nothing is.
    #[must_use]
    pub fn validate(&self, environment: Environment) -> Vec<String> {
        let mut problems = Vec::new();
        self.validate_addresses(environment, &mut problems);
        let mut bounds = |field: &str, value: u64, low: u64, high: u64| {
            if !(low..=high).contains(&value) {
                problems.push(format!("{field}: must be from {low} to {high}"));
            }
        };
        bounds("workers", self.workers as u64, 0, 256);
        bounds("max_request_bytes", self.max_request_bytes as u64, 1024, 16 << 20);
        bounds("body_timeout_ms", self.body_timeout_ms, 100, 600_000);
        bounds("max_uri_bytes", self.max_uri_bytes as u64, 256, 65_536);
        bounds("max_query_value_bytes", self.max_query_value_bytes as u64, 16, 65_536);
        let least = 2 * self.max_uri_bytes as u64;
        bounds("max_header_list_bytes", self.max_header_list_bytes.into(), least, 1 << 20);
        bounds("max_connections", self.max_connections as u64, 16, 1_000_000);
        bounds("max_connections_per_address", self.max_connections_per_address as u64, 1, 1_000_000);
        bounds("keep_alive_s", self.keep_alive_s, 1, 3600);
        bounds("first_request_timeout_s", self.first_request_timeout_s, 1, 600);
        bounds("max_requests_per_connection", self.max_requests_per_connection.into(), 1, 100_000);
        bounds("exchange_cache_seconds", self.exchange_cache_seconds, 1, 60);
        bounds("exchange_cache_entries", self.exchange_cache_entries as u64, 16, 1_000_000);
        bounds("drain_timeout_s", self.drain_timeout_s, 1, 600);
        bounds("sse.queue_maxsize", self.sse.queue_maxsize as u64, 1, 65_536);
        bounds("sse.backpressure_fail_timeout_s", self.sse.backpressure_fail_timeout_s, 1, 3600);
        bounds("sse.keep_alive_s", self.sse.keep_alive_s, 1, 300);
        bounds("sse.retry_ms", self.sse.retry_ms, 100, 60_000);
        bounds("sse.reconnect_for_s", self.sse.reconnect_for_s, 0, 600);
        bounds("sse.max_streams", self.sse.max_streams as u64, 1, 1_000_000);
        bounds("sse.max_streams_per_caller", self.sse.max_streams_per_caller as u64, 1, 100_000);
        bounds("sse.max_streams_per_tenant", self.sse.max_streams_per_tenant as u64, 1, 1_000_000);
        bounds("sse.max_streams_per_job", self.sse.max_streams_per_job as u64, 1, 100_000);
        if !self.require_auth {
            problems.push(
                "require_auth: must be true: access without a credential is not part of this version".into(),
            );
        }
        for (place, net) in self.trusted_proxies.iter().enumerate() {
            if net.parse::<IpNet>().is_err() {
                problems.push(format!("trusted_proxies[{place}]: is no network such as 10.0.0.0/8"));
            }
        }
        for (place, origin) in self.cors_allowed_origins.iter().enumerate() {
            if origin != "*" && !is_origin(origin) {
                problems.push(format!(
                    "cors_allowed_origins[{place}]: is no origin such as https://app.example.com (no path, no slash at the end)"
                ));
            }
        }
        if self.public_url.is_empty() {
            if !environment.is_dev() {
                problems.push(format!(
                    "public_url: needed in {environment}, such as https://api.example.com: what a request says of our \
                     address, its sender chose"
                ));
            }
        } else if !is_origin(&self.public_url) {
            problems
                .push("public_url: must be an origin such as https://api.example.com, without a path".into());
        }
        problems
    }

    /// What is allowed but should be thought over; to be logged at start.
    #[must_use]
    pub fn warnings(&self, environment: Environment) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.cors_allowed_origins.iter().any(|origin| origin == "*") && !environment.is_dev() {
            warnings.push(format!(
                "cors_allowed_origins contains * in {environment}: ANY web page may call this API. List the origins instead."
            ));
        }
        if !self.csrf && !environment.is_dev() {
            warnings.push(format!(
                "csrf is off in {environment}: cross-site requests of browsers are not refused."
            ));
        }
        warnings
    }

    fn validate_addresses(&self, environment: Environment, problems: &mut Vec<String>) {
        for (field, text) in [("address", &self.address), ("tls_address", &self.tls_address)] {
            if text.is_empty() && field == "tls_address" {
                continue;
            }
            match text.parse::<SocketAddr>() {
                Err(_) => problems.push(format!("{field}: is no address such as 127.0.0.1:8080")),
                Ok(address) if environment.is_dev() && !address.ip().is_loopback() => problems.push(format!(
                    "{field}: dev serves loopback only; use 127.0.0.1:{} or set GATEHOUSE_ENV to staging or prod",
                    address.port()
                )),
                Ok(_) => {}
            }
        }
        if self.tls_certificate_file.is_empty() != self.tls_key_file.is_empty() {
            problems.push("tls_key_file: set both tls_certificate_file and tls_key_file, or neither".into());
        }
        for (field, file) in
            [("tls_certificate_file", &self.tls_certificate_file), ("tls_key_file", &self.tls_key_file)]
        {
            if !file.is_empty()
                && let Some(problem) = file_problem(Path::new(file))
            {
                problems.push(format!("{field}: {problem}"));
            }
        }
        if !self.tls_address.is_empty() && self.tls_certificate_file.is_empty() && !environment.is_dev() {
            problems.push("tls_certificate_file: needed for tls_address outside dev".into());
        }
    }
}

/// Whether `text` is exactly the serialisation of an http(s) origin (RFC 6454, section 6.2).
fn is_origin(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https") && url.origin().ascii_serialization() == text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold_in_every_environment_with_an_address() {
        assert_eq!(Config::default().validate(Environment::Dev), Vec::<String>::new());
        for environment in [Environment::Dev, Environment::Staging, Environment::Prod] {
            assert_eq!(public().validate(environment), Vec::<String>::new());
        }
        for environment in [Environment::Staging, Environment::Prod] {
            let problems = Config::default().validate(environment);
            assert!(problems.len() == 1 && problems[0].starts_with("public_url: "), "{problems:?}");
        }
    }

    fn public() -> Config {
        Config { public_url: "https://api.example.com".into(), ..Config::default() }
    }

    #[test]
    fn the_header_of_the_proxies_is_named_as_it_is_written() {
        let read = |text: &str| serde_json::from_str::<ProxyHeader>(text).ok();
        assert_eq!(read("\"x-forwarded-for\""), Some(ProxyHeader::XForwardedFor));
        assert_eq!(read("\"forwarded\""), Some(ProxyHeader::Forwarded));
        assert_eq!(read("\"both\""), None);
    }

    #[test]
    fn each_wrong_field_is_named() {
        let wrong = |change: fn(&mut Config), field: &str| {
            let mut config = Config::default();
            change(&mut config);
            let problems = config.validate(Environment::Dev);
            assert!(problems.iter().any(|problem| problem.starts_with(field)), "{field}: {problems:?}");
        };
        wrong(|config| config.address = "0.0.0.0:80".into(), "address:");
        wrong(|config| config.address = "nonsense".into(), "address:");
        wrong(|config| config.max_request_bytes = 1, "max_request_bytes:");
        wrong(|config| config.trusted_proxies = vec!["10.0.0.0/99".into()], "trusted_proxies[0]:");
        wrong(
            |config| config.cors_allowed_origins = vec!["https://a.example/".into()],
            "cors_allowed_origins[0]:",
        );
        wrong(|config| config.require_auth = false, "require_auth:");
        wrong(|config| config.max_connections = 15, "max_connections:");
        wrong(|config| config.max_connections_per_address = 0, "max_connections_per_address:");
        wrong(|config| config.max_requests_per_connection = 0, "max_requests_per_connection:");
        wrong(|config| config.keep_alive_s = 0, "keep_alive_s:");
        wrong(|config| config.first_request_timeout_s = 601, "first_request_timeout_s:");
        wrong(|config| config.sse.queue_maxsize = 0, "sse.queue_maxsize:");
        wrong(|config| config.sse.max_streams_per_caller = 0, "sse.max_streams_per_caller:");
        wrong(|config| config.sse.max_streams_per_tenant = 1_000_001, "sse.max_streams_per_tenant:");
        wrong(|config| config.sse.max_streams_per_job = 0, "sse.max_streams_per_job:");
        wrong(|config| config.public_url = "https://a.example/path".into(), "public_url:");
        wrong(|config| config.tls_key_file = "key.pem".into(), "tls_key_file:");
    }

    #[test]
    fn a_star_in_production_is_warned_of() {
        let config = Config { cors_allowed_origins: vec!["*".into()], ..public() };
        assert!(config.validate(Environment::Prod).is_empty());
        assert_eq!(config.warnings(Environment::Prod).len(), 1);
        assert!(config.warnings(Environment::Dev).is_empty());
    }
}
