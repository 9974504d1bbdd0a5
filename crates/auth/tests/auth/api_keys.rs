//! API keys (requirement T1).

use std::time::Duration;

use gatehouse_auth::MIGRATIONS;
use gatehouse_client::audience;
use gatehouse_db::{params, run_tx, sql};
use gatehouse_proto::auth::v1::{
    AddMemberRequest, CreateApiKeyRequest, CreateApiKeyResponse, ListApiKeysRequest, RevokeApiKeyRequest,
    RevokeTokenRequest, RotateApiKeyRequest, WhoAmIRequest,
};
use gatehouse_testkit::{TestDb, both_engines, eventually};

use sha2::Digest as _;

use crate::support::{Cluster, PATIENCE, Subject, claims, reason};

sql! {
    DEMOTE = "UPDATE memberships SET role = 'member' WHERE person_id = $1";
    WIDEN = "UPDATE api_keys SET permissions = 'auth.api_keys.manage job.jobs.read'";
}

async fn admin_of(cluster: &Cluster, email: &str) -> Subject {
    cluster.at(0).register(email, "Engines").await;
    let tokens = cluster.at(0).sign_in(email).await;
    cluster.at(0).as_subject(&tokens.access_token).await
}

async fn key(admin: &mut Subject, permissions: &[&str]) -> CreateApiKeyResponse {
    let request = CreateApiKeyRequest {
        name: "ci".into(),
        permissions: permissions.iter().map(|&permission| permission.into()).collect(),
        lifetime_seconds: 0,
    };
    admin.api_keys.create_api_key(request).await.unwrap().into_inner()
}

/// What anyone who has a text can compute of it.
fn hint_of(text: &str, id: &str) -> String {
    let id = id.replace('-', "");
    let digest = hex::encode(&sha2::Sha256::digest(text)[..4]);
    format!("gh_dev_ak_…{}:{digest}", &id[28..])
}

both_engines! {
    migrations: MIGRATIONS;

    async fn a_key_acts_in_its_tenant_with_its_permissions(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        let mut admin = admin_of(&cluster, "ada@example.com").await;
        let made = key(&mut admin, &["job.jobs.submit", "auth.tenants.read"]).await;
        assert!(made.text.starts_with("gh_dev_ak_"), "{}", made.text);
        let stored = made.api_key.unwrap();
        assert_eq!(stored.hint, hint_of(&made.text, &stored.api_key_id));
        let exchanged = cluster.at(1).exchange(&made.text, audience::JOB).await.unwrap();
        let said = claims(&exchanged.access_token);
        assert_eq!(said["sub"], format!("api_key:{}", stored.api_key_id));
        assert_eq!(said["cid"], stored.api_key_id);
        assert_eq!(said["permissions"], serde_json::json!(["job.jobs.submit"]));
        assert_eq!((exchanged.credential_id, exchanged.subject_expires_at), (stored.api_key_id.clone(), stored.expires_at));
        let mut as_key = cluster.at(1).as_subject(&made.text).await;
        let who = as_key.accounts.who_am_i(WhoAmIRequest {}).await.unwrap().into_inner();
        assert_eq!((who.kind.as_str(), who.subject), ("api_key", stored.api_key_id));
        assert_eq!(reason(as_key.api_keys.list_api_keys(ListApiKeysRequest {}).await), "PERMISSION_DENIED");
        let listed = admin.api_keys.list_api_keys(ListApiKeysRequest {}).await.unwrap().into_inner().api_keys;
        assert_eq!((listed.len(), listed[0].last_used_at > 0), (1, true));
    }

    async fn a_key_is_never_wider_than_its_maker(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let mut admin = admin_of(&cluster, "ada@example.com").await;
        let create = |permissions: &[&str], lifetime: i64, name: &str| CreateApiKeyRequest {
            name: name.into(),
            permissions: permissions.iter().map(|&permission| permission.into()).collect(),
            lifetime_seconds: lifetime,
        };
        for (permissions, lifetime, name) in [
            (&["auth.tokens.exchange"][..], 0, "k"), (&["everything"], 0, "k"), (&["audit.log.export"], 0, "k"),
            // Of a person's own: no key could ever use them.
            (&["auth.members.manage"], 0, "k"), (&["auth.api_keys.manage"], 0, "k"), (&["token-broker.connections.manage"], 0, "k"),
            (&["job.jobs.read", "token-broker.connections.manage"], 0, "k"),
            (&[], -1, "k"), (&[], 400 * 86_400, "k"), (&[], 0, ""),
        ] {
            assert_eq!(reason(admin.api_keys.create_api_key(create(permissions, lifetime, name)).await), "INVALID_FIELD");
        }
        let usual = admin.api_keys.create_api_key(create(&[], 0, "k")).await.unwrap().into_inner().api_key.unwrap();
        assert_eq!(
            usual.permissions,
            [
                "audit.checkpoints.read", "auth.tenants.read", "job.jobs.cancel", "job.jobs.read",
                "job.jobs.submit", "token-broker.connections.read", "token-broker.tokens.get",
            ]
        );
        // An admin who became a member since their token was made.
        let member = cluster.at(0).register("bob@example.com", "").await.0;
        let add = AddMemberRequest { email: "bob@example.com".into(), role: "admin".into() };
        admin.tenants.add_member(add).await.unwrap();
        let tokens = cluster.at(0).sign_in("bob@example.com").await;
        let mut bob = cluster.at(0).as_subject(&tokens.access_token).await;
        run_tx!(db.db(), "test.demote", |tx| { tx.execute(&DEMOTE, params![member.parse::<uuid::Uuid>().unwrap()]).await }).unwrap();
        assert_eq!(reason(bob.api_keys.create_api_key(create(&["auth.members.read"], 0, "k")).await), "PERMISSION_TOO_HIGH");
        let usual = key(&mut admin, &["auth.members.read"]).await.api_key.unwrap();
        let rotate = RotateApiKeyRequest { api_key_id: usual.api_key_id, overlap_seconds: 0, ..RotateApiKeyRequest::default() };
        assert_eq!(reason(bob.api_keys.rotate_api_key(rotate).await), "PERMISSION_TOO_HIGH");
        let keys = admin.api_keys.list_api_keys(ListApiKeysRequest {}).await.unwrap().into_inner().api_keys;
        assert!(keys.iter().all(|key| key.permissions.len() == 7 || key.hint == usual.hint), "the refusal changed something");
    }

    async fn a_rotated_keys_old_text_holds_for_the_overlap(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        let mut admin = admin_of(&cluster, "ada@example.com").await;
        let made = key(&mut admin, &[]).await;
        let id = made.api_key.unwrap().api_key_id;
        let rotate = |overlap: i64| RotateApiKeyRequest { api_key_id: id.clone(), overlap_seconds: overlap, ..RotateApiKeyRequest::default() };
        let rotated = admin.api_keys.rotate_api_key(rotate(60)).await.unwrap().into_inner();
        let shown = rotated.api_key.unwrap();
        assert_eq!((shown.api_key_id.as_str(), shown.hint), (id.as_str(), hint_of(&rotated.text, &id)));
        assert_ne!(hint_of(&rotated.text, &id), hint_of(&made.text, &id), "a hint tells which text it is of");
        for text in [&made.text, &rotated.text] {
            cluster.at(1).exchange(text, audience::JOB).await.unwrap();
        }
        let old = cluster.at(1).exchange(&made.text, audience::JOB).await.unwrap();
        assert_eq!(old.expires_at, cluster.clock.now().plus(Duration::from_mins(1)).as_micros());
        cluster.clock.advance(Duration::from_mins(1));
        assert_eq!(reason(cluster.at(1).exchange(&made.text, audience::JOB).await), "SUBJECT_TOKEN_INVALID");
        cluster.at(1).exchange(&rotated.text, audience::JOB).await.unwrap();
        // No overlap: the old text and its tokens end at once, the new text's tokens live.
        let mut as_key = cluster.at(1).as_subject(&rotated.text).await;
        let last = admin.api_keys.rotate_api_key(rotate(0)).await.unwrap().into_inner();
        assert_eq!(reason(cluster.at(1).exchange(&rotated.text, audience::JOB).await), "SUBJECT_TOKEN_INVALID");
        eventually(PATIENCE, || {
            let mut accounts = as_key.accounts.clone();
            async move { accounts.who_am_i(WhoAmIRequest {}).await.is_err() }
        })
        .await;
        as_key = cluster.at(1).as_subject(&last.text).await;
        as_key.accounts.who_am_i(WhoAmIRequest {}).await.unwrap();
        assert_eq!(reason(admin.api_keys.rotate_api_key(rotate(8 * 86_400)).await), "INVALID_FIELD");
    }

    async fn a_rotation_sent_again_ends_no_text_in_use(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        let mut admin = admin_of(&cluster, "ada@example.com").await;
        let made = key(&mut admin, &[]).await;
        let id = made.api_key.unwrap().api_key_id;
        let rotate = |overlap_seconds: i64, replace_new_text: bool| RotateApiKeyRequest { api_key_id: id.clone(), overlap_seconds, replace_new_text };
        let lives = async |text: &str| cluster.at(1).exchange(text, audience::JOB).await.is_ok();
        // Nothing to replace yet: the flag does no harm.
        let first = admin.api_keys.rotate_api_key(rotate(600, true)).await.unwrap().into_inner().text;
        let many = (0..6).map(|_| {
            let (mut keys, again) = (admin.api_keys.clone(), rotate(600, false));
            tokio::spawn(async move { reason(keys.rotate_api_key(again).await) })
        });
        for refused in many.collect::<Vec<_>>() {
            assert_eq!(refused.await.unwrap(), "API_KEY_IN_OVERLAP");
        }
        assert!(lives(&made.text).await && lives(&first).await);
        // Whose answer was lost asks for another; what is in use stays until its end.
        let as_first = cluster.at(1).as_subject(&first).await;
        let second = admin.api_keys.rotate_api_key(rotate(7 * 86_400, true)).await.unwrap().into_inner().text;
        assert!(lives(&made.text).await && !lives(&first).await && lives(&second).await);
        eventually(PATIENCE, || {
            let mut accounts = as_first.accounts.clone();
            async move { accounts.who_am_i(WhoAmIRequest {}).await.is_err() }
        })
        .await;
        let old = cluster.at(0).exchange(&made.text, audience::JOB).await.unwrap();
        assert_eq!(old.subject_expires_at, cluster.clock.now().plus(Duration::from_mins(10)).as_micros());
        // An end of everything but what is given now.
        let third = admin.api_keys.rotate_api_key(rotate(0, true)).await.unwrap().into_inner().text;
        assert!(!lives(&made.text).await && !lives(&second).await && lives(&third).await);
        // Over is over: the next rotation is one of its own.
        admin.api_keys.rotate_api_key(rotate(10, false)).await.unwrap();
        cluster.clock.advance(Duration::from_secs(10));
        admin.api_keys.rotate_api_key(rotate(10, false)).await.unwrap();
    }

    async fn what_was_exchanged_before_a_rotation_ends_with_the_overlap(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        let mut admin = admin_of(&cluster, "ada@example.com").await;
        let made = key(&mut admin, &[]).await;
        let before = cluster.at(1).as_subject(&made.text).await;
        let id = made.api_key.unwrap().api_key_id;
        let rotate = RotateApiKeyRequest { api_key_id: id, overlap_seconds: 60, ..RotateApiKeyRequest::default() };
        let rotated = admin.api_keys.rotate_api_key(rotate).await.unwrap().into_inner();
        let after = cluster.at(1).as_subject(&rotated.text).await;
        // Long enough for either replica to have told too early.
        cluster.clock.advance(Duration::from_secs(59));
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        before.accounts.clone().who_am_i(WhoAmIRequest {}).await.unwrap();
        cluster.clock.advance(Duration::from_secs(1));
        for replica in 0..2 {
            eventually(PATIENCE, || {
                let mut accounts = before.accounts.clone();
                async move { accounts.who_am_i(WhoAmIRequest {}).await.is_err_and(|status| reason::<()>(Err(status)) == "TOKEN_REVOKED") }
            })
            .await;
            let mut accounts = cluster.at(replica).as_subject(&rotated.text).await.accounts;
            accounts.who_am_i(WhoAmIRequest {}).await.unwrap();
        }
        // What the new text gave at any time lives on: nobody who holds it notices.
        after.accounts.clone().who_am_i(WhoAmIRequest {}).await.unwrap();
    }

    /// A key ends with its time and with its revocation, and leaves nothing that goes on.
    async fn no_key_makes_rotates_or_ends_keys(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let mut admin = admin_of(&cluster, "ada@example.com").await;
        let short = CreateApiKeyRequest { name: "short".into(), lifetime_seconds: 3_600, permissions: vec!["job.jobs.read".into()] };
        let made = admin.api_keys.create_api_key(short).await.unwrap().into_inner();
        let id = made.api_key.unwrap().api_key_id;
        // As it was made when keys could still have the permission.
        run_tx!(db.db(), "test.widen", |tx| { tx.execute(&WIDEN, params![]).await }).unwrap();
        let exchanged = cluster.at(0).exchange(&made.text, audience::AUTH).await.unwrap();
        assert!(!claims(&exchanged.access_token).to_string().contains("api_keys.manage"), "the token says so still");
        let mut as_key = cluster.at(0).as_subject(&made.text).await;
        let who = as_key.accounts.who_am_i(WhoAmIRequest {}).await.unwrap().into_inner();
        assert_eq!(who.permissions, ["job.jobs.read"]);
        let child = CreateApiKeyRequest { name: "child".into(), lifetime_seconds: 365 * 86_400, ..CreateApiKeyRequest::default() };
        assert_eq!(reason(as_key.api_keys.create_api_key(child).await), "PERSON_REQUIRED");
        let rotate = RotateApiKeyRequest { api_key_id: id.clone(), overlap_seconds: 0, ..RotateApiKeyRequest::default() };
        assert_eq!(reason(as_key.api_keys.rotate_api_key(rotate.clone()).await), "PERSON_REQUIRED");
        let revoke = RevokeApiKeyRequest { api_key_id: id };
        assert_eq!(reason(as_key.api_keys.revoke_api_key(revoke.clone()).await), "PERSON_REQUIRED");
        // People manage it as before.
        let rotated = admin.api_keys.rotate_api_key(rotate).await.unwrap().into_inner();
        assert_eq!(rotated.api_key.unwrap().permissions, ["job.jobs.read"]);
        cluster.at(0).exchange(&rotated.text, audience::JOB).await.unwrap();
        admin.api_keys.revoke_api_key(revoke).await.unwrap();
    }

    async fn a_revoked_key_ends_everywhere(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        let mut admin = admin_of(&cluster, "ada@example.com").await;
        let made = key(&mut admin, &["auth.tenants.read"]).await;
        let as_key = cluster.at(1).as_subject(&made.text).await;
        let revoke = RevokeApiKeyRequest { api_key_id: made.api_key.unwrap().api_key_id };
        admin.api_keys.revoke_api_key(revoke.clone()).await.unwrap();
        admin.api_keys.revoke_api_key(revoke).await.unwrap();
        assert_eq!(reason(cluster.at(1).exchange(&made.text, audience::JOB).await), "SUBJECT_TOKEN_INVALID");
        eventually(PATIENCE, || {
            let mut accounts = as_key.accounts.clone();
            async move { accounts.who_am_i(WhoAmIRequest {}).await.is_err() }
        })
        .await;
        // Its holder can do the same (RFC 7009).
        let held = key(&mut admin, &[]).await;
        cluster.at(1).tokens().revoke_token(RevokeTokenRequest { token: held.text.clone() }).await.unwrap();
        assert_eq!(reason(cluster.at(0).exchange(&held.text, audience::JOB).await), "SUBJECT_TOKEN_INVALID");
    }

    async fn keys_are_their_tenants_and_their_environments(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let mut ada = admin_of(&cluster, "ada@example.com").await;
        let mut eve = admin_of(&cluster, "eve@example.com").await;
        let made = key(&mut ada, &[]).await;
        let id = made.api_key.unwrap().api_key_id;
        assert!(eve.api_keys.list_api_keys(ListApiKeysRequest {}).await.unwrap().into_inner().api_keys.is_empty());
        let rotate = RotateApiKeyRequest { api_key_id: id.clone(), overlap_seconds: 0, ..RotateApiKeyRequest::default() };
        assert_eq!(reason(eve.api_keys.rotate_api_key(rotate).await), "API_KEY_NOT_FOUND");
        assert_eq!(reason(eve.api_keys.revoke_api_key(RevokeApiKeyRequest { api_key_id: id }).await), "API_KEY_NOT_FOUND");
        cluster.at(0).exchange(&made.text, audience::JOB).await.unwrap();
        for wrong in [made.text.replace("_dev_", "_prod_"), made.text.replace("_dev_", "_staging_"), format!("{}x", made.text)] {
            assert_eq!(reason(cluster.at(0).exchange(&wrong, audience::JOB).await), "SUBJECT_TOKEN_INVALID");
        }
    }

    async fn keys_run_out_and_are_counted(db: TestDb) {
        let cluster = Cluster::start_with(&db, 1, |config| config.max_api_keys = 2).await;
        let mut admin = admin_of(&cluster, "ada@example.com").await;
        let made = key(&mut admin, &[]).await;
        key(&mut admin, &[]).await;
        let third = CreateApiKeyRequest { name: "k".into(), ..CreateApiKeyRequest::default() };
        assert_eq!(reason(admin.api_keys.create_api_key(third).await), "TOO_MANY_KEYS");
        cluster.clock.advance(Duration::from_hours(90 * 24));
        eventually(PATIENCE, || async {
            // Until this replica has heard the news again.
            cluster.at(0).exchange(&made.text, audience::JOB).await.is_err_and(|status| reason::<()>(Err(status)) == "SUBJECT_TOKEN_INVALID")
        })
        .await;
        // What has ended takes no one's place, and stays ended.
        let tokens = cluster.at(0).sign_in("ada@example.com").await;
        let mut admin = cluster.at(0).as_subject(&tokens.access_token).await;
        let rotate = RotateApiKeyRequest { api_key_id: made.api_key.unwrap().api_key_id, overlap_seconds: 0, ..RotateApiKeyRequest::default() };
        assert_eq!(reason(admin.api_keys.rotate_api_key(rotate).await), "API_KEY_EXPIRED");
        key(&mut admin, &[]).await;
        key(&mut admin, &[]).await;
        let third = CreateApiKeyRequest { name: "k".into(), ..CreateApiKeyRequest::default() };
        assert_eq!(reason(admin.api_keys.create_api_key(third).await), "TOO_MANY_KEYS");
    }
}
