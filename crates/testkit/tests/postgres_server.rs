//! A test server comes up, and goes when its process goes.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gatehouse_db::{Config, DatabaseUrl, Db, Migrations, migrations, params, read_tx, run_tx, sql};
use gatehouse_testkit::{Postgres, TestDb, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use url::Url;

const MIGRATIONS: Migrations = migrations!["0001_init" => "CREATE TABLE things (id BIGINT PRIMARY KEY)"];

sql! {
    COUNT_SCHEMAS = "SELECT COUNT(*) AS schemas FROM pg_namespace WHERE nspname = $1";
    ADD_THING = "INSERT INTO things (id) VALUES ($1)";
    COUNT_THINGS = "SELECT COUNT(*) AS things FROM things";
}

fn answers(url: &str) -> bool {
    let port = Url::parse(url).unwrap().port().unwrap();
    TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_secs(1)).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_goes_with_its_test() {
    let watching = TestDb::postgres(&MIGRATIONS).await;
    let count = async |schema: &str| {
        let row =
            read_tx!(watching, "test.count", |tx| { tx.fetch_one(&COUNT_SCHEMAS, params![schema]).await });
        row.unwrap().get::<i64>("schemas").unwrap()
    };
    let gone = TestDb::postgres(&MIGRATIONS).await;
    let schema = gone.config().schema.clone().unwrap();
    assert_eq!(count(&schema).await, 1);
    drop(gone);
    assert_eq!(count(&schema).await, 0);
}

#[test]
fn a_dropped_server_is_gone() {
    let server = Postgres::start().unwrap();
    let url = server.url().to_owned();
    assert!(answers(&url));
    drop(server);
    assert!(!answers(&url));
}

/// What was committed is there after a crash, on the same address.
#[tokio::test(flavor = "multi_thread")]
async fn a_lasting_server_keeps_its_commits_through_a_stop_and_a_crash() {
    let mut server = Postgres::start_lasting().unwrap();
    let url = server.url().to_owned();
    let connect = || async {
        let config = Config { url: DatabaseUrl::new(url.clone()), ..Config::default() };
        Db::connect(&config, "testkit").await.unwrap()
    };
    connect().await.migrate(&MIGRATIONS).await.unwrap();
    for (number, crash) in [(1_i64, true), (2, false), (3, true)] {
        let db = connect().await;
        run_tx!(db, "test.add", |tx| { tx.execute(&ADD_THING, params![number]).await }).unwrap();
        if crash {
            server.crash().unwrap();
        } else {
            server.stop().unwrap();
        }
        assert!(!answers(&url));
        server.start_again().unwrap();
        let row =
            read_tx!(connect().await, "test.count", |tx| { tx.fetch_one(&COUNT_THINGS, params![]).await });
        assert_eq!(row.unwrap().get::<i64>("things").unwrap(), number);
    }
}

/// Starts the servers around a command that waits for its input to close, and returns PostgreSQL's address.
async fn start_servers() -> (Child, String) {
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("url");
    let script = r#"printf %s "$GATEHOUSE_TEST_POSTGRES_URL" > "$0.part" && mv "$0.part" "$0"; exec cat"#;
    let starter = Command::new(env!("CARGO_BIN_EXE_gatehouse-test-servers"))
        .args(["--", "sh", "-c", script])
        .arg(&told)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let url = eventually(Duration::from_mins(2), async || std::fs::read_to_string(&told).ok()).await;
    assert!(answers(&url));
    (starter, url)
}

/// `kill -9` of the process that started the servers, the hardest end there is.
#[tokio::test]
async fn a_killed_process_leaves_no_server() {
    let (mut starter, url) = start_servers().await;
    let input = starter.stdin.take();
    starter.kill().unwrap();
    starter.wait().unwrap();
    eventually(Duration::from_secs(30), async || !answers(&url)).await;
    drop(input);
}

#[tokio::test]
async fn a_signal_ends_the_command_and_then_the_servers() {
    let (mut starter, url) = start_servers().await;
    let _input = starter.stdin.take();
    kill(Pid::from_raw(i32::try_from(starter.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(starter.wait().unwrap().code(), Some(143));
    assert!(!answers(&url));
}

#[test]
fn the_status_is_the_commands() {
    let status = |script: &str| {
        let servers = env!("CARGO_BIN_EXE_gatehouse-test-servers");
        Command::new(servers).args(["--", "sh", "-c", script]).status().unwrap().code()
    };
    assert_eq!(
        status(r#"test -n "$GATEHOUSE_TEST_POSTGRES_URL" -a -n "$GATEHOUSE_TEST_REDIS_URL" && exit 7"#),
        Some(7)
    );
    assert_eq!(status("kill -TERM $$"), Some(143));
}
