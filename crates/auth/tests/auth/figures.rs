//! Figures, not tests: `cargo test -p gatehouse-auth --test auth figures -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use gatehouse_auth::MIGRATIONS;
use gatehouse_client::audience;
use gatehouse_proto::auth::v1::RevokeTokenRequest;
use gatehouse_testkit::TestDb;

use crate::support::Cluster;

async fn figures(engine: &str, db: TestDb) {
    let cluster = Cluster::start_with(&db, 2, |config| {
        (config.hashing.memory_kib, config.hashing.passes, config.hashing.permits) = (19_456, 2, 1);
    })
    .await;
    cluster.at(0).register("ada@example.com", "Engines").await;
    let started = Instant::now();
    for _ in 0..20 {
        cluster.at(0).sign_in("ada@example.com").await;
    }
    println!("{engine}: sign-in one after another {:?} each", started.elapsed() / 20);
    let mut token = cluster.at(0).sign_in("ada@example.com").await.refresh_token;
    let started = Instant::now();
    for place in 0..100 {
        token = cluster.at(place).refresh(&token).await.unwrap().refresh_token;
    }
    println!("{engine}: refresh one after another {:?} each", started.elapsed() / 100);
    let started = Instant::now();
    let racers: Vec<_> = (0..300)
        .map(|place| {
            let (mut accounts, token) = (cluster.at(place).accounts(), token.clone());
            tokio::spawn(async move {
                let request =
                    gatehouse_proto::auth::v1::RefreshRequest { refresh_token: token, origin: None };
                accounts.refresh(request).await.unwrap();
            })
        })
        .collect();
    for racer in racers {
        racer.await.unwrap();
    }
    println!("{engine}: 300 concurrent refreshes of one token in {:?}", started.elapsed());
    let tokens = cluster.at(0).sign_in("ada@example.com").await;
    let started = Instant::now();
    for place in 0..100 {
        cluster.at(place).exchange(&tokens.access_token, audience::JOB).await.unwrap();
    }
    println!("{engine}: client token and exchange one after another {:?} each pair", started.elapsed() / 100);
    let mut worst = Duration::ZERO;
    for _ in 0..10 {
        let tokens = cluster.at(0).sign_in("ada@example.com").await;
        cluster.at(1).exchange(&tokens.access_token, audience::JOB).await.unwrap();
        cluster
            .at(0)
            .tokens()
            .revoke_token(RevokeTokenRequest { token: tokens.refresh_token })
            .await
            .unwrap();
        let started = Instant::now();
        while cluster.at(1).exchange(&tokens.access_token, audience::JOB).await.is_ok() {}
        worst = worst.max(started.elapsed());
    }
    println!(
        "{engine}: from revocation to refusal on the other replica, without Redis: at most {worst:?} of 10"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn sqlite() {
    figures("SQLite", TestDb::sqlite(&MIGRATIONS).await).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn postgres() {
    figures("PostgreSQL", TestDb::postgres(&MIGRATIONS).await).await;
}
