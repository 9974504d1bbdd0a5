//! TLS to a PostgreSQL that has it, and to one that has not.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::PathBuf;

use gatehouse_db::{Config, DatabaseUrl, Db, Sql, params, read_tx};
use gatehouse_testkit::{Authority, Postgres};
use url::Url;

const ENCRYPTION: Sql =
    Sql::new("ENCRYPTION", "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()");

fn config(server: &Postgres, sslmode: &str, host: &str, ca_file: Option<PathBuf>) -> Config {
    let mut url = Url::parse(server.url()).unwrap();
    url.set_host(Some(host)).unwrap();
    url.query_pairs_mut().append_pair("sslmode", sslmode);
    Config { url: DatabaseUrl::new(url), ca_file, acquire_timeout_ms: 20_000, ..Config::default() }
}

/// The version of TLS that the server itself says the connection has; `None` in the clear.
async fn encryption(config: &Config) -> Option<String> {
    let db = Db::connect(config, "test").await.unwrap();
    let row = read_tx!(db, "test.encryption", |tx| { tx.fetch_one(&ENCRYPTION, params![]).await }).unwrap();
    row.get::<bool>("ssl").unwrap().then(|| row.get::<String>("version").unwrap())
}

async fn refusal(config: &Config) -> String {
    Db::connect(config, "test").await.expect_err("it connected").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_is_what_is_used() {
    let place = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::new(), Authority::new());
    let write = |name: &str, authority: &Authority| Some(authority.write_certificate(place.path(), name));
    let (ours, others) = (write("ca.crt", &authority), write("other.crt", &other));
    let server = Postgres::start_with_tls(&authority).unwrap();
    let tls = Some("TLSv1.3".to_owned());
    for (sslmode, ca_file) in [("require", None), ("verify-ca", ours.clone()), ("verify-full", ours.clone())]
    {
        for host in ["127.0.0.1", "localhost"] {
            assert_eq!(
                encryption(&config(&server, sslmode, host, ca_file.clone())).await,
                tls,
                "{sslmode} {host}"
            );
        }
    }
    assert_eq!(encryption(&config(&server, "disable", "127.0.0.1", None)).await, None);

    // An authority that did not sign it, none of ours, and a name that it does not have.
    for (sslmode, ca_file) in [("verify-full", others.clone()), ("verify-ca", others), ("verify-full", None)]
    {
        let refused = refusal(&config(&server, sslmode, "127.0.0.1", ca_file)).await;
        assert!(refused.contains("UnknownIssuer") && refused.contains("ca_file"), "{sslmode}: {refused}");
    }
    let refused = refusal(&config(&server, "verify-full", "0.0.0.0", ours.clone())).await;
    assert!(refused.contains("not valid for"), "{refused}");
    let refused = refusal(&config(&server, "verify-full", "127.0.0.1", Some("/nowhere.pem".into()))).await;
    // What leads nowhere may be a secret in the wrong place; the key says where it stands.
    assert!(refused.contains("not shown") && refused.contains("Check ca_file"), "{refused}");
    assert!(!refused.contains("nowhere"), "{refused}");

    // One that has no TLS is not talked to.
    let plain = Postgres::shared().unwrap();
    for (sslmode, ca_file) in [("require", None), ("verify-full", ours)] {
        let refused = refusal(&config(plain, sslmode, "127.0.0.1", ca_file)).await;
        assert!(refused.contains("server does not support TLS"), "{sslmode}: {refused}");
    }
}
