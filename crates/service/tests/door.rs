//! The door of a gRPC server against forged, stale, foreign and revoked tokens.

#![expect(clippy::unwrap_used, reason = "a test's own set-up")]

use std::convert::Infallible;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use gatehouse_client::tls::ServiceId;
use gatehouse_client::{audience, from_status};
use gatehouse_core::{Clock, Entropy, ErrorCode, Timestamp};
use gatehouse_proto::access::Access;
use gatehouse_proto::auth::v1::{Revocation, RevocationKind};
use gatehouse_service::revocations::Staleness;
use gatehouse_service::{AccessLayer, Caller, KeySet, Peer, Revocations, Verifier};
use http::{Request, Response};
use serde_json::{Value, json};
use tonic::body::Body;
use tower::{Layer as _, Service as _};

const ISSUER: &str = "https://gatehouse.test/prod";
const SUBMIT: &str = "/gatehouse.job.v1.JobService/SubmitJob";
const NOW: i64 = 1_790_000_000;
const PERSON: &str = "01905555-1234-7123-8456-123456789012";
const TENANT: &str = "01905555-1234-7123-8456-aaaaaaaaaaaa";
const SESSION: &str = "01905555-1234-7123-8456-bbbbbbbbbbbb";

struct Door {
    clock: Clock,
    key: SigningKey,
    revocations: Revocations,
    verifier: Verifier,
    layer: AccessLayer,
}

impl Door {
    fn new() -> Self {
        let clock = Clock::settable(Timestamp::from_seconds(NOW));
        let key = SigningKey::from_bytes(&Entropy::seeded(1).bytes());
        let keys = KeySet::default();
        keys.replace(&jwks(&key)).unwrap();
        let revocations = Revocations::new(clock.clone(), Staleness::default());
        let verifier = Verifier::new(ISSUER, audience::JOB, keys, revocations.clone(), clock.clone());
        let layer =
            AccessLayer::new(&["gatehouse.job.v1"], verifier.clone(), clock.clone(), Entropy::seeded(2))
                .unwrap();
        Self { clock, key, revocations, verifier, layer }
    }

    fn hear(&self, revocations: &[Revocation]) {
        self.revocations.apply(revocations, 1, true);
    }

    /// What a call is answered: the reason of the refusal, or the caller's subject.
    async fn knock(&self, path: &str, authorization: Option<&str>) -> Result<String, (ErrorCode, String)> {
        knock(&self.layer, path, authorization, None).await
    }

    async fn submit(&self, token: &str) -> Result<String, (ErrorCode, String)> {
        self.knock(SUBMIT, Some(&format!("Bearer {token}"))).await
    }
}

async fn knock(
    layer: &AccessLayer,
    path: &str,
    authorization: Option<&str>,
    peer: Option<Peer>,
) -> Result<String, (ErrorCode, String)> {
    let mut inner = layer.layer(tower::service_fn(|request: Request<Body>| async move {
        let caller = request.extensions().get::<Caller>();
        let caller = caller.map_or("anyone".to_owned(), |caller| caller.subject().as_text());
        let mut response = Response::new(Body::empty());
        response.headers_mut().insert("x-caller", caller.parse().unwrap());
        Ok::<_, Infallible>(response)
    }));
    let mut request = Request::builder().uri(path);
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    let mut request = request.body(Body::empty()).unwrap();
    if let Some(peer) = peer {
        request.extensions_mut().insert(peer);
    }
    let response = inner.call(request).await.unwrap();
    if let Some(caller) = response.headers().get("x-caller") {
        return Ok(caller.to_str().unwrap().to_owned());
    }
    let status = tonic::Status::from_header_map(response.headers()).expect("a refusal carries a status");
    let error = from_status(status);
    Err((error.code(), error.reason().to_owned()))
}

fn jwks(key: &SigningKey) -> String {
    let x = URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes());
    json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": "k1", "x": x}]})
        .to_string()
}

fn header() -> Value {
    json!({"alg": "EdDSA", "typ": "at+jwt", "kid": "k1"})
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "sub": PERSON, "aud": audience::JOB, "exp": NOW + 300, "iat": NOW, "iat_us": NOW * 1_000_000,
        "nbf": NOW, "jti": "j1", "token_use": "access", "tid": TENANT, "sid": SESSION,
        "permissions": ["job.jobs.submit"],
    })
}

fn with(mut value: Value, key: &str, to: Value) -> Value {
    value[key] = to;
    value
}

fn encode(header: &Value, claims: &Value) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn sign(key: &SigningKey, header: &Value, claims: &Value) -> String {
    let signed = encode(header, claims);
    let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()).to_bytes());
    format!("{signed}.{signature}")
}

#[tokio::test]
async fn a_good_token_comes_through() {
    let door = Door::new();
    door.hear(&[]);
    assert_eq!(door.submit(&sign(&door.key, &header(), &claims())).await, Ok(PERSON.to_owned()));
}

#[tokio::test]
async fn forged_and_foreign_tokens_are_refused() {
    let door = Door::new();
    door.hear(&[]);
    let (key, other) = (&door.key, SigningKey::from_bytes(&Entropy::seeded(9).bytes()));
    let good = sign(key, &header(), &claims());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let admin = with(claims(), "permissions", json!(["job.jobs.submit", "audit.log.export"]));
    // The public key as an HMAC secret: the confusion that RFC 8725, section 2.1 tells of.
    let public = jsonwebtoken::EncodingKey::from_secret(key.verifying_key().as_bytes());
    let mut confused = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    confused.typ = Some("at+jwt".into());
    confused.kid = Some("k1".into());
    let confused = jsonwebtoken::encode(&confused, &claims(), &public).unwrap();
    // A key of the attacker's own, offered in the header.
    let x = URL_SAFE_NO_PAD.encode(other.verifying_key().as_bytes());
    let jwk = with(header(), "jwk", json!({"kty": "OKP", "crv": "Ed25519", "x": x}));

    let corpus = [
        ("alg none", format!("{}.", encode(&with(header(), "alg", json!("none")), &claims()))),
        ("alg none, mixed case", format!("{}.", encode(&with(header(), "alg", json!("NoNe")), &claims()))),
        ("signature gone", format!("{signed}.")),
        ("signature of another token", format!("{}.{signature}", encode(&header(), &admin))),
        ("another key, our key id", sign(&other, &header(), &claims())),
        ("unknown key id", sign(key, &with(header(), "kid", json!("k2")), &claims())),
        ("key id as a path", sign(key, &with(header(), "kid", json!("../../dev/null")), &claims())),
        ("key id as SQL", sign(key, &with(header(), "kid", json!("' OR 1=1 --")), &claims())),
        ("no key id", sign(key, &json!({"alg": "EdDSA", "typ": "at+jwt"}), &claims())),
        ("key in the header", sign(&other, &jwk, &claims())),
        ("jku", sign(&other, &with(header(), "jku", json!("https://evil.test/jwks")), &claims())),
        ("x5u", sign(&other, &with(header(), "x5u", json!("https://evil.test/c.pem")), &claims())),
        ("HMAC with the public key", confused),
        ("typ of an id token", sign(key, &with(header(), "typ", json!("JWT")), &claims())),
        ("token_use of an id token", sign(key, &header(), &with(claims(), "token_use", json!("id")))),
        ("issuer of dev", sign(key, &header(), &with(claims(), "iss", json!("https://gatehouse.test/dev")))),
        ("another issuer", sign(key, &header(), &with(claims(), "iss", json!("https://evil.test/prod")))),
        ("audience of another service", sign(key, &header(), &with(claims(), "aud", json!(audience::AUDIT)))),
        ("audience of the gateway", sign(key, &header(), &with(claims(), "aud", json!(audience::GATEWAY)))),
        ("not valid yet", sign(key, &header(), &with(claims(), "nbf", json!(NOW + 60)))),
        ("no end", sign(key, &header(), &with(claims(), "exp", Value::Null))),
        ("end as text", sign(key, &header(), &with(claims(), "exp", json!("9999999999")))),
        ("no subject", sign(key, &header(), &with(claims(), "sub", Value::Null))),
        ("subject of no form", sign(key, &header(), &with(claims(), "sub", json!("root")))),
        ("truncated", good[..good.len() - 5].to_owned()),
        ("one part", "abc".to_owned()),
        ("four parts", format!("{good}.x")),
        ("not base64", format!("{signed}.$$$$")),
        ("oversize", sign(key, &header(), &with(claims(), "username", json!("x".repeat(9000))))),
        ("empty", String::new()),
    ];
    for (attack, token) in corpus {
        let answer = door.submit(&token).await;
        let (code, reason) = answer.expect_err(attack);
        assert_eq!(code, ErrorCode::Unauthenticated, "{attack}: {reason}");
        assert!(matches!(reason.as_str(), "TOKEN_INVALID" | "TOKEN_MISSING"), "{attack}: {reason}");
    }
    // None of them did any harm: the good one still works.
    assert!(door.submit(&good).await.is_ok());
}

#[tokio::test]
async fn the_credential_must_be_a_bearer_token() {
    let door = Door::new();
    door.hear(&[]);
    let good = sign(&door.key, &header(), &claims());
    for wrong in [None, Some(""), Some("Bearer"), Some("Basic eDp5"), Some(good.as_str())] {
        let (code, _) = door.knock(SUBMIT, wrong).await.expect_err("no bearer token");
        assert_eq!(code, ErrorCode::Unauthenticated, "{wrong:?}");
    }
    assert!(door.knock(SUBMIT, Some(&format!("bEaReR {good}"))).await.is_ok(), "schemes have no case");
}

#[tokio::test]
async fn an_ended_token_says_so_and_gets_no_grace() {
    let door = Door::new();
    door.hear(&[]);
    let good = sign(&door.key, &header(), &claims());
    door.clock.advance(Duration::from_secs(300));
    door.hear(&[]);
    assert_eq!(door.submit(&good).await, Err((ErrorCode::Unauthenticated, "TOKEN_EXPIRED".to_owned())));
}

#[tokio::test]
async fn a_missing_permission_and_an_unknown_method_are_refused() {
    let door = Door::new();
    door.hear(&[]);
    let reader = sign(
        &door.key,
        &header(),
        &with(claims(), "permissions", json!(["job.jobs.read", "job.jobs.submitter"])),
    );
    assert_eq!(
        door.submit(&reader).await,
        Err((ErrorCode::PermissionDenied, "PERMISSION_DENIED".to_owned()))
    );
    // Who has no tenant lacks that first.
    let newcomer = with(with(claims(), "permissions", json!([])), "tid", json!(null));
    let refused = door.submit(&sign(&door.key, &header(), &newcomer)).await;
    assert_eq!(refused, Err((ErrorCode::PermissionDenied, "TENANT_REQUIRED".to_owned())));
    let good = format!("Bearer {}", sign(&door.key, &header(), &claims()));
    for path in ["/gatehouse.job.v1.JobService/DropAll", "/gatehouse.auth.v1.AccountService/SignIn", "/"] {
        let (code, _) = door.knock(path, Some(&good)).await.expect_err(path);
        assert_eq!(code, ErrorCode::Unimplemented, "{path}");
    }
}

#[tokio::test]
async fn whoever_makes_methods_up_makes_no_metrics() {
    let registry = prometheus::Registry::new();
    let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone()).build().unwrap();
    let meters = opentelemetry_sdk::metrics::SdkMeterProvider::builder().with_reader(exporter).build();
    opentelemetry::global::set_meter_provider(meters);
    let door = Door::new();
    for path in ["/made.up/Name", "/gatehouse.job.v1.JobService/MadeUp", "/made", "/"] {
        assert_eq!(door.knock(path, None).await.unwrap_err().0, ErrorCode::Unimplemented, "{path}");
    }
    door.knock(SUBMIT, None).await.unwrap_err();
    let mut labels = std::collections::BTreeSet::new();
    for family in registry.gather().iter().filter(|family| family.name().starts_with("rpc_server")) {
        for metric in family.get_metric() {
            let label = |name: &str| {
                let found = metric.get_label().iter().find(|label| label.name() == name);
                found.map(|label| label.value().to_owned()).unwrap_or_default()
            };
            labels.insert((label("rpc_service"), label("rpc_method")));
        }
    }
    assert!(labels.contains(&("gatehouse.job.v1.JobService".into(), "SubmitJob".into())), "{labels:?}");
    assert!(labels.contains(&("unknown".into(), "unknown".into())), "{labels:?}");
    assert!(!format!("{labels:?}").to_lowercase().contains("made"), "{labels:?}");
}

#[tokio::test]
async fn each_kind_of_revocation_ends_what_was_issued_before_it() {
    let subjects = [
        (RevocationKind::Session, SESSION.to_owned()),
        (RevocationKind::Person, PERSON.to_owned()),
        (RevocationKind::Membership, format!("{PERSON}/{TENANT}")),
        (RevocationKind::Tenant, TENANT.to_owned()),
        (RevocationKind::Client, "web".to_owned()),
    ];
    for (kind, id) in subjects {
        let door = Door::new();
        let claims = with(claims(), "client_id", json!("web"));
        let before = sign(&door.key, &header(), &claims);
        let after = sign(&door.key, &header(), &with(claims, "iat_us", json!(NOW * 1_000_000 + 500)));
        door.hear(&[Revocation {
            sequence: 1,
            kind: kind.into(),
            id,
            not_before: NOW * 1_000_000 + 500,
            expires_at: (NOW + 3600) * 1_000_000,
        }]);
        let refused = door.submit(&before).await.expect_err("revoked");
        assert_eq!(refused, (ErrorCode::Unauthenticated, "TOKEN_REVOKED".to_owned()), "{kind:?}");
        assert!(door.submit(&after).await.is_ok(), "{kind:?}: half a millisecond later is later");
    }
}

fn ended_session(id: &str) -> Revocation {
    Revocation {
        sequence: 1,
        kind: RevocationKind::Session.into(),
        id: id.to_owned(),
        not_before: NOW * 1_000_000 + 500,
        expires_at: (NOW + 600) * 1_000_000,
    }
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_and_comes_back_brings_nothing_to_life() {
    let door = Door::new();
    let token = sign(&door.key, &header(), &claims());
    // Told before the jump, and told during it.
    for ahead_when_told in [false, true] {
        door.hear(&[]);
        door.clock.advance(Duration::from_hours(u64::from(ahead_when_told)));
        door.hear(&[ended_session(SESSION)]);
        door.clock.set(Timestamp::from_seconds(NOW + 3600));
        // Whatever is told next is when it is looked what has ended.
        door.hear(&[ended_session("another")]);
        door.clock.set(Timestamp::from_seconds(NOW));
        door.hear(&[]);
        let refused = door.submit(&token).await.expect_err("revoked");
        assert_eq!(refused, (ErrorCode::Unauthenticated, "TOKEN_REVOKED".to_owned()), "{ahead_when_told}");
    }
}

#[tokio::test]
async fn a_clients_revocation_counts_from_when_the_client_got_its_own_token() {
    let door = Door::new();
    let instant = NOW * 1_000_000 + 500;
    let entry = |kind: RevocationKind, id: &str| Revocation {
        sequence: 1,
        kind: kind.into(),
        id: id.into(),
        not_before: instant,
        expires_at: (NOW + 3600) * 1_000_000,
    };
    let dated = |subject: i64, client: i64| {
        let claims = with(with(claims(), "client_id", json!("web")), "iat_us", json!(subject));
        sign(&door.key, &header(), &with(claims, "client_iat_us", json!(client)))
    };
    door.hear(&[entry(RevocationKind::Client, "web")]);
    assert!(
        door.submit(&dated(instant - 500, instant)).await.is_ok(),
        "the client's is new, the subject's old"
    );
    let refused = Err((ErrorCode::Unauthenticated, "TOKEN_REVOKED".to_owned()));
    assert_eq!(door.submit(&dated(instant, instant - 1)).await, refused, "the client's is old");
    // Nothing but the client's revocation is excused by it.
    door.hear(&[entry(RevocationKind::Session, SESSION)]);
    assert_eq!(door.submit(&dated(instant - 1, instant)).await, refused, "the subject's is old");
}

#[tokio::test]
async fn nobody_comes_through_before_the_first_snapshot_or_after_too_long_a_silence() {
    let door = Door::new();
    let good = sign(&door.key, &header(), &claims());
    let stale = Err((ErrorCode::Unavailable, "REVOCATIONS_STALE".to_owned()));
    assert_eq!(door.submit(&good).await, stale, "no snapshot yet");
    door.revocations.apply(&[], 0, false);
    assert_eq!(door.submit(&good).await, stale, "half a snapshot is none");
    door.hear(&[]);
    assert!(door.submit(&good).await.is_ok());
    door.clock.advance(Duration::from_secs(31));
    assert_eq!(door.submit(&good).await, stale, "silent for 31 s");
    door.hear(&[]);
    assert!(door.submit(&good).await.is_ok(), "news again");
    door.clock.advance(Duration::from_secs(31));
    door.revocations.apply_aged(&[], 1, true, Duration::from_secs(31));
    assert_eq!(door.submit(&good).await, stale, "told again what was so 31 s ago");
    door.hear(&[]);
    door.revocations.apply_aged(&[], 1, true, Duration::from_secs(31));
    assert!(door.submit(&good).await.is_ok(), "old news takes nothing from newer news");
    door.clock.set(Timestamp::from_seconds(NOW + 30));
    assert_eq!(door.submit(&good).await, stale, "the clock was set back");
    door.revocations.apply_aged(&[], 1, true, Duration::from_secs(1));
    assert!(door.submit(&good).await.is_ok(), "heard since");
}

#[test]
fn a_clock_that_was_set_back_makes_nothing_new_by_catching_up() {
    let clock = Clock::settable(Timestamp::from_seconds(NOW));
    let limit = Duration::from_millis(200);
    let revocations = Revocations::new(clock.clone(), Staleness { privileged: limit, all: limit });
    revocations.apply(&[], 0, true);
    clock.set(Timestamp::from_seconds(NOW - 60));
    assert!(!revocations.is_fresh());
    // What passes is the time that only goes on; a minute of it in the field.
    std::thread::sleep(limit + Duration::from_millis(50));
    clock.set(Timestamp::from_seconds(NOW));
    assert!(!revocations.is_fresh(), "it is as old as before");
    revocations.apply(&[], 0, true);
    assert!(revocations.is_fresh(), "news again");
}

#[tokio::test]
async fn privileged_methods_refuse_sooner() {
    let clock = Clock::settable(Timestamp::from_seconds(NOW));
    let revocations = Revocations::new(clock.clone(), Staleness::default());
    revocations.apply(&[], 0, true);
    let caller = Caller::from_claims(serde_json::from_value(claims()).unwrap()).unwrap();
    clock.advance(Duration::from_secs(3));
    assert!(revocations.check(&caller, false).is_ok());
    assert_eq!(revocations.check(&caller, true).unwrap_err().reason(), "REVOCATIONS_STALE");
    let table = gatehouse_proto::access::access_table(gatehouse_proto::access::PACKAGES).unwrap();
    assert!(table["/gatehouse.auth.v1.TenantService/SetMemberRole"].privileged);
    assert!(!table[SUBMIT].privileged);
}

/// The owner of a certificate.
fn peer(service: &str, is_internal: bool) -> Peer {
    Peer::new(ServiceId::new("prod.gatehouse.internal", service).unwrap(), is_internal)
}

/// Every method against every service, and what must hold for each pair.
#[tokio::test]
async fn a_method_is_called_by_the_services_that_it_names_and_by_no_other() {
    let door = Door::new();
    door.hear(&[]);
    let verifier =
        Verifier::new(ISSUER, audience::JOB, KeySet::default(), door.revocations.clone(), door.clock.clone());
    let packages = gatehouse_proto::access::PACKAGES;
    let layer = AccessLayer::new(packages, verifier, door.clock.clone(), Entropy::seeded(2)).unwrap();
    let table = gatehouse_proto::access::access_table(packages).unwrap();
    let own = ["gateway", "auth", "token-broker", "job", "audit", "optimizer"].map(|name| (name, false));
    let refusal = Err((ErrorCode::PermissionDenied, "CALLER_NOT_ALLOWED".to_owned()));
    let (mut allowed, mut refused) = (0, 0);
    for (path, declared) in &table {
        for (name, is_internal) in
            own.into_iter().chain([("mine", true), ("mine", false), ("internal", false)])
        {
            let named = declared.callers.iter().any(|caller| {
                if is_internal { caller == "internal" } else { caller == name && name != "internal" }
            });
            let answer =
                knock(&layer.clone().between_services(), path, None, Some(peer(name, is_internal))).await;
            if named {
                // Past this door, at the next: who it is that calls.
                let next = Err((ErrorCode::Unauthenticated, "TOKEN_MISSING".to_owned()));
                assert!(answer == next || answer == Ok("anyone".to_owned()), "{name} at {path}: {answer:?}");
                allowed += 1;
            } else {
                assert_eq!(answer, refusal, "{name} at {path}");
                refused += 1;
            }
        }
        // A connection that tells nothing of its other end opens nothing; without TLS nobody is asked.
        assert_eq!(knock(&layer.clone().between_services(), path, None, None).await, refusal, "{path}");
        assert_ne!(knock(&layer, path, None, None).await, refusal, "{path}");
    }
    assert!(table.len() > 40 && allowed > 80 && refused > 250, "{allowed} and {refused} of {}", table.len());
}

#[tokio::test]
async fn a_token_counts_over_a_connection_of_the_service_that_obtained_it_only() {
    let door = Door::new();
    door.hear(&[]);
    let layer = door.layer.clone().between_services();
    let submit = async |claims: &Value, service: &str, is_internal| {
        let token = format!("Bearer {}", sign(&door.key, &header(), claims));
        knock(&layer, SUBMIT, Some(&token), Some(peer(service, is_internal))).await
    };
    let stolen = Err((ErrorCode::PermissionDenied, "TOKEN_OF_ANOTHER_SERVICE".to_owned()));
    // A person's token that the gateway exchanged.
    let exchanged = with(claims(), "client_id", json!("gateway"));
    assert_eq!(submit(&exchanged, "gateway", false).await, Ok(PERSON.to_owned()));
    assert_eq!(submit(&exchanged, "reporting", true).await, stolen);
    // A client's own, and one that it acts for a person with.
    let own = with(with(claims(), "sub", json!("client:reporting")), "client_id", json!("reporting"));
    let acting = with(claims(), "act", json!({"sub": "client:reporting"}));
    for token in [&own, &acting, &with(claims(), "client_id", json!("reporting"))] {
        assert!(submit(token, "reporting", true).await.is_ok(), "{token}");
        assert_eq!(submit(token, "gateway", false).await, stolen, "{token}");
        assert_eq!(submit(token, "billing", true).await, stolen, "{token}");
    }
    // Without client_id the subject tells.
    assert_eq!(submit(&with(claims(), "sub", json!("client:job")), "gateway", false).await, stolen);
    // Where no certificates are shown, nothing is compared.
    assert!(door.submit(&sign(&door.key, &header(), &own)).await.is_ok());
}

/// Every method, with a token that holds every permission: only whether its subject is a person tells.
#[tokio::test]
async fn what_is_for_persons_only_is_refused_to_all_others_whatever_they_hold() {
    let door = Door::new();
    door.hear(&[]);
    let packages = gatehouse_proto::access::PACKAGES;
    let verifier = door.verifier.clone();
    let layer = AccessLayer::new(packages, verifier, door.clock.clone(), Entropy::seeded(2)).unwrap();
    let table = gatehouse_proto::access::access_table(packages).unwrap();
    let all: Vec<_> = table
        .values()
        .filter_map(|declared| match &declared.access {
            Access::Permission(permission) => Some(permission),
            _ => None,
        })
        .collect();
    let everything = with(claims(), "permissions", json!(all));
    let key = format!("api_key:{SESSION}");
    let mut refused = 0;
    for (path, declared) in table.iter().filter(|(_, declared)| declared.access != Access::Public) {
        for subject in [PERSON, &key, "client:reporter"] {
            let token = sign(&door.key, &header(), &with(everything.clone(), "sub", json!(subject)));
            let answer = knock(&layer, path, Some(&format!("Bearer {token}")), None).await;
            if declared.persons_only && subject != PERSON {
                let refusal = (ErrorCode::PermissionDenied, "PERSON_REQUIRED".to_owned());
                assert_eq!(answer, Err(refusal), "{subject} at {path}");
                refused += 1;
            } else {
                assert_eq!(answer, Ok(subject.to_owned()), "{subject} at {path}");
            }
        }
        // A service that acts for a person is let in as that person is.
        let acting = with(everything.clone(), "act", json!({"sub": "client:reporter"}));
        let token = format!("Bearer {}", sign(&door.key, &header(), &acting));
        assert_eq!(knock(&layer, path, Some(&token), None).await, Ok(PERSON.to_owned()), "{path}");
    }
    assert!(refused > 30, "{refused}");
    // Who is nobody is told so first: what a method is for is no news to them.
    let sessions = "/gatehouse.auth.v1.AccountService/ListSessions";
    assert_eq!(knock(&layer, sessions, None, None).await.unwrap_err().1, "TOKEN_MISSING");
    // Without the permission a key learns nothing else than with it.
    let without = with(with(claims(), "sub", json!(key)), "permissions", json!([]));
    let token = format!("Bearer {}", sign(&door.key, &header(), &without));
    let create = "/gatehouse.auth.v1.ApiKeyService/CreateApiKey";
    assert_eq!(knock(&layer, create, Some(&token), None).await.unwrap_err().1, "PERSON_REQUIRED");
}
