//! The `[token_broker]` section.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use gatehouse_core::{Environment, file_problem};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::domain::class::RotationClass;
use crate::domain::policy::Rule;
use crate::domain::scopes::Scopes;

/// Acts upstream for people without holding their keys.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where an upstream sends the person's browser back to: a page of your product, which passes the query on to the
    /// gateway's `GET /v1/connections/callback` with the person's access token (only who began a connection may complete
    /// it). `https` outside dev. Required if any upstream is configured.
    pub callback_url: String,
    /// How long a person may take to consent, seconds, 60 to 3600. Default: 600.
    pub authorization_seconds: u64,
    /// How long one replica owns a rotation, milliseconds, 1000 to 120000. It must be longer than every upstream's
    /// `timeout_ms` by 5 s at least, and at most half of the leeway of a `grace` upstream. Default: 30000.
    pub lease_ms: u64,
    /// How long a caller waits for a renewal, its own or another replica's, milliseconds, 100 to 25000; then it is told to
    /// come again, and the renewal goes on. Shorter than `peers.token_broker.request_timeout_ms` of the gateway, which
    /// otherwise gives up first. Default: 8000.
    pub wait_ms: u64,
    /// From when on a caller's `min_remaining_seconds` is reason to renew a token, percent of the token's own life, 10 to 90;
    /// in dev from 0, which lets every call that asks for more than the upstream gives cause a renewal. A younger token is
    /// given as it is. Default: 50.
    pub renew_after_percent: u32,
    /// How often interrupted work is looked for, milliseconds, 100 to 60000. Default: 5000.
    pub sweep_ms: u64,
    /// Live connections of one person in one tenant at most, 1 to 1000. Default: 50.
    pub max_connections: u32,
    /// Consents that one person may have open at a time in one tenant, 1 to 1000. Default: 20.
    pub max_open_consents: u32,
    /// Offline grants of one person that may stand at a time in one tenant, 1 to 1000. Default: 200.
    pub max_offline_grants: u32,
    /// The upstreams with which people connect by OAuth, by name (`a-z 0-9 -`, up to 64).
    pub upstreams: BTreeMap<String, Upstream>,
    /// The upstreams that take one API key from us whoever acts, by name.
    pub static_keys: BTreeMap<String, StaticKey>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            callback_url: String::new(),
            authorization_seconds: 600,
            lease_ms: 30_000,
            wait_ms: 8_000,
            renew_after_percent: 50,
            sweep_ms: 5_000,
            max_connections: 50,
            max_open_consents: 20,
            max_offline_grants: 200,
            upstreams: BTreeMap::new(),
            static_keys: BTreeMap::new(),
        }
    }
}

/// An OAuth 2.0 provider and our registration with it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    /// Its name for people. Default: the name in the configuration.
    pub display_name: String,
    /// Its issuer identifier. Where set, a callback must carry the same in `iss` (RFC 9207). Default: none.
    pub issuer: String,
    /// Its authorization endpoint. Required.
    pub authorization_endpoint: String,
    /// Its token endpoint. Required.
    pub token_endpoint: String,
    /// Its revocation endpoint (RFC 7009). Default: none; disconnecting then can't revoke.
    pub revocation_endpoint: String,
    /// Our client id there. Required.
    pub client_id: String,
    /// File with our client secret there. Default: none (a public client).
    pub client_secret_file: Option<PathBuf>,
    /// How the secret is shown: `basic` (RFC 6749, section 2.3.1) or `post`. Default: `basic`.
    pub client_authentication: ClientAuthentication,
    /// The scopes that may be asked for, such as `offline_access read:me`. Required.
    pub scopes: Vec<String>,
    /// How it treats used refresh tokens: `norotate`, `keepold`, `grace(<seconds>)`, `until_used`, `strict`,
    /// `strict_family`. Default: `strict`.
    #[schemars(schema_with = "text")]
    pub rotation: RotationClass,
    /// Whether it grants fewer scopes to a refresh that asks for fewer (RFC 6749, section 6). Default: false.
    pub narrows_scopes: bool,
    /// More parameters of the authorization request, such as `audience` or `prompt`. Default: none.
    pub authorization_parameters: BTreeMap<String, String>,
    /// How long one call to it may take, milliseconds, 100 to 60000. Default: 10000.
    pub timeout_ms: u64,
    /// Who may have its access tokens. Default: the person themself and the gateway, all scopes.
    pub allow: Vec<Rule>,
}

impl Default for Upstream {
    fn default() -> Self {
        let all = |client: &str| Rule { client: client.to_owned(), scopes: vec!["*".to_owned()] };
        Self {
            display_name: String::new(),
            issuer: String::new(),
            authorization_endpoint: String::new(),
            token_endpoint: String::new(),
            revocation_endpoint: String::new(),
            client_id: String::new(),
            client_secret_file: None,
            client_authentication: ClientAuthentication::Basic,
            scopes: Vec::new(),
            rotation: RotationClass::Strict,
            narrows_scopes: false,
            authorization_parameters: BTreeMap::new(),
            timeout_ms: 10_000,
            allow: vec![all("person"), all("gateway")],
        }
    }
}

fn text(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string" })
}

/// How a client secret is shown to a token endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuthentication {
    /// In the `Authorization` header.
    Basic,
    /// In the body.
    Post,
}

/// An upstream that takes one API key. The key is read from a file, kept in the secrets backend, and rotated by
/// changing the file: each new text is a new version.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StaticKey {
    /// File with the key; looked at again at every sweep. Required.
    pub key_file: PathBuf,
    /// What callers are told as the token's type, such as `apikey`. Default: `apikey`.
    pub token_type: String,
    /// Internal services that may have it. People never may. Default: none.
    pub clients: Vec<String>,
}

impl Config {
    /// Every problem, each saying what to change; none if it may be used in `environment`.
    #[must_use]
    pub fn validate(&self, environment: Environment) -> Vec<String> {
        let mut problems = Vec::new();
        let ranges = [
            ("authorization_seconds", self.authorization_seconds, 60, 3_600),
            ("lease_ms", self.lease_ms, 1_000, 120_000),
            ("wait_ms", self.wait_ms, 100, 25_000),
            (
                "renew_after_percent",
                self.renew_after_percent.into(),
                if environment.is_dev() { 0 } else { 10 },
                90,
            ),
            ("sweep_ms", self.sweep_ms, 100, 60_000),
            ("max_connections", self.max_connections.into(), 1, 1_000),
            ("max_open_consents", self.max_open_consents.into(), 1, 1_000),
            ("max_offline_grants", self.max_offline_grants.into(), 1, 1_000),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                problems.push(format!("{name} must be from {least} to {most}"));
            }
        }
        if !self.upstreams.is_empty()
            && let Some(problem) = address_problem(&self.callback_url, environment)
        {
            problems.push(format!("callback_url {problem}"));
        }
        for (name, upstream) in &self.upstreams {
            let place = format!("upstreams.{name}");
            problems.extend(name_problem(name).map(|problem| format!("{place}: {problem}")));
            problems.extend(
                upstream.problems(self, environment).into_iter().map(|problem| format!("{place}.{problem}")),
            );
            if self.static_keys.contains_key(name) {
                problems.push(format!("{place}: the name stands under static_keys too; rename one"));
            }
        }
        for (name, key) in &self.static_keys {
            let place = format!("static_keys.{name}");
            problems.extend(name_problem(name).map(|problem| format!("{place}: {problem}")));
            if let Some(problem) = file_problem(&key.key_file) {
                problems.push(format!("{place}.key_file {problem}"));
            }
        }
        problems
    }

    /// How long a replica owns a rotation.
    #[must_use]
    pub const fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    /// How long a caller waits.
    #[must_use]
    pub const fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms)
    }
}

impl Upstream {
    fn problems(&self, config: &Config, environment: Environment) -> Vec<String> {
        let mut problems = Vec::new();
        let endpoints = [
            ("authorization_endpoint", &self.authorization_endpoint, true),
            ("token_endpoint", &self.token_endpoint, true),
            ("revocation_endpoint", &self.revocation_endpoint, false),
        ];
        for (name, address, required) in endpoints {
            if (required || !address.is_empty())
                && let Some(problem) = address_problem(address, environment)
            {
                problems.push(format!("{name} {problem}"));
            }
        }
        if self.client_id.is_empty() {
            problems
                .push("client_id is missing; register Gatehouse with the provider and name the id".into());
        }
        if let Some(problem) = self.client_secret_file.as_deref().and_then(file_problem) {
            problems.push(format!("client_secret_file {problem}"));
        }
        if self.scopes.is_empty() {
            problems.push("scopes is empty; name those that Gatehouse may ask for".into());
        }
        if self.all_scopes().first_malformed().is_some() {
            problems.push("scopes: has one that is no scope (RFC 6749, section 3.3)".into());
        }
        let reserved = ["response_type", "client_id", "redirect_uri", "scope", "state", "code_challenge"];
        if let Some(name) = reserved.iter().find(|name| self.authorization_parameters.contains_key(**name)) {
            problems.push(format!("authorization_parameters.{name} is set by Gatehouse; remove it"));
        }
        if !(100..=60_000).contains(&self.timeout_ms) {
            problems.push("timeout_ms must be from 100 to 60000".into());
        }
        // The holder must have stored the answer before anyone else may try.
        if self.timeout_ms + 5_000 > config.lease_ms {
            problems.push(
                "timeout_ms leaves less than 5000 of token_broker.lease_ms for storing the answer; lower it or raise lease_ms"
                    .into(),
            );
        }
        if let Some(longest) = self.rotation.longest_lease().filter(|longest| config.lease() > *longest) {
            problems.push(format!(
                "rotation {} needs token_broker.lease_ms of at most {}, so that a lost answer can be asked for again in time",
                self.rotation,
                longest.as_millis()
            ));
        }
        problems
    }

    /// The scopes that may be asked for.
    #[must_use]
    pub fn all_scopes(&self) -> Scopes {
        self.scopes.iter().cloned().collect()
    }

    /// How long one call may take.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

fn name_problem(name: &str) -> Option<&'static str> {
    let fits = (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    (!fits).then_some("the name may hold a-z, 0-9 and - only, begins with a letter and has up to 64 of them")
}

fn address_problem(address: &str, environment: Environment) -> Option<String> {
    let Ok(url) = Url::parse(address) else {
        return Some("must be an address, such as https://id.example.com/token".into());
    };
    if url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Some("may carry neither a fragment nor a user name or password".into());
    }
    let local = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
    match url.scheme() {
        "https" => None,
        "http" if environment.is_dev() && local => None,
        "http" if environment.is_dev() => Some("may use http only for this machine itself; use https".into()),
        _ => Some("must use https".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn working() -> Config {
        let upstream = Upstream {
            authorization_endpoint: "https://id.example.com/authorize".into(),
            token_endpoint: "https://id.example.com/token".into(),
            client_id: "gatehouse".into(),
            scopes: vec!["read".into()],
            ..Upstream::default()
        };
        Config {
            callback_url: "https://app.example.com/v1/connections/callback".into(),
            upstreams: BTreeMap::from([("example".to_owned(), upstream)]),
            ..Config::default()
        }
    }

    fn problems(change: impl FnOnce(&mut Config, &mut Upstream)) -> Vec<String> {
        let mut config = working();
        let mut upstream = config.upstreams["example"].clone();
        change(&mut config, &mut upstream);
        config.upstreams.insert("example".into(), upstream);
        config.validate(Environment::Prod)
    }

    #[test]
    fn a_lease_outlasts_the_call_and_stays_within_the_leeway() {
        assert_eq!(problems(|_, _| {}), Vec::<String>::new());
        assert_eq!(problems(|_, upstream| upstream.timeout_ms = 25_001).len(), 1);
        assert_eq!(problems(|config, _| config.lease_ms = 14_000).len(), 1);
        assert_eq!(problems(|_, upstream| upstream.rotation = "grace(59)".parse().unwrap()).len(), 1);
        assert_eq!(problems(|_, upstream| upstream.rotation = "grace(600)".parse().unwrap()).len(), 0);
    }

    #[test]
    fn plain_http_is_for_this_machine_in_dev_only() {
        let plain = |address: &str| problems(|_, upstream| upstream.token_endpoint = address.into()).len();
        assert_eq!(plain("http://127.0.0.1:1/token"), 1);
        assert!(address_problem("http://127.0.0.1:1/token", Environment::Dev).is_none());
        assert!(address_problem("http://id.example.com/token", Environment::Dev).is_some());
        for wrong in ["", "ftp://a/b", "https://u:p@a/b", "https://a/b#c", "/token"] {
            assert_eq!(plain(wrong), 1, "{wrong:?}");
        }
    }

    #[test]
    fn every_bound_has_bounds() {
        type Set = fn(&mut Config, u32);
        let bounds: [(&str, Set); 3] = [
            ("max_connections", |config, most| config.max_connections = most),
            ("max_open_consents", |config, most| config.max_open_consents = most),
            ("max_offline_grants", |config, most| config.max_offline_grants = most),
        ];
        for (name, set) in bounds {
            for (value, wrong) in [(0, true), (1, false), (1_000, false), (1_001, true)] {
                let problems = problems(|config, _| set(config, value));
                let expected = wrong.then(|| format!("{name} must be from 1 to 1000"));
                assert_eq!(problems, Vec::from_iter(expected), "{name} = {value}");
            }
        }
    }

    #[test]
    fn a_wish_may_renew_every_time_in_dev_only() {
        for (percent, in_prod, in_dev) in [(0, 1, 0), (9, 1, 0), (10, 0, 0), (90, 0, 0), (91, 1, 1)] {
            let config = Config { renew_after_percent: percent, ..working() };
            let problems = |environment| config.validate(environment).len();
            assert_eq!(
                (problems(Environment::Prod), problems(Environment::Dev)),
                (in_prod, in_dev),
                "{percent}"
            );
        }
    }

    #[test]
    fn the_defaults_need_no_upstream() {
        assert_eq!(Config::default().validate(Environment::Prod), Vec::<String>::new());
    }
}
