//! Tenants, members, roles (requirement C3).

use gatehouse_auth::MIGRATIONS;
use gatehouse_client::audience;
use gatehouse_core::Environment;
use gatehouse_db::{params, run_tx, sql};
use gatehouse_proto::auth::v1::{
    AddMemberRequest, CreateApiKeyRequest, CreateTenantRequest, GetTenantRequest, ListApiKeysRequest,
    ListMembersRequest, ListTenantsRequest, RemoveMemberRequest, RotateApiKeyRequest, SetMemberRoleRequest,
    WhoAmIRequest,
};
use gatehouse_testkit::{TestDb, both_engines, eventually};

use crate::audit::events;
use crate::support::{Cluster, PASSWORD, PATIENCE, Subject, claims, reason};

sql! {
    VERIFY = "UPDATE people SET email_verified = TRUE WHERE email = $1";
}

fn add(email: &str, role: &str) -> AddMemberRequest {
    AddMemberRequest { email: email.into(), role: role.into() }
}

fn set(person: &str, role: &str) -> SetMemberRoleRequest {
    SetMemberRoleRequest { person_id: person.into(), role: role.into() }
}

/// A tenant with one member of each role, and each as a caller.
async fn staffed(cluster: &Cluster) -> (String, Vec<(&'static str, String, Subject)>) {
    let (owner, tenant) = cluster.at(0).register("owner@example.com", "Engines").await;
    let tokens = cluster.at(0).sign_in("owner@example.com").await;
    let mut as_owner = cluster.at(0).as_subject(&tokens.access_token).await;
    let mut staff = vec![("owner", owner, as_owner.clone())];
    for role in ["admin", "member", "viewer"] {
        let email = format!("{role}@example.com");
        let (person, _) = cluster.at(0).register(&email, "").await;
        as_owner.tenants.add_member(add(&email, role)).await.unwrap();
        let tokens = cluster.at(0).sign_in(&email).await;
        staff.push((role, person, cluster.at(0).as_subject(&tokens.access_token).await));
    }
    (tenant, staff)
}

/// A new key: its id and text.
async fn key(maker: &mut Subject, permissions: &[&str]) -> (String, String) {
    let permissions = permissions.iter().map(|&permission| permission.into()).collect();
    let request = CreateApiKeyRequest { name: "ci".into(), permissions, lifetime_seconds: 0 };
    let made = maker.api_keys.create_api_key(request).await.unwrap().into_inner();
    (made.api_key.unwrap().api_key_id, made.text)
}

both_engines! {
    migrations: MIGRATIONS;

    async fn each_role_does_what_the_table_says(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let (tenant, staff) = staffed(&cluster).await;
        for (role, _, mut caller) in staff {
            let manages = matches!(role, "owner" | "admin");
            let seen = caller.tenants.get_tenant(GetTenantRequest {}).await.unwrap().into_inner().tenant.unwrap();
            assert_eq!((&seen.tenant_id, seen.role.as_str()), (&tenant, role));
            let allowed = [
                caller.tenants.list_members(ListMembersRequest::default()).await.is_ok(),
                caller.api_keys.list_api_keys(ListApiKeysRequest {}).await.is_ok(),
                // With the permission, the address is looked for; without, nothing is.
                reason(caller.tenants.add_member(add("nobody@example.com", "viewer")).await) == "PERSON_NOT_FOUND",
            ];
            assert_eq!(allowed, [manages; 3], "{role}");
        }
    }

    async fn an_unverified_address_gets_no_role_outside_dev(db: TestDb) {
        let cluster = Cluster::start_in(Environment::Staging, &db, 1, |_| {}).await;
        let replica = cluster.at(0);
        replica.register("owner@example.com", "Engines").await;
        replica.register("ada@example.com", "").await;
        let tokens = replica.sign_in("owner@example.com").await;
        let mut owner = replica.as_subject(&tokens.access_token).await;
        assert_eq!(reason(owner.tenants.add_member(add("ada@example.com", "admin")).await), "EMAIL_NOT_VERIFIED");
        assert_eq!(reason(owner.tenants.add_member(add("bob@example.com", "admin")).await), "PERSON_NOT_FOUND");
        assert_eq!(reason(owner.tenants.add_member(add("owner@example.com", "admin")).await), "ALREADY_MEMBER");
        assert_eq!(replica.sign_in("ada@example.com").await.tenant_id, "", "refused, and a member after all");
        run_tx!(db.db(), "test.verify", |tx| { tx.execute(&VERIFY, params!["ada@example.com"]).await }).unwrap();
        owner.tenants.add_member(add("ada@example.com", "admin")).await.unwrap();
    }

    async fn in_dev_an_unverified_address_will_do(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let (_, mut staff) = staffed(&cluster).await;
        cluster.at(0).register("ada@example.com", "").await;
        staff[0].2.tenants.add_member(add("ada@example.com", "viewer")).await.unwrap();
    }

    async fn nobody_grants_above_themselves(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let (_, mut staff) = staffed(&cluster).await;
        let (owner, viewer) = (staff[0].1.clone(), staff[3].1.clone());
        cluster.at(0).register("new@example.com", "").await;
        let admin = &mut staff[1].2;
        assert_eq!(reason(admin.tenants.add_member(add("new@example.com", "owner")).await), "ROLE_TOO_HIGH");
        assert_eq!(reason(admin.tenants.set_member_role(set(&viewer, "owner")).await), "ROLE_TOO_HIGH");
        assert_eq!(reason(admin.tenants.set_member_role(set(&owner, "viewer")).await), "ROLE_TOO_HIGH");
        assert_eq!(reason(admin.tenants.remove_member(RemoveMemberRequest { person_id: owner.clone() }).await), "ROLE_TOO_HIGH");
        for wrong in ["platform_admin", "", "Owner"] {
            assert_eq!(reason(admin.tenants.set_member_role(set(&viewer, wrong)).await), "INVALID_FIELD");
        }
        assert_eq!(admin.tenants.set_member_role(set(&viewer, "admin")).await.unwrap().into_inner().member.unwrap().role, "admin");
        assert_eq!(reason(admin.tenants.add_member(add("viewer@example.com", "member")).await), "ALREADY_MEMBER");
        let nobody = "00000000-0000-7000-8000-000000000000";
        assert_eq!(reason(admin.tenants.set_member_role(set(nobody, "member")).await), "MEMBER_NOT_FOUND");
    }

    async fn a_tenant_always_has_an_owner(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        let (_, mut staff) = staffed(&cluster).await;
        let (first, second) = (staff[0].1.clone(), staff[1].1.clone());
        assert_eq!(reason(staff[0].2.tenants.set_member_role(set(&first, "member")).await), "LAST_OWNER");
        assert_eq!(reason(staff[0].2.tenants.remove_member(RemoveMemberRequest { person_id: first.clone() }).await), "LAST_OWNER");
        // Two owners who each make the other a viewer, at once and on two replicas: one of them stays owner.
        for _ in 0..10 {
            let mut owner = owner_again(&cluster, 0, "owner@example.com").await;
            owner.tenants.set_member_role(set(&second, "owner")).await.unwrap();
            let other = owner_again(&cluster, 1, "admin@example.com").await;
            let demote = |mut by: Subject, person: String| tokio::spawn(async move { by.tenants.set_member_role(set(&person, "viewer")).await });
            let both = [demote(owner, second.clone()), demote(other, first.clone())];
            let mut done = 0;
            for attempt in both {
                done += usize::from(attempt.await.unwrap().is_ok());
            }
            assert!(done <= 1, "the tenant lost both owners");
            // Whoever is left makes the first one owner again.
            for email in ["owner@example.com", "admin@example.com"] {
                let mut caller = owner_again(&cluster, 0, email).await;
                let _ = caller.tenants.set_member_role(set(&first, "owner")).await;
            }
        }
    }

    async fn a_changed_role_ends_tokens_with_the_old_one(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        let (tenant, mut staff) = staffed(&cluster).await;
        let admin = staff[1].1.clone();
        let old = cluster.at(1).sign_in("admin@example.com").await;
        staff[0].2.tenants.set_member_role(set(&admin, "viewer")).await.unwrap();
        for replica in 0..2 {
            eventually(PATIENCE, || async { cluster.at(replica).exchange(&old.access_token, audience::AUTH).await.is_err() }).await;
        }
        // The session goes on, with the new role, at once.
        let new = cluster.at(1).refresh(&old.refresh_token).await.unwrap();
        assert_eq!(claims(&new.access_token)["roles"], serde_json::json!(["viewer"]));
        cluster.at(1).exchange(&new.access_token, audience::JOB).await.unwrap();
        // A removed member's session ends.
        staff[0].2.tenants.remove_member(RemoveMemberRequest { person_id: admin }).await.unwrap();
        assert_eq!(reason(cluster.at(1).refresh(&new.refresh_token).await), "SESSION_EXPIRED");
        assert_eq!(reason(cluster.at(1).try_sign_in("admin@example.com", PASSWORD, &tenant).await), "TENANT_REQUIRED");
        assert_eq!(cluster.at(1).sign_in("admin@example.com").await.tenant_id, "");
    }

    async fn a_members_keys_end_with_the_rights_that_made_them(db: TestDb) {
        let cluster = Cluster::start(&db, 2).await;
        let (_, mut staff) = staffed(&cluster).await;
        let person = staff[1].1.clone();
        let owners = key(&mut staff[0].2, &["auth.members.read"]).await;
        let wide = key(&mut staff[1].2, &["auth.members.read", "auth.tenants.read"]).await;
        let narrow = key(&mut staff[1].2, &["auth.tenants.read"]).await;
        let as_wide = cluster.at(0).as_subject(&wide.1).await;
        let as_narrow = cluster.at(1).as_subject(&narrow.1).await;
        let works = async |key: &(String, String)| match cluster.at(1).exchange(&key.1, audience::AUTH).await {
            Ok(_) => true,
            error => {
                assert_eq!(reason(error), "SUBJECT_TOKEN_INVALID");
                false
            }
        };
        let ends = async |caller: &Subject| {
            eventually(PATIENCE, || {
                let mut accounts = caller.accounts.clone();
                async move { accounts.who_am_i(WhoAmIRequest {}).await.is_err() }
            })
            .await;
        };

        // A viewer may read the tenant, but not who is in it.
        staff[0].2.tenants.set_member_role(set(&person, "viewer")).await.unwrap();
        assert!(!works(&wide).await, "a key outlived their maker's role");
        assert!(works(&narrow).await, "the new role allows as much");
        ends(&as_wide).await;
        assert!(as_narrow.accounts.clone().who_am_i(WhoAmIRequest {}).await.is_ok());

        staff[0].2.tenants.remove_member(RemoveMemberRequest { person_id: person.clone() }).await.unwrap();
        assert!(!works(&narrow).await, "a key outlived their maker's membership");
        ends(&as_narrow).await;
        assert!(works(&owners).await, "another's key");

        let told = events(&db).await.into_iter().filter(|event| event.action == "auth.api_keys.revoke");
        let mut told: Vec<_> = told.map(|event| (event.target, event.actor, event.subject_id)).collect();
        let mut expected = [wide, narrow]
            .map(|(id, _)| (format!("api_key/{id}"), staff[0].1.clone(), person.clone()));
        told.sort();
        expected.sort();
        assert_eq!(told, expected);
    }

    async fn a_key_ends_with_whoever_was_shown_its_text(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let (_, mut staff) = staffed(&cluster).await;
        let admin = staff[1].1.clone();
        let rotate = |key: &(String, String), overlap_seconds: i64| RotateApiKeyRequest {
            api_key_id: key.0.clone(),
            overlap_seconds,
            replace_new_text: false,
        };
        let works = async |text: &str| cluster.at(0).exchange(text, audience::AUTH).await.is_ok();
        // The owner's keys: one untouched, one whose present text the admin knows, one whose previous text they know,
        // and one whose text they knew until it ran out.
        let [untouched, present, previous, over] = [
            key(&mut staff[0].2, &["auth.tenants.read"]).await,
            key(&mut staff[0].2, &["auth.tenants.read"]).await,
            key(&mut staff[0].2, &["auth.tenants.read"]).await,
            key(&mut staff[0].2, &["auth.tenants.read"]).await,
        ];
        for known in [&present, &previous, &over] {
            staff[1].2.api_keys.rotate_api_key(rotate(known, 0)).await.unwrap();
        }
        let owner = &mut staff[0].2;
        let previous_now = owner.api_keys.rotate_api_key(rotate(&previous, 600)).await.unwrap().into_inner();
        let over_now = owner.api_keys.rotate_api_key(rotate(&over, 0)).await.unwrap().into_inner();
        assert!(works(&previous_now.text).await && works(&over_now.text).await);

        owner.tenants.remove_member(RemoveMemberRequest { person_id: admin }).await.unwrap();
        let keys = owner.api_keys.list_api_keys(ListApiKeysRequest {}).await.unwrap().into_inner().api_keys;
        let is_live = |key: &(String, String)| {
            keys.iter().any(|listed| listed.api_key_id == key.0 && listed.revoked_at == 0)
        };
        assert!(is_live(&untouched) && is_live(&over), "nobody removed knows their texts");
        assert!(!is_live(&present) && !is_live(&previous), "a removed admin kept a text that works");
        assert!(!works(&previous_now.text).await, "a key ends as a whole");
        assert!(works(&untouched.1).await && works(&over_now.text).await);
    }

    /// On the bound, of many at once one more is made at most.
    async fn a_person_makes_no_more_tenants_than_allowed(db: TestDb) {
        let cluster = Cluster::start_with(&db, 2, |config| config.max_tenants_per_person = 3).await;
        cluster.at(0).register("ada@example.com", "One").await;
        let ada = owner_again(&cluster, 0, "ada@example.com").await;
        let elsewhere = owner_again(&cluster, 1, "ada@example.com").await;
        let create = |place: usize| {
            let mut ada = if place.is_multiple_of(2) { ada.clone() } else { elsewhere.clone() };
            tokio::spawn(async move { ada.tenants.create_tenant(CreateTenantRequest { name: format!("{place}") }).await })
        };
        let mut made = 0;
        for attempt in (0..8).map(create).collect::<Vec<_>>() {
            match attempt.await.unwrap() {
                Ok(_) => made += 1,
                error => assert_eq!(reason(error), "TOO_MANY_TENANTS"),
            }
        }
        assert_eq!(made, 2);
        let listed = ada.tenants.clone().list_tenants(ListTenantsRequest {}).await.unwrap().into_inner().tenants;
        assert_eq!(listed.len(), 3);
    }

    /// Keys that have ended are nothing to end: however many someone made, removing them costs the same.
    async fn keys_that_ran_out_are_left_alone_when_their_maker_goes(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let (_, mut staff) = staffed(&cluster).await;
        let short = CreateApiKeyRequest { name: "short".into(), lifetime_seconds: 1, permissions: vec!["auth.tenants.read".into()] };
        staff[1].2.api_keys.create_api_key(short).await.unwrap();
        let live = key(&mut staff[1].2, &["auth.tenants.read"]).await;
        cluster.clock.advance(std::time::Duration::from_secs(1));
        let admin = staff[1].1.clone();
        staff[0].2.tenants.remove_member(RemoveMemberRequest { person_id: admin }).await.unwrap();
        let told = events(&db).await.into_iter().filter(|event| event.action == "auth.api_keys.revoke");
        assert_eq!(told.map(|event| event.target).collect::<Vec<_>>(), [format!("api_key/{}", live.0)]);
    }

    async fn members_come_in_pages_and_tenants_are_apart(db: TestDb) {
        let cluster = Cluster::start(&db, 1).await;
        let (_, mut staff) = staffed(&cluster).await;
        let (mut token, mut seen) = (String::new(), Vec::new());
        loop {
            let request = ListMembersRequest { page_size: 3, page_token: token };
            let page = staff[0].2.tenants.list_members(request).await.unwrap().into_inner();
            seen.extend(page.members.into_iter().map(|member| member.role));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        seen.sort();
        assert_eq!(seen, ["admin", "member", "owner", "viewer"]);
        cluster.at(0).register("eve@example.com", "Elsewhere").await;
        let tokens = cluster.at(0).sign_in("eve@example.com").await;
        let mut eve = cluster.at(0).as_subject(&tokens.access_token).await;
        assert_eq!(eve.tenants.list_members(ListMembersRequest::default()).await.unwrap().into_inner().members.len(), 1);
        assert_eq!(reason(eve.tenants.set_member_role(set(&staff[3].1, "owner")).await), "MEMBER_NOT_FOUND");
        assert_eq!(eve.tenants.list_tenants(ListTenantsRequest {}).await.unwrap().into_inner().tenants.len(), 1);
        let bad = ListMembersRequest { page_size: 201, page_token: String::new() };
        assert_eq!(reason(eve.tenants.list_members(bad).await), "INVALID_FIELD");
    }
}

async fn owner_again(cluster: &Cluster, replica: usize, email: &str) -> Subject {
    let tokens = cluster.at(replica).sign_in(email).await;
    cluster.at(replica).as_subject(&tokens.access_token).await
}
