//! What a caller may not get past, however many requests it sends at once and to whichever replica.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::collections::BTreeSet;
use std::future::Future;

use gatehouse_client::from_status;
use gatehouse_core::Error;
use gatehouse_proto::token_broker::v1 as pb;
use gatehouse_testkit::oauth_provider::Rotation;
use gatehouse_testkit::{TestDb, both_engines};
use gatehouse_token_broker::Steps;
use support::{Client, LIFE, Person, Replica, UPSTREAM, World, consent, reason};

/// Calls at once, half of them at each replica.
const AT_ONCE: usize = 12;

async fn world(db: TestDb) -> World {
    let mut world = World::new(db, Rotation::Strict).await;
    for number in 0..AT_ONCE {
        let upstream = world.config.upstreams[UPSTREAM].clone();
        world.config.upstreams.insert(format!("upstream-{number}"), upstream);
    }
    world
}

async fn two(world: &World) -> [Replica; 2] {
    [world.start_with(Steps::default(), false).await, world.start_with(Steps::default(), false).await]
}

/// How many of the calls at once were let in; all others were refused for `expected`.
async fn let_in<F>(
    world: &World,
    replicas: &[Replica],
    person: &Person,
    expected: &str,
    call: impl Fn(usize, Client) -> F,
) -> usize
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let token = world.person_token(person);
    let calls: Vec<_> = (0..AT_ONCE)
        .map(|number| tokio::spawn(call(number, replicas[number % replicas.len()].client(&token))))
        .collect();
    let mut let_in = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(()) => let_in += 1,
            refused => assert_eq!(reason(refused), expected),
        }
    }
    let_in
}

fn begin(upstream: &str) -> pb::BeginConnectionRequest {
    pb::BeginConnectionRequest { upstream: upstream.into(), scopes: vec![] }
}

/// A token that is to live for as long as may be asked for, which is longer than the provider's do.
async fn longest_lived(client: &mut Client) -> Result<pb::GetAccessTokenResponse, Error> {
    let request = pb::GetAccessTokenRequest {
        upstream: UPSTREAM.into(),
        min_remaining_seconds: 600,
        ..Default::default()
    };
    client.get_access_token(request).await.map(tonic::Response::into_inner).map_err(from_status)
}

both_engines! {
    migrations: gatehouse_token_broker::MIGRATIONS;

    /// On the bound, of many consents begun at once as many are as fit.
    async fn no_more_consents_are_open_than_may_be(db: TestDb) {
        let mut world = world(db).await;
        world.config.max_open_consents = 4;
        let (replicas, person) = (two(&world).await, Person::new());
        replicas[0].client(&world.person_token(&person)).begin_connection(begin(UPSTREAM)).await.unwrap();
        let begun = let_in(&world, &replicas, &person, "TOO_MANY_CONSENTS", |_, mut client| async move {
            client.begin_connection(begin(UPSTREAM)).await.map(drop).map_err(from_status)
        });
        assert_eq!(begun.await, 3);
        // Someone else's are counted apart, and those of the same person in another tenant.
        for other in [Person { tenant: person.tenant, ..Person::new() }, Person { tenant: Person::new().tenant, ..person }] {
            replicas[1].client(&world.person_token(&other)).begin_connection(begin(UPSTREAM)).await.unwrap();
        }
        for replica in replicas {
            replica.stop().await;
        }
    }

    /// Consents that were begun while there was room are no promise of a connection.
    async fn no_more_connections_are_made_than_may_be(db: TestDb) {
        let mut world = world(db).await;
        world.config.max_connections = 4;
        let (replicas, person) = (two(&world).await, Person::new());
        let standing = world.connect(&replicas[0], &person).await.unwrap().connection_id;
        let mut client = replicas[1].client(&world.person_token(&person));
        let mut callbacks = Vec::new();
        for number in 0..AT_ONCE {
            let begun = client.begin_connection(begin(&format!("upstream-{number}"))).await.unwrap().into_inner();
            callbacks.push(consent(&begun.authorization_url).await);
        }
        let completed = let_in(&world, &replicas, &person, "TOO_MANY_CONNECTIONS", |number, mut client| {
            let callback = callbacks[number].clone();
            async move { client.complete_connection(callback).await.map(drop).map_err(from_status) }
        });
        assert_eq!(completed.await, 3);
        let listed = client.list_connections(pb::ListConnectionsRequest {}).await.unwrap().into_inner().connections;
        assert_eq!(listed.len(), 4);
        assert_eq!(world.secrets.census().len(), 4, "a refused consent left a secret");
        // Whoever has all that they may still can connect anew what they have, and something else for it.
        assert_eq!(world.connect(&replicas[0], &person).await.unwrap().connection_id, standing);
        client.disconnect(pb::DisconnectRequest { connection_id: standing }).await.unwrap();
        world.connect(&replicas[0], &person).await.unwrap();
        for replica in replicas {
            replica.stop().await;
        }
    }

    /// Offline grants, as consents; all that stand are shown.
    async fn no_more_grants_stand_than_may(db: TestDb) {
        let mut world = world(db).await;
        world.config.max_offline_grants = 3;
        let (replicas, person) = (two(&world).await, Person::new());
        let connection_id = world.connect(&replicas[0], &person).await.unwrap().connection_id;
        let grant =
            pb::CreateOfflineGrantRequest { connection_id, client_id: "reporter".into(), ..Default::default() };
        let given = let_in(&world, &replicas, &person, "TOO_MANY_GRANTS", |_, mut client| {
            let grant = grant.clone();
            async move { client.create_offline_grant(grant).await.map(drop).map_err(from_status) }
        });
        assert_eq!(given.await, 3);
        let mut client = replicas[0].client(&world.person_token(&person));
        let listed = client.list_offline_grants(pb::ListOfflineGrantsRequest {}).await.unwrap().into_inner().grants;
        let ids: BTreeSet<_> = listed.iter().map(|grant| grant.offline_grant_id.clone()).collect();
        assert_eq!(ids.len(), 3);
        let revoke = pb::RevokeOfflineGrantRequest { offline_grant_id: listed[0].offline_grant_id.clone() };
        client.revoke_offline_grant(revoke).await.unwrap();
        client.create_offline_grant(grant).await.unwrap();
        for replica in replicas {
            replica.stop().await;
        }
    }

    /// Whoever asks for a token that lives longer than the upstream makes any gets what there is: a renewal at each call would
    /// be theirs to cause.
    async fn a_wish_renews_a_token_no_more_often_than_its_life_asks_for(db: TestDb) {
        let world = world(db).await;
        let (replicas, person) = (two(&world).await, Person::new());
        world.connect(&replicas[0], &person).await.unwrap();
        let token = world.person_token(&person);
        let mut given = longest_lived(&mut replicas[0].client(&token)).await.unwrap();
        for half_lives in 0..3 {
            for call in 0..6 {
                let again = longest_lived(&mut replicas[call % 2].client(&token)).await.unwrap();
                assert_eq!(again, given, "a token that is young was renewed");
            }
            assert_eq!(world.provider.counters().refresh_attempts, half_lives);
            world.clock.advance(LIFE / 2);
            let all = let_in(&world, &replicas, &person, "", |_, mut client| async move {
                longest_lived(&mut client).await.map(drop)
            });
            assert_eq!(all.await, AT_ONCE);
            assert_eq!(world.provider.counters().refresh_attempts, half_lives + 1, "one renewal does for all of them");
            given = longest_lived(&mut replicas[0].client(&token)).await.unwrap();
            assert_eq!(given.expires_at, world.clock.now().plus(LIFE).as_micros());
        }
        for replica in replicas {
            replica.stop().await;
        }
    }

    /// Where the configuration says so, a wish counts in full: for those who measure renewals, or disturb them.
    async fn a_wish_may_be_made_to_count_at_once(db: TestDb) {
        let mut world = world(db).await;
        world.config.renew_after_percent = 0;
        let ([one, other], person) = (two(&world).await, Person::new());
        world.connect(&one, &person).await.unwrap();
        let token = world.person_token(&person);
        for call in 1..=4 {
            let replica = if call % 2 == 0 { &one } else { &other };
            longest_lived(&mut replica.client(&token)).await.unwrap();
            assert_eq!(world.provider.counters().refresh_attempts, call);
        }
        one.stop().await;
        other.stop().await;
    }
}
