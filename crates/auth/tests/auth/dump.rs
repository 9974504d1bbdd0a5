//! What a thief of the database has: no token, no password, no key.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use gatehouse_auth::MIGRATIONS;
use gatehouse_db::{Engine, params, read_tx, sql};
use gatehouse_proto::auth::v1::CreateApiKeyRequest;
use gatehouse_testkit::{TestDb, both_engines};

use crate::support::{CLIENT_SECRET, Cluster, PASSWORD};

sql! {
    PEOPLE = "SELECT t::text AS line FROM people t", sqlite: "SELECT '' AS line FROM people";
    SESSIONS = "SELECT t::text AS line FROM sessions t", sqlite: "SELECT '' AS line FROM sessions";
    API_KEYS = "SELECT t::text AS line FROM api_keys t", sqlite: "SELECT '' AS line FROM api_keys";
    SIGNING_KEYS = "SELECT t::text AS line FROM signing_keys t", sqlite: "SELECT '' AS line FROM signing_keys";
    REVOCATIONS = "SELECT t::text AS line FROM revocations t", sqlite: "SELECT '' AS line FROM revocations";
    OUTBOX = "SELECT t::text AS line FROM audit_outbox t", sqlite: "SELECT '' AS line FROM audit_outbox";
}

/// Everything that is stored, as bytes, with binary columns in hex too.
async fn dump(db: &TestDb) -> Vec<u8> {
    let mut dumped = Vec::new();
    for table in ALL {
        let lines = read_tx!(db.db(), "test.dump", |tx| { tx.fetch_all(table, params![]).await }).unwrap();
        assert!(
            !lines.is_empty() || table.name() == "REVOCATIONS",
            "{} is empty: the test looks at nothing",
            table.name()
        );
        for line in lines {
            dumped.extend(line.get::<String>("line").unwrap().into_bytes());
        }
    }
    if db.engine() == Engine::Sqlite {
        let path = db.config().url.sqlite_path().unwrap();
        for suffix in ["", "-wal"] {
            let mut name = path.clone().into_os_string();
            name.push(suffix);
            dumped.extend(std::fs::read(name).unwrap_or_default());
        }
    }
    dumped
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

both_engines! {
    migrations: MIGRATIONS;

    async fn no_secret_is_in_the_database(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let replica = cluster.at(0);
        replica.register("ada@example.com", "Engines").await;
        assert!(replica.try_sign_in("ada@example.com", "a wrong but secret guess", "").await.is_err());
        let first = replica.sign_in("ada@example.com").await;
        let second = replica.refresh(&first.refresh_token).await.unwrap();
        let mut ada = replica.as_subject(&second.access_token).await;
        let request = CreateApiKeyRequest { name: "ci".into(), ..CreateApiKeyRequest::default() };
        let key = ada.api_keys.create_api_key(request).await.unwrap().into_inner().text;
        replica.exchange(&key, gatehouse_client::audience::JOB).await.unwrap();

        let ring: serde_json::Value = serde_json::from_slice(&std::fs::read(&cluster.config.key_file).unwrap()).unwrap();
        let master = STANDARD.decode(ring["keys"][0]["secret"].as_str().unwrap()).unwrap();
        let mut secrets: Vec<Vec<u8>> = [PASSWORD, "a wrong but secret guess", CLIENT_SECRET, &key]
            .into_iter()
            .chain([&first, &second].into_iter().flat_map(|pair| [pair.access_token.as_str(), pair.refresh_token.as_str()]))
            .map(|text| text.as_bytes().to_vec())
            .collect();
        for token in [&first.refresh_token, &second.refresh_token] {
            let body = token.splitn(5, '_').nth(4).unwrap();
            // Family, generation, secret, tag.
            secrets.push(URL_SAFE_NO_PAD.decode(body).unwrap()[20..52].to_vec());
        }
        secrets.push(URL_SAFE_NO_PAD.decode(key.splitn(5, '_').nth(4).unwrap()).unwrap());
        secrets.push(master);

        let dumped = dump(&db).await;
        let holds = |needle: &[u8]| dumped.windows(needle.len()).any(|window| window == needle);
        assert!(holds(b"ada@example.com"), "the dump misses what must be in it");
        for secret in secrets {
            assert!(!holds(&secret) && !holds(hex(&secret).as_bytes()), "a secret is in the database: {}", String::from_utf8_lossy(&secret));
        }
    }
}
