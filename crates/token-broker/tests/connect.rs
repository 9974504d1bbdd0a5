//! Connecting, using, seeing and ending a connection; for whom, and by whose leave.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::Duration;

use gatehouse_client::from_status;
use gatehouse_proto::auth::v1::{Revocation, RevocationKind};
use gatehouse_proto::token_broker::v1 as pb;
use gatehouse_testkit::oauth_provider::{Fault, Rotation};
use gatehouse_testkit::{TestDb, both_engines, eventually};
use gatehouse_token_broker::{Step, Steps};
use support::stops::{arrived, connected, pausing_at};
use support::{Person, UPSTREAM, World, consent, far_from_now, get, no_revocations, reason, works};

/// How many grants were ended by the broker.
async fn ends(world: &World) -> usize {
    world.actions().await.iter().filter(|action| *action == "token-broker.grants.end").count()
}

gatehouse_db::sql! {
    CONNECTIONS_OF_ATTEMPTS = "SELECT DISTINCT connection_id FROM rotations";
    LOCKED = "SELECT person_id FROM person_locks";
}

both_engines! {
    migrations: gatehouse_token_broker::MIGRATIONS;

    /// The whole way: consent, token, cache, renewal, inspection, audit.
    async fn a_person_connects_and_their_token_works(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        let (replica, person) = (world.start().await, Person::new());
        let connection = world.connect(&replica, &person).await.unwrap();
        assert_eq!(connection.state, i32::from(pb::ConnectionState::Active));
        assert_eq!(connection.scopes, ["offline_access", "read"]);

        let mut client = replica.client(&world.person_token(&person));
        let first = get(&mut client).await.unwrap();
        assert!(works(&world.provider, &first.access_token).await);
        assert_eq!(first.token_type, "Bearer");
        assert!(!far_from_now(first.expires_at, world.clock.now()));
        assert_eq!(get(&mut client).await.unwrap().access_token, first.access_token);
        assert_eq!(world.provider.counters().refresh_attempts, 0, "a cached token was renewed");

        world.expire_access_tokens();
        let second = get(&mut client).await.unwrap();
        assert_ne!(second.access_token, first.access_token);
        assert!(works(&world.provider, &second.access_token).await);
        assert_eq!(world.provider.counters().refreshes, 1);

        let listed = client.list_connections(pb::ListConnectionsRequest {}).await.unwrap().into_inner().connections;
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].generation, 1);
        assert!(listed[0].rotated_at > 0 && listed[0].last_used_at > 0);
        let upstreams = client.list_upstreams(pb::ListUpstreamsRequest {}).await.unwrap().into_inner().upstreams;
        assert_eq!(upstreams[0].name, UPSTREAM);
        assert_eq!(
            world.actions().await,
            [
                "token-broker.connections.begin",
                "token-broker.connections.complete",
                "token-broker.tokens.issue",
                "token-broker.tokens.issue",
                "token-broker.tokens.rotate",
                "token-broker.tokens.issue",
            ]
        );
        replica.stop().await;
    }

    /// A consent is one person's, one session's, one use's, and not for long.
    async fn a_consent_is_its_persons_and_works_once(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        let (replica, person) = (world.start().await, Person::new());
        let mut client = replica.client(&world.person_token(&person));
        let begin = pb::BeginConnectionRequest { upstream: UPSTREAM.into(), scopes: vec!["read".into()] };
        let begun = client.begin_connection(begin.clone()).await.unwrap().into_inner();
        assert!(begun.authorization_url.contains("code_challenge_method=S256"));
        let callback = consent(&begun.authorization_url).await;

        // Others, and the same person in another session or tenant, get nowhere and spoil nothing.
        let colleague = Person { tenant: person.tenant, ..Person::new() };
        let elsewhere = Person { tenant: Person::new().tenant, ..person.clone() };
        let other_session = Person { session: Person::new().session, ..person.clone() };
        for other in [&colleague, &elsewhere, &other_session] {
            let refused = replica.client(&world.person_token(other)).complete_connection(callback.clone()).await;
            assert_eq!(reason(refused.map_err(from_status)), "STATE_INVALID");
        }
        let wrong = pb::CompleteConnectionRequest { state: "x".repeat(43), ..callback.clone() };
        assert_eq!(reason(client.complete_connection(wrong).await.map_err(from_status)), "STATE_INVALID");
        let completed = client.complete_connection(callback.clone()).await.unwrap().into_inner().connection.unwrap();
        assert_eq!(completed.scopes, ["read"]);
        let again = client.complete_connection(callback).await;
        assert_eq!(reason(again.map_err(from_status)), "STATE_INVALID");

        let begun = client.begin_connection(begin).await.unwrap().into_inner();
        let late = consent(&begun.authorization_url).await;
        world.clock.advance(Duration::from_secs(601));
        assert_eq!(reason(client.complete_connection(late).await.map_err(from_status)), "STATE_INVALID");
        replica.stop().await;
    }

    /// Another issuer's answer, a declined consent, unknown upstreams and scopes.
    async fn answers_that_must_not_count_do_not(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        let (replica, person) = (world.start().await, Person::new());
        let mut client = replica.client(&world.person_token(&person));
        let begin = |scopes: &[&str], upstream: &str| pb::BeginConnectionRequest {
            upstream: upstream.into(),
            scopes: scopes.iter().map(|&scope| scope.into()).collect(),
        };
        assert_eq!(
            reason(client.begin_connection(begin(&["admin"], UPSTREAM)).await.map_err(from_status)),
            "SCOPE_NOT_ALLOWED"
        );
        assert_eq!(reason(client.begin_connection(begin(&[], "nobody")).await.map_err(from_status)), "UPSTREAM_NOT_FOUND");
        let changes: [fn(&mut pb::CompleteConnectionRequest); 4] = [
            |callback| callback.issuer = "https://evil.example".into(),
            |callback| callback.issuer.clear(),
            |callback| callback.error = "access_denied".into(),
            |callback| callback.code = "guessed".into(),
        ];
        for change in changes {
            let begun = client.begin_connection(begin(&[], UPSTREAM)).await.unwrap().into_inner();
            let mut callback = consent(&begun.authorization_url).await;
            change(&mut callback);
            assert_eq!(reason(client.complete_connection(callback).await.map_err(from_status)), "UPSTREAM_REFUSED");
        }
        let begun = client.begin_connection(begin(&[], UPSTREAM)).await.unwrap().into_inner();
        let callback = consent(&begun.authorization_url).await;
        world.provider.inject(Fault::ServerError);
        assert_eq!(reason(client.complete_connection(callback).await.map_err(from_status)), "UPSTREAM_UNAVAILABLE");
        assert!(world.secrets.census().is_empty(), "a failed consent left a secret");
        assert_eq!(reason(get(&mut client).await), "CONNECTION_NOT_FOUND");
        assert!(world.connect(&replica, &person).await.is_ok(), "a failed consent stands in the way");
        replica.stop().await;
    }

    /// Who may have a token: the subject, through services that the policy names, within their scopes.
    async fn a_token_is_for_the_subject_within_policy(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        let (replica, person) = (world.start().await, Person::new());
        world.connect(&replica, &person).await.unwrap();
        let colleague = Person { tenant: person.tenant, ..Person::new() };
        let elsewhere = Person { tenant: Person::new().tenant, ..person.clone() };
        for (token, expected) in [
            (world.acting_token(&person, "reporter"), ""),
            (world.acting_token(&person, "stranger"), "POLICY_DENIED"),
            // A service that does not say that it acts is no person for that; through the gateway they speak themselves.
            (world.unnamed_token(&person, "stranger"), "POLICY_DENIED"),
            (world.unnamed_token(&person, "reporter"), ""),
            (world.unnamed_token(&person, "gateway"), ""),
            // Its tokens would carry more than it may have.
            (world.acting_token(&person, "reader"), "POLICY_DENIED"),
            (world.client_token("reporter"), "PERSON_REQUIRED"),
            (world.person_token(&colleague), "CONNECTION_NOT_FOUND"),
            (world.person_token(&elsewhere), "CONNECTION_NOT_FOUND"),
        ] {
            assert_eq!(reason(get(&mut replica.client(&token)).await), expected);
        }
        let mut client = replica.client(&world.person_token(&person));
        for (min_remaining_seconds, scopes, expected) in
            [(601, vec![], "INVALID_FIELD"), (-1, vec![], "INVALID_FIELD"), (0, vec!["admin"], "POLICY_DENIED")]
        {
            let request = pb::GetAccessTokenRequest {
                upstream: UPSTREAM.into(),
                scopes: scopes.into_iter().map(str::to_owned).collect(),
                min_remaining_seconds,
                ..Default::default()
            };
            assert_eq!(reason(client.get_access_token(request).await.map_err(from_status)), expected);
        }
        let denied = world.actions().await.iter().filter(|action| action.contains("tokens.issue ")).count();
        assert_eq!(denied, 7, "a refusal was not audited: {:?}", world.actions().await);
        replica.stop().await;
    }

    /// Offline grants: given by a person, to one client, for some scopes, for a time, until taken back.
    async fn an_offline_grant_is_one_clients_until_it_ends(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        let (replica, person) = (world.start().await, Person::new());
        let connection = world.connect(&replica, &person).await.unwrap().connection_id;
        let mut client = replica.client(&world.person_token(&person));
        let ask = |client_id: &str, scopes: &[&str], lifetime_seconds| pb::CreateOfflineGrantRequest {
            connection_id: connection.clone(),
            client_id: client_id.into(),
            scopes: scopes.iter().map(|&scope| scope.into()).collect(),
            lifetime_seconds,
        };
        for (request, expected) in [
            (ask("stranger", &[], 0), "CLIENT_NOT_ALLOWED"),
            (ask("reporter", &["admin"], 0), "INVALID_FIELD"),
            // This upstream's tokens carry all scopes of the connection: for fewer there would never be one.
            (ask("reporter", &["read"], 0), "INVALID_FIELD"),
            (ask("reader", &[], 0), "CLIENT_NOT_ALLOWED"),
            (ask("reporter", &[], 366 * 86_400), "INVALID_FIELD"),
            (ask("reporter", &[], -1), "INVALID_FIELD"),
        ] {
            assert_eq!(reason(client.create_offline_grant(request).await.map_err(from_status)), expected);
        }
        // No service makes one for itself in a person's name.
        let mut acting = replica.client(&world.acting_token(&person, "reporter"));
        let selfish = acting.create_offline_grant(ask("reporter", &[], 0)).await;
        assert_eq!(reason(selfish.map_err(from_status)), "CLIENT_NOT_ALLOWED");
        let mut unnamed = replica.client(&world.unnamed_token(&person, "reporter"));
        let selfish = unnamed.create_offline_grant(ask("reporter", &[], 0)).await;
        assert_eq!(reason(selfish.map_err(from_status)), "CLIENT_NOT_ALLOWED");

        let grant = client.create_offline_grant(ask("reporter", &[], 3600)).await.unwrap().into_inner().grant.unwrap();
        let by_grant = |token: String| {
            let mut client = replica.client(&token);
            let request = pb::GetAccessTokenRequest {
                upstream: UPSTREAM.into(),
                offline_grant_id: grant.offline_grant_id.clone(),
                ..Default::default()
            };
            async move { client.get_access_token(request).await.map(tonic::Response::into_inner).map_err(from_status) }
        };
        let token = by_grant(world.client_token("reporter")).await.unwrap();
        assert!(works(&world.provider, &token.access_token).await);
        assert_eq!(reason(by_grant(world.client_token("reader")).await), "GRANT_NOT_FOUND");
        assert_eq!(reason(by_grant(world.person_token(&person)).await), "INVALID_FIELD");
        assert_eq!(reason(by_grant(world.acting_token(&Person::new(), "reporter")).await), "INVALID_FIELD");

        let listed = client.list_offline_grants(pb::ListOfflineGrantsRequest {}).await.unwrap().into_inner().grants;
        assert_eq!(listed, std::slice::from_ref(&grant));
        let revoke = pb::RevokeOfflineGrantRequest { offline_grant_id: grant.offline_grant_id.clone() };
        let mut colleague = replica.client(&world.person_token(&Person { tenant: person.tenant, ..Person::new() }));
        assert_eq!(
            reason(colleague.revoke_offline_grant(revoke.clone()).await.map_err(from_status)),
            "GRANT_NOT_FOUND"
        );
        for _ in 0..2 {
            client.revoke_offline_grant(revoke.clone()).await.unwrap();
        }
        assert_eq!(reason(by_grant(world.client_token("reporter")).await), "GRANT_NOT_FOUND");

        let short = client.create_offline_grant(ask("reporter", &[], 60)).await.unwrap().into_inner().grant.unwrap();
        world.clock.advance(Duration::from_secs(61));
        let request = pb::GetAccessTokenRequest {
            upstream: UPSTREAM.into(),
            offline_grant_id: short.offline_grant_id,
            ..Default::default()
        };
        let ended = replica.client(&world.client_token("reporter")).get_access_token(request).await;
        assert_eq!(reason(ended.map_err(from_status)), "GRANT_NOT_FOUND");
        replica.stop().await;
    }

    /// Whoever lost their membership, or all, gave grants that end with it: found at a hand-out or by a sweep, and for good.
    async fn an_offline_grant_ends_with_the_membership_it_was_given_in(db: TestDb) {
        let mut world = World::new(db, Rotation::Strict).await;
        let by_grant = async |world: &World, grant: &str| {
            let replica = world.start().await;
            let request = pb::GetAccessTokenRequest {
                upstream: UPSTREAM.into(),
                offline_grant_id: grant.into(),
                ..Default::default()
            };
            let outcome = replica.client(&world.client_token("reporter")).get_access_token(request).await;
            replica.stop().await;
            reason(outcome.map_err(from_status))
        };
        let give = async |world: &World, person: &Person| {
            let replica = world.start().await;
            let connection_id = world.connect(&replica, person).await.unwrap().connection_id;
            let request = pb::CreateOfflineGrantRequest {
                connection_id,
                client_id: "reporter".into(),
                ..Default::default()
            };
            let given = replica.client(&world.person_token(person)).create_offline_grant(request).await.unwrap();
            replica.stop().await;
            given.into_inner().grant.unwrap().offline_grant_id
        };
        for kind in [RevocationKind::Membership, RevocationKind::Person, RevocationKind::Tenant] {
            for by_sweep in [false, true] {
                let (person, bystander) = (Person::new(), Person::new());
                let (grant, other) = (give(&world, &person).await, give(&world, &bystander).await);
                assert_eq!(by_grant(&world, &grant).await, "");
                let now = world.clock.now();
                let id = match kind {
                    RevocationKind::Membership => format!("{}/{}", person.id, person.tenant),
                    RevocationKind::Person => person.id.to_string(),
                    _ => person.tenant.to_string(),
                };
                let entry = Revocation {
                    sequence: 2,
                    kind: kind.into(),
                    id,
                    not_before: now.plus(Duration::from_secs(30)).as_micros(),
                    expires_at: now.plus(Duration::from_secs(900)).as_micros(),
                };
                world.revocations.apply(&[entry], 2, true);
                if by_sweep {
                    // Each process begins with one.
                    let before = ends(&world).await;
                    let replica = world.start().await;
                    let world = &world;
                    eventually(Duration::from_secs(10), || async move { ends(world).await > before }).await;
                    replica.stop().await;
                } else {
                    assert_eq!(by_grant(&world, &grant).await, "GRANT_NOT_FOUND", "{kind:?}");
                }
                // The entry is forgotten, the process another: the grant stays ended, another's stands.
                world.clock.advance(Duration::from_secs(31));
                world.revocations = no_revocations(&world.clock);
                assert_eq!(by_grant(&world, &grant).await, "GRANT_NOT_FOUND", "{kind:?}, by sweep: {by_sweep}");
                assert_eq!(by_grant(&world, &other).await, "", "{kind:?}: a bystander's grant ended");
                // Who is a member again may give another.
                let again = give(&world, &person).await;
                assert_eq!(by_grant(&world, &again).await, "", "{kind:?}");
            }
        }
        assert_eq!(ends(&world).await, 6, "an end was not audited, or twice");
    }

    /// Open consents end by themselves; connections do not.
    async fn open_consents_and_connections_are_bounded_apart(db: TestDb) {
        let mut world = World::new(db, Rotation::Strict).await;
        world.config.max_connections = 1;
        world.config.upstreams.insert("another".into(), world.config.upstreams[UPSTREAM].clone());
        let (replica, person) = (world.start().await, Person::new());
        let mut client = replica.client(&world.person_token(&person));
        let begin = |upstream: &str| pb::BeginConnectionRequest { upstream: upstream.into(), scopes: vec![] };
        for _ in 0..20 {
            client.begin_connection(begin(UPSTREAM)).await.unwrap();
        }
        let refused = client.begin_connection(begin(UPSTREAM)).await.map_err(from_status).unwrap_err();
        assert_eq!(refused.reason(), "TOO_MANY_CONSENTS");
        world.clock.advance(Duration::from_secs(601));
        world.connect(&replica, &person).await.unwrap();
        let refused = client.begin_connection(begin("another")).await.map_err(from_status).unwrap_err();
        assert_eq!(refused.reason(), "TOO_MANY_CONNECTIONS");
        replica.stop().await;
    }

    /// What has ended is shown behind what stands, and forgotten a month after.
    async fn what_has_ended_stands_last_and_is_forgotten(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        let (replica, person) = (world.start().await, Person::new());
        let mut client = replica.client(&world.person_token(&person));
        let create = |connection: &str, lifetime_seconds: i64| pb::CreateOfflineGrantRequest {
            connection_id: connection.into(),
            client_id: "reporter".into(),
            lifetime_seconds,
            ..Default::default()
        };
        let mut ended = Vec::new();
        for days in [0, 29] {
            world.clock.advance(Duration::from_hours(days * 24));
            let connection_id = world.connect(&replica, &person).await.unwrap().connection_id;
            client.create_offline_grant(create(&connection_id, 0)).await.unwrap();
            world.expire_access_tokens();
            get(&mut client).await.unwrap();
            client.disconnect(pb::DisconnectRequest { connection_id: connection_id.clone() }).await.unwrap();
            ended.insert(0, connection_id);
        }
        let standing = world.connect(&replica, &person).await.unwrap().connection_id;
        let long = client.create_offline_grant(create(&standing, 365 * 86_400)).await.unwrap().into_inner().grant.unwrap();
        let short = client.create_offline_grant(create(&standing, 60)).await.unwrap().into_inner().grant.unwrap();
        world.clock.advance(Duration::from_mins(2));
        let listed = async |client: &mut support::Client| {
            let connections = client.list_connections(pb::ListConnectionsRequest {}).await.unwrap().into_inner().connections;
            let grants = client.list_offline_grants(pb::ListOfflineGrantsRequest {}).await.unwrap().into_inner().grants;
            let connections: Vec<_> = connections.into_iter().map(|found| found.connection_id).collect();
            let grants: Vec<_> = grants.into_iter().map(|found| found.offline_grant_id).collect();
            (connections, grants)
        };
        let (connections, grants) = listed(&mut client).await;
        assert_eq!(connections, [vec![standing.clone()], ended.clone()].concat());
        assert_eq!((grants.len(), &grants[0], &grants[1]), (4, &long.offline_grant_id, &short.offline_grant_id));
        replica.stop().await;
        // Each process begins with a sweep.
        world.clock.advance(Duration::from_hours(2 * 24));
        let replica = world.start().await;
        let client = replica.client(&world.person_token(&person));
        eventually(Duration::from_secs(10), || {
            let mut client = client.clone();
            async move { listed(&mut client).await.0.len() == 2 }
        })
        .await;
        let mut client = client;
        let (connections, grants) = listed(&mut client).await;
        assert_eq!(connections, [standing, ended.swap_remove(0)]);
        assert_eq!((grants.len(), &grants[0]), (3, &long.offline_grant_id));
        let left = gatehouse_db::read_tx!(world.db, "test.left", |tx| { tx.fetch_all(&CONNECTIONS_OF_ATTEMPTS, vec![]).await }).unwrap();
        assert_eq!(left.len(), 1, "only the connection that is still shown has attempts");
        let locks = gatehouse_db::read_tx!(world.db, "test.locks", |tx| { tx.fetch_all(&LOCKED, vec![]).await }).unwrap();
        assert!(locks.is_empty(), "what only a change of theirs takes stands for somebody who changed nothing for days");
        assert!(get(&mut client).await.is_ok());
        replica.stop().await;
    }

    /// A token that the provider goes on with was not rotated.
    async fn a_renewal_without_rotation_is_not_called_one(db: TestDb) {
        let world = World::new(db, Rotation::NoRotate).await;
        let (replica, person) = (world.start().await, Person::new());
        world.connect(&replica, &person).await.unwrap();
        let mut client = replica.client(&world.person_token(&person));
        world.expire_access_tokens();
        get(&mut client).await.unwrap();
        assert_eq!(world.provider.counters().refreshes, 1);
        let listed = client.list_connections(pb::ListConnectionsRequest {}).await.unwrap().into_inner().connections;
        assert_eq!((listed[0].generation, listed[0].rotated_at), (0, 0));
        assert!(listed[0].last_used_at > 0);
        replica.stop().await;
    }

    /// Ending a connection ends it everywhere: here, in the secrets backend, at the provider.
    async fn disconnecting_shreds_and_revokes(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        let (replica, person) = (world.start().await, Person::new());
        let connection = world.connect(&replica, &person).await.unwrap().connection_id;
        let token = world.current(&person, &connection).await.unwrap();
        let mut client = replica.client(&world.person_token(&person));
        let request = pb::DisconnectRequest { connection_id: connection.clone() };
        let mut other = replica.client(&world.person_token(&Person { tenant: person.tenant, ..Person::new() }));
        assert_eq!(reason(other.disconnect(request.clone()).await.map_err(from_status)), "CONNECTION_NOT_FOUND");
        assert!(world.provider.would_accept_refresh_token(&token));

        assert!(client.disconnect(request.clone()).await.unwrap().into_inner().revoked_upstream);
        assert!(!world.provider.would_accept_refresh_token(&token));
        assert!(world.secrets.census().is_empty());
        assert_eq!(reason(get(&mut client).await), "CONNECTION_NOT_FOUND");
        assert!(!client.disconnect(request).await.unwrap().into_inner().revoked_upstream, "not idempotent");
        let get_one = pb::GetConnectionRequest { connection_id: connection };
        let seen = client.get_connection(get_one).await.unwrap().into_inner().connection.unwrap();
        assert_eq!(seen.state, i32::from(pb::ConnectionState::Disconnected));
        world.connect(&replica, &person).await.unwrap();
        assert!(get(&mut client).await.is_ok());
        replica.stop().await;
    }

    /// A person may consent anew to what they are connected to already; the old token is gone then.
    async fn connecting_again_replaces_the_token(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        let (replica, person) = (world.start().await, Person::new());
        let first = world.connect(&replica, &person).await.unwrap().connection_id;
        let old = world.current(&person, &first).await.unwrap();
        let mut client = replica.client(&world.person_token(&person));
        world.provider.revoke_all();
        world.expire_access_tokens();
        assert_eq!(reason(get(&mut client).await), "NEEDS_REAUTHORIZATION");
        let actions = world.actions().await;
        assert!(actions.contains(&"token-broker.connections.expire NEEDS_REAUTHORIZATION".to_owned()), "{actions:?}");
        let second = world.connect(&replica, &person).await.unwrap();
        assert_eq!(second.connection_id, first);
        assert_ne!(world.current(&person, &first).await.unwrap(), old);
        assert!(works(&world.provider, &get(&mut client).await.unwrap().access_token).await);
        assert_eq!(world.secrets.census().values().collect::<Vec<_>>(), [&1]);
        replica.stop().await;
    }

    /// A disconnection in the middle of giving a grant: whichever is first, no grant stands on a connection that is over.
    async fn no_grant_stands_on_a_connection_that_ended_meanwhile(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        let (person, connection_id) = connected(&world).await;
        let (steps, arrival, go) = pausing_at(Step::GrantAllowed);
        let [giving, ending] = [world.start_with(steps, false).await, world.start_with(Steps::default(), false).await];
        let request = pb::CreateOfflineGrantRequest {
            connection_id: connection_id.clone(),
            client_id: "reporter".into(),
            ..Default::default()
        };
        let mut client = giving.client(&world.person_token(&person));
        let (asked, request_again) = (request.clone(), request);
        let given = tokio::spawn(async move { client.create_offline_grant(asked).await.map_err(from_status) });
        arrived(arrival).await;
        let mut client = ending.client(&world.person_token(&person));
        let mut ended = tokio::spawn(async move { client.disconnect(pb::DisconnectRequest { connection_id }).await });
        // One that does not wait for the grant is over long before.
        let early = tokio::time::timeout(Duration::from_secs(1), &mut ended).await;
        go.send(()).unwrap();
        let given = given.await.unwrap();
        match early {
            Ok(ended) => ended.unwrap().map(drop).unwrap(),
            Err(_) => ended.await.unwrap().map(drop).unwrap(),
        }
        let mut client = ending.client(&world.person_token(&person));
        let grants = client.list_offline_grants(pb::ListOfflineGrantsRequest {}).await.unwrap().into_inner().grants;
        assert!(grants.iter().all(|grant| grant.revoked_at != 0), "{given:?}: {grants:?}");
        let late = client.create_offline_grant(request_again).await.map_err(from_status);
        assert_eq!(reason(late), "CONNECTION_NOT_FOUND");
        giving.stop().await;
        ending.stop().await;
    }
}
