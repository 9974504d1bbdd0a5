//! Consents, disconnections and static keys around a process that dies or a file that changes.
#![expect(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::Duration;

use gatehouse_proto::token_broker::v1 as pb;
use gatehouse_testkit::oauth_provider::Rotation;
use gatehouse_testkit::{TestDb, both_engines, eventually};
use gatehouse_token_broker::Step;
use gatehouse_token_broker::config::StaticKey;
use support::stops::dying_at;
use support::{Person, World, get, reason};

both_engines! {
    migrations: gatehouse_token_broker::MIGRATIONS;

    /// A consent that was interrupted leaves nothing for ever and stands in nobody's way.
    async fn an_interrupted_consent_leaves_nothing(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        for step in [
            Step::CodeClaimed,
            Step::CodeExchanged,
            Step::ConsentFenced,
            Step::FirstPut,
            Step::FirstPromoted,
        ] {
            let (given_up, again) = (Person::new(), Person::new());
            let replica = world.start_with(dying_at(step), true).await;
            for person in [&given_up, &again] {
                assert_eq!(reason(world.connect(&replica, person).await), "INTERRUPTED", "{step:?}");
            }
            replica.stop().await;
            let replica = world.start().await;
            assert_eq!(reason(get(&mut replica.client(&world.person_token(&given_up))).await), "CONNECTION_NOT_FOUND");
            let connection = world.connect(&replica, &again).await.unwrap().connection_id;
            world.clock.advance(Duration::from_secs(700));
            replica.broker.sweep().await.unwrap();
            assert_eq!(world.secrets.census().len(), 1, "{step:?}: {:?}", world.secrets.census());
            assert!(get(&mut replica.client(&world.person_token(&again))).await.is_ok(), "{step:?}");
            let mut client = replica.client(&world.person_token(&again));
            client.disconnect(pb::DisconnectRequest { connection_id: connection }).await.unwrap();
            assert!(world.secrets.census().is_empty());
            replica.stop().await;
        }
    }

    /// A disconnection that was interrupted is ended by the next process.
    async fn an_interrupted_disconnection_is_ended(db: TestDb) {
        let world = World::new(db, Rotation::Strict).await;
        for step in [Step::DisconnectCommitted, Step::SecretDeleted] {
            let person = Person::new();
            let replica = world.start_with(dying_at(step), true).await;
            let connection = world.connect(&replica, &person).await.unwrap().connection_id;
            let token = world.current(&person, &connection).await.unwrap();
            let mut client = replica.client(&world.person_token(&person));
            let ended = client.disconnect(pb::DisconnectRequest { connection_id: connection }).await.unwrap();
            assert!(!ended.into_inner().revoked_upstream);
            assert_eq!(reason(get(&mut client).await), "CONNECTION_NOT_FOUND");
            replica.stop().await;
            let replica = world.start().await;
            let secrets = world.secrets.clone();
            eventually(Duration::from_secs(10), || {
                let secrets = secrets.clone();
                async move { secrets.census().is_empty() }
            })
            .await;
            assert!(!world.provider.would_accept_refresh_token(&token), "{step:?}: not revoked");
            replica.stop().await;
        }
    }

    /// A static key: for the services that are named, rotated by its file, one version kept.
    async fn a_static_key_is_rotated_by_its_file(db: TestDb) {
        let mut world = World::new(db, Rotation::Strict).await;
        let folder = tempfile::tempdir().unwrap();
        let key_file = folder.path().join("maximo-key");
        std::fs::write(&key_file, "first-key\n").unwrap();
        let key = StaticKey { key_file: key_file.clone(), clients: vec!["gateway".into()], ..StaticKey::default() };
        world.config.static_keys.insert("maximo".into(), key);
        let replica = world.start().await;
        replica.broker.sweep().await.unwrap();
        let ask = |token: String| {
            let mut client = replica.client(&token);
            let request = pb::GetAccessTokenRequest { upstream: "maximo".into(), ..Default::default() };
            async move {
                client.get_access_token(request).await.map(tonic::Response::into_inner).map_err(gatehouse_client::from_status)
            }
        };
        let given = ask(world.client_token("gateway")).await.unwrap();
        assert_eq!((given.access_token.as_str(), given.token_type.as_str()), ("first-key", "apikey"));
        for token in [
            world.client_token("reporter"),
            world.person_token(&Person::new()),
            world.acting_token(&Person::new(), "reporter"),
        ] {
            assert_eq!(reason(ask(token).await), "POLICY_DENIED");
        }
        std::fs::write(&key_file, "second-key").unwrap();
        replica.broker.sweep().await.unwrap();
        assert_eq!(ask(world.client_token("gateway")).await.unwrap().access_token, "second-key");
        assert_eq!(world.secrets.census().values().collect::<Vec<_>>(), [&1]);
        std::fs::remove_file(&key_file).unwrap();
        replica.broker.sweep().await.unwrap();
        assert_eq!(ask(world.client_token("gateway")).await.unwrap().access_token, "second-key");
        // The service's own sweep may have been the one that rotated, and tells of it when it is done.
        let (world, rotate) = (&world, "static-keys.rotate");
        eventually(Duration::from_secs(10), || async move {
            world.actions().await.iter().filter(|action| action.contains(rotate)).count() == 2
        })
        .await;
        replica.stop().await;
    }
}
