//! Accounts and sign-in.

use gatehouse_auth::MIGRATIONS;
use gatehouse_client::audience;
use gatehouse_proto::auth::v1::{
    ChangePasswordRequest, GetJwksRequest, ListSessionsRequest, RegisterRequest, RevokeSessionRequest,
    SignInRequest, SignOutRequest, WhoAmIRequest,
};
use gatehouse_testkit::{TestDb, both_engines, eventually};

use crate::support::{Cluster, PASSWORD, PATIENCE, reason};

both_engines! {
    migrations: MIGRATIONS;

    async fn a_person_registers_signs_in_and_is_known(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let (person, tenant) = cluster.at(0).register(" Ada@Example.com", "Analytical Engines").await;
        let tokens = cluster.at(0).sign_in("ada@example.COM").await;
        assert_eq!((&tokens.person_id, &tokens.tenant_id), (&person, &tenant));
        let mut ada = cluster.at(0).as_subject(&tokens.access_token).await;
        let who = ada.accounts.who_am_i(WhoAmIRequest {}).await.unwrap().into_inner();
        assert_eq!((who.kind.as_str(), who.subject, who.tenant_id), ("person", person, tenant));
        assert_eq!((who.roles, who.email.as_str()), (vec!["owner".to_owned()], "ada@example.com"));
        assert!(who.permissions.contains(&"job.jobs.submit".to_owned()));
    }

    async fn unknown_wrong_and_known_cost_one_hash_and_get_one_answer(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        cluster.at(0).register("ada@example.com", "").await;
        let hashes = || cluster.at(0).server.app.hashes_computed();
        let mut answers = Vec::new();
        for (email, password) in [("nobody@example.com", PASSWORD), ("ada@example.com", "not the password")] {
            let before = hashes();
            let status = cluster.at(0).try_sign_in(email, password, "").await.unwrap_err();
            assert_eq!(hashes() - before, 1, "{email}");
            answers.push((status.code(), status.message().to_owned(), status.details().to_vec()));
        }
        assert_eq!(answers[0], answers[1]);
        let before = hashes();
        cluster.at(0).sign_in("ada@example.com").await;
        assert_eq!(hashes() - before, 1);
        // Registering: a taken address costs what a free one does, and gives the same answer.
        for email in ["ada@example.com", "new@example.com"] {
            let before = hashes();
            let request = RegisterRequest { email: email.into(), password: "another owl, at night".into(), ..RegisterRequest::default() };
            let made = cluster.at(0).accounts().register(request).await.unwrap().into_inner();
            assert_eq!(hashes() - before, 1, "{email}");
            assert!(!made.person_id.is_empty());
        }
        assert!(cluster.at(0).try_sign_in("ada@example.com", "another owl, at night", "").await.is_err());
        let known = RegisterRequest { email: "ada@example.com".into(), password: PASSWORD.into(), ..RegisterRequest::default() };
        assert_eq!(reason(cluster.at(0).accounts().register(known).await), "EMAIL_TAKEN");
    }

    /// A double click: one account, and whoever comes second is told so.
    async fn the_same_registration_twice_at_once_makes_one_account(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        let registering = (0..6).map(|place| {
            let mut accounts = cluster.at(place).accounts();
            let request = RegisterRequest { email: "ada@example.com".into(), password: PASSWORD.into(), ..RegisterRequest::default() };
            tokio::spawn(async move { accounts.register(request).await })
        });
        let mut made = 0;
        for registered in registering.collect::<Vec<_>>() {
            match registered.await.unwrap() {
                Ok(_) => made += 1,
                refused => assert_eq!(reason(refused), "EMAIL_TAKEN"),
            }
        }
        assert_eq!(made, 1);
    }

    async fn a_flood_of_sign_ins_is_bounded_and_stops_nothing_else(db: TestDb) {
        let cluster = Cluster::start_with(&db, 1, |config| {
            config.hashing.memory_kib = 19_456;
            config.hashing.passes = 2;
            config.hashing.permits = 1;
            config.hashing.queue = 4;
        })
        .await;
        let replica = cluster.at(0);
        replica.register("ada@example.com", "").await;
        let flood: Vec<_> = (0..200)
            .map(|_| {
                let mut accounts = replica.accounts();
                tokio::spawn(async move {
                    let request = SignInRequest { email: "ada@example.com".into(), password: PASSWORD.into(), ..SignInRequest::default() };
                    accounts.sign_in(request).await.map(|_| ())
                })
            })
            .collect();
        // While it lasts, others are answered.
        for _ in 0..50 {
            replica.tokens().get_jwks(GetJwksRequest {}).await.unwrap();
        }
        let (mut signed_in, mut refused) = (0, 0);
        for attempt in flood {
            match attempt.await.unwrap() {
                Ok(()) => signed_in += 1,
                error => {
                    assert_eq!(reason(error), "HASHING_BUSY");
                    refused += 1;
                }
            }
        }
        assert!(signed_in >= 5, "only {signed_in} of 200 got in");
        assert!(refused > 0, "nobody was refused: the queue is not bounded");
        // One permit, one buffer: memory is used again.
        assert_eq!(replica.server.app.hash_buffers_made(), 1);
        assert!(replica.try_sign_in("ada@example.com", PASSWORD, "").await.is_ok());
    }

    async fn passwords_are_checked_and_fields_too(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let register = |email: &str, password: &str, tenant: &str| {
            let request = RegisterRequest {
                email: email.into(), password: password.into(), tenant_name: tenant.into(), ..RegisterRequest::default()
            };
            let mut accounts = cluster.at(0).accounts();
            async move { reason(accounts.register(request).await) }
        };
        assert_eq!(register("ada@example.com", "short", "").await, "PASSWORD_REJECTED");
        assert_eq!(register("ada@example.com", "password123456", "").await, "PASSWORD_REJECTED");
        assert_eq!(register("ada", PASSWORD, "").await, "INVALID_FIELD");
        assert_eq!(register("ada@example.com", PASSWORD, "a\u{202e}b").await, "INVALID_FIELD");
        assert_eq!(reason(cluster.at(0).try_sign_in("ada@example.com", &"x".repeat(10_000), "").await), "INVALID_CREDENTIALS");
        assert_eq!(reason(cluster.at(0).try_sign_in("ada@example.com", "", "").await), "INVALID_CREDENTIALS");
        assert_eq!(reason(cluster.at(0).try_sign_in("ada@example.com", PASSWORD, "not-an-id").await), "INVALID_FIELD");
    }

    async fn changing_the_password_ends_every_other_session_at_once(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        cluster.at(0).register("ada@example.com", "").await;
        let (mine, other) = (cluster.at(0).sign_in("ada@example.com").await, cluster.at(0).sign_in("ada@example.com").await);
        let mut ada = cluster.at(0).as_subject(&mine.access_token).await;
        let change = |current: &str, new: &str| ChangePasswordRequest { current_password: current.into(), new_password: new.into() };
        assert_eq!(reason(ada.accounts.change_password(change("wrong", "a new owl for tea")).await), "INVALID_CREDENTIALS");
        assert_eq!(reason(ada.accounts.change_password(change(PASSWORD, "short")).await), "PASSWORD_REJECTED");
        // Nothing would change, and every other session would end for it.
        assert_eq!(reason(ada.accounts.change_password(change(PASSWORD, PASSWORD)).await), "PASSWORD_REJECTED");
        assert_eq!(reason(ada.accounts.change_password(change("a wrong one for tea", "a wrong one for tea")).await), "INVALID_CREDENTIALS");
        cluster.at(1).exchange(&other.access_token, audience::JOB).await.unwrap();
        ada.accounts.change_password(change(PASSWORD, "a new owl for tea")).await.unwrap();
        assert_eq!(reason(cluster.at(1).refresh(&other.refresh_token).await), "SESSION_EXPIRED");
        eventually(PATIENCE, || async { cluster.at(1).exchange(&other.access_token, audience::JOB).await.is_err() }).await;
        assert!(cluster.at(1).refresh(&mine.refresh_token).await.is_ok());
        assert!(cluster.at(0).try_sign_in("ada@example.com", PASSWORD, "").await.is_err());
        let again = cluster.at(0).try_sign_in("ada@example.com", "a new owl for tea", "").await.unwrap();
        // A token made right after the revocation is not mistaken for one from before.
        cluster.at(0).exchange(&again.access_token, audience::JOB).await.unwrap();
    }

    async fn no_session_begins_on_a_password_that_was_just_replaced(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        cluster.at(0).register("ada@example.com", "").await;
        let mine = cluster.at(0).sign_in("ada@example.com").await;
        let mut ada = cluster.at(0).as_subject(&mine.access_token).await;
        let racers: Vec<_> = (0..20)
            .map(|place| {
                let mut accounts = cluster.at(place).accounts();
                tokio::spawn(async move {
                    let request = SignInRequest { email: "ada@example.com".into(), password: PASSWORD.into(), ..SignInRequest::default() };
                    accounts.sign_in(request).await.map(|answer| answer.into_inner().tokens.unwrap())
                })
            })
            .collect();
        let change = ChangePasswordRequest { current_password: PASSWORD.into(), new_password: "a new owl for tea".into() };
        ada.accounts.change_password(change).await.unwrap();
        for racer in racers {
            if let Ok(tokens) = racer.await.unwrap() {
                assert!(cluster.at(1).refresh(&tokens.refresh_token).await.is_err(), "a session outlived the old password");
            }
        }
    }

    async fn sessions_are_listed_and_revoked_by_their_own_person_only(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        cluster.at(0).register("ada@example.com", "").await;
        cluster.at(0).register("eve@example.com", "").await;
        let (first, second) = (cluster.at(0).sign_in("ada@example.com").await, cluster.at(0).sign_in("ada@example.com").await);
        let eve = cluster.at(0).sign_in("eve@example.com").await;
        let mut ada = cluster.at(0).as_subject(&first.access_token).await;
        let mut as_eve = cluster.at(0).as_subject(&eve.access_token).await;
        let listed = ada.accounts.list_sessions(ListSessionsRequest {}).await.unwrap().into_inner().sessions;
        assert_eq!(listed.len(), 2);
        assert_eq!(listed.iter().filter(|session| session.current).map(|session| &session.session_id).collect::<Vec<_>>(), [&first.session_id]);
        let revoke = |id: &str| RevokeSessionRequest { session_id: id.into() };
        assert_eq!(reason(as_eve.accounts.revoke_session(revoke(&first.session_id)).await), "SESSION_NOT_FOUND");
        assert!(cluster.at(0).refresh(&second.refresh_token).await.is_ok());
        ada.accounts.revoke_session(revoke(&second.session_id)).await.unwrap();
        // Again is as good: the session is over, as was asked.
        ada.accounts.revoke_session(revoke(&second.session_id)).await.unwrap();
        assert_eq!(reason(as_eve.accounts.revoke_session(revoke(&second.session_id)).await), "SESSION_NOT_FOUND");
        assert_eq!(reason(ada.accounts.revoke_session(revoke("x")).await), "INVALID_FIELD");
        ada.accounts.sign_out(SignOutRequest {}).await.unwrap();
        assert_eq!(reason(cluster.at(0).refresh(&first.refresh_token).await), "SESSION_EXPIRED");
        eventually(PATIENCE, || {
            let mut accounts = ada.accounts.clone();
            async move { accounts.list_sessions(ListSessionsRequest {}).await.is_err() }
        })
        .await;
    }

    async fn with_several_tenants_one_must_be_named(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let (_, first) = cluster.at(0).register("ada@example.com", "One").await;
        let tokens = cluster.at(0).sign_in("ada@example.com").await;
        let mut ada = cluster.at(0).as_subject(&tokens.access_token).await;
        let request = gatehouse_proto::auth::v1::CreateTenantRequest { name: "Two".into() };
        let second = ada.tenants.create_tenant(request).await.unwrap().into_inner().tenant.unwrap().tenant_id;
        let refused = cluster.at(0).try_sign_in("ada@example.com", PASSWORD, "").await.unwrap_err();
        let refused = gatehouse_client::from_status(refused);
        assert_eq!(refused.reason(), "TENANT_REQUIRED");
        let told = crate::audit::events(&db).await;
        let denied = told.iter().filter(|event| event.reason == "TENANT_REQUIRED").count();
        assert_eq!(denied, 1, "whoever tries a stolen password that is right is seen");
        let choice = &refused.violations()[0].description;
        assert!(choice.contains(&first) && choice.contains(&second), "{choice}");
        assert_eq!(cluster.at(0).try_sign_in("ada@example.com", PASSWORD, &second).await.unwrap().tenant_id, second);
        assert_eq!(reason(cluster.at(0).try_sign_in("ada@example.com", "wrong password", &second).await), "INVALID_CREDENTIALS");
        let stranger = uuid_text();
        assert_eq!(reason(cluster.at(0).try_sign_in("ada@example.com", PASSWORD, &stranger).await), "TENANT_REQUIRED");
    }

    async fn an_outdated_hash_is_made_anew_at_sign_in(db: TestDb) {
        let mut cluster = Cluster::start(&db, 1).await;
        cluster.at(0).register("ada@example.com", "").await;
        cluster.config.hashing.passes = 2;
        let stronger = cluster.add_replica(&db).await.unwrap();
        let before = stronger.server.app.hashes_computed();
        stronger.sign_in("ada@example.com").await;
        assert_eq!(stronger.server.app.hashes_computed() - before, 2);
        stronger.sign_in("ada@example.com").await;
        assert_eq!(stronger.server.app.hashes_computed() - before, 3);
        cluster.replicas.push(stronger);
    }
}

fn uuid_text() -> String {
    let (clock, entropy) = (gatehouse_core::Clock::system(), gatehouse_core::Entropy::system());
    gatehouse_core::ids::TenantId::new(&clock, &entropy).to_string()
}
