//! Authentication at the door, over real sockets.

mod support;

use std::sync::Arc;
use std::time::Duration;

use gatehouse_client::{audience, to_status};
use gatehouse_core::{Clock, Error};
use gatehouse_proto::auth::v1::{Revocation, RevocationKind};
use gatehouse_testkit::eventually;
use serde_json::Value;
use support::{World, claims, sign};
use tokio::sync::Notify;
use tonic::Status;

#[tokio::test(flavor = "multi_thread")]
async fn a_service_sees_a_token_for_itself_and_never_what_the_caller_showed() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    let (key, _) = world.api_key();
    for request in [
        world.get("/v1/jobs").bearer_auth(&token),
        world.get("/v1/jobs").bearer_auth(&key),
        world.get("/v1/jobs").header("X-API-Key", &key),
    ] {
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    let script = world.services.lock();
    let lists: Vec<_> = script.seen.iter().filter(|(path, _)| path.ends_with("ListJobs")).collect();
    assert_eq!(lists.len(), 3);
    for (_, headers) in lists {
        let shown = &headers["authorization"];
        assert!(shown.starts_with("Bearer ey"), "{shown}");
        assert!(!shown.contains(&token) && !shown.contains(&key));
    }
    for (path, headers) in &script.seen {
        let shown = &headers["authorization"];
        assert!(!shown.contains(&token) && !shown.contains(&key), "{path} was shown the caller's credential");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_credentials_are_refused_with_their_reason() {
    let world = World::start().await;
    let (good, good_claims) = world.person(300);
    let tampered = {
        let mut parts: Vec<&str> = good.split('.').collect();
        let signature = parts[2].chars().rev().collect::<String>();
        parts[2] = &signature;
        parts.join(".")
    };
    let unsigned = {
        use base64::Engine as _;
        let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        let payload = serde_json::to_string(&good_claims).unwrap();
        format!("{}.{}.", encode(r#"{"alg":"none","typ":"at+jwt","kid":"k1"}"#), encode(&payload))
    };
    let mut other_issuer = good_claims.clone();
    other_issuer.iss = "https://gatehouse.test/prod".into();
    let mut id_token = good_claims.clone();
    id_token.token_use = "id".into();
    let ended = claims(&good_claims.sub, audience::GATEWAY, -1);
    let for_a_service = claims(&good_claims.sub, audience::JOB, 300);
    for (shown, reason) in [
        (tampered, "TOKEN_INVALID"),
        (unsigned, "TOKEN_INVALID"),
        (sign(&other_issuer), "TOKEN_INVALID"),
        (sign(&id_token), "TOKEN_INVALID"),
        (sign(&for_a_service), "TOKEN_INVALID"),
        (sign(&ended), "TOKEN_EXPIRED"),
        ("nonsense".into(), "TOKEN_INVALID"),
        ("gh_dev_ak_unknown".into(), "CREDENTIAL_INVALID"),
        ("gh_prod_ak_unknown".into(), "WRONG_ENVIRONMENT"),
        ("gh_dev_rt_unknown".into(), "CREDENTIAL_MALFORMED"),
    ] {
        let answer = world.get("/v1/jobs").bearer_auth(&shown).send().await.unwrap();
        assert_eq!(answer.status(), 401, "{shown}");
        let challenge = answer.headers()["www-authenticate"].to_str().unwrap().to_owned();
        assert!(challenge.contains("invalid_token"), "{challenge}");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["reason"], reason, "{shown}");
    }
    let answer = world.get("/v1/jobs").send().await.unwrap();
    assert_eq!(answer.status(), 401);
    assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"gatehouse\"");
    assert_eq!(world.calls("ListJobs"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_with_one_credential_cause_one_exchange() {
    let world = Arc::new(World::start().await);
    let (token, _) = world.person(300);
    let gate = Arc::new(Notify::new());
    world.services.lock().held.insert("ExchangeToken", Arc::clone(&gate));
    let requests: Vec<_> = (0..40)
        .map(|_| {
            let request = world.get("/v1/jobs").bearer_auth(&token);
            tokio::spawn(async move { request.send().await.unwrap().status() })
        })
        .collect();
    eventually(Duration::from_secs(5), || async { world.calls("ExchangeToken") == 1 }).await;
    gate.notify_waiters();
    for request in requests {
        assert_eq!(request.await.unwrap(), 200);
    }
    assert_eq!(world.calls("ExchangeToken"), 1);
    // Another service is another token.
    world.services.lock().held.clear();
    assert_eq!(world.get("/v1/audit/logs").bearer_auth(&token).send().await.unwrap().status(), 200);
    assert_eq!(world.calls("ExchangeToken"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_exchange_answers_all_who_waited_and_is_not_remembered() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    world.fail("ExchangeToken", Status::unavailable("secret host name"));
    let answer = world.get("/v1/jobs").bearer_auth(&token).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    assert!(!answer.text().await.unwrap().contains("secret"));
    assert_eq!(world.get("/v1/jobs").bearer_auth(&token).send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn that_auth_refuses_the_gateway_itself_is_no_fault_of_the_callers() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    let refused = to_status(&Error::permission_denied("PERMISSION_DENIED", "Not you."));
    world.fail("ExchangeToken", refused);
    let answer = world.get("/v1/jobs").bearer_auth(&token).send().await.unwrap();
    assert_eq!(answer.status(), 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_ends_remembered_tokens_at_once() {
    let world = World::start().await;
    let (token, token_claims) = world.person(300);
    let (key, key_claims) = world.api_key();
    for shown in [&token, &key] {
        assert_eq!(world.get("/v1/jobs").bearer_auth(shown).send().await.unwrap().status(), 200);
    }
    world.revoke(RevocationKind::Session, &token_claims.sid.unwrap().to_string());
    world.revoke(RevocationKind::Credential, &key_claims.cid.unwrap().to_string());
    world.services.lock().calls.clear();
    let answer = world.get("/v1/jobs").bearer_auth(&token).send().await.unwrap();
    assert_eq!(answer.status(), 401);
    assert_eq!(answer.json::<Value>().await.unwrap()["reason"], "TOKEN_REVOKED");
    // The key is unknown without its exchanged token: auth is asked, and its answer verified against the revocations.
    world
        .services
        .lock()
        .failures
        .entry("ExchangeToken")
        .or_default()
        .push_back(to_status(&Error::unauthenticated("SUBJECT_TOKEN_INVALID", "Revoked.")));
    assert_eq!(world.get("/v1/jobs").bearer_auth(&key).send().await.unwrap().status(), 401);
    assert_eq!(world.calls("ListJobs"), 0);
}

/// A rotation ends what a key was exchanged for so far, and not always the key.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_remembered_token_was_revoked_is_exchanged_again() {
    let world = World::start().await;
    let (key, claims) = world.api_key();
    let ask = async || world.get("/v1/jobs").bearer_auth(&key).send().await.unwrap().status().as_u16();
    assert_eq!(ask().await, 200);
    // Whether or not this has swept it away when the key is shown again.
    let now = Clock::system().now();
    world.revocations.apply(
        &[Revocation {
            sequence: 0,
            kind: RevocationKind::Credential.into(),
            id: claims.cid.unwrap().to_string(),
            not_before: now.as_micros(),
            expires_at: now.plus(Duration::from_secs(600)).as_micros(),
        }],
        0,
        true,
    );
    assert_eq!((ask().await, ask().await, world.calls("ExchangeToken")), (200, 200, 2));
}

/// The signature of a remembered token is not checked again, so what is remembered must be the very bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_remembered_byte_for_byte() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    let ask =
        async |token: &str| world.get("/v1/jobs").bearer_auth(token).send().await.unwrap().status().as_u16();
    assert_eq!(ask(&token).await, 200);
    let other = |at: usize| {
        let swapped = if token.as_bytes()[at] == b'A' { "B" } else { "A" };
        format!("{}{swapped}{}", &token[..at], &token[at + 1..])
    };
    let signature = token.rfind('.').unwrap() + 1;
    for forged in
        [other(signature), other(signature - 20), token[..signature].to_owned(), format!("{token}A")]
    {
        assert_eq!(ask(&forged).await, 401, "{forged}");
    }
    // Not even those forgeries made it forget, or ask again.
    assert_eq!((ask(&token).await, world.calls("ExchangeToken")), (200, 1));
}
