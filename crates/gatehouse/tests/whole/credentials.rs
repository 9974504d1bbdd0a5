//! The API's document says which credential opens which route, and that is so.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Gatehouse, answer, folder, good_search};

const NOBODYS: &str = "00000000-0000-7000-8000-000000000000";

/// Every permission that a key of an owner's can have.
const FOR_KEYS: &[&str] = &[
    "auth.tenants.read",
    "auth.members.read",
    "auth.api_keys.read",
    "job.jobs.submit",
    "job.jobs.cancel",
    "job.jobs.read",
    "token-broker.connections.read",
    "token-broker.tokens.get",
    "audit.events.read",
    "audit.checkpoints.read",
];

/// A body and a query that the route takes, so that nothing stands in the way of the question who asks.
fn good(operation: &str) -> (Value, &'static str) {
    let body = match operation {
        "POST /v1/auth/password" => json!({"current_password": "a", "new_password": "b"}),
        "POST /v1/tenants" => json!({"name": "another"}),
        "POST /v1/tenant/members" => json!({"email": "bob@example.org", "role": "viewer"}),
        "PUT /v1/tenant/members/{person_id}" => json!({"role": "viewer"}),
        "POST /v1/api-keys" => json!({"name": "child"}),
        "POST /v1/jobs" => json!({"kind": "none", "input": {}}),
        "POST /v1/connections" => json!({"upstream": "static"}),
        "POST /v1/offline-grants" => json!({"connection_id": NOBODYS, "client_id": "reporter"}),
        "POST /optimize" => good_search(),
        _ => json!({}),
    };
    let query = match operation {
        "GET /v1/connections/callback" => "?state=s&code=c",
        "GET /v1/audit/logs/{log}/consistency" => "?from_size=1&to_size=1",
        _ => "",
    };
    (body, query)
}

#[tokio::test]
async fn an_api_key_opens_the_routes_that_offer_it_and_no_other() {
    let place = folder();
    let (key_file, config) = (place.path().join("static.key"), place.path().join("gatehouse.toml"));
    std::fs::write(&key_file, "a key").unwrap();
    // A JSON string is a TOML basic string.
    let upstream = format!(
        "[token_broker.static_keys.static]\nkey_file = {}\nclients = [\"gateway\"]\n",
        json!(key_file)
    );
    std::fs::write(&config, upstream).unwrap();
    let arguments = ["--config", config.to_str().unwrap()];
    // One key asks for everything at once.
    let variables = [("GATEHOUSE_RATE_LIMITS__RULES__API_KEY__CAPACITY", "1000")];
    let gatehouse = Gatehouse::start_with(place.path(), &arguments, &variables).await;
    let ada = gatehouse.account("ada").await;
    let (status, made) = ada.post("/v1/api-keys", &json!({"name": "all", "permissions": FOR_KEYS})).await;
    assert_eq!(status, 201, "{made}");
    let key = made["text"].as_str().unwrap();

    let (_, document) = answer(gatehouse.request(Method::GET, "/openapi.json")).await;
    let (mut wrong, mut open, mut closed) = (Vec::new(), 0, 0);
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let name = format!("{} {path}", method.to_uppercase());
            let offers = |scheme: &str| {
                operation["security"].as_array().unwrap().iter().any(|one| one.get(scheme).is_some())
            };
            if !offers("bearer") {
                assert!(!offers("api_key"), "{name}");
                continue;
            }
            let (body, query) = good(&name);
            let place = path.replace("{log}", "default").replace("{upstream}", "static");
            let parts = place.split('/').map(|part| if part.starts_with('{') { NOBODYS } else { part });
            let url = parts.collect::<Vec<_>>().join("/") + query;
            let request = gatehouse
                .request(Method::from_bytes(method.to_uppercase().as_bytes()).unwrap(), &url)
                .header("x-api-key", key);
            let has_body = operation["requestBody"].is_object();
            let (status, found) = answer(if has_body { request.json(&body) } else { request }).await;
            let reason = found["reason"].as_str().unwrap_or_default();
            let as_documented = if offers("api_key") {
                open += 1;
                // What is asked for need not be there; whoever asks is welcome.
                !matches!(status.as_u16(), 400 | 401 | 403 | 429) && !status.is_server_error()
            } else {
                closed += 1;
                // Whom the broker gives a key of the installation is a list of services, and no person is on it either.
                let policy = name == "POST /v1/connections/{upstream}/token" && reason == "POLICY_DENIED";
                status == 403 && (reason == "PERSON_REQUIRED" || policy)
            };
            if !as_documented {
                wrong.push(format!("{name}: {status} {reason}, key offered: {}", offers("api_key")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(open > 15 && closed > 15, "{open} and {closed}");
    // Not only welcome: the key brings home what it asks for.
    for path in ["/v1/jobs", "/v1/tenant/members", "/v1/upstreams"] {
        assert_eq!(answer(gatehouse.request(Method::GET, path).bearer_auth(key)).await.0, 200, "{path}");
    }
}
