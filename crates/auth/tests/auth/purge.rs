//! What is over goes away by itself.

use std::time::Duration;

use gatehouse_auth::MIGRATIONS;
use gatehouse_db::{params, read_tx, sql};
use gatehouse_proto::auth::v1::{CreateApiKeyRequest, RevokeTokenRequest};
use gatehouse_testkit::{TestDb, both_engines, eventually};

use crate::support::{Cluster, PATIENCE};

sql! {
    COUNTS = "SELECT (SELECT COUNT(*) FROM sessions) AS sessions, (SELECT COUNT(*) FROM api_keys) AS api_keys, (SELECT COUNT(*) FROM revocations) AS revocations";
}

async fn counts(db: &TestDb) -> [i64; 3] {
    let row = read_tx!(db.db(), "test.counts", |tx| { tx.fetch_one(&COUNTS, params![]).await }).unwrap();
    ["sessions", "api_keys", "revocations"].map(|column| row.get(column).unwrap())
}

both_engines! {
    migrations: MIGRATIONS;

    async fn what_is_over_is_forgotten_and_nothing_else(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        cluster.at(0).register("ada@example.com", "Engines").await;
        let tokens = cluster.at(0).sign_in("ada@example.com").await;
        let mut ada = cluster.at(0).as_subject(&tokens.access_token).await;
        let key = CreateApiKeyRequest { name: "ci".into(), lifetime_seconds: 40 * 86_400, ..CreateApiKeyRequest::default() };
        ada.api_keys.create_api_key(key).await.unwrap();
        cluster.at(0).tokens().revoke_token(RevokeTokenRequest { token: tokens.refresh_token }).await.unwrap();
        assert_eq!(counts(&db).await, [1, 1, 1]);
        cluster.clock.advance(Duration::from_hours(3));
        eventually(PATIENCE, || async { counts(&db).await == [1, 1, 0] }).await;
        cluster.clock.advance(Duration::from_hours(31 * 24));
        eventually(PATIENCE, || async { counts(&db).await == [0, 1, 0] }).await;
        cluster.clock.advance(Duration::from_hours(10 * 24));
        eventually(PATIENCE, || async { counts(&db).await == [0, 0, 0] }).await;
    }
}
