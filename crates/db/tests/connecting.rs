//! Connecting, and being told what is wrong.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use gatehouse_db::{Config, DatabaseUrl, Db, Migrations, Sql, migrations, params, read_tx, run_tx};
use gatehouse_testkit::{Postgres, TestDb};
use url::Url;

const MIGRATIONS: Migrations = migrations!["0001_init" => "CREATE TABLE a (id BIGINT PRIMARY KEY)"];

async fn refusal(config: Config) -> String {
    Db::connect(&config, "test").await.expect_err("it connected").to_string()
}

fn sqlite(path: &Path) -> Config {
    Config { url: DatabaseUrl::sqlite(path), ..Config::default() }
}

fn postgres(change: impl FnOnce(&mut Url)) -> Config {
    let mut url = Url::parse(Postgres::shared().unwrap().url()).unwrap();
    change(&mut url);
    Config { url: DatabaseUrl::new(url), acquire_timeout_ms: 500, ..Config::default() }
}

const SQLITE_SETTINGS: Sql = Sql::new(
    "SETTINGS",
    "SELECT (SELECT journal_mode FROM pragma_journal_mode) AS journal,
            (SELECT synchronous FROM pragma_synchronous) AS synchronous,
            (SELECT foreign_keys FROM pragma_foreign_keys) AS keys,
            (SELECT secure_delete FROM pragma_secure_delete) AS shred",
);

#[tokio::test]
async fn sqlite_files_are_private_durable_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a b.db");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let db = Db::connect(&sqlite(&path), "test").await.unwrap();
    db.migrate(&MIGRATIONS).await.unwrap();
    for file in fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
    let row = run_tx!(db, "test.settings", |tx| { tx.fetch_one(&SQLITE_SETTINGS, params![]).await }).unwrap();
    assert_eq!(row.get::<String>("journal").unwrap(), "wal");
    let number = |name| row.get::<i64>(name).unwrap();
    assert_eq!((number("synchronous"), number("keys"), number("shred")), (2, 1, 1));
}

const SQLITE_CACHE: Sql = Sql::new("CACHE", "SELECT cache_size AS pages FROM pragma_cache_size");

#[tokio::test]
async fn a_connection_to_sqlite_keeps_little_of_the_file_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let db = Db::connect(&sqlite(&folder.path().join("a.db")), "test").await.unwrap();
    let writer = run_tx!(db, "test.cache", |tx| { tx.fetch_one(&SQLITE_CACHE, params![]).await }).unwrap();
    let reader = read_tx!(db, "test.cache", |tx| { tx.fetch_one(&SQLITE_CACHE, params![]).await }).unwrap();
    // Negative: KiB. There are up to four readers for each of four files in an embedded Gatehouse.
    assert_eq!((writer.get::<i64>("pages").unwrap(), reader.get::<i64>("pages").unwrap()), (-1024, -256));
}

#[tokio::test]
async fn sqlite_says_what_is_wrong_with_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let missing = refusal(sqlite(&folder.path().join("nowhere/a.db"))).await;
    assert!(missing.contains("nowhere") && missing.contains("Create it or change the url"), "{missing}");
    let text = folder.path().join("letter.txt");
    fs::write(&text, "Dear database, ".repeat(100)).unwrap();
    let not_one = refusal(sqlite(&text)).await;
    assert!(not_one.contains("letter.txt is not a SQLite database"), "{not_one}");
    let is_folder = refusal(sqlite(folder.path())).await;
    assert!(is_folder.contains("can't open the database file"), "{is_folder}");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_says_what_is_wrong_with_the_address() {
    let nobody = refusal(postgres(|url| url.set_port(Some(1)).unwrap())).await;
    assert!(nobody.contains("127.0.0.1:1 did not answer"), "{nobody}");
    let password = refusal(postgres(|url| url.set_password(Some("wrong-password")).unwrap())).await;
    assert!(password.contains("refused user") && !password.contains("wrong-password"), "{password}");
    let database = refusal(postgres(|url| url.set_path("/nowhere"))).await;
    assert!(database.contains("createdb nowhere"), "{database}");
    let plain = refusal(postgres(|url| url.set_query(Some("sslmode=require")))).await;
    assert!(plain.contains("sslmode"), "{plain}");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_connections_are_set_up() {
    const SETTINGS: Sql = Sql::new(
        "SETTINGS",
        "SELECT current_setting('search_path') AS path, current_setting('statement_timeout') AS timeout,
                current_setting('application_name') AS name, current_setting('transaction_isolation') AS isolation",
    );
    let db = TestDb::postgres(&MIGRATIONS).await;
    let text = |row: &gatehouse_db::Row, name| row.get::<String>(name).unwrap();
    let row = run_tx!(db.db(), "test.settings", |tx| { tx.fetch_one(&SETTINGS, params![]).await }).unwrap();
    assert_eq!(text(&row, "path"), db.config().schema.clone().unwrap());
    assert_eq!((text(&row, "timeout"), text(&row, "name")), ("1min".into(), "gatehouse-test".into()));
    assert_eq!(text(&row, "isolation"), "read committed");
    let row = read_tx!(db.db(), "test.settings", |tx| { tx.fetch_one(&SETTINGS, params![]).await }).unwrap();
    assert_eq!(text(&row, "isolation"), "repeatable read");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_may_stand_in_a_file_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    let password = Url::parse(Postgres::shared().unwrap().url()).unwrap().password().unwrap().to_owned();
    fs::write(&file, format!("{password}\n")).unwrap();
    let mut config = postgres(|url| url.set_password(None).unwrap());
    config.password_file = Some(file);
    Db::connect(&config, "test").await.unwrap().ping().await.unwrap();
    config.password_file = Some(folder.path().join("missing"));
    assert!(refusal(config).await.contains("Check password_file"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_takes_too_long_is_cut_off() {
    const SLOW: Sql = Sql::new("SLOW", "SELECT CAST(pg_sleep(60) AS TEXT) AS done");
    let test = TestDb::postgres(&MIGRATIONS).await;
    let config = Config { statement_timeout_ms: 50, ..test.config().clone() };
    let db = Db::connect(&config, "test").await.unwrap();
    let error = run_tx!(db, "test.slow", |tx| { tx.fetch_one(&SLOW, params![]).await }).unwrap_err();
    assert!(error.is_unavailable(), "{error}");
}

/// All that lies in a folder but for indexes of logs, which are made anew wherever they are missing.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()))
        .filter(|(name, bytes)| !name.ends_with("-shm") && !bytes.is_empty())
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn what_is_opened_to_read_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let missing = Db::connect_read_only(&sqlite(&path), "test").await.unwrap_err().to_string();
    assert!(missing.contains("a.db can't be read"), "{missing}");
    assert!(!path.exists(), "it was made");
    let db = Db::connect(&sqlite(&path), "test").await.unwrap();
    db.migrate(&MIGRATIONS).await.unwrap();
    run_tx!(db, "test.add", |tx| { tx.execute(&ADD, params![1_i64]).await }).unwrap();
    // As of a process that was killed, and as of one that has ended.
    let (killed, ended) = (folder.path().join("killed"), folder.path().join("ended"));
    fs::create_dir(&killed).unwrap();
    fs::create_dir(&ended).unwrap();
    for file in ["a.db", "a.db-wal"] {
        fs::copy(folder.path().join(file), killed.join(file)).unwrap();
    }
    let live = Db::connect_read_only(&sqlite(&path), "test").await.unwrap();
    assert_eq!(count(&live).await, 1);
    run_tx!(db, "test.add", |tx| { tx.execute(&ADD, params![2_i64]).await }).unwrap();
    assert_eq!(count(&live).await, 2, "what is written meanwhile is not seen");
    live.close().await;
    db.close().await;
    fs::copy(&path, ended.join("a.db")).unwrap();

    for (folder, rows) in [(&killed, 1), (&ended, 2)] {
        let file = folder.join("a.db");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
        let before = contents(folder);
        let db = Db::connect_read_only(&sqlite(&file), "test").await.unwrap();
        assert_eq!(count(&db).await, rows);
        let written = run_tx!(db, "test.add", |tx| { tx.execute(&ADD, params![3_i64]).await });
        assert!(written.is_err());
        db.close().await;
        assert_eq!(contents(folder), before);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o444);
    }
}

/// Where not even an index can be made. (Whoever runs this as root may write everywhere, and reads as above.)
#[tokio::test]
async fn a_file_in_a_folder_that_nobody_may_write_to_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let db = Db::connect(&sqlite(&path), "test").await.unwrap();
    db.migrate(&MIGRATIONS).await.unwrap();
    db.close().await;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let db = Db::connect_read_only(&sqlite(&path), "test").await.unwrap();
    assert_eq!(count(&db).await, 0);
    db.close().await;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn postgresql_is_only_read_too() {
    let test = TestDb::postgres(&MIGRATIONS).await;
    let db = Db::connect_read_only(test.config(), "test").await.unwrap();
    assert_eq!(count(&db).await, 0);
    let row = read_tx!(db, "test.setting", |tx| { tx.fetch_one(&READ_ONLY, params![]).await }).unwrap();
    assert_eq!(row.get::<String>("setting").unwrap(), "on");
    db.close().await;
}

const ADD: Sql = Sql::new("ADD", "INSERT INTO a (id) VALUES ($1)");
const COUNT: Sql = Sql::new("COUNT", "SELECT COUNT(*) AS rows FROM a");
const READ_ONLY: Sql =
    Sql::new("READ_ONLY", "SELECT current_setting('default_transaction_read_only') AS setting");

async fn count(db: &Db) -> i64 {
    read_tx!(db, "test.count", |tx| { tx.fetch_one(&COUNT, params![]).await?.get("rows") }).unwrap()
}
