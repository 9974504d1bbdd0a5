//! What the audit trail is told, in the same transaction (requirement B-adm).

use gatehouse_auth::MIGRATIONS;
use gatehouse_client::audience;
use gatehouse_db::{params, read_tx, run_tx, sql};
use gatehouse_proto::audit::v1::{NewEvent, Outcome};
use gatehouse_proto::auth::v1::account_service_client::AccountServiceClient;
use gatehouse_proto::auth::v1::{
    AddMemberRequest, ChangePasswordRequest, CreateApiKeyRequest, CreateTenantRequest, Origin,
    RegisterRequest, RemoveMemberRequest, RevokeApiKeyRequest, RotateApiKeyRequest, SetMemberRoleRequest,
    SignInRequest, SignOutRequest,
};
use gatehouse_testkit::{TestDb, both_engines};
use prost::Message as _;

use crate::support::{Cluster, PASSWORD, reason};

sql! {
    EVENTS = "SELECT event FROM audit_outbox ORDER BY position, event_id";
    DISABLE = "UPDATE people SET disabled_at = 1";
}

pub(crate) async fn events(db: &TestDb) -> Vec<NewEvent> {
    let rows = read_tx!(db.db(), "test.events", |tx| { tx.fetch_all(&EVENTS, params![]).await }).unwrap();
    rows.iter()
        .map(|row| NewEvent::decode(row.get::<Vec<u8>>("event").unwrap().as_slice()).unwrap())
        .collect()
}

both_engines! {
    migrations: MIGRATIONS;

    async fn every_change_is_told_with_who_what_and_where(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let replica = cluster.at(0);
        let (ada, tenant) = replica.register("ada@example.com", "Engines").await;
        let (bob, _) = replica.register("bob@example.com", "").await;
        let _ = replica.try_sign_in("ada@example.com", "wrong password", "").await;
        let first = replica.sign_in("ada@example.com").await;
        let second = replica.refresh(&first.refresh_token).await.unwrap();
        let third = replica.refresh(&second.refresh_token).await.unwrap();
        let _ = replica.refresh(&first.refresh_token).await;
        let _ = replica.refresh(&third.refresh_token).await;
        let tokens = replica.sign_in("ada@example.com").await;
        let mut as_ada = replica.as_subject(&tokens.access_token).await;
        as_ada.tenants.add_member(AddMemberRequest { email: "bob@example.com".into(), role: "viewer".into() }).await.unwrap();
        as_ada.tenants.set_member_role(SetMemberRoleRequest { person_id: bob.clone(), role: "member".into() }).await.unwrap();
        as_ada.tenants.remove_member(RemoveMemberRequest { person_id: bob.clone() }).await.unwrap();
        let key = CreateApiKeyRequest { name: "ci".into(), ..CreateApiKeyRequest::default() };
        let key = as_ada.api_keys.create_api_key(key).await.unwrap().into_inner().api_key.unwrap().api_key_id;
        as_ada.api_keys.rotate_api_key(RotateApiKeyRequest { api_key_id: key.clone(), overlap_seconds: 60, ..RotateApiKeyRequest::default() }).await.unwrap();
        as_ada.api_keys.revoke_api_key(RevokeApiKeyRequest { api_key_id: key.clone() }).await.unwrap();
        let change = ChangePasswordRequest { current_password: PASSWORD.into(), new_password: "a new owl for tea".into() };
        as_ada.accounts.change_password(change).await.unwrap();
        as_ada.tenants.create_tenant(CreateTenantRequest { name: "Two".into() }).await.unwrap();
        as_ada.accounts.sign_out(SignOutRequest {}).await.unwrap();

        let told = events(&db).await;
        let session = |id: &str| format!("session/{id}");
        let (success, denied) = (Outcome::Success, Outcome::Denied);
        let expected = [
            ("auth.people.register", success, ada.as_str(), format!("person/{ada}")),
            ("auth.tenants.create", success, &ada, format!("tenant/{tenant}")),
            ("auth.people.register", success, &bob, format!("person/{bob}")),
            ("auth.sessions.create", denied, "anonymous", String::new()),
            ("auth.sessions.create", success, &ada, session(&first.session_id)),
            ("auth.sessions.refresh", success, &ada, session(&first.session_id)),
            ("auth.sessions.refresh", success, &ada, session(&first.session_id)),
            ("auth.sessions.refresh", denied, "anonymous", session(&first.session_id)),
            ("auth.sessions.create", success, &ada, session(&tokens.session_id)),
            ("auth.members.add", success, &ada, format!("person/{bob}")),
            ("auth.members.set_role", success, &ada, format!("person/{bob}")),
            ("auth.members.remove", success, &ada, format!("person/{bob}")),
            ("auth.api_keys.create", success, &ada, format!("api_key/{key}")),
            ("auth.api_keys.rotate", success, &ada, format!("api_key/{key}")),
            ("auth.api_keys.revoke", success, &ada, format!("api_key/{key}")),
            ("auth.passwords.change", success, &ada, format!("person/{ada}")),
            ("auth.tenants.create", success, &ada, told.iter().rfind(|event| event.action == "auth.tenants.create").unwrap().target.clone()),
            ("auth.sessions.sign_out", success, &ada, session(&tokens.session_id)),
        ];
        let seen: Vec<_> = told.iter().map(|event| (event.action.as_str(), event.outcome(), event.actor.as_str(), event.target.clone())).collect();
        for expected in &expected {
            assert!(seen.contains(expected), "{expected:?} is missing in {seen:#?}");
        }
        assert_eq!(seen.len(), expected.len(), "{seen:#?}");
        // Whoever looks into it learns how old the token was that came back.
        let reused = told.iter().find(|event| event.reason == "REFRESH_TOKEN_REUSED").unwrap();
        let payload: serde_json::Value = serde_json::from_str(&reused.payload_json).unwrap();
        assert_eq!((&payload["presented_generation"], &payload["session_generation"]), (&0.into(), &2.into()), "{payload}");
        for event in &told {
            assert!(!event.request_id.is_empty(), "{event:?} leads to no log");
        }
        // Personal data stands in the sealed payload and nowhere else.
        for event in &told {
            let open = NewEvent { payload_json: String::new(), actor_json: String::new(), ..event.clone() };
            assert!(!format!("{open:?}").contains("example.com"), "{open:?}");
        }
    }

    async fn registering_a_taken_address_is_told_about_whose_it_is(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let replica = cluster.at(0);
        let (ada, _) = replica.register("ada@example.com", "").await;
        let register = async |password: &str| {
            let request = RegisterRequest { email: "ada@example.com".into(), password: password.into(), ..RegisterRequest::default() };
            replica.accounts().register(request).await
        };
        let denied = async || {
            let told = events(&db).await.into_iter().filter(|event| event.action == "auth.people.register");
            told.filter(|event| event.outcome() == Outcome::Denied).collect::<Vec<_>>()
        };
        register("another owl, at night").await.unwrap();
        assert_eq!(denied().await.len(), 1);
        assert_eq!(reason(register(PASSWORD).await), "EMAIL_TAKEN");
        assert_eq!(denied().await.len(), 2);
        // A disabled account is as good as none: its password gets the answer that a free address does.
        run_tx!(db.db(), "test.disable", |tx| { tx.execute(&DISABLE, params![]).await }).unwrap();
        let made = register(PASSWORD).await.unwrap().into_inner();
        assert_ne!(made.person_id, ada);
        let told = denied().await;
        assert_eq!(told.len(), 3);
        for event in told {
            assert_eq!((event.subject_id.as_str(), event.reason.as_str(), event.actor.as_str()), (ada.as_str(), "EMAIL_TAKEN", "anonymous"));
        }
        assert_eq!(events(&db).await.iter().filter(|event| event.action == "auth.people.register").count(), 4);
    }

    async fn only_the_gateway_says_where_a_request_came_from(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let replica = cluster.at(0);
        replica.register("ada@example.com", "").await;
        let request = || SignInRequest {
            email: "ada@example.com".into(),
            password: PASSWORD.into(),
            origin: Some(Origin { ip: "192.0.2.7".into(), user_agent: "probe".into() }),
            ..SignInRequest::default()
        };
        let worker = replica.client_token("worker", audience::AUTH).await;
        let gateway = replica.client_token("gateway", audience::AUTH).await;
        replica.accounts().sign_in(request()).await.unwrap();
        AccountServiceClient::new(replica.with(&worker)).sign_in(request()).await.unwrap();
        AccountServiceClient::new(replica.with(&gateway)).sign_in(request()).await.unwrap();
        let told: Vec<_> = events(&db).await.into_iter().filter(|event| event.action == "auth.sessions.create").collect();
        let from: Vec<_> = told.iter().map(|event| event.payload_json.contains("192.0.2.7")).collect();
        assert_eq!(from, [false, false, true]);
        // What is no address is not told as one.
        let mut odd = request();
        odd.origin = Some(Origin { ip: "ada@example.com".into(), user_agent: "probe".into() });
        AccountServiceClient::new(replica.with(&gateway)).sign_in(odd).await.unwrap();
        let last = events(&db).await.into_iter().rfind(|event| event.action == "auth.sessions.create").unwrap();
        let payload: serde_json::Value = serde_json::from_str(&last.payload_json).unwrap();
        assert_eq!((payload["ip"].as_str(), payload["user_agent"].as_str()), (Some(""), Some("probe")));
    }
}
