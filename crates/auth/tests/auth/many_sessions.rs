//! How many sessions a person has, and how they end together.

use std::time::Duration;

use gatehouse_auth::MIGRATIONS;
use gatehouse_client::audience;
use gatehouse_core::Entropy;
use gatehouse_core::ids::SessionId;
use gatehouse_db::{insert, params, read_tx, run_tx, sql};
use gatehouse_proto::auth::v1::{ChangePasswordRequest, ListSessionsRequest};
use gatehouse_testkit::{TestDb, both_engines, eventually};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::audit::events;
use crate::support::{Cluster, PASSWORD, PATIENCE, reason};

sql! {
    LIVE = "SELECT COUNT(*) AS count FROM sessions WHERE ended_at IS NULL";
    // One instant for all of them: they were added together.
    GROUPS = "SELECT COUNT(*) AS entries, COUNT(DISTINCT not_before) AS groups, COUNT(DISTINCT sequence) AS numbers, MAX(sequence) AS last FROM revocations";
    TAKE_PERSON = "UPDATE people SET display_name = display_name WHERE person_id = $1";
}

insert! {
    ADD_SESSIONS = "INSERT INTO sessions"(session_id, person_id, user_agent, authenticated_at, created_at, last_used_at, ends_at, generation, digest_kid, digest);
}

async fn live(db: &TestDb) -> i64 {
    let row = read_tx!(db.db(), "test.live", |tx| { tx.fetch_one(&LIVE, params![]).await });
    row.unwrap().get("count").unwrap()
}

/// `count` sessions that nobody signed in for.
async fn plant(db: &TestDb, cluster: &Cluster, person: &str, count: usize) {
    let (person, now): (Uuid, _) = (person.parse().unwrap(), cluster.clock.now());
    let then = now.minus(Duration::from_mins(1));
    let ends_at = now.plus(Duration::from_hours(24));
    let rows: Vec<_> = (0..count)
        .map(|_| {
            let digest = vec![0_u8; 32];
            let id = SessionId::new(&cluster.clock, &Entropy::system());
            params![id, person, "thief", then, then, then, ends_at, 0_i64, "k1", digest]
        })
        .collect();
    run_tx!(db.db(), "test.plant", |tx| { tx.insert(&ADD_SESSIONS, rows.clone()).await }).unwrap();
}

fn change(new: &str) -> ChangePasswordRequest {
    ChangePasswordRequest { current_password: PASSWORD.into(), new_password: new.into() }
}

both_engines! {
    migrations: MIGRATIONS;

    async fn beyond_the_bound_those_unused_for_longest_end(db: TestDb) {
        let cluster = Cluster::start_with(&db, 2, |config| config.max_sessions_per_person = 3).await;
        cluster.at(0).register("ada@example.com", "").await;
        cluster.at(0).register("eve@example.com", "").await;
        let hers = cluster.at(0).sign_in("eve@example.com").await;
        let mut sessions = Vec::new();
        for place in 0..3 {
            cluster.clock.advance(Duration::from_secs(1));
            sessions.push(cluster.at(place).sign_in("ada@example.com").await);
        }
        cluster.clock.advance(Duration::from_secs(1));
        // The first is in use, so the second goes, in the same transaction.
        let first = cluster.at(0).refresh(&sessions[0].refresh_token).await.unwrap();
        let fourth = cluster.at(1).sign_in("ada@example.com").await;
        assert_eq!(live(&db).await, 4);
        assert_eq!(reason(cluster.at(0).refresh(&sessions[1].refresh_token).await), "SESSION_EXPIRED");
        eventually(PATIENCE, || async { cluster.at(0).exchange(&sessions[1].access_token, audience::JOB).await.is_err() }).await;
        for kept in [&first, &sessions[2], &fourth, &hers] {
            cluster.at(0).exchange(&kept.access_token, audience::JOB).await.unwrap();
        }
        let told = events(&db).await.into_iter().filter(|event| event.action == "auth.sessions.create");
        let ended: Vec<_> = told.map(|event| event.payload_json.contains("\"sessions_ended\":1")).collect();
        assert_eq!(ended, [false, false, false, false, true]);
        let mut ada = cluster.at(0).as_subject(&fourth.access_token).await;
        let listed = ada.accounts.list_sessions(ListSessionsRequest {}).await.unwrap().into_inner().sessions;
        let listed: Vec<_> = listed.into_iter().map(|session| session.session_id).collect();
        assert_eq!(listed, [&fourth, &sessions[2], &first].map(|tokens| tokens.session_id.clone()));
    }

    /// More than one sign-in may end, from before there was a bound.
    async fn of_very_many_those_unused_for_longest_end_first(db: TestDb) {
        let cluster = Cluster::start_with(&db, 1, |config| config.max_sessions_per_person = 3).await;
        let (person, _) = cluster.at(0).register("ada@example.com", "").await;
        let oldest = cluster.at(0).sign_in("ada@example.com").await;
        cluster.clock.advance(Duration::from_secs(60));
        plant(&db, &cluster, &person, 300).await;
        cluster.clock.advance(Duration::from_secs(60));
        cluster.at(0).sign_in("ada@example.com").await;
        assert_eq!(live(&db).await, 302 - 256);
        assert_eq!(reason(cluster.at(0).refresh(&oldest.refresh_token).await), "SESSION_EXPIRED");
    }

    async fn many_sign_ins_at_once_stay_within_the_bound(db: TestDb) {
        let cluster = Cluster::start_with(&db, 2, |config| config.max_sessions_per_person = 3).await;
        cluster.at(0).register("ada@example.com", "").await;
        let signing_in = (0..12).map(|place| {
            let mut accounts = cluster.at(place).accounts();
            let request = gatehouse_proto::auth::v1::SignInRequest {
                email: "ada@example.com".into(), password: PASSWORD.into(), ..Default::default()
            };
            tokio::spawn(async move { accounts.sign_in(request).await.map(drop) })
        });
        for signed_in in signing_in.collect::<Vec<_>>() {
            signed_in.await.unwrap().unwrap();
        }
        assert_eq!(live(&db).await, 3);
    }

    /// However many there are (from before there was a bound, say), few statements end them.
    async fn a_new_password_ends_thousands_of_sessions_in_one_go(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let (person, _) = cluster.at(0).register("ada@example.com", "").await;
        let mine = cluster.at(0).sign_in("ada@example.com").await;
        plant(&db, &cluster, &person, 3_000).await;
        let mut ada = cluster.at(0).as_subject(&mine.access_token).await;
        ada.accounts.change_password(change("a new owl for tea")).await.unwrap();
        assert_eq!(live(&db).await, 1);
        let row = read_tx!(db.db(), "test.groups", |tx| { tx.fetch_one(&GROUPS, params![]).await }).unwrap();
        let counts = ["entries", "groups", "numbers", "last"].map(|column| row.get::<i64>(column).unwrap());
        assert_eq!(counts, [3_000, 1, 3_000, 3_000]);
        assert!(cluster.at(0).refresh(&mine.refresh_token).await.is_ok());
    }

    /// A change of the password is the answer to a stolen one: it does not stop because someone makes it slow.
    async fn a_password_changes_though_its_caller_hung_up(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let (person, _) = cluster.at(0).register("ada@example.com", "").await;
        let (mine, other) = (cluster.at(0).sign_in("ada@example.com").await, cluster.at(0).sign_in("ada@example.com").await);
        let mut ada = cluster.at(0).as_subject(&mine.access_token).await;
        let replica = db.another_replica().await;
        let (taken, is_taken) = oneshot::channel();
        let (release, released) = oneshot::channel::<()>();
        let id: Uuid = person.parse().unwrap();
        let holder = tokio::spawn(async move {
            let (mut taken, mut released) = (Some(taken), Some(released));
            run_tx!(replica, "test.hold", |tx| {
                tx.execute(&TAKE_PERSON, params![id]).await?;
                if let (Some(taken), Some(released)) = (taken.take(), released.take()) {
                    taken.send(()).unwrap();
                    released.await.unwrap();
                }
                Ok(())
            })
        });
        is_taken.await.unwrap();
        let mut request = tonic::Request::new(change("a new owl for tea"));
        request.set_timeout(Duration::from_secs(1));
        let answer = ada.accounts.change_password(request).await.unwrap_err();
        assert!(matches!(answer.code(), tonic::Code::DeadlineExceeded | tonic::Code::Cancelled), "{answer:?}");
        release.send(()).unwrap();
        holder.await.unwrap().unwrap();
        eventually(PATIENCE, || async { cluster.at(0).refresh(&other.refresh_token).await.is_err() }).await;
        cluster.at(0).try_sign_in("ada@example.com", "a new owl for tea", "").await.unwrap();
    }
}
