//! Refresh rotation across replicas (requirement C1).

use std::collections::BTreeSet;
use std::time::Duration;

use gatehouse_auth::MIGRATIONS;
use gatehouse_client::audience;
use gatehouse_testkit::{TestDb, both_engines, eventually};

use crate::support::{Cluster, PATIENCE, reason};

/// How many present one token at once.
const RACERS: usize = 300;

both_engines! {
    migrations: MIGRATIONS;

    async fn concurrent_refreshes_of_one_token_have_one_successor(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        cluster.at(0).register("ada@example.com", "Engines").await;
        let token = cluster.at(0).sign_in("ada@example.com").await.refresh_token;
        let racers = (0..RACERS).map(|place| {
            let (mut accounts, token) = (cluster.at(place).accounts(), token.clone());
            tokio::spawn(async move {
                let request = gatehouse_proto::auth::v1::RefreshRequest { refresh_token: token, origin: None };
                accounts.refresh(request).await.map(|answer| answer.into_inner().tokens.unwrap())
            })
        });
        let racers: Vec<_> = racers.collect();
        let mut successors = BTreeSet::new();
        let mut access_tokens = BTreeSet::new();
        for racer in racers {
            let tokens = racer.await.unwrap().unwrap();
            successors.insert(tokens.refresh_token);
            access_tokens.insert(tokens.access_token);
        }
        assert_eq!(successors.len(), 1, "one token had several successors");
        assert_eq!(access_tokens.len(), RACERS);
        let next = successors.pop_first().unwrap();
        assert!(cluster.at(1).refresh(&next).await.is_ok());
    }

    async fn a_client_that_lost_its_answer_gets_the_same_successor(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        cluster.at(0).register("ada@example.com", "").await;
        let token = cluster.at(0).sign_in("ada@example.com").await.refresh_token;
        let first = cluster.at(0).refresh(&token).await.unwrap();
        cluster.clock.advance(Duration::from_secs(30));
        let again = cluster.at(1).refresh(&token).await.unwrap();
        assert_eq!(first.refresh_token, again.refresh_token);
        assert!(cluster.at(0).refresh(&again.refresh_token).await.is_ok());
    }

    async fn a_token_replayed_after_its_successors_use_kills_the_family_on_both(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        cluster.at(0).register("ada@example.com", "").await;
        let other = cluster.at(0).sign_in("ada@example.com").await;
        let first = cluster.at(0).sign_in("ada@example.com").await;
        let second = cluster.at(0).refresh(&first.refresh_token).await.unwrap();
        let third = cluster.at(1).refresh(&second.refresh_token).await.unwrap();
        assert_eq!(reason(cluster.at(1).refresh(&first.refresh_token).await), "REFRESH_TOKEN_REUSED");
        for replica in 0..2 {
            assert_eq!(reason(cluster.at(replica).refresh(&third.refresh_token).await), "SESSION_EXPIRED");
            assert_eq!(reason(cluster.at(replica).refresh(&first.refresh_token).await), "SESSION_EXPIRED");
            // Access tokens of the session die too, on the replica that did not see the replay as well.
            eventually(PATIENCE, || async {
                cluster.at(replica).exchange(&third.access_token, audience::JOB).await.is_err()
            })
            .await;
        }
        assert!(cluster.at(0).refresh(&other.refresh_token).await.is_ok(), "another session was killed");
    }

    async fn a_token_replayed_after_the_retry_window_kills_the_family_on_both(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        cluster.at(0).register("ada@example.com", "").await;
        let first = cluster.at(0).sign_in("ada@example.com").await;
        let second = cluster.at(0).refresh(&first.refresh_token).await.unwrap();
        cluster.clock.advance(Duration::from_secs(31));
        assert_eq!(reason(cluster.at(1).refresh(&first.refresh_token).await), "REFRESH_TOKEN_REUSED");
        for replica in 0..2 {
            assert_eq!(reason(cluster.at(replica).refresh(&second.refresh_token).await), "SESSION_EXPIRED");
        }
    }

    async fn racing_replays_and_refreshes_never_split_a_family(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        cluster.at(0).register("ada@example.com", "").await;
        for _ in 0..10 {
            let first = cluster.at(0).sign_in("ada@example.com").await.refresh_token;
            let second = cluster.at(0).refresh(&first).await.unwrap().refresh_token;
            // Half refresh the live token, half present its parent: as soon as one of the former got through, one of
            // the latter is a replay.
            let racers: Vec<_> = (0..40)
                .map(|place| {
                    let shown = if place % 4 < 2 { second.clone() } else { first.clone() };
                    let mut accounts = cluster.at(place).accounts();
                    tokio::spawn(async move {
                        let request = gatehouse_proto::auth::v1::RefreshRequest { refresh_token: shown.clone(), origin: None };
                        (shown, accounts.refresh(request).await.map(|answer| answer.into_inner().tokens.unwrap().refresh_token))
                    })
                })
                .collect();
            let mut successors = [BTreeSet::new(), BTreeSet::new()];
            for racer in racers {
                let (shown, answer) = racer.await.unwrap();
                if let Ok(next) = answer {
                    successors[usize::from(shown == second)].insert(next);
                }
            }
            assert!(successors[0].iter().all(|next| *next == second), "the parent got another successor");
            assert!(successors[1].len() <= 1, "the live token got several successors");
        }
    }

    async fn a_family_ends_after_its_time(db: TestDb) {
        let cluster = Cluster::start_with(&db, 1, |config| config.session_lifetime_s = 3_600).await;
        cluster.at(0).register("ada@example.com", "").await;
        let mut token = cluster.at(0).sign_in("ada@example.com").await.refresh_token;
        for _ in 0..5 {
            cluster.clock.advance(Duration::from_secs(700));
            token = cluster.at(0).refresh(&token).await.unwrap().refresh_token;
        }
        cluster.clock.advance(Duration::from_secs(100));
        assert_eq!(reason(cluster.at(0).refresh(&token).await), "SESSION_EXPIRED");
    }

    async fn tokens_that_we_did_not_make_are_refused_and_kill_nothing(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        cluster.at(0).register("ada@example.com", "").await;
        let token = cluster.at(0).sign_in("ada@example.com").await.refresh_token;
        let mut flipped = token.clone();
        let last = flipped.pop().unwrap();
        flipped.push(if last == 'A' { 'Q' } else { 'A' });
        for wrong in [flipped, token.replace("_dev_", "_prod_"), String::new(), "gh_dev_rt_x".into(), "x".repeat(100_000)] {
            assert_eq!(reason(cluster.at(0).refresh(&wrong).await), "REFRESH_TOKEN_INVALID");
        }
        assert!(cluster.at(0).refresh(&token).await.is_ok());
    }
}
