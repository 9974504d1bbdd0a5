//! What a file and the environment make of the defaults.

use gatehouse_core::Environment;
use gatehouse_service::config::Sources;
use toml::Value;

use super::Config;
use crate::services::Service;

/// One changed limit once took the others away without a word.
#[test]
fn what_is_written_comes_to_the_defaults_and_is_shown_as_it_is_read() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("gatehouse.toml");
    let load = |text: &str, variables: &[(&str, &str)]| -> Config {
        std::fs::write(&file, text).unwrap();
        let sources = Sources { file: Some(&file), ..Sources::default() };
        gatehouse_service::config::load(&sources, variables.iter().copied()).unwrap()
    };
    let written = "[rate_limits.rules.classes.job-create.ip]\ncapacity = 5\n[rate_limits.rules.classes.token]\n\
                   [rate_limits.rules.person]\ncapacity = 7\n[job.kinds.other]\n";
    let config = load(written, &[("GATEHOUSE_RATE_LIMITS__RULES__IP__CAPACITY", "6")]);
    let (rules, defaults) = (&config.rate_limits.rules, gatehouse_ratelimit::Rules::default());
    assert_eq!(rules.classes["sign-in"], defaults.classes["sign-in"]);
    assert_eq!(rules.classes["job-create"].ip.map(|quota| (quota.capacity, quota.interval_s)), Some((5, 60)));
    assert_eq!((rules.ip.capacity, rules.ip.interval_s), (6, 60));
    assert_eq!((rules.person.capacity, rules.person.interval_s), (7, 60));
    assert_eq!(config.job.kinds.keys().collect::<Vec<_>>(), ["optimize", "other"]);
    let freed =
        load("[rate_limits.rules.classes]\nsign-in = {}\n[job.kinds.optimize]\nenabled = false\n", &[]);
    assert!(freed.rate_limits.rules.classes["sign-in"].ip.is_none());
    let all_freed = load("", &[("GATEHOUSE_RATE_LIMITS__RULES__CLASSES", "{}")]);
    assert!(all_freed.rate_limits.rules.classes.is_empty());
    for config in [config, freed, all_freed] {
        let shown = toml::to_string_pretty(&config).unwrap();
        let again = load(&shown, &[]);
        assert_eq!(again.rate_limits, config.rate_limits, "{shown}");
        assert_eq!(toml::to_string_pretty(&again).unwrap(), shown);
    }
}

/// What may be written, beside the defaults.
const MORE: &str = r#"
[client]
secret_file = "/there"
[tls]
cert_file = "/there"
key_file = "/there"
ca_file = "/there"
[redis]
url_file = "/there"
ca_file = "/there"
[databases.auth]
url = "postgres://me@db.example/auth?sslmode=verify-full"
ca_file = "/there"
password_file = "/there"
schema = "auth"
[peers.auth]
endpoints = ["https://auth.example:7101"]
[telemetry]
otlp_endpoint = "http://127.0.0.1:4317"
[secrets.vault]
ca_file = "/there"
[gateway]
trusted_proxies = ["10.0.0.0/8"]
cors_allowed_origins = ["https://app.example"]
public_url = "https://api.example"
tls_address = "127.0.0.1:8443"
tls_certificate_file = "/there"
tls_key_file = "/there"
[[auth.clients]]
name = "billing"
secret_file = "/there"
permissions = ["job.jobs.read"]
[token_broker]
callback_url = "https://api.example/callback"
[token_broker.upstreams.acme]
display_name = "Acme"
issuer = "https://id.example"
authorization_endpoint = "https://id.example/authorize"
token_endpoint = "https://id.example/token"
revocation_endpoint = "https://id.example/revoke"
client_id = "us"
client_secret_file = "/there"
scopes = ["read"]
authorization_parameters = { prompt = "consent" }
[token_broker.static_keys.weather]
key_file = "/there"
[audit]
lost_subject_keys = "d3b07384-d9a0-4c9b-8f4e-7c9f9f0c2a11"
accepted_verifier_keys = ["a+b+c"]
given_up_states = ["a 1 b"]
[[audit.logs]]
name = "short"
days = 30
"#;

/// Each text in `value`, as a way to reach it.
fn texts(value: &Value, way: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::String(_) => return found.push(way.clone()),
        Value::Table(table) => table.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect(),
        _ => return,
    };
    for (step, value) in inner {
        way.push(step);
        texts(value, way, found);
        way.pop();
    }
}

fn at<'a>(value: &'a mut Value, way: &[String]) -> &'a mut Value {
    way.iter().fold(value, |value, step| match value {
        Value::Array(list) => &mut list[step.parse::<usize>().unwrap()],
        table => &mut table[step.as_str()],
    })
}

/// A secret may stand where a path, an address or a name belongs.
#[test]
fn no_problem_repeats_what_is_written() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("gatehouse.toml");
    let load = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let sources = Sources { file: Some(&file), ..Sources::default() };
        gatehouse_service::config::load::<Config>(&sources, std::iter::empty::<(&str, &str)>())
    };
    std::fs::write(place.path().join("there"), "").unwrap();
    let more = MORE.replace("/there", place.path().join("there").to_str().unwrap());
    let whole = Value::try_from(load(&more).unwrap()).unwrap();
    let mut ways = Vec::new();
    texts(&whole, &mut Vec::new(), &mut ways);
    let (mut refused, backends) = (0, ["embedded", "vault"]);
    for way in &ways {
        for (secret, backend) in
            ["hunter2", "hunter2/hunter2\"hunter2 hunter2-and-forty-letters-more-than-that"]
                .into_iter()
                .zip(backends)
        {
            let mut written = whole.clone();
            *at(&mut written, &["secrets".to_owned(), "backend".to_owned()]) = backend.into();
            *at(&mut written, way) = secret.into();
            let told: Vec<String> = match load(&toml::to_string(&written).unwrap()) {
                Err(error) => error.0,
                Ok(config) => [Environment::Dev, Environment::Prod]
                    .into_iter()
                    .flat_map(|environment| {
                        Service::ALL.map(|service| config.validate_process(environment, service))
                    })
                    .flatten()
                    .collect(),
            };
            refused += usize::from(told.iter().any(|problem| problem.contains(&way[0])));
            assert!(!told.iter().any(|problem| problem.contains("hunter2")), "{way:?}: {told:#?}");
        }
    }
    assert!(ways.len() > 60 && refused > 60, "{} values, {refused} refused", ways.len());
}
