//! One tenant's things are nobody else's: another tenant's owner is told what is told of things that do not exist.

use gatehouse_testkit::OAuthProvider;
use gatehouse_testkit::oauth_provider::Options;
use gatehouse_testkit::{eventually, oauth_provider};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Account, Gatehouse, PATIENCE, answer, folder, good_search};

const NOBODYS: &str = "00000000-0000-7000-8000-000000000000";

/// A provider, and the configuration that names it as the upstream `demo`.
async fn upstream(place: &std::path::Path) -> (OAuthProvider, String) {
    let options = oauth_provider::Options::default();
    let provider = OAuthProvider::start(Options::clone(&options)).await.unwrap();
    let secret = place.join("provider.secret");
    std::fs::write(&secret, &options.client_secret).unwrap();
    let config = place.join("gatehouse.toml");
    let text = format!(
        "[token_broker.upstreams.demo]\ndisplay_name = \"Demo\"\nauthorization_endpoint = \"{}\"\ntoken_endpoint = \"{}\"\n\
         revocation_endpoint = \"{}\"\nclient_id = \"{}\"\nclient_secret_file = {}\nscopes = [\"read\"]\nrotation = \"strict\"\n\
         [[token_broker.upstreams.demo.allow]]\nclient = \"person\"\nscopes = [\"*\"]\n\
         [[token_broker.upstreams.demo.allow]]\nclient = \"gateway\"\nscopes = [\"*\"]\n\
         [[token_broker.upstreams.demo.allow]]\nclient = \"reporter\"\nscopes = [\"*\"]\n",
        provider.authorization_endpoint(),
        provider.token_endpoint(),
        provider.revocation_endpoint(),
        options.client_id,
        // A JSON string is a TOML basic string.
        json!(secret),
    );
    std::fs::write(&config, text).unwrap();
    (provider, config.to_str().unwrap().to_owned())
}

/// Connects `account` to the upstream and returns the connection's id.
async fn connect(gatehouse: &Gatehouse, account: &Account<'_>) -> String {
    let (status, begun) = account.post("/v1/connections", &json!({"upstream": "demo"})).await;
    assert_eq!(status, 201, "{begun}");
    let consented = gatehouse.http().get(begun["authorization_url"].as_str().unwrap()).send().await.unwrap();
    let location = consented.headers()["location"].to_str().unwrap().to_owned();
    let query = location.split_once('?').unwrap().1;
    let (status, connection) = account.get(&format!("/v1/connections/callback?{query}")).await;
    assert_eq!(status, 200, "{connection}");
    connection["connection_id"].as_str().unwrap_or_else(|| panic!("{connection}")).to_owned()
}

/// The routes that have something in their path, as `METHOD /path/{}`.
async fn routes_with_ids(gatehouse: &Gatehouse) -> Vec<String> {
    let (_, document) = answer(gatehouse.request(Method::GET, "/openapi.json")).await;
    let mut routes = Vec::new();
    for (path, methods) in
        document["paths"].as_object().unwrap().iter().filter(|(path, _)| path.contains('{'))
    {
        let parts = path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part });
        let path = parts.collect::<Vec<_>>().join("/");
        routes.extend(
            methods.as_object().unwrap().keys().map(|method| format!("{} {path}", method.to_uppercase())),
        );
    }
    assert!(routes.len() > 15, "{routes:?}");
    routes
}

/// What a problem says apart from which request it was.
fn told(problem: &Value, id: &str) -> Value {
    let mut told = problem.clone();
    for field in ["request_id", "instance"] {
        told[field] = Value::Null;
    }
    serde_json::from_str(&told.to_string().replace(id, "ID")).unwrap()
}

/// Each route that takes an id is tried, or takes no id of anybody's.
async fn no_route_is_left_out(gatehouse: &Gatehouse, tried: &[String]) {
    let elsewhere = [
        "PUT /v1/tenant/members/{}",
        "POST /v1/connections/{}/token",
        "GET /v1/audit/logs/{}/checkpoint",
        "GET /v1/audit/logs/{}/consistency",
        "GET /.well-known/oauth-authorization-server/{}",
    ];
    for route in routes_with_ids(gatehouse).await {
        assert!(tried.contains(&route) || elsewhere.contains(&route.as_str()), "{route} is not tried");
    }
}

/// Nothing of `hers` stands in what `mallory` can list, nor under filters for her `person` and her `job`.
async fn lists_show_nothing_of(mallory: &Account<'_>, hers: &[&str], [person, job]: [&str; 2]) {
    for path in [
        "/v1/jobs",
        "/v1/api-keys",
        "/v1/connections",
        "/v1/offline-grants",
        "/v1/audit/events?page_size=200",
        &format!("/v1/audit/events?actor={person}"),
        &format!("/v1/audit/events?target=job/{job}"),
        "/v1/auth/sessions",
        "/v1/auth/me",
        "/v1/tenants",
        "/v1/tenant",
        "/v1/tenant/members",
        "/v1/upstreams",
    ] {
        let (status, found) = mallory.get(path).await;
        assert_eq!(status, 200, "{path}: {found}");
        for one in hers {
            // A filter may stand in the answer to it; data may not.
            assert!(!found.to_string().contains(one), "{path} shows {one}: {found}");
        }
    }
}

#[tokio::test]
async fn another_tenant_sees_and_changes_nothing() {
    let place = folder();
    let (_provider, config) = upstream(place.path()).await;
    let gatehouse = Gatehouse::start_with(place.path(), &["--config", &config], &[]).await;
    let (ada, mallory) = (gatehouse.account("ada").await, gatehouse.account("mallory").await);
    let job = ada.optimize(&good_search()).await;
    ada.finished(&job).await;
    let connection = connect(&gatehouse, &ada).await;
    let body = json!({"connection_id": connection, "client_id": "reporter"});
    let (status, grant) = ada.post("/v1/offline-grants", &body).await;
    assert_eq!(status, 201, "{grant}");
    let grant = grant["offline_grant_id"].as_str().unwrap().to_owned();
    let (status, found) = mallory.post("/v1/offline-grants", &body).await;
    assert_eq!(status, 404, "{found}");
    let (_, key) = ada.post("/v1/api-keys", &json!({"name": "ada's"})).await;
    let key = key["api_key"]["api_key_id"].as_str().or(key["api_key_id"].as_str()).unwrap().to_owned();
    let (_, sessions) = ada.get("/v1/auth/sessions").await;
    let session =
        sessions["sessions"][0]["session_id"].as_str().unwrap_or_else(|| panic!("{sessions}")).to_owned();
    let event = eventually(PATIENCE, || async {
        let (_, page) = ada.get("/v1/audit/events").await;
        page["events"][0]["event_id"].as_str().map(str::to_owned)
    })
    .await;

    let things = [
        (Method::GET, "/v1/jobs/{}", &job),
        (Method::GET, "/v1/jobs/{}/events", &job),
        (Method::GET, "/v1/jobs/{}/result", &job),
        (Method::POST, "/v1/jobs/{}/cancel", &job),
        (Method::POST, "/v1/jobs/{}/retry", &job),
        (Method::POST, "/v1/api-keys/{}/rotate", &key),
        (Method::DELETE, "/v1/api-keys/{}", &key),
        (Method::GET, "/v1/connections/{}", &connection),
        (Method::DELETE, "/v1/connections/{}", &connection),
        (Method::DELETE, "/v1/offline-grants/{}", &grant),
        (Method::GET, "/v1/audit/events/{}", &event),
        (Method::GET, "/v1/audit/events/{}/proof", &event),
        (Method::DELETE, "/v1/auth/sessions/{}", &session),
        (Method::DELETE, "/v1/tenant/members/{}", &ada.person),
    ];
    let tried: Vec<_> = things.iter().map(|(method, path, _)| format!("{method} {path}")).collect();
    no_route_is_left_out(&gatehouse, &tried).await;
    for (method, path, id) in things {
        let ask = |id: &str| {
            let request = mallory.request(method.clone(), &path.replace("{}", id));
            answer(if path.ends_with("/rotate") { request.json(&json!({})) } else { request })
        };
        let ((status, found), (other_status, other)) = (ask(id).await, ask(NOBODYS).await);
        assert!(matches!(status.as_u16(), 403 | 404), "{method} {path}: {status} {found}");
        // Even that it exists is not told.
        assert_eq!((status, told(&found, id)), (other_status, told(&other, NOBODYS)), "{method} {path}");
    }
    let role = mallory.request(Method::PUT, &format!("/v1/tenant/members/{}", ada.person));
    let (status, found) = answer(role.json(&json!({"role": "member"}))).await;
    assert_eq!(status, 404, "{found}");
    let (status, found) = mallory.post("/v1/connections/demo/token", &json!({})).await;
    assert!(matches!(status.as_u16(), 404 | 409), "{status} {found}");
    assert!(found["access_token"].is_null());

    let (_, found) = ada.get(&format!("/v1/audit/events?target=job/{job}")).await;
    assert!(
        found["events"].as_array().is_some_and(|events| !events.is_empty()),
        "her own filter finds nothing: {found}"
    );
    let hers = [
        job.as_str(),
        &connection,
        &grant,
        &key,
        &session,
        &ada.person,
        &ada.tenant,
        "ada@example.org",
        "Tenant of ada",
    ];
    lists_show_nothing_of(&mallory, &hers, [&ada.person, &job]).await;
    // The same name of a submission in two tenants is two jobs.
    let submit = |account: &Account<'_>| {
        answer(
            account.request(Method::POST, "/optimize").header("idempotency-key", "one").json(&good_search()),
        )
    };
    let ((_, first), (_, again), (_, other)) =
        (submit(&ada).await, submit(&ada).await, submit(&mallory).await);
    assert_eq!(first["job_id"], again["job_id"]);
    assert_ne!(first["job_id"], other["job_id"]);

    // Nothing of Ada's was touched.
    let (_, found) = ada.get(&format!("/v1/jobs/{job}")).await;
    assert_eq!(
        (&found["state"], &found["cancel_requested"]),
        (&json!("succeeded"), &json!(false)),
        "{found}"
    );
    let (status, brokered) = ada.post("/v1/connections/demo/token", &json!({})).await;
    assert_eq!(status, 200, "{brokered}");
    assert_eq!(ada.get("/v1/api-keys").await.1["api_keys"].as_array().unwrap().len(), 1);
    assert_eq!(ada.get("/v1/tenant/members").await.0, 200);
    assert_eq!(ada.get(&format!("/v1/audit/events/{event}")).await.0, 200);
}
