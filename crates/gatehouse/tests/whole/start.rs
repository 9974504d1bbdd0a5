//! Starting and stopping: what stands in the way is said in one message, and leaves nothing half-written.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use gatehouse_testkit::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Ended, Gatehouse, PATIENCE, answer, ended, folder, good_search, program, run};

/// What a command told as JSON.
fn told(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// `gatehouse up` on the data in `place`, expected to end by itself.
async fn up(place: &Path) -> Ended {
    ended(program().args(["up", "--free-ports", "--data"]).arg(place.join("data"))).await
}

#[tokio::test]
async fn a_port_in_use_is_named_and_nothing_is_begun() {
    let place = folder();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let names = [
        ("gateway", "GATEHOUSE_GATEWAY__ADDRESS"),
        ("auth", "GATEHOUSE_LISTEN__AUTH"),
        ("token-broker", "GATEHOUSE_LISTEN__TOKEN_BROKER"),
        ("job", "GATEHOUSE_LISTEN__JOB"),
        ("audit", "GATEHOUSE_LISTEN__AUDIT"),
        ("probes", "GATEHOUSE_PROBES__ADDRESS"),
    ];
    for (service, _) in names {
        let mut command = program();
        command.args(["up", "--data"]).arg(place.path().join("data"));
        command.env("GATEHOUSE_GATEWAY__TLS_ADDRESS", "127.0.0.1:0");
        for (name, variable) in names {
            command.env(variable, if name == service { address.as_str() } else { "127.0.0.1:0" });
        }
        let message = ended(&mut command).await.refusal();
        for words in [service, &address, "in use", "Stop the program", "another address"] {
            assert!(message.contains(words), "{words}: {message}");
        }
        // The sentence is what a person reads; the reason is for whoever looks it up.
        assert!(message.starts_with(&format!("gatehouse: {service}")), "{message}");
        assert!(message.trim_end().ends_with("(PORT_IN_USE)"), "{message}");
    }
    assert!(!place.path().join("data").exists(), "something was made");
    drop(taken);
    let gatehouse = Gatehouse::start(place.path()).await;
    assert!(gatehouse.ready["first_admin"]["password"].is_string(), "the failed starts used the admin up");
}

#[tokio::test]
async fn a_data_folder_that_can_not_be_used_is_named() {
    let place = folder();
    let file = place.path().join("file");
    fs::write(&file, "mine").unwrap();
    // Root may write wherever permissions forbid it, but neither below a file nor into /proc.
    for path in [file.clone(), file.join("below"), PathBuf::from("/proc/gatehouse-data")] {
        let message = ended(program().args(["up", "--free-ports", "--data"]).arg(&path)).await.refusal();
        assert!(message.contains(path.to_str().unwrap()) && message.contains("--data"), "{message}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[tokio::test]
async fn a_wrong_configuration_is_told_whole_before_anything_is_made() {
    let place = folder();
    let config = place.path().join("gatehouse.toml");
    let files: &[(&str, &[&str])] = &[
        ("[gateway]\nadress = \"127.0.0.1:1\"\n", &["gateway.adress", "did you mean gateway.address?"]),
        ("[gatewey]\nworkers = 1\n", &["gatewey", "did you mean the section gateway?"]),
        ("max_request_bytes = 2048\n", &["did you mean gateway.max_request_bytes?"]),
        ("gateway = 1\n", &["gateway: is a section", "[gateway]"]),
        (
            "[gateway]\nmax_request_bytes = \"hunter2\"\nrequire_auth = 1\n",
            &[
                "gateway.max_request_bytes: must be a whole number",
                "gateway.require_auth: must be true or false",
            ],
        ),
        ("[optimizer]\nmax_iterations = 0\n", &["optimizer.max_iterations: must be from 1 to"]),
        ("[gateway]\npublic_url = \"nonsense\"\n", &["gateway.public_url: must be an origin such as"]),
        ("[gateway\n", &["gatehouse.toml", "not valid TOML", "line 1"]),
        ("a = 1\na = 2\n", &["gatehouse.toml", "not valid TOML", "line 2"]),
    ];
    for (text, expected) in files {
        fs::write(&config, text).unwrap();
        let mut command = program();
        command.args(["up", "--free-ports", "--data"]).arg(place.path().join("data"));
        let message = ended(command.arg("--config").arg(&config)).await.refusal();
        for words in *expected {
            assert!(message.contains(words), "{words}: {message}");
        }
        assert!(!message.contains("hunter2"), "{message}");
    }
    let variables: &[(&str, &str, &str)] = &[
        ("GATEHOUSE_GATEWAY__ADRESS", "127.0.0.1:1", "did you mean GATEHOUSE_GATEWAY__ADDRESS?"),
        ("GATEHOUSE_ISSUR", "https://id.example.com", "did you mean GATEHOUSE_ISSUER?"),
        ("GATEHOUSE_NONSENSE__AT_ALL", "1", "`gatehouse config docs`"),
        ("GATEHOUSE_AUTH_ISUER", "x", "did you mean GATEHOUSE_ISSUER?"),
        ("GATEHOUSE_CORS_ALLOWED_ORIGINS", "https://a.example", "did you mean CORS_ALLOWED_ORIGINS?"),
        ("GATEHOUSE_AUTH_PORT", "tcp://10.0.0.11:9000", "GATEHOUSE_AUTH_PORT names no key"),
        ("MAX_REQUEST_BYTES", "many", "MAX_REQUEST_BYTES: gateway.max_request_bytes: must be a whole number"),
        ("MAX_REQUEST_BYTES", "-1", "gateway.max_request_bytes: must be a whole number of 0 or more"),
        ("GATEHOUSE_AUTH__CLIENTS", "hunter2", "auth.clients[0]: must be a table"),
        ("GATEHOUSE_AUDIT_ORIGIN", "a.example", "did you mean GATEHOUSE_AUDIT__ORIGIN?"),
        ("GATEHOUSE_LOG", "debug", "did you mean GATEHOUSE_TELEMETRY__LOG_FILTER?"),
        ("GATEHOUSE_PORT", "9", "did you mean GATEHOUSE_GATEWAY__TLS_ADDRESS"),
        ("GATEHOUSE_REDIS__URL", "redis://h", "did you mean GATEHOUSE_REDIS__URL_FILE?"),
        ("REQUIRE_AUTH", "yes", "REQUIRE_AUTH: gateway.require_auth: must be true or false"),
        ("REQUIRE_AUTH", "false", "require_auth: must be true"),
        ("CORS_ALLOWED_ORIGINS", "https://a.example/path", "cors_allowed_origins"),
        ("JOB_TTL_FAILED_S", "0", "ttl_failed_s"),
        ("GATEHOUSE_CONFIG", "/nowhere/gatehouse.toml", "/nowhere/gatehouse.toml can't be read"),
        ("GATEHOUSE_REDIS__URL_FILE", "/nowhere", "redis.url_file is for services in processes of their own"),
        ("GATEHOUSE_CLIENT__SECRET_FILE", "/nowhere", "client.secret_file is for services in processes"),
        ("GATEHOUSE_TLS__CERT_FILE", "/nowhere", "the section tls is for services in processes of their own"),
    ];
    for (name, value, expected) in variables {
        let mut command = program();
        command.args(["up", "--free-ports", "--data"]).arg(place.path().join("data")).env(name, value);
        let message = ended(&mut command).await.refusal();
        assert!(message.contains(expected) && !message.contains("hunter2"), "{name}: {message}");
    }
    assert!(!place.path().join("data").exists(), "something was made");
}

/// Kubernetes tells each container of the Services of its namespace, by names that begin as ours do.
#[tokio::test]
async fn what_others_call_their_variables_is_no_slip() {
    let place = folder();
    let variables = [
        ("GATEHOUSE_SERVICE_HOST", "10.0.0.1"),
        ("GATEHOUSE_PORT", "tcp://10.0.0.1:80"),
        ("GATEHOUSE_AUTH_SERVICE_HOST", "10.0.0.11"),
        ("GATEHOUSE_AUTH_SERVICE_PORT", "9000"),
        ("GATEHOUSE_AUTH_PORT", "tcp://10.0.0.11:9000"),
        ("GATEHOUSE_AUTH_PORT_9000_TCP", "tcp://10.0.0.11:9000"),
        ("GATEHOUSE_AUTH_PORT_9000_TCP_ADDR", "10.0.0.11"),
        // What runs the tests, and whoever submits jobs, has some too.
        ("GATEHOUSE_SEED", "7"),
        ("GATEHOUSE_TOKEN", "t"),
    ];
    let gatehouse = Gatehouse::start_with(place.path(), &[], &variables).await;
    assert!(gatehouse.stop().await.success());
}

/// Everything below `folder` that is not a database's, with what is in it, and the names of the databases.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(contents(&path));
            found.insert(path, None);
        } else {
            let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            match extension.as_str() {
                // Come and go with whoever has the database open.
                "db-wal" | "db-shm" => {}
                "db" => drop(found.insert(path, None)),
                _ => {
                    let text = fs::read(&path).unwrap();
                    found.insert(path, Some(text));
                }
            }
        }
    }
    found
}

#[tokio::test]
async fn a_lost_key_is_asked_for_and_nothing_is_made_in_its_place() {
    let place = folder();
    let (data, away) = (place.path().join("data"), place.path().join("away"));
    let first = Gatehouse::start(place.path()).await;
    assert!(first.stop().await.success());
    fs::create_dir(&away).unwrap();
    let losses: &[&[&str]] = &[
        &["keys/auth.json"],
        &["keys/secrets.json"],
        &["keys/audit-checkpoint.key"],
        // Somebody restored the databases first.
        &["keys", "clients", "certificate", "secrets", "first-admin.json"],
    ];
    for lost in losses {
        for name in *lost {
            let _ = fs::rename(data.join(name), away.join(name.replace('/', "-")));
        }
        let left = contents(&data);
        let message = up(place.path()).await.refusal();
        let named = if lost.len() == 1 { lost[0] } else { "keys/auth.json" };
        assert!(message.contains(named) && message.to_lowercase().contains("restore"), "{message}");
        assert_eq!(contents(&data), left, "a start that was refused changed something ({lost:?})");
        for name in *lost {
            let _ = fs::rename(away.join(name.replace('/', "-")), data.join(name));
        }
    }
    let restored = Gatehouse::start(place.path()).await;
    assert!(restored.ready["first_admin"].is_null(), "{}", restored.ready);
    assert!(restored.stop().await.success());
}

#[tokio::test]
async fn an_unknown_command_is_answered_with_the_way_to_help() {
    for arguments in
        [&["frobnicate"][..], &["up", "--frobnicate"], &["config", "frobnicate"], &["migrate", "x"], &[]]
    {
        let found = run(arguments).await;
        assert_eq!(found.code, Some(2), "{found:?}");
        assert!(found.stderr.contains("--help") || found.stderr.contains("Usage"), "{found:?}");
    }
    assert!(run(&["token_broker"]).await.stderr.contains("token-broker"), "no suggestion");
}

#[tokio::test]
async fn the_environment_must_be_said_and_up_is_for_dev() {
    let place = folder();
    for environment in ["prod", "staging", "bogus"] {
        let mut command = program();
        command.args(["up", "--free-ports", "--data"]).arg(place.path().join("data"));
        let message = ended(command.env("GATEHOUSE_ENV", environment)).await.refusal();
        let is_one = environment != "bogus";
        assert!(message.contains("is for dev") && message.contains("GATEHOUSE_ENV"), "{message}");
        // What is none may be a secret in the wrong place.
        assert_eq!(message.contains(&format!("GATEHOUSE_ENV is {environment}")), is_one, "{message}");
        assert_eq!(message.contains(environment), is_one, "{message}");
    }
    assert!(!place.path().join("data").exists());
    for service in ["gateway", "auth", "token-broker", "job", "audit", "optimizer", "migrate"] {
        let message = run(&[service]).await.refusal();
        assert!(message.contains("GATEHOUSE_ENV is not set. Set it to dev, staging or prod"), "{message}");
        let message = ended(program().arg(service).env("GATEHOUSE_ENV", "bogus")).await.refusal();
        assert!(message.contains("dev, staging, prod"), "{message}");
    }
}

/// Requirement T9a: production fails fast, and names each missing key or secret.
#[tokio::test]
async fn production_names_everything_that_is_missing_at_once() {
    let place = folder();
    let services: &[(&str, &[&str])] = &[
        ("gateway", &["client.secret_file", "gateway.public_url"]),
        ("auth", &["client.secret_file", "databases.auth.url", "auth.key_file"]),
        ("token-broker", &["client.secret_file", "databases.token_broker.url", "secrets.embedded.key_file"]),
        ("job", &["client.secret_file", "databases.job.url"]),
        ("audit", &["client.secret_file", "databases.audit.url", "audit.origin"]),
        ("optimizer", &["client.secret_file"]),
    ];
    for (service, keys) in services {
        let mut command = program();
        command.arg(service).env("GATEHOUSE_ENV", "prod").current_dir(place.path());
        let message = ended(&mut command).await.refusal();
        for key in *keys {
            let named = message.lines().any(|line| line.trim_start_matches("  - ").starts_with(key));
            assert!(named, "{service} does not name {key}: {message}");
        }
        assert!(!message.contains("secrets.secrets"), "{message}");
    }
    let mut command = program();
    command.arg("job").env("GATEHOUSE_ENV", "prod").env("GATEHOUSE_CLIENT__SECRET_FILE", "/nowhere/secret");
    let message = ended(&mut command).await.refusal();
    assert!(message.contains("client.secret_file: is not the path of a file"), "{message}");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "something was made");
}

#[tokio::test]
async fn a_second_process_on_the_same_data_is_refused_and_the_first_goes_on() {
    let place = folder();
    let first = Gatehouse::start(place.path()).await;
    let ada = first.account("ada").await;
    let message = up(place.path()).await.refusal();
    assert!(
        message.contains("another Gatehouse uses the data folder") && message.contains("--data"),
        "{message}"
    );
    let job = ada.optimize(&good_search()).await;
    assert_eq!(ada.finished(&job).await["state"], "succeeded");
}

#[tokio::test]
async fn a_corrupt_file_is_named_left_as_it_is_and_can_be_restored() {
    let place = folder();
    let first = Gatehouse::start(place.path()).await;
    assert!(first.stop().await.success());
    let data = place.path().join("data");
    let files = [
        "auth/auth.db",
        "token-broker/token-broker.db",
        "job/job.db",
        "audit/audit.db",
        "keys/auth.json",
        "keys/secrets.json",
        "keys/audit-checkpoint.key",
        "clients/job.secret",
    ];
    for name in files {
        let path = data.join(name);
        // What a start that was refused left in the log of a database would mend it at once.
        for log in ["wal", "shm"] {
            let _ = fs::remove_file(path.with_extension(format!("db-{log}")));
        }
        let sound = fs::read(&path).unwrap();
        let broken =
            if name.starts_with("clients") { String::new() } else { "not what it was\n".repeat(300) };
        fs::write(&path, &broken).unwrap();
        let message = up(place.path()).await.refusal();
        assert!(message.contains(name.rsplit('/').next().unwrap()), "{name} is not named: {message}");
        assert!(!message.contains("not what it was"), "{message}");
        assert_eq!(fs::read_to_string(&path).unwrap(), broken, "{name} was changed");
        fs::write(&path, sound).unwrap();
    }
    let restored = Gatehouse::start(place.path()).await;
    assert!(restored.ready["first_admin"].is_null(), "{}", restored.ready);
    assert!(restored.stop().await.success());
}

#[tokio::test]
async fn a_stop_drains_and_the_next_start_goes_on() {
    let place = folder();
    let slow = [("GATEHOUSE_OPTIMIZER__MIN_ITERATION_MS", "100")];
    let first = Gatehouse::start_with(place.path(), &[], &slow).await;
    let admin = first.ready["first_admin"].clone();
    let sign_in = json!({"email": admin["email"], "password": admin["password"]});
    let (status, session) = answer(first.request(Method::POST, "/v1/auth/sign-in").json(&sign_in)).await;
    assert_eq!(status, 200, "{session}");
    let ada = first.account("ada").await;
    let mut long = good_search();
    long["max_iterations"] = json!(40);
    let job = ada.optimize(&long).await;
    let mut events = ada.request(Method::GET, &format!("/v1/jobs/{job}/events")).send().await.unwrap();
    assert_eq!(events.status(), 200);
    let mut rest = String::new();
    while !rest.contains("event: progress") {
        rest.push_str(&String::from_utf8_lossy(&events.chunk().await.unwrap().expect("the first events")));
    }
    let token = ada.token().to_owned();
    assert!(first.stop().await.success());
    while let Ok(Some(chunk)) = events.chunk().await {
        rest.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(rest.contains("event: closed"), "the stream just broke: {rest}");

    let second = Gatehouse::start(place.path()).await;
    assert!(second.ready["first_admin"].is_null(), "{}", second.ready);
    let finished = gatehouse_testkit::eventually(crate::support::PATIENCE, || async {
        let (status, found) =
            answer(second.request(Method::GET, &format!("/v1/jobs/{job}")).bearer_auth(&token)).await;
        (status == 200 && !found["finished_at"].is_null()).then_some(found)
    });
    assert_eq!(finished.await["state"], "succeeded");
    let (status, _) = answer(second.request(Method::POST, "/v1/auth/sign-in").json(&sign_in)).await;
    assert_eq!(status, 200, "the first admin's password no longer holds");
    assert!(second.stop().await.success());
}

/// Then too the parts end one after the other: what they tell the audit service arrives. On a machine so busy that the start
/// does not come to its end in the time that it still has, events wait for the next one; never each time.
#[tokio::test]
async fn a_stop_before_everything_is_ready_leaves_no_event_behind() {
    let place = folder();
    let mut left = Vec::new();
    for number in 0..4 {
        let log = place.path().join(format!("log-{number}"));
        let mut child = program()
            .args(["up", "--free-ports", "--data"])
            .arg(place.path().join(format!("data-{number}")))
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let told = || fs::read_to_string(&log).unwrap();
        eventually(PATIENCE, || async { told().contains("serving gRPC") }).await;
        let id = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
        kill(id, Signal::SIGTERM).unwrap();
        let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends in time").unwrap();
        assert!(status.success(), "{status}: {}", told());
        left.extend(told().contains("are left in the outbox").then(told));
    }
    assert!(left.len() < 4, "{left:#?}");
}

#[tokio::test]
async fn the_configuration_is_checked_shown_and_documented() {
    let place = folder();
    let secret = place.path().join("secret");
    fs::write(&secret, "the-secret-in-the-file").unwrap();
    let with_secrets = |command: &mut tokio::process::Command| {
        command
            .env("GATEHOUSE_DATABASES__AUTH__URL", "postgres://me:hunter2hunter2@db.example/gatehouse")
            .env("GATEHOUSE_CLIENT__SECRET_FILE", &secret)
            .env("GATEHOUSE_ENV", "prod");
    };
    for arguments in [["config", "show"], ["config", "check"]] {
        let mut command = program();
        with_secrets(command.args(arguments));
        let found = ended(&mut command).await;
        let told = format!("{}{}", found.stdout, found.stderr);
        assert!(!told.contains("hunter2") && !told.contains("the-secret-in-the-file"), "{told}");
        assert_eq!(found.code, Some(i32::from(arguments[1] == "check")), "{found:?}");
    }
    let shown = run(&["config", "show"]).await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    // What is shown is itself a configuration.
    let file = place.path().join("shown.toml");
    fs::write(&file, &shown.stdout).unwrap();
    let again = ended(program().args(["config", "show", "--config"]).arg(&file)).await;
    assert_eq!((again.code, again.stdout), (Some(0), shown.stdout));
    let shown = run(&["config", "show", "--json"]).await;
    assert_eq!((shown.code, &told(&shown)["gateway"]["max_request_bytes"]), (Some(0), &json!(65_536)));

    let wrong = ended(program().args(["config", "check"]).env("GATEHOUSE_ENV", "prod")).await;
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    assert!(wrong.stderr.contains("databases.auth.url"), "{wrong:?}");
    let problems: Vec<_> = wrong.stderr.lines().collect();
    for (environment, code, expected) in [
        ("prod", 1, json!({"sound": false, "problems": problems})),
        ("dev", 0, json!({"sound": true, "problems": []})),
    ] {
        let found =
            ended(program().args(["config", "check", "--json"]).env("GATEHOUSE_ENV", environment)).await;
        assert_eq!((found.code, told(&found)), (Some(code), expected), "{found:?}");
    }
    // One service's part of it; and in dev nothing that `up` makes is missed.
    let one =
        ended(program().args(["config", "check", "--service", "job"]).env("GATEHOUSE_ENV", "prod")).await;
    assert_eq!(one.code, Some(1), "{one:?}");
    assert!(one.stderr.contains("client.secret_file") && !one.stderr.contains("databases.auth"), "{one:?}");
    let sound = ended(program().args(["config", "check"]).env("GATEHOUSE_ENV", "dev")).await;
    assert_eq!(
        (sound.code, sound.stdout.trim()),
        (Some(0), "The configuration is sound."),
        "{}",
        sound.stderr
    );
    let table = run(&["config", "docs"]).await;
    assert_eq!(table.code, Some(0));
    assert!(table.stdout.contains("| `gateway.max_request_bytes` |"), "{}", table.stdout);
}

#[tokio::test]
async fn key_files_are_made_once() {
    let place = folder();
    for (name, variable) in
        [("keys", "GATEHOUSE_AUTH__KEY_FILE"), ("secrets-key", "GATEHOUSE_SECRETS__EMBEDDED__KEY_FILE")]
    {
        let file = place.path().join("folder").join(name);
        let create = || {
            let mut command = program();
            command.args(["admin", name, "create"]).env("GATEHOUSE_ENV", "prod").env(variable, &file);
            command
        };
        let made = ended(&mut create()).await;
        assert_eq!(made.code, Some(0), "{made:?}");
        assert!(made.stdout.contains(file.to_str().unwrap()), "{made:?}");
        let key = fs::read(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(ended(&mut create()).await.refusal().contains("never overwritten"));
        assert_eq!(fs::read(&file).unwrap(), key);
    }
    let message =
        ended(program().args(["admin", "keys", "create"]).env("GATEHOUSE_ENV", "prod")).await.refusal();
    assert!(message.contains("auth.key_file: name the file"), "{message}");
}

#[tokio::test]
async fn migrations_are_told_and_done() {
    let place = folder();
    let command = |status: bool| {
        let mut command = program();
        command.arg("migrate").args(status.then_some("--status")).env("GATEHOUSE_ENV", "dev");
        for (name, file) in [("AUTH", "a"), ("TOKEN_BROKER", "t"), ("JOB", "j"), ("AUDIT", "u")] {
            let url = format!("sqlite:{}", place.path().join(file).display());
            command.env(format!("GATEHOUSE_DATABASES__{name}__URL"), url);
        }
        command
    };
    for (status, code, state) in
        [(true, 1, "Pending"), (false, 0, "Applied"), (true, 0, "Applied"), (false, 0, "Applied")]
    {
        let found = ended(&mut command(status)).await;
        assert_eq!(found.code, Some(code), "{found:?}");
        let lines: Vec<&str> = found.stdout.lines().collect();
        assert!(lines.len() >= 4 && lines.iter().all(|line| line.ends_with(state)), "{found:?}");
    }
    let found = ended(command(true).args(["--service", "job"])).await;
    assert!(found.stdout.lines().all(|line| line.starts_with("job ")), "{found:?}");
    let found = ended(command(true).args(["--service", "audit", "--json"])).await;
    let first: Value = serde_json::from_str(found.stdout.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["service"], &first["version"], &first["state"], first["name"].is_string()),
        (&json!("audit"), &json!(1), &json!("applied"), true),
        "{found:?}"
    );
    let found = ended(command(true).args(["--service", "jobs"])).await;
    assert_eq!(found.code, Some(2), "{found:?}");
}

#[tokio::test]
async fn every_command_explains_itself() {
    for command in [
        "up",
        "gateway",
        "auth",
        "token-broker",
        "job",
        "audit",
        "optimizer",
        "migrate",
        "verify-audit-chain",
        "submit",
        "config check",
        "config show",
        "admin keys create",
        "admin secrets-key create",
    ] {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        arguments.push("--help");
        let found = run(&arguments).await;
        assert_eq!(found.code, Some(0), "{found:?}");
        assert!(found.stdout.contains("Usage: gatehouse"), "{command}: {}", found.stdout);
        assert!(found.stdout.contains("Example"), "{command} shows no example: {}", found.stdout);
    }
    let whole = run(&["--help"]).await;
    assert!(
        whole.stdout.contains("Exit status") && whole.stdout.contains("gatehouse up"),
        "{}",
        whole.stdout
    );
    assert!(run(&["--version"]).await.stdout.starts_with("gatehouse "));
}

#[tokio::test]
async fn a_hangup_puts_new_rate_limits_in_force_and_wrong_ones_change_nothing() {
    let place = folder();
    let file = place.path().join("gatehouse.toml");
    let write = |capacity: &str| {
        let text = format!("[rate_limits.rules.ip]\ncapacity = {capacity}\ninterval_s = 60\n");
        fs::write(&file, text).unwrap();
    };
    let log = || fs::read_to_string(place.path().join("gatehouse.log")).unwrap();
    let errors = || log().lines().filter(|line| line.contains("\"level\":\"ERROR\"")).count();
    write("500");
    let gatehouse = Gatehouse::start_with(place.path(), &["--config", file.to_str().unwrap()], &[]).await;
    let policy = || async {
        let answer = gatehouse.request(Method::GET, "/openapi.json").send().await.unwrap();
        answer.headers()["ratelimit-policy"].to_str().unwrap().to_owned()
    };
    assert!(policy().await.contains("q=500"), "{}", policy().await);
    write("600");
    assert!(policy().await.contains("q=500"), "nothing is read before the signal");
    gatehouse.signal(Signal::SIGHUP);
    eventually(PATIENCE, || async { policy().await.contains("q=600") }).await;
    for (wrong, told) in [(1, "0"), (2, "[")] {
        write(told);
        gatehouse.signal(Signal::SIGHUP);
        eventually(PATIENCE, || async { errors() == wrong }).await;
        assert!(policy().await.contains("q=600"), "{}", policy().await);
    }
    assert!(log().contains("rate_limits.rules.ip"), "the error names the key: {}", log());
    write("700");
    gatehouse.signal(Signal::SIGHUP);
    eventually(PATIENCE, || async { policy().await.contains("q=700") }).await;
    assert_eq!(errors(), 2);
    assert!(gatehouse.stop().await.success());
}
