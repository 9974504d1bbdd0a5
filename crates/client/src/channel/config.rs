//! How a service is reached, as configured.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::Uri;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tls::ClientTls;

/// How to reach one service.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChannelConfig {
    /// Addresses of the service, `http://host:port` or `https://host:port`. A name may stand for many replicas: calls
    /// spread over every address that it resolves to. Where this process has certificates (section `tls`), connections
    /// are TLS whichever of the two is written; where it has none, `https` is refused.
    pub endpoints: Vec<String>,
    /// How long to wait for a connection, and for a replica when none is there, milliseconds, 1 to 60000.
    pub connect_timeout_ms: u64,
    /// How long a call may take before its first answer, milliseconds, 1 to 600000. Streams may go on for longer.
    pub request_timeout_ms: u64,
    /// How often names are resolved again, milliseconds, 500 to 300000. A connection that fails does that sooner.
    pub resolve_interval_ms: u64,
    /// Silence on a connection after which the replica is asked for a sign of life, milliseconds, 100 to 60000.
    pub keep_alive_interval_ms: u64,
    /// How long it may take to give one before the connection counts as lost, milliseconds, 100 to 60000.
    pub keep_alive_timeout_ms: u64,
    /// Longest wait before a lost replica is tried again, milliseconds, 10 to 60000.
    pub reconnect_max_ms: u64,
    /// How to encrypt, and who must answer; none: in the clear. Set by the process, not by configuration.
    #[serde(skip)]
    pub tls: Option<ClientTls>,
}

impl Default for ChannelConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            connect_timeout_ms: 2_000,
            request_timeout_ms: 10_000,
            resolve_interval_ms: 5_000,
            keep_alive_interval_ms: 2_000,
            keep_alive_timeout_ms: 2_000,
            reconnect_max_ms: 2_000,
            tls: None,
        }
    }
}

impl ChannelConfig {
    /// One address with the default times.
    #[must_use]
    pub fn to(endpoint: impl Into<String>) -> Self {
        Self { endpoints: vec![endpoint.into()], ..Self::default() }
    }

    /// The same over TLS, to the service that `tls` names.
    #[must_use]
    pub fn with_tls(self, tls: ClientTls) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// What is wrong with it, each as a sentence that begins with the field; empty if nothing is.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.endpoints.is_empty() {
            problems.push("endpoints: name at least one address, such as http://127.0.0.1:7101".to_owned());
        }
        for (place, endpoint) in self.endpoints.iter().enumerate() {
            if Endpoint::parse(endpoint).is_none() {
                problems.push(format!("endpoints[{place}]: is no address of the form http://host:port"));
            }
        }
        let mut within = |field: &str, value: u64, range: RangeInclusive<u64>| {
            if !range.contains(&value) {
                problems.push(format!("{field}: must be from {} to {}", range.start(), range.end()));
            }
        };
        within("connect_timeout_ms", self.connect_timeout_ms, 1..=60_000);
        within("request_timeout_ms", self.request_timeout_ms, 1..=600_000);
        within("resolve_interval_ms", self.resolve_interval_ms, 500..=300_000);
        within("keep_alive_interval_ms", self.keep_alive_interval_ms, 100..=60_000);
        within("keep_alive_timeout_ms", self.keep_alive_timeout_ms, 100..=60_000);
        within("reconnect_max_ms", self.reconnect_max_ms, 10..=60_000);
        problems
    }

    pub(super) const fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(super) const fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    pub(super) const fn resolve_interval(&self) -> Duration {
        Duration::from_millis(self.resolve_interval_ms)
    }

    pub(super) const fn keep_alive_interval(&self) -> Duration {
        Duration::from_millis(self.keep_alive_interval_ms)
    }

    pub(super) const fn keep_alive_timeout(&self) -> Duration {
        Duration::from_millis(self.keep_alive_timeout_ms)
    }

    pub(super) const fn reconnect_max(&self) -> Duration {
        Duration::from_millis(self.reconnect_max_ms)
    }
}

/// One of the addresses, taken apart.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub(super) scheme: http::uri::Scheme,
    pub(super) authority: http::uri::Authority,
    pub(super) host: String,
    pub(super) port: u16,
}

impl Endpoint {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let parts = text.parse::<Uri>().ok()?.into_parts();
        let scheme = parts.scheme.filter(|scheme| matches!(scheme.as_str(), "http" | "https"))?;
        let authority = parts.authority.filter(|authority| !authority.as_str().contains('@'))?;
        let plain = parts.path_and_query.is_none_or(|path| path.as_str() == "/");
        let port = authority.port_u16().unwrap_or(if scheme.as_str() == "https" { 443 } else { 80 });
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        (plain && !host.is_empty()).then_some(Self { scheme, authority, host, port })
    }

    pub(super) fn is_https(&self) -> bool {
        self.scheme.as_str() == "https"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_name_the_field() {
        for good in ["http://127.0.0.1:1", "https://job.internal:7103/", "http://[::1]:7101"] {
            assert_eq!(ChannelConfig::to(good).validate(), [""; 0], "{good}");
        }
        for wrong in ["", "127.0.0.1:1", "ftp://x", "http://user@host:1", "http://host:1/path"] {
            let problems = ChannelConfig::to(wrong).validate();
            assert!(
                problems.iter().any(|problem| problem.starts_with("endpoints[0]:")),
                "{wrong:?}: {problems:?}"
            );
        }
        assert_eq!(ChannelConfig::default().validate().len(), 1);
        let wrong = ChannelConfig { keep_alive_timeout_ms: 0, ..ChannelConfig::to("http://a:1") };
        assert_eq!(wrong.validate(), ["keep_alive_timeout_ms: must be from 100 to 60000"]);
    }

    #[test]
    fn a_host_of_numbers_loses_its_brackets() {
        let endpoint = Endpoint::parse("http://[::1]:7101").expect("an address");
        assert_eq!((endpoint.host.as_str(), endpoint.port), ("::1", 7101));
    }
}
