//! The first tenant and its admin.

use gatehouse_auth::MIGRATIONS;
use gatehouse_auth::app::bootstrap::FirstAdmin;
use gatehouse_core::{Error, Result};
use gatehouse_testkit::{TestDb, both_engines};

use crate::support::{Cluster, claims};

fn keep(admin: &FirstAdmin) -> Result<()> {
    if admin.password.expose().is_empty() { lose(admin) } else { Ok(()) }
}

fn lose(_: &FirstAdmin) -> Result<()> {
    Err(Error::internal("the disk is full"))
}

both_engines! {
    migrations: MIGRATIONS;

    async fn only_one_of_many_makes_the_first_tenant(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        // A password that nobody keeps is nobody's: nothing was made.
        assert!(cluster.at(0).server.app.bootstrap("admin@example.com", "Home", lose).await.is_err());
        let asked = (0..8).map(|place| {
            let app = cluster.at(place).server.app.clone();
            tokio::spawn(async move { app.bootstrap("Admin@example.com", "Home", keep).await.unwrap() })
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
        assert!(app.bootstrap("other@example.com", "Other", lose).await.unwrap().is_none());
        assert_eq!(app.hashes_computed(), hashes, "a later start computes no hash and holds no memory for one");
    }
}
