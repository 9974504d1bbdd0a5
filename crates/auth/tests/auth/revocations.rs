//! The revocation table's watch stream (requirement B9).

use std::time::{Duration, Instant};

use gatehouse_auth::MIGRATIONS;
use gatehouse_auth::store::revocations::{self, Revoked};
use gatehouse_client::audience;
use gatehouse_core::ids::SessionId;
use gatehouse_core::{Clock, Entropy, Timestamp};
use gatehouse_db::{Db, params, run_tx, sql};
use gatehouse_proto::auth::v1::token_service_client::TokenServiceClient;
use gatehouse_proto::auth::v1::{
    RevocationKind, RevokeTokenRequest, WatchRevocationsRequest, WatchRevocationsResponse, WhoAmIRequest,
};
use gatehouse_service::revocations::{RevocationFeed, Staleness};
use gatehouse_service::{KeySet, Lifecycle, Readiness, Revocations};
use gatehouse_testkit::{TestDb, both_engines, eventually};
use tokio::net::TcpListener;
use tonic::Streaming;

use crate::support::{Cluster, PATIENCE, reason};

async fn watch(cluster: &Cluster, replica: usize, after: i64) -> Streaming<WatchRevocationsResponse> {
    let token = cluster.at(replica).client_token("worker", audience::AUTH).await;
    let mut tokens = TokenServiceClient::new(cluster.at(replica).with(&token));
    tokens.watch_revocations(WatchRevocationsRequest { after_sequence: after }).await.unwrap().into_inner()
}

async fn next(stream: &mut Streaming<WatchRevocationsResponse>) -> WatchRevocationsResponse {
    tokio::time::timeout(PATIENCE, stream.message()).await.expect("news in time").unwrap().unwrap()
}

/// Whether `stream` tells of this session in time.
async fn tells(stream: &mut Streaming<WatchRevocationsResponse>, session: &str) -> bool {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if next(stream).await.revocations.iter().any(|entry| entry.id == session) {
            return true;
        }
    }
    false
}

sql! {
    ADD_MANY_ENTRIES = "WITH RECURSIVE n (v) AS (SELECT CAST(1 AS BIGINT) UNION ALL SELECT v + 1 FROM n WHERE v < $1) INSERT INTO revocations (sequence, kind, subject_id, not_before, expires_at) SELECT v, 'membership', CAST($2 AS TEXT), CAST($3 AS BIGINT), CAST($4 AS BIGINT) FROM n";
    HIDE = "ALTER TABLE revocation_head RENAME TO hidden";
    SHOW = "ALTER TABLE hidden RENAME TO revocation_head";
    SET_HEAD = "UPDATE revocation_head SET sequence = $1 WHERE id = 1";
    FORGET_AFTER = "DELETE FROM revocations WHERE sequence > $1";
}

/// What a service keeps of revocations, from the first replica.
struct Listener {
    revocations: Revocations,
    lifecycle: Lifecycle,
}

impl Listener {
    async fn start(cluster: &Cluster) -> Self {
        let never = Staleness { privileged: Duration::from_hours(1), all: Duration::from_hours(1) };
        let revocations = Revocations::new(cluster.clock.clone(), never);
        let lifecycle = Lifecycle::new();
        let token = cluster.at(0).client_token("worker", audience::AUTH).await;
        let auth = cluster.at(0).with(&token);
        RevocationFeed::new(auth, revocations.clone(), KeySet::default(), Entropy::system()).start(
            "test",
            &lifecycle,
            &Readiness::new(),
        );
        Self { revocations, lifecycle }
    }

    fn knows(&self, session: &str) -> bool {
        self.revocations.is_revoked_since(RevocationKind::Session, session, Timestamp::from_micros(0))
    }

    async fn hears(&self, session: &str) {
        eventually(PATIENCE, || async { self.knows(session) }).await;
    }
}

/// Adds a session's end as another replica would; its id.
async fn end_a_session(db: &Db, cluster: &Cluster) -> String {
    end_a_session_for(db, cluster, Duration::from_mins(10)).await
}

/// The same where tokens can live for so long.
async fn end_a_session_for(db: &Db, cluster: &Cluster, longest_token: Duration) -> String {
    let session = SessionId::new(&cluster.clock, &Entropy::system());
    let (entry, now) = (Revoked::Session(session), cluster.clock.now());
    run_tx!(db, "test.revoke", |tx| { revocations::add(tx, &entry, now, longest_token).await }).unwrap();
    session.to_string()
}

/// The table as a backup has it that was taken when `sequence` was the last, and then as many ends more.
async fn go_back(db: &Db, cluster: &Cluster, sequence: i64, more: usize) -> Vec<String> {
    let sessions: Vec<_> = (0..more).map(|_| SessionId::new(&cluster.clock, &Entropy::system())).collect();
    let entries: Vec<_> = sessions.iter().copied().map(Revoked::Session).collect();
    let now = cluster.clock.now();
    run_tx!(db, "test.restore", |tx| {
        tx.execute(&FORGET_AFTER, params![sequence]).await?;
        tx.execute(&SET_HEAD, params![sequence]).await?;
        revocations::add_all(tx, &entries, now, Duration::from_mins(10)).await
    })
    .unwrap();
    sessions.iter().map(SessionId::to_string).collect()
}

both_engines! {
    migrations: MIGRATIONS;

    async fn a_revocation_reaches_the_watchers_of_every_replica(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        cluster.at(0).register("ada@example.com", "").await;
        let mut streams = [watch(&cluster, 0, 0).await, watch(&cluster, 1, 0).await];
        for stream in &mut streams {
            let first = next(stream).await;
            assert!(first.snapshot_complete && first.revocations.is_empty() && first.heartbeat_ms > 0, "{first:?}");
        }
        let tokens = cluster.at(0).sign_in("ada@example.com").await;
        cluster.at(0).tokens().revoke_token(RevokeTokenRequest { token: tokens.refresh_token }).await.unwrap();
        let mut sequences = Vec::new();
        for stream in &mut streams {
            let news = loop {
                let news = next(stream).await;
                if !news.revocations.is_empty() {
                    break news;
                }
            };
            assert_eq!(news.revocations.len(), 1);
            assert_eq!(news.revocations[0].id, tokens.session_id);
            assert!(news.revocations[0].not_before >= cluster.clock.now().as_micros());
            sequences.push(news.revocations[0].sequence);
        }
        assert_eq!(sequences[0], sequences[1]);
        // Who comes later gets it in the snapshot; who knows it already, not again.
        assert_eq!(next(&mut watch(&cluster, 1, 0).await).await.revocations.len(), 1);
        assert!(next(&mut watch(&cluster, 1, sequences[0]).await).await.revocations.is_empty());
        // Once no token can be concerned any more, it is gone.
        cluster.clock.advance(Duration::from_hours(1));
        assert!(next(&mut watch(&cluster, 1, 0).await).await.revocations.is_empty());
    }

    /// A verifier whose stream fell silent comes again: it must not take what it is told then for news of this moment.
    async fn old_news_says_how_old_it_is(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        cluster.at(0).register("ada@example.com", "").await;
        let mut stream = watch(&cluster, 0, 0).await;
        assert!(next(&mut stream).await.age_ms < 60_000);
        run_tx!(db.db(), "test.hide", |tx| { tx.execute(&HIDE, params![]).await }).unwrap();
        // Nothing is said while the table can't be read.
        let silence = Duration::from_millis(1_500);
        while tokio::time::timeout(silence, stream.message()).await.is_ok() {}
        let late = next(&mut watch(&cluster, 0, 0).await).await;
        assert!(late.snapshot_complete && late.age_ms >= 1_500, "{late:?}");
        let shown = std::time::Instant::now();
        run_tx!(db.db(), "test.show", |tx| { tx.execute(&SHOW, params![]).await }).unwrap();
        // A reading that began after.
        let fresh = next(&mut stream).await;
        assert!(u128::try_from(fresh.age_ms).unwrap() <= shown.elapsed().as_millis(), "{fresh:?}");
    }

    async fn containment_ends_everything_so_far_and_nothing_after(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        let (person, tenant) = cluster.at(0).register("ada@example.com", "Engines").await;
        let (person, tenant) = (person.parse().unwrap(), tenant.parse().unwrap());
        for what in [Revoked::Person(person), Revoked::Tenant(tenant), Revoked::Membership(person, tenant)] {
            let before = cluster.at(0).sign_in("ada@example.com").await;
            cluster.at(0).exchange(&before.access_token, audience::JOB).await.unwrap();
            cluster.at(0).server.app.contain(&what).await.unwrap();
            for replica in 0..2 {
                eventually(PATIENCE, || async { cluster.at(replica).exchange(&before.access_token, audience::JOB).await.is_err() }).await;
            }
            let after = cluster.at(1).sign_in("ada@example.com").await;
            cluster.at(1).exchange(&after.access_token, audience::JOB).await.unwrap();
        }
        let client = cluster.at(0).client_token("worker", audience::AUTH).await;
        cluster.at(0).server.app.contain(&Revoked::Client("worker".into())).await.unwrap();
        eventually(PATIENCE, || {
            let mut tokens = TokenServiceClient::new(cluster.at(1).with(&client));
            async move { tokens.watch_revocations(WatchRevocationsRequest { after_sequence: 0 }).await.is_err() }
        })
        .await;
        watch(&cluster, 1, 0).await;
    }

    async fn containing_the_exchanging_client_spares_the_people_it_speaks_for(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        cluster.at(0).register("ada@example.com", "Engines").await;
        let ada = cluster.at(0).sign_in("ada@example.com").await;
        let before = cluster.at(1).as_subject(&ada.access_token).await;
        before.accounts.clone().who_am_i(WhoAmIRequest {}).await.unwrap();
        cluster.at(0).server.app.contain(&Revoked::Client("gateway".into())).await.unwrap();
        // What it exchanged so far ends.
        eventually(PATIENCE, || {
            let mut accounts = before.accounts.clone();
            async move { accounts.who_am_i(WhoAmIRequest {}).await.is_err() }
        })
        .await;
        // The person's own token is as good as it was, at once: the client only needs a new one of its own.
        let after = cluster.at(1).as_subject(&ada.access_token).await;
        after.accounts.clone().who_am_i(WhoAmIRequest {}).await.unwrap();
        // And what ends the person's still ends what it was exchanged for.
        cluster.at(0).tokens().revoke_token(RevokeTokenRequest { token: ada.refresh_token }).await.unwrap();
        eventually(PATIENCE, || {
            let mut accounts = after.accounts.clone();
            async move { accounts.who_am_i(WhoAmIRequest {}).await.is_err() }
        })
        .await;
    }

    /// Far more than one message can hold: 4 MiB is what clients take.
    async fn a_snapshot_of_any_size_comes_in_parts(db: TestDb) {
        const ENTRIES: i64 = 60_000;
        let cluster = Cluster::start(&db, 0).await;
        let now = cluster.clock.now();
        let (not_before, expires_at) = (now.as_micros(), now.plus(Duration::from_hours(1)).as_micros());
        run_tx!(db.db(), "test.revoke_many", |tx| {
            let id = format!("{0}/{0}", uuid::Uuid::max());
            tx.execute(&ADD_MANY_ENTRIES, params![ENTRIES, id, not_before, expires_at]).await?;
            tx.execute(&SET_HEAD, params![ENTRIES]).await
        })
        .unwrap();
        let mut cluster = cluster;
        let replica = cluster.add_replica(&db).await.unwrap();
        cluster.replicas.push(replica);
        let mut stream = watch(&cluster, 0, 0).await;
        let (mut seen, mut bytes) = (Vec::new(), 0);
        loop {
            let part = next(&mut stream).await;
            assert!(part.revocations.len() <= 1_000, "{} in one part", part.revocations.len());
            bytes += prost::Message::encoded_len(&part);
            seen.extend(part.revocations.iter().map(|entry| entry.sequence));
            assert_eq!(part.sequence, *seen.last().unwrap(), "a part covers what it brings");
            if part.snapshot_complete {
                break;
            }
        }
        assert!(bytes > 4 << 20, "{bytes} bytes prove nothing");
        assert_eq!(seen, (1..=ENTRIES).collect::<Vec<_>>());
        // A verifier that was given a part only lets nobody in yet.
        let listener = Listener::start(&cluster).await;
        eventually(PATIENCE, || async { listener.revocations.sequence() == ENTRIES }).await;
        assert!(listener.lifecycle.drain(PATIENCE).await);
    }

    /// A standby that lagged took over from the database, and auth goes on: numbers are given again. Whether the table
    /// has as many entries as before when it is next read, or fewer, whoever listens hears of all that it has.
    async fn a_table_that_goes_back_is_told_again(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        for more in [0, 2, 5] {
            let listener = Listener::start(&cluster).await;
            let mut ended = Vec::new();
            for _ in 0..3 {
                ended.push(end_a_session(db.db(), &cluster).await);
            }
            for session in &ended {
                listener.hears(session).await;
            }
            let head = listener.revocations.sequence();
            ended.extend(go_back(db.db(), &cluster, head - 2, more).await);
            ended.push(end_a_session(db.db(), &cluster).await);
            for session in &ended {
                listener.hears(session).await;
            }
            let expected = head - 2 + i64::try_from(more).unwrap() + 1;
            eventually(PATIENCE, || async { listener.revocations.sequence() == expected }).await;
            // Who comes now hears what the table has, whatever they say that they know.
            for after in [0, head + 100] {
                let told = next(&mut watch(&cluster, 0, after).await).await;
                let told: Vec<_> = told.revocations.into_iter().map(|entry| entry.id).collect();
                for session in &ended[3..] {
                    assert!(told.contains(session), "{after}: {session} of {told:?}");
                }
                assert!(!told.contains(&ended[2]));
            }
            // What the table has forgotten is known here until it ends.
            assert!(ended.iter().all(|session| listener.knows(session)));
            assert!(listener.lifecycle.drain(PATIENCE).await);
        }
    }

    /// As above, where what has ended was the newest: the entry that auth goes on from is in both tables, and the numbers
    /// after it were told to whoever listens.
    async fn numbers_that_are_given_again_above_one_that_lives_are_told(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        for (more, minutes) in [(1, 60), (2, 90), (5, 120)] {
            let mut stream = watch(&cluster, 0, 0).await;
            let lives = end_a_session_for(db.db(), &cluster, Duration::from_mins(minutes)).await;
            assert!(tells(&mut stream, &lives).await);
            for _ in 0..2 {
                let ends = end_a_session(db.db(), &cluster).await;
                assert!(tells(&mut stream, &ends).await);
            }
            let head = next(&mut stream).await.sequence;
            // The next readings find that only the longer life is left.
            cluster.clock.advance(Duration::from_mins(15));
            for _ in 0..2 {
                assert_eq!(next(&mut stream).await.sequence, head);
            }
            // They are told in one message.
            let given = go_back(db.db(), &cluster, head - 2, more).await;
            let told = tells(&mut stream, &given[0]).await;
            assert!(told, "the first of {more} is not told");
        }
    }

    /// Auth was stopped, its database restored, and auth started: those who verify tokens were not.
    async fn a_restored_table_is_heard_by_those_who_went_on(db: TestDb) {
        let mut cluster = Cluster::start(&db, 1).await;
        let listener = Listener::start(&cluster).await;
        let mut ended = Vec::new();
        for _ in 0..4 {
            ended.push(end_a_session(db.db(), &cluster).await);
        }
        listener.hears(&ended[3]).await;
        let address = cluster.replicas.remove(0).stop().await;
        go_back(db.db(), &cluster, 1, 0).await;
        let replica = cluster.add_replica_on(&db, TcpListener::bind(address).await.unwrap()).await.unwrap();
        cluster.replicas.push(replica);
        ended.push(end_a_session(db.db(), &cluster).await);
        listener.hears(&ended[4]).await;
        assert!(ended.iter().all(|session| listener.knows(session)));
        assert_eq!(listener.revocations.sequence(), 2);
        assert!(listener.lifecycle.drain(PATIENCE).await);
    }

    async fn a_clock_that_jumps_ahead_and_comes_back_forgets_nothing(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let ended = end_a_session(db.db(), &cluster).await;
        let mut stream = watch(&cluster, 0, 0).await;
        assert!(tells(&mut stream, &ended).await);
        let right = cluster.clock.now();
        cluster.clock.advance(Duration::from_hours(1));
        // It is over for auth once the table was read by that clock.
        let other = end_a_session(db.db(), &cluster).await;
        assert!(tells(&mut stream, &other).await);
        let told = next(&mut watch(&cluster, 0, 0).await).await.revocations;
        assert!(told.iter().all(|entry| entry.id != ended));
        cluster.clock.set(right);
        assert!(tells(&mut stream, &ended).await, "it lives again");
        let told = next(&mut watch(&cluster, 0, 0).await).await.revocations;
        assert!(told.iter().any(|entry| entry.id == ended));
    }

    async fn heartbeats_come_when_nothing_happens(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let mut stream = watch(&cluster, 0, 0).await;
        for _ in 0..4 {
            assert!(next(&mut stream).await.snapshot_complete);
        }
    }

    async fn numbers_commit_in_order_however_many_revoke(db: TestDb) {
        let (clock, entropy) = (Clock::system(), Entropy::system());
        let other = db.another_replica().await;
        let writers: Vec<_> = (0..40)
            .map(|place| {
                let db = if place % 2 == 0 { db.db().clone() } else { other.clone() };
                let (clock, entropy) = (clock.clone(), entropy.clone());
                tokio::spawn(async move {
                    let session = Revoked::Session(SessionId::new(&clock, &entropy));
                    let now = clock.now();
                    run_tx!(db, "test.revoke", |tx| { revocations::add(tx, &session, now, Duration::from_mins(10)).await }).unwrap()
                })
            })
            .collect();
        // A reader that goes on from the last number it saw misses none.
        let reader = tokio::spawn({
            let (db, clock) = (db.db().clone(), clock.clone());
            async move {
                let (mut seen, mut last) = (Vec::new(), 0);
                while seen.len() < 40 {
                    let now = clock.now();
                    let entries = gatehouse_db::read_tx!(db, "test.read", |tx| { revocations::list(tx, last, now, 7).await }).unwrap();
                    last = entries.last().map_or(last, |entry| entry.sequence);
                    seen.extend(entries.into_iter().map(|entry| entry.sequence));
                    tokio::task::yield_now().await;
                }
                seen
            }
        });
        let mut given = Vec::new();
        for writer in writers {
            given.push(writer.await.unwrap());
        }
        given.sort_unstable();
        assert_eq!(given, (1..=40).collect::<Vec<_>>());
        assert_eq!(tokio::time::timeout(PATIENCE, reader).await.unwrap().unwrap(), given);
    }

    async fn only_those_with_the_permission_watch(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        cluster.at(0).register("ada@example.com", "Engines").await;
        let tokens = cluster.at(0).sign_in("ada@example.com").await;
        let token = cluster.at(0).exchange(&tokens.access_token, audience::AUTH).await.unwrap().access_token;
        let request = || WatchRevocationsRequest { after_sequence: 0 };
        assert_eq!(reason(TokenServiceClient::new(cluster.at(0).with(&token)).watch_revocations(request()).await), "PERMISSION_DENIED");
        assert_eq!(reason(cluster.at(0).tokens().watch_revocations(request()).await), "TOKEN_MISSING");
    }
}
