//! Tokens: claims, exchange, client credentials, introspection, revocation.

use std::time::Duration;

use gatehouse_auth::MIGRATIONS;
use gatehouse_client::audience;
use gatehouse_db::{params, run_tx, sql};
use gatehouse_proto::auth::v1::token_service_client::TokenServiceClient;
use gatehouse_proto::auth::v1::{
    CreateApiKeyRequest, ExchangeTokenRequest, GetJwksRequest, IntrospectTokenRequest, IssueTokenRequest,
    RevokeTokenRequest,
};
use gatehouse_service::revocations::Staleness;
use gatehouse_service::{KeySet, Revocations, Verifier};
use gatehouse_testkit::{TestDb, both_engines, eventually};
use serde_json::{Value, json};

use crate::support::{CLIENT_SECRET, Cluster, ISSUER, PATIENCE, claims, reason};

/// A verifier as every other service has one, with this cluster's keys.
async fn verifier(cluster: &Cluster, issuer: &str, audience: &'static str) -> Verifier {
    let (keys, revocations) =
        (KeySet::default(), Revocations::new(cluster.clock.clone(), Staleness::default()));
    let jwks = cluster.at(0).tokens().get_jwks(GetJwksRequest {}).await.unwrap().into_inner();
    keys.replace(&jwks.jwks_json).unwrap();
    revocations.apply(&[], 0, true);
    Verifier::new(issuer, audience, keys, revocations, cluster.clock.clone())
}

sql! {
    DISABLE_ALL = "UPDATE people SET disabled_at = 1";
}

both_engines! {
    migrations: MIGRATIONS;

    /// Requirement B4.
    async fn an_access_token_says_what_the_table_demands(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let (person, tenant) = cluster.at(0).register("ada@example.com", "Engines").await;
        let signed_in = cluster.at(0).sign_in("ada@example.com").await;
        cluster.clock.advance(Duration::from_secs(7));
        let tokens = cluster.at(0).refresh(&signed_in.refresh_token).await.unwrap();
        let now = cluster.clock.now().as_seconds();
        let service = cluster.at(0).exchange(&tokens.access_token, audience::JOB).await.unwrap();
        for (token, aud, lifetime) in [(&tokens.access_token, "gatehouse", 600), (&service.access_token, "gatehouse.job", 300)] {
            let said = claims(token);
            for (name, value) in [
                ("iss", json!(ISSUER)),
                ("sub", json!(person)),
                ("aud", json!(aud)),
                ("exp", json!(now + lifetime)),
                ("iat", json!(now)),
                ("nbf", json!(now)),
                ("auth_time", json!(now - 7)),
                ("token_use", json!("access")),
                ("username", json!("ada")),
                ("email", json!("ada@example.com")),
                ("email_verified", json!(false)),
                ("tid", json!(tenant)),
                ("sid", json!(tokens.session_id)),
                ("roles", json!(["owner"])),
            ] {
                assert_eq!(said[name], value, "{name} for {aud}");
            }
            assert!(said["jti"].as_str().is_some_and(|id| !id.is_empty()));
            let permissions: Vec<_> = said["permissions"].as_array().unwrap().iter().map(|held| held.as_str().unwrap()).collect();
            assert_eq!(said["scope"].as_str().unwrap(), permissions.join(" "));
            assert!(permissions.contains(&"job.jobs.submit"));
            assert_eq!(permissions.iter().all(|held| held.starts_with("job.")), aud == "gatehouse.job");
            let header = header_of(token);
            assert_eq!((&header["typ"], &header["alg"]), (&json!("at+jwt"), &json!("EdDSA")));
        }
        assert_eq!((service.person_id, service.tenant_id, service.session_id), (person, tenant, tokens.session_id));
    }

    async fn another_service_verifies_tokens_and_refuses_what_is_not_for_it(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        cluster.at(0).register("ada@example.com", "Engines").await;
        let tokens = cluster.at(0).sign_in("ada@example.com").await;
        let token = cluster.at(0).exchange(&tokens.access_token, audience::JOB).await.unwrap().access_token;
        let job = verifier(&cluster, ISSUER, audience::JOB).await;
        assert!(job.verify(&token, true).unwrap().holds("job.jobs.submit"));
        // Another audience, another environment, another key, no signature, another end.
        assert!(job.verify(&tokens.access_token, false).is_err());
        assert!(verifier(&cluster, ISSUER, audience::AUDIT).await.verify(&token, false).is_err());
        assert!(verifier(&cluster, "https://gatehouse.test/prod", audience::JOB).await.verify(&token, false).is_err());
        let (head, rest) = token.split_once('.').unwrap();
        let (body, signature) = rest.split_once('.').unwrap();
        let none = encode(&json!({ "typ": "at+jwt", "alg": "none" }));
        for forged in [
            format!("{none}.{body}."),
            format!("{none}.{body}.{signature}"),
            format!("{head}.{body}."),
            format!("{head}.{}.{signature}", encode(&json!({ "aud": "gatehouse.job" }))),
            format!("{}.{body}.{signature}", encode(&json!({ "typ": "at+jwt", "alg": "EdDSA", "kid": "other" }))),
            format!("{}.{body}.{signature}", encode(&json!({ "typ": "JWT", "alg": "EdDSA" }))),
        ] {
            assert!(job.verify(&forged, false).is_err(), "{forged}");
            assert_eq!(reason(cluster.at(0).exchange(&forged, audience::JOB).await), "SUBJECT_TOKEN_INVALID");
        }
        cluster.clock.advance(Duration::from_secs(301));
        job.revocations().apply(&[], 0, true);
        assert_eq!(job.verify(&token, false).unwrap_err().reason(), "TOKEN_EXPIRED");
    }

    async fn an_exchange_never_widens_and_never_outlives(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let replica = cluster.at(0);
        replica.register("ada@example.com", "Engines").await;
        let tokens = replica.sign_in("ada@example.com").await;
        let service = replica.exchange(&tokens.access_token, audience::JOB).await.unwrap();
        // A token for one service is no subject for another.
        assert_eq!(reason(replica.exchange(&service.access_token, audience::AUDIT).await), "SUBJECT_TOKEN_INVALID");
        for wrong in ["", "gatehouse", "gatehouse.billing", "job"] {
            assert_eq!(reason(replica.exchange(&tokens.access_token, wrong).await), "INVALID_TARGET");
        }
        cluster.clock.advance(Duration::from_secs(590));
        let late = replica.exchange(&tokens.access_token, audience::JOB).await.unwrap();
        assert_eq!(late.expires_at, tokens.access_token_expires_at);
        assert_eq!(late.subject_expires_at, tokens.access_token_expires_at);
        cluster.clock.advance(Duration::from_secs(10));
        assert_eq!(reason(replica.exchange(&tokens.access_token, audience::JOB).await), "SUBJECT_TOKEN_INVALID");
    }

    async fn a_client_that_acts_for_a_person_is_named(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let replica = cluster.at(0);
        replica.register("ada@example.com", "Engines").await;
        let tokens = replica.sign_in("ada@example.com").await;
        let request = ExchangeTokenRequest { subject_token: tokens.access_token, audience: audience::TOKEN_BROKER.into(), act_for_subject: true };
        let answer = replica.as_gateway().await.exchange_token(request.clone()).await.unwrap().into_inner();
        let said = claims(&answer.access_token);
        assert_eq!((&said["act"], &said["client_id"]), (&json!({ "sub": "client:gateway" }), &json!("gateway")));
        assert_eq!(said["sub"], json!(tokens.person_id));
        // Who lacks the permission can't exchange, nor can a person.
        let worker = replica.client_token("worker", audience::AUTH).await;
        let mut worker = TokenServiceClient::new(replica.with(&worker));
        assert_eq!(reason(worker.exchange_token(request.clone()).await), "PERMISSION_DENIED");
        let person = replica.exchange(&request.subject_token, audience::AUTH).await.unwrap().access_token;
        assert_eq!(reason(TokenServiceClient::new(replica.with(&person)).exchange_token(request).await), "PERMISSION_DENIED");
    }

    /// RFC 8693, section 1.1: whoever acts for a person is named beside them, and only the gateway lets a person speak.
    async fn no_client_but_the_gateway_speaks_as_the_person(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let replica = cluster.at(0);
        replica.register("ada@example.com", "Engines").await;
        let tokens = replica.sign_in("ada@example.com").await;
        let mut ada = replica.as_subject(&tokens.access_token).await;
        let key = CreateApiKeyRequest { name: "ci".into(), ..CreateApiKeyRequest::default() };
        let key = ada.api_keys.create_api_key(key).await.unwrap().into_inner().text;
        let reporter = replica.client_token("reporter", audience::AUTH).await;
        let mut reporter = TokenServiceClient::new(replica.with(&reporter));
        for subject_token in [tokens.access_token, key] {
            let ask = |act_for_subject| ExchangeTokenRequest {
                subject_token: subject_token.clone(), audience: audience::TOKEN_BROKER.into(), act_for_subject,
            };
            assert_eq!(reason(reporter.exchange_token(ask(false)).await), "IMPERSONATION_DENIED");
            let answer = reporter.exchange_token(ask(true)).await.unwrap().into_inner();
            let said = claims(&answer.access_token);
            assert_eq!((&said["act"], &said["client_id"]), (&json!({ "sub": "client:reporter" }), &json!("reporter")));
            let answer = replica.as_gateway().await.exchange_token(ask(false)).await.unwrap().into_inner();
            let said = claims(&answer.access_token);
            assert_eq!((said.get("act"), &said["client_id"]), (None, &json!("gateway")));
        }
    }

    async fn clients_get_tokens_by_their_credentials(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let issue = |client: &str, secret: &str, audience: &str, scope: &str| {
            let request = IssueTokenRequest {
                client_id: client.into(), client_secret: secret.into(), audience: audience.into(), scope: scope.into(),
            };
            let mut tokens = cluster.at(0).tokens();
            async move { tokens.issue_token(request).await.map(tonic::Response::into_inner) }
        };
        let all = issue("worker", CLIENT_SECRET, audience::JOB, "").await.unwrap();
        assert_eq!(all.scope, "job.jobs.work:optimize:* job.jobs.read");
        let said = claims(&all.access_token);
        assert_eq!((&said["sub"], &said["client_id"], &said["aud"]), (&json!("client:worker"), &json!("worker"), &json!("gatehouse.job")));
        assert!(said.get("tid").is_none());
        assert_eq!(issue("worker", CLIENT_SECRET, audience::JOB, "job.jobs.read").await.unwrap().scope, "job.jobs.read");
        assert_eq!(issue("worker", CLIENT_SECRET, audience::AUDIT, "").await.unwrap().scope, "");
        // A scope takes what it names of what is held, and of `*` one.
        let one = "job.jobs.work:optimize:0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e";
        for (wanted, given) in [
            ("job.jobs.work", "job.jobs.work:optimize:*"),
            ("job.jobs.work:optimize", "job.jobs.work:optimize:*"),
            (one, one),
            ("job.jobs.read job.jobs.work:optimize job.jobs.read", "job.jobs.read job.jobs.work:optimize:*"),
        ] {
            let issued = issue("worker", CLIENT_SECRET, audience::JOB, wanted).await.unwrap();
            assert_eq!((issued.scope.as_str(), &claims(&issued.access_token)["permissions"]), (given, &json!(given.split(' ').collect::<Vec<_>>())));
        }
        for (client, secret, audience, scope, expected) in [
            ("worker", "wrong", audience::JOB, "", "INVALID_CLIENT"),
            ("worker", "", audience::JOB, "", "INVALID_CLIENT"),
            ("nobody", CLIENT_SECRET, audience::JOB, "", "INVALID_CLIENT"),
            ("worker", CLIENT_SECRET, "gatehouse", "", "INVALID_TARGET"),
            ("worker", CLIENT_SECRET, audience::JOB, "job.jobs.submit", "INVALID_SCOPE"),
            ("worker", CLIENT_SECRET, audience::JOB, "job.jobs.work:render", "INVALID_SCOPE"),
            ("worker", CLIENT_SECRET, audience::JOB, "job.jobs.work:*:*", "INVALID_SCOPE"),
            ("worker", CLIENT_SECRET, audience::JOB, "job.jobs.read job.jobs.work:render", "INVALID_SCOPE"),
            ("worker", CLIENT_SECRET, audience::JOB, "auth.revocations.watch", "INVALID_SCOPE"),
        ] {
            assert_eq!(reason(issue(client, secret, audience, scope).await), expected);
        }
    }

    async fn introspection_knows_live_tokens_of_every_kind_only(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let replica = cluster.at(0);
        replica.register("ada@example.com", "Engines").await;
        let first = replica.sign_in("ada@example.com").await;
        let tokens = replica.refresh(&first.refresh_token).await.unwrap();
        let service = replica.exchange(&tokens.access_token, audience::JOB).await.unwrap().access_token;
        let introspect = |token: &str| {
            let request = IntrospectTokenRequest { token: token.into() };
            async move { replica.as_gateway().await.introspect_token(request).await.unwrap().into_inner() }
        };
        for token in [&tokens.access_token, &service, &tokens.refresh_token] {
            let said = introspect(token).await;
            let claims: Value = serde_json::from_str(&said.claims_json).unwrap();
            assert_eq!((said.active, &claims["active"], &claims["sub"]), (true, &json!(true), &json!(tokens.person_id)));
        }
        for token in [&first.refresh_token, "", "x", "a.b.c", "gh_dev_ak_x"] {
            let said = introspect(token).await;
            assert_eq!((said.active, said.claims_json.as_str()), (false, ""), "{token}");
        }
        // What would not be exchanged is not active: the person was disabled.
        run_tx!(db.db(), "test.disable", |tx| { tx.execute(&DISABLE_ALL, params![]).await }).unwrap();
        assert_eq!(reason(replica.refresh(&tokens.refresh_token).await), "SESSION_EXPIRED");
        assert!(!introspect(&tokens.refresh_token).await.active);
    }

    async fn whoever_holds_a_token_can_revoke_it(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        cluster.at(0).register("ada@example.com", "Engines").await;
        let revoke = |token: &str| {
            let request = RevokeTokenRequest { token: token.into() };
            let mut tokens = cluster.at(0).tokens();
            async move { tokens.revoke_token(request).await.unwrap() }
        };
        for kind in ["refresh", "access"] {
            let tokens = cluster.at(0).sign_in("ada@example.com").await;
            let service = cluster.at(0).exchange(&tokens.access_token, audience::JOB).await.unwrap().access_token;
            // A service that was shown a token does not end the session with it.
            revoke(&service).await;
            let tokens = cluster.at(0).refresh(&tokens.refresh_token).await.unwrap();
            revoke(if kind == "refresh" { &tokens.refresh_token } else { &tokens.access_token }).await;
            assert_eq!(reason(cluster.at(1).refresh(&tokens.refresh_token).await), "SESSION_EXPIRED");
            eventually(PATIENCE, || async { cluster.at(1).exchange(&tokens.access_token, audience::JOB).await.is_err() }).await;
        }
        for unknown in ["", "x", "gh_dev_ak_x", "gh_dev_rt_x"] {
            revoke(unknown).await;
        }
    }
}

fn encode(value: &Value) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
}

fn header_of(token: &str) -> Value {
    use base64::Engine as _;
    let head = token.split('.').next().unwrap();
    serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(head).unwrap()).unwrap()
}
