//! Signing keys: rotated by schedule on any number of replicas (requirement P11).

use std::time::Duration;

use gatehouse_auth::MIGRATIONS;
use gatehouse_client::audience;
use gatehouse_core::Entropy;
use gatehouse_proto::auth::v1::GetJwksRequest;
use gatehouse_testkit::{TestDb, both_engines, eventually};

use crate::support::{Cluster, PATIENCE, Replica};

async fn key_ids(replica: &Replica) -> Vec<String> {
    let answer = replica.tokens().get_jwks(GetJwksRequest {}).await.unwrap().into_inner();
    assert!(answer.max_age_ms > 0);
    let set: serde_json::Value = serde_json::from_str(&answer.jwks_json).unwrap();
    set["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

fn signed_by(token: &str) -> String {
    use base64::Engine as _;
    let head =
        base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    serde_json::from_slice::<serde_json::Value>(&head).unwrap()["kid"].as_str().unwrap().to_owned()
}

both_engines! {
    migrations: MIGRATIONS;

    async fn replicas_share_one_key_and_rotate_it_with_overlap(db: TestDb) {
        let cluster = Cluster::start_with(&db, 3, |config| {
            config.signing.period_s = 7_200;
            config.signing.lead_s = 3_600;
            config.signing.jwks_max_age_s = 300;
        })
        .await;
        let first = key_ids(cluster.at(0)).await;
        assert_eq!(first.len(), 1);
        for replica in &cluster.replicas {
            assert_eq!(key_ids(replica).await, first);
        }
        cluster.clock.advance(Duration::from_hours(1));
        let both = eventually(PATIENCE, || async { Some(key_ids(cluster.at(0)).await).filter(|keys| keys.len() == 2) }).await;
        for replica in &cluster.replicas {
            eventually(PATIENCE, || async { key_ids(replica).await == both }).await;
        }
        cluster.at(0).register("ada@example.com", "Engines").await;
        let old = cluster.at(0).sign_in("ada@example.com").await;
        assert_eq!(signed_by(&old.access_token), first[0], "the next key signed before its time");
        // It takes over, and a token of the old one still holds.
        cluster.clock.advance(Duration::from_secs(3_600 - 100));
        let old = cluster.at(1).refresh(&old.refresh_token).await.unwrap();
        cluster.clock.advance(Duration::from_secs(100));
        let new = cluster.at(2).refresh(&old.refresh_token).await.unwrap();
        assert_eq!(signed_by(&old.access_token), first[0]);
        assert_ne!(signed_by(&new.access_token), first[0]);
        for token in [&old.access_token, &new.access_token] {
            cluster.at(0).exchange(token, audience::JOB).await.unwrap();
        }
        // After the longest token it is forgotten, in the table too.
        cluster.clock.advance(Duration::from_hours(1));
        for replica in &cluster.replicas {
            eventually(PATIENCE, || async { !key_ids(replica).await.contains(&first[0]) }).await;
        }
    }

    async fn replicas_that_start_at_once_make_one_key(db: TestDb) {
        let cluster = Cluster::start(&db, 0).await;
        gatehouse_auth::key_file::create(&cluster.config.key_file, gatehouse_core::Environment::Dev, &cluster.clock, &Entropy::system()).unwrap();
        let started = futures_util::future::join_all((0..4).map(|_| cluster.add_replica(&db))).await;
        let mut keys = std::collections::BTreeSet::new();
        for replica in started {
            keys.extend(key_ids(&replica.unwrap()).await);
        }
        assert_eq!(keys.len(), 1);
    }

    async fn a_master_key_rotates_without_ending_anything(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        cluster.at(0).register("ada@example.com", "Engines").await;
        let tokens = cluster.at(0).sign_in("ada@example.com").await;
        let old = tokens.refresh_token.split('_').nth(3).unwrap().to_owned();
        let new = gatehouse_auth::key_file::rotate(&cluster.config.key_file, gatehouse_core::Environment::Dev, &cluster.clock, &Entropy::system()).unwrap();
        let mut token = tokens.refresh_token;
        cluster.clock.advance(Duration::from_secs(601));
        // Both replicas read the file within seconds; until then they go on with the old key. Bob signs in, since nobody
        // has sessions without end.
        cluster.at(0).register("bob@example.com", "").await;
        let seen = eventually(PATIENCE, || async {
            cluster.clock.advance(Duration::from_secs(1));
            Some(cluster.at(0).sign_in("bob@example.com").await.refresh_token).filter(|token| token.contains(new.as_str()))
        })
        .await;
        eventually(PATIENCE, || async { cluster.at(1).refresh(&seen).await.is_ok() }).await;
        // A family that began under the old key goes on under the new one.
        assert!(token.contains(&old));
        token = cluster.at(0).refresh(&token).await.unwrap().refresh_token;
        assert_eq!(token.split('_').nth(3).unwrap(), new.as_str());
        cluster.at(1).refresh(&token).await.unwrap();
    }

    async fn a_database_does_not_start_with_another_key_file(db: TestDb) {
        let mut cluster = Cluster::start(&db, 1).await;
        let other = cluster.folder.path().join("other.json");
        cluster.config.key_file.clone_from(&other);
        // None is made beside what another sealed.
        let error = cluster.add_replica(&db).await.err().unwrap();
        assert_eq!((error.reason(), other.exists()), ("KEY_FILE_MISSING", false));
        let dev = gatehouse_core::Environment::Dev;
        gatehouse_auth::key_file::create(&other, dev, &cluster.clock, &Entropy::system()).unwrap();
        let error = cluster.add_replica(&db).await.err().unwrap();
        assert_eq!(error.reason(), "KEY_FILE_MISMATCH");
    }
}
