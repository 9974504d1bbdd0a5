//! What an administrator's and a container's commands say.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Gatehouse, answer, ended, folder, program};

#[tokio::test]
async fn a_health_check_tells_ready_from_nobody() {
    let place = folder();
    let gatehouse = Gatehouse::start(place.path()).await;
    let probes = gatehouse.ready["probes"].as_str().unwrap().trim_start_matches("http://").to_owned();
    let check = || {
        let mut command = program();
        command.arg("healthcheck").env("GATEHOUSE_PROBES__ADDRESS", &probes);
        command
    };
    let ready = ended(&mut check()).await;
    assert_eq!((ready.code, ready.stderr.as_str()), (Some(0), ""));
    assert!(gatehouse.stop().await.success());
    assert!(ended(&mut check()).await.refusal().contains("nothing answers"));
}

#[tokio::test]
async fn the_first_admin_is_made_once_and_can_sign_in() {
    let place = folder();
    let path = |name: &str| place.path().join("data").join(name);
    std::fs::create_dir_all(path("auth")).unwrap();
    std::fs::create_dir_all(path("keys")).unwrap();
    let url = format!("sqlite:{}", path("auth/auth.db").display());
    let command = |arguments: &[&str]| {
        let mut command = program();
        command.args(arguments).env("GATEHOUSE_ENV", "dev").env("GATEHOUSE_DATABASES__AUTH__URL", &url);
        command.env("GATEHOUSE_AUTH__KEY_FILE", path("keys/auth.json"));
        command
    };
    let migrated = ended(&mut command(&["migrate", "--service", "auth"])).await;
    assert_eq!(migrated.code, Some(0), "{migrated:?}");
    let create =
        ["admin", "first-admin", "create", "--email", "ada@example.org", "--tenant", "Engines", "--json"];
    let made = ended(&mut command(&create)).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    let made: Value = serde_json::from_str(&made.stdout).unwrap();
    let again = ended(&mut command(&create)).await;
    assert_eq!((again.code, again.stdout.as_str()), (Some(1), ""), "{again:?}");

    // The same folder, as `up` lays it out.
    let gatehouse = Gatehouse::start(place.path()).await;
    assert_eq!(gatehouse.ready["first_admin"], Value::Null);
    let credentials = json!({"email": made["email"], "password": made["password"]});
    let (status, session) =
        answer(gatehouse.request(Method::POST, "/v1/auth/sign-in").json(&credentials)).await;
    assert_eq!(status, StatusCode::OK, "{session}");
    assert!(gatehouse.stop().await.success());
}

#[tokio::test]
async fn the_search_for_secrets_knows_every_one_that_is_made() {
    let place = folder();
    let root = place.path().join("secrets");
    for arguments in
        [&["admin", "secrets", "create", "--folder"][..], &["certs", "--public-dns", "h", "--out"]]
    {
        let mut command = program();
        command.env("GATEHOUSE_ENV", "dev").args(arguments).arg(&root);
        assert_eq!(ended(&mut command).await.code, Some(0));
    }
    let mut command = tokio::process::Command::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../deploy/compose/list-secrets"
    ));
    let listed = ended(command.arg(&root)).await;
    assert_eq!(listed.code, Some(0), "{listed:?}");
    let found = |file: &str, secret: &str| {
        let line = format!("{}\t{secret}", root.join(file).display());
        assert!(listed.stdout.lines().any(|listed| listed == line), "{file}: {}", listed.stdout);
    };
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let keys = |file: &str| serde_json::from_str::<Value>(&read(file)).unwrap()["keys"][0].clone();
    found("auth/keys.json", keys("auth/keys.json")["secret"].as_str().unwrap());
    found("token-broker/keys.json", keys("token-broker/keys.json")["key"].as_str().unwrap());
    found("audit/checkpoint.key", read("audit/checkpoint.key").trim());
    found("job/client.secret", &read("job/client.secret"));
    found("job/redis.url", &read("redis/job.password"));
    for key in ["ca/ca.key", "ca/public/ca.key", "https/tls.key", "auth/tls.key"] {
        found(key, read(key).lines().nth(1).unwrap());
    }
    // Nothing was passed over in silence.
    assert!(listed.stdout.lines().all(|line| !line.ends_with('\t')), "{}", listed.stdout);
    std::fs::write(root.join("job/new.kind"), "").unwrap();
    let mut command = tokio::process::Command::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../deploy/compose/list-secrets"
    ));
    assert!(ended(command.arg(&root)).await.stdout.contains("new.kind\t\n"));
}
