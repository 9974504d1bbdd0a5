//! What stands in the configuration, in the environment or in a file may be a secret in the wrong place: neither a start
//! nor a command that reads it says it again.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::support::{Ended, ended, folder, program};

/// The secret.
const SECRET: &str = "hunter2";

/// A secret that is longer than any name of a file.
fn long() -> String {
    format!("{SECRET}{}", "x".repeat(300))
}

/// As somebody has a key in a variable.
const PEM: &str = "-----BEGIN PRIVATE KEY-----\nhunter2/hunter2\n-----END PRIVATE KEY-----";

/// What it said, as far as it is wrong: it has to end with `code`, name `key` and not say the secret. A private key that
/// was printed as numbers is the secret, too.
fn fault(ended: &Ended, code: i32, key: &str) -> Option<String> {
    let said = format!("{}{}", ended.stdout, ended.stderr);
    let as_numbers = format!("{:?}", SECRET.as_bytes());
    let is_said = said.contains(SECRET) || said.contains(as_numbers.trim_matches(['[', ']']));
    (ended.code != Some(code) || is_said || !said.contains(key)).then(|| format!("{key}: {ended:?}"))
}

/// `arguments` with `variables`, in `place`.
async fn said(place: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
    let mut command = program();
    command.args(arguments).current_dir(place).envs(variables.iter().copied());
    ended(&mut command).await
}

#[tokio::test]
async fn a_start_says_no_secret_that_stands_in_the_wrong_place() {
    let place = folder();
    let (certificate, key) = (place.path().join("certificate.pem"), place.path().join("key.pem"));
    // Its lines were lost on the way.
    fs::write(&key, PEM.replace('\n', "")).unwrap();
    fs::write(&certificate, "").unwrap();
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let long = long();
    let client = |file: &str| format!("[{{name = 'billing', permissions = [], secret_file = '{file}'}}]");
    let clients = [client(SECRET), client(&long)];
    let database = "postgres://me@127.0.0.1:1/d";
    let unknown = format!("{database}?sslpassword={SECRET}");
    let unencoded = format!("postgres://me:p@{SECRET}/x@127.0.0.1/d");
    let mut cases: Vec<Vec<(&str, &str)>> = vec![
        vec![("GATEHOUSE_AUTH__CLIENTS", &clients[0])],
        vec![("GATEHOUSE_AUTH__CLIENTS", &clients[1])],
        vec![("GATEHOUSE_DATABASES__JOB__URL", &unknown)],
        vec![("GATEHOUSE_DATABASES__JOB__URL", &unencoded)],
        vec![("GATEHOUSE_TELEMETRY__OTLP_ENDPOINT", "http://me:hunter2 @collector:4317")],
        vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:hunter2 @collector:4317")],
        vec![("GATEHOUSE_ENV", SECRET)],
        vec![("GATEHOUSE_GATEWAY__TLS_KEY_FILE", key), ("GATEHOUSE_GATEWAY__TLS_CERTIFICATE_FILE", key)],
    ];
    for value in [SECRET, PEM, &long] {
        cases.push(vec![
            ("GATEHOUSE_DATABASES__JOB__PASSWORD_FILE", value),
            ("GATEHOUSE_DATABASES__JOB__URL", database),
        ]);
        cases.push(vec![
            ("GATEHOUSE_GATEWAY__TLS_KEY_FILE", value),
            ("GATEHOUSE_GATEWAY__TLS_CERTIFICATE_FILE", certificate),
        ]);
        cases.push(vec![
            ("GATEHOUSE_GATEWAY__TLS_CERTIFICATE_FILE", value),
            ("GATEHOUSE_GATEWAY__TLS_KEY_FILE", key),
        ]);
    }
    // What is missing of these is made, where it can be.
    for variable in ["GATEHOUSE_AUTH__KEY_FILE", "GATEHOUSE_SECRETS__EMBEDDED__KEY_FILE"] {
        cases.push(vec![(variable, &long)]);
    }
    for variable in [
        "GATEHOUSE_AUDIT__CHECKPOINT_KEY_FILE",
        "GATEHOUSE_AUDIT__SUBJECT_KEYS_DIR",
        "GATEHOUSE_SECRETS__EMBEDDED__FOLDER",
    ] {
        cases.push(vec![(variable, &long)]);
    }
    cases.push(vec![("GATEHOUSE_AUDIT__CHECKPOINT_KEY_FILE", PEM)]);
    let passwords = place.path().join("passwords");
    fs::write(&passwords, format!("{SECRET}\n")).unwrap();
    fs::set_permissions(&passwords, fs::Permissions::from_mode(0o600)).unwrap();
    cases
        .push(vec![("PGPASSFILE", passwords.to_str().unwrap()), ("GATEHOUSE_DATABASES__JOB__URL", database)]);
    let mut faults = Vec::new();
    for (number, variables) in cases.iter().enumerate() {
        let data = format!("data-{number}");
        let found = said(place.path(), &["up", "--free-ports", "--data", &data], variables).await;
        let named = match variables[0].0 {
            "PGPASSFILE" => "127.0.0.1:1".to_owned(),
            "GATEHOUSE_ENV" => "GATEHOUSE_ENV".to_owned(),
            "OTEL_EXPORTER_OTLP_ENDPOINT" => "telemetry.otlp_endpoint".to_owned(),
            // It is there: what is wrong is in it.
            _ if variables.iter().all(|(_, value)| *value == key) => key.to_owned(),
            name => name["GATEHOUSE_".len()..].to_lowercase().replace("__", "."),
        };
        faults.extend(fault(&found, 2, &named));
    }
    assert!(faults.is_empty(), "{} of {}: {faults:#?}", faults.len(), cases.len());
}

#[tokio::test]
async fn a_check_says_no_secret_that_stands_in_the_wrong_place() {
    let place = folder();
    let redis = place.path().join("redis");
    fs::write(&redis, format!("redis://me:p@{SECRET}/x@cache.example")).unwrap();
    let redis = redis.to_str().unwrap();
    let unencoded = format!("postgres://me:p@{SECRET}/x@127.0.0.1/d");
    let cases = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:hunter2@collector:4317", "telemetry.otlp_endpoint"),
        ("GATEHOUSE_DATABASES__JOB__URL", &unencoded, "databases.job.url"),
        ("GATEHOUSE_REDIS__URL_FILE", redis, "redis.url_file"),
        ("GATEHOUSE_PEERS__AUTH__ENDPOINTS", "https://me:hunter2@h:1", "peers.auth.endpoints"),
        ("GATEHOUSE_ISSUER", "https://me:hunter2@id.example", "issuer"),
    ];
    let mut faults = Vec::new();
    for (variable, value, key) in cases {
        let variables = [("GATEHOUSE_ENV", "prod"), (variable, value)];
        let found = said(place.path(), &["config", "check", "--service", "job"], &variables).await;
        faults.extend(fault(&found, 1, key));
        for arguments in [&["config", "show"][..], &["config", "show", "--json"]] {
            faults.extend(fault(&said(place.path(), arguments, &variables).await, 0, ""));
        }
    }
    let unknown = format!("postgres://me@db/d?sslpassword={SECRET}");
    let variables = [("GATEHOUSE_DATABASES__JOB__URL", unknown.as_str())];
    faults.extend(fault(&said(place.path(), &["config", "show"], &variables).await, 0, "postgres://me@db/d"));
    for arguments in [&["job"][..], &["certs"], &["config", "check"], &["migrate"]] {
        let found = said(place.path(), arguments, &[("GATEHOUSE_ENV", SECRET)]).await;
        faults.extend(fault(&found, 2, "GATEHOUSE_ENV"));
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[tokio::test]
async fn a_job_is_submitted_without_saying_a_secret_in_the_address() {
    let place = folder();
    fs::write(place.path().join("input.json"), "{}").unwrap();
    let mut faults = Vec::new();
    for address in [
        "http://me:hunter2@127.0.0.1:1",
        "http://hunter2@127.0.0.1:1",
        "http://me:p@hunter2/x@127.0.0.1:1",
        "http://127.0.0.1:1?token=hunter2",
        "hunter2",
    ] {
        let variables = [("GATEHOUSE_TOKEN", "t"), ("GATEHOUSE_URL", address)];
        faults.extend(fault(
            &said(place.path(), &["submit", "optimize", "input.json"], &variables).await,
            2,
            "GATEHOUSE_URL",
        ));
        // Nor of one in the place of a file's path, which the option tells where to find.
        let arguments = ["submit", "optimize", "input.json", "--token-file", SECRET];
        faults.extend(fault(&said(place.path(), &arguments, &[]).await, 2, "--token-file"));
        for arguments in [&["submit", "--help"][..], &["up", "--help"], &["certs", "--help"]] {
            let variables = ["GATEHOUSE_URL", "GATEHOUSE_DATA", "GATEHOUSE_CONFIG", "GATEHOUSE_ENV"];
            let variables = variables.map(|name| (name, address));
            faults.extend(fault(&said(place.path(), arguments, &variables).await, 0, ""));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[tokio::test]
async fn certificates_are_renewed_without_saying_a_key_in_their_place() {
    let place = folder();
    let arguments = ["certs", "--environment", "prod", "--out", "certs"];
    let made = said(place.path(), &arguments, &[]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    fs::write(place.path().join("certs/ca/ca.crt"), PEM.replace('\n', "")).unwrap();
    let refused = said(place.path(), &arguments, &[]).await;
    assert_eq!(fault(&refused, 2, "ca.crt is no authority that can be used"), None);
}
