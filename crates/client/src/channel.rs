//! Connections to a service.

use std::time::Duration;

use gatehouse_core::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tonic::transport::{Channel, Endpoint};

use crate::tls::ClientTls;

/// How to reach one service.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChannelConfig {
    /// Addresses of the replicas, `http://host:port` or `https://host:port`. Calls spread over all of them. Where this
    /// process has certificates (section `tls`), connections are TLS whichever of the two is written; where it has
    /// none, `https` is refused.
    pub endpoints: Vec<String>,
    /// How long to wait for a connection, milliseconds, 1 to 60000.
    pub connect_timeout_ms: u64,
    /// How long a call may take before its first answer, milliseconds, 1 to 600000. Streams may go on for longer.
    pub request_timeout_ms: u64,
    /// How to encrypt, and who must answer; none: in the clear. Set by the process, not by configuration.
    #[serde(skip)]
    pub tls: Option<ClientTls>,
}

impl Default for ChannelConfig {
    fn default() -> Self {
        Self { endpoints: Vec::new(), connect_timeout_ms: 2_000, request_timeout_ms: 10_000, tls: None }
    }
}

impl ChannelConfig {
    /// One replica with the default times.
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
        for endpoint in &self.endpoints {
            if Endpoint::from_shared(endpoint.clone()).is_err() || !endpoint.starts_with("http") {
                problems.push(format!("endpoints: {endpoint:?} is no address of the form http://host:port"));
            }
        }
        if !(1..=60_000).contains(&self.connect_timeout_ms) {
            problems.push("connect_timeout_ms: must be from 1 to 60000".to_owned());
        }
        if !(1..=600_000).contains(&self.request_timeout_ms) {
            problems.push("request_timeout_ms: must be from 1 to 600000".to_owned());
        }
        problems
    }
}

/// A channel that connects at its first call and again whenever the connection is lost.
///
/// # Errors
/// `INVALID_ENDPOINT` if the configuration names none or one that is no address. Must be called inside a tokio
/// runtime.
pub fn channel(config: &ChannelConfig) -> Result<Channel> {
    connect(config, |endpoint| endpoint)
}

/// What one stream may have under way unread, bytes.
const STREAM_WINDOW: u32 = 64 * 1024;

/// As [`channel`], for up to `streams` answers that go on for long. Their flow-control windows add up to that of the
/// connection (RFC 9113, section 5.2), so that readers who take nothing do not stop the others on it.
///
/// # Errors
/// As [`channel`].
pub fn stream_channel(config: &ChannelConfig, streams: u32) -> Result<Channel> {
    let whole = streams.max(1).saturating_mul(STREAM_WINDOW).min(i32::MAX.unsigned_abs());
    connect(config, |endpoint| {
        endpoint.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(whole)
    })
}

fn connect(config: &ChannelConfig, tune: impl Fn(Endpoint) -> Endpoint) -> Result<Channel> {
    let invalid = |problem: String| Error::invalid_argument("INVALID_ENDPOINT", problem);
    if let Some(problem) = config.validate().into_iter().next() {
        return Err(invalid(problem));
    }
    let endpoints = config
        .endpoints
        .iter()
        .map(|address| {
            let address = plain_address(address, config.tls.is_some())?;
            let endpoint = Endpoint::from_shared(address).map_err(|error| invalid(error.to_string()))?;
            Ok(tune(endpoint)
                .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
                .timeout(Duration::from_millis(config.request_timeout_ms))
                .tcp_nodelay(true)
                // A peer that vanished without closing is noticed in 15 s even by an idle stream.
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(Duration::from_secs(5))
                .keep_alive_while_idle(true))
        })
        .collect::<Result<Vec<_>>>()?;
    if let Some(tls) = &config.tls {
        // One connection, to the first address that answers.
        let first = endpoints.first().ok_or_else(|| invalid("no address".to_owned()))?;
        return Ok(first.connect_with_connector_lazy(tls.connector()));
    }
    match <[Endpoint; 1]>::try_from(endpoints) {
        Ok([only]) => Ok(only.connect_lazy()),
        Err(several) => Ok(Channel::balance_list(several.into_iter())),
    }
}

/// `address` as an [`Endpoint`] takes it beside a connector of ours: tonic would want to do the TLS of `https` itself.
fn plain_address(address: &str, has_tls: bool) -> Result<String> {
    match (address.strip_prefix("https://"), has_tls) {
        (None, _) => Ok(address.to_owned()),
        (Some(rest), true) => Ok(format!("http://{rest}")),
        (Some(_), false) => Err(Error::invalid_argument(
            "INVALID_ENDPOINT",
            format!(
                "{address} wants TLS, and this process has no certificate: set tls.cert_file, key_file and ca_file"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_name_the_field() {
        assert!(ChannelConfig::to("http://127.0.0.1:1").validate().is_empty());
        for wrong in ["", "127.0.0.1:1", "ftp://x"] {
            let problems = ChannelConfig::to(wrong).validate();
            assert!(
                problems.iter().any(|problem| problem.starts_with("endpoints:")),
                "{wrong:?}: {problems:?}"
            );
        }
        assert_eq!(ChannelConfig::default().validate().len(), 1);
    }
}
