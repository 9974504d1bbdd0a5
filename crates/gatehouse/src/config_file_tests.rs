//! What a file and the environment make of the defaults.

use gatehouse_core::Environment;
use gatehouse_service::config::{ConfigError, Sources};
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

/// What may stand where something else belongs.
const SECRETS: [&str; 8] = [
    "hunter2",
    "hunter2/hunter2\"hunter2 hunter2-and-forty-letters-more-than-that",
    "http://me:hunter2 @collector:4317",
    "https://me:p@hunter2/x@host.example",
    "https://me:p'@hunter2/x@host.example",
    "https://me:p\"@hunter2/x@host.example",
    "postgres://me:p@hunter2/x@db.example/auth",
    "postgres://me@db.example/auth?sslpassword=hunter2",
];

/// Every problem of what was read, whatever process it is for.
fn told(read: Result<Config, ConfigError>) -> Vec<String> {
    let config = match read {
        Err(error) => return error.0,
        Ok(config) => config,
    };
    [Environment::Dev, Environment::Prod]
        .into_iter()
        .flat_map(|environment| Service::ALL.map(|service| config.validate_process(environment, service)))
        .flatten()
        .collect()
}

/// Each value in `value` that `is` it, as a way to reach it.
fn found(value: &Value, way: &mut Vec<String>, ways: &mut Vec<Vec<String>>, is: fn(&Value) -> bool) {
    let inner: Vec<(String, &Value)> = match value {
        _ if is(value) => return ways.push(way.clone()),
        Value::Table(table) => table.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect(),
        _ => return,
    };
    for (step, value) in inner {
        way.push(step);
        found(value, way, ways, is);
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
    found(&whole, &mut Vec::new(), &mut ways, Value::is_str);
    let mut refused = 0;
    for way in &ways {
        for (secret, backend) in SECRETS.into_iter().zip(["embedded", "vault"].into_iter().cycle()) {
            let mut written = whole.clone();
            *at(&mut written, &["secrets".to_owned(), "backend".to_owned()]) = backend.into();
            *at(&mut written, way) = secret.into();
            let read = load(&toml::to_string(&written).unwrap());
            // An address may be shown, what it is called by not.
            let in_address = secret.contains("://");
            if let Ok(config) = &read
                && in_address
            {
                let shown = super::without_credentials(config).unwrap().to_string();
                assert!(!shown.contains("hunter2"), "{way:?}: {shown}");
            }
            let told = told(read);
            refused += usize::from(told.iter().any(|problem| problem.contains(&way[0])));
            assert!(!told.iter().any(|problem| problem.contains("hunter2")), "{way:?}: {told:#?}");
        }
    }
    assert!(ways.len() > 60 && refused > 60, "{} values, {refused} refused", ways.len());

    let mut numbers = Vec::new();
    found(&whole, &mut Vec::new(), &mut numbers, Value::is_integer);
    let mut refused = 0;
    for way in &numbers {
        for number in [918_273_645_918, -918_273_645_918] {
            let mut written = whole.clone();
            *at(&mut written, way) = Value::Integer(number);
            let told = told(load(&toml::to_string(&written).unwrap()));
            refused += usize::from(!told.is_empty());
            assert!(!told.iter().any(|problem| problem.contains("918273645918")), "{way:?}: {told:#?}");
        }
    }
    assert!(numbers.len() > 90 && refused > 180, "{} numbers, {refused} refused", numbers.len());
}
