//! The first tenant and its admin.

use gatehouse_auth::MIGRATIONS;
use gatehouse_testkit::{TestDb, both_engines};

use crate::support::{Cluster, claims};

both_engines! {
    migrations: MIGRATIONS;

    async fn only_one_of_many_makes_the_first_tenant(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        let asked = (0..8).map(|place| {
            let app = cluster.at(place).server.app.clone();
            tokio::spawn(async move { app.bootstrap("Admin@example.com", "Home").await.unwrap() })
        });
        let mut made = Vec::new();
        for attempt in asked.collect::<Vec<_>>() {
            made.extend(attempt.await.unwrap());
        }
        assert_eq!(made.len(), 1);
        let admin = made.pop().unwrap();
        let tokens = cluster.at(1).try_sign_in(&admin.email, admin.password.expose(), "").await.unwrap();
        assert_eq!(tokens.tenant_id, admin.tenant.to_string());
        assert_eq!(claims(&tokens.access_token)["roles"], serde_json::json!(["owner", "platform_admin"]));
        let app = &cluster.at(0).server.app;
        let hashes = app.hashes_computed();
        assert!(app.bootstrap("other@example.com", "Other").await.unwrap().is_none());
        assert_eq!(app.hashes_computed(), hashes, "a later start computes no hash and holds no memory for one");
    }
}
