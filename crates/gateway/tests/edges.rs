//! What surrounds every request: ids, traces, browsers, limits, probes, drain.

mod support;

use std::time::Duration;

use gatehouse_ratelimit::QuotaConfig;
use gatehouse_testkit::eventually;
use serde_json::Value;
use support::World;

#[tokio::test(flavor = "multi_thread")]
async fn every_route_answers_as_it_is_documented_with_every_header() {
    let world = World::start().await;
    let document: Value = world.get("/openapi.json").send().await.unwrap().json().await.unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let mut routes = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            routes += 1;
            let url = path
                .replace("{log}", "default")
                .replace("{upstream}", "demo")
                .replace("{environment}", "dev")
                .split('/')
                .map(|part| if part.starts_with('{') { support::JOB } else { part })
                .collect::<Vec<_>>()
                .join("/");
            let method = reqwest::Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let answer =
                world.http.request(method.clone(), format!("{}{url}", world.base)).send().await.unwrap();
            let status = answer.status().as_u16();
            let what = format!("{method} {url}: {status}");
            let schemes = operation["security"].as_array().unwrap();
            if schemes.first().is_some_and(|scheme| scheme.get("bearer").is_some()) {
                assert_eq!(status, 401, "{what}");
                assert!(answer.headers().contains_key("www-authenticate"), "{what}");
                assert!(answer.headers().contains_key("ratelimit"), "{what}");
            } else {
                assert!(![401, 403, 404, 405].contains(&status) && status < 500, "{what}");
            }
            for name in
                ["x-request-id", "content-security-policy", "x-content-type-options", "x-frame-options"]
            {
                assert!(answer.headers().contains_key(name), "{what}: no {name}");
            }
        }
    }
    assert!(routes > 45, "only {routes} routes");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_with_a_caller_reaches_its_service() {
    let world = World::start_limited(|rules| rules.classes.clear()).await;
    let (token, _) = world.person(300);
    let id = support::JOB;
    let get = |path: String| world.get(&path).bearer_auth(&token);
    let post = |path: String, body: &str| {
        world.post(&path).bearer_auth(&token).header("content-type", "application/json").body(body.to_owned())
    };
    let put = |path: String, body: &str| {
        world
            .http
            .put(format!("{}{path}", world.base))
            .bearer_auth(&token)
            .header("content-type", "application/json")
            .body(body.to_owned())
    };
    let delete = |path: String| world.http.delete(format!("{}{path}", world.base)).bearer_auth(&token);
    for (request, status) in [
        (post("/v1/auth/register".into(), r#"{"email":"a@b.c","password":"p"}"#), 201),
        (post("/v1/auth/sign-in".into(), r#"{"email":"a@b.c","password":"p"}"#), 200),
        (post("/v1/auth/refresh".into(), r#"{"refresh_token":"r"}"#), 200),
        (post("/v1/auth/sign-out".into(), ""), 204),
        (get("/v1/auth/sessions".into()), 200),
        (delete(format!("/v1/auth/sessions/{id}")), 204),
        (post("/v1/auth/password".into(), r#"{"current_password":"a","new_password":"b"}"#), 204),
        (get("/v1/auth/me".into()), 200),
        (post("/v1/tenants".into(), r#"{"name":"a"}"#), 201),
        (get("/v1/tenants".into()), 200),
        (get("/v1/tenant".into()), 200),
        (get("/v1/tenant/members".into()), 200),
        (post("/v1/tenant/members".into(), r#"{"email":"a@b.c","role":"viewer"}"#), 201),
        (put(format!("/v1/tenant/members/{id}"), r#"{"role":"viewer"}"#), 200),
        (delete(format!("/v1/tenant/members/{id}")), 204),
        (get("/v1/api-keys".into()), 200),
        (post("/v1/api-keys".into(), r#"{"name":"a"}"#), 201),
        (post(format!("/v1/api-keys/{id}/rotate"), "{}"), 200),
        (delete(format!("/v1/api-keys/{id}")), 204),
        (post("/v1/jobs".into(), r#"{"kind":"a","input":{}}"#), 202),
        (get("/v1/jobs?state=running&page_size=3".into()), 200),
        (get(format!("/v1/jobs/{id}")), 200),
        (post(format!("/v1/jobs/{id}/cancel"), ""), 202),
        (post(format!("/v1/jobs/{id}/retry"), ""), 202),
        (get(format!("/v1/jobs/{id}/result")), 200),
        (get("/v1/upstreams".into()), 200),
        (get("/v1/connections".into()), 200),
        (post("/v1/connections".into(), r#"{"upstream":"demo"}"#), 201),
        (get("/v1/connections/callback?state=s&code=c&session_state=x".into()), 200),
        // As long as the token broker takes it, a part of it percent-encoded.
        (get(format!("/v1/connections/callback?state=s&code={}", "c".repeat(4000))), 200),
        (get(format!("/v1/connections/callback?state=s&code=4%2F{}%3D", "c".repeat(4092))), 200),
        (get(format!("/v1/connections/{id}")), 200),
        (delete(format!("/v1/connections/{id}")), 200),
        (post("/v1/connections/demo/token".into(), "{}"), 200),
        (get("/v1/offline-grants".into()), 200),
        (post("/v1/offline-grants".into(), r#"{"connection_id":"c","client_id":"c"}"#), 201),
        (delete(format!("/v1/offline-grants/{id}")), 204),
        (get("/v1/audit/events?action=auth.".into()), 200),
        (get(format!("/v1/audit/events/{id}")), 200),
        (get(format!("/v1/audit/events/{id}/proof")), 200),
        (get("/v1/audit/logs".into()), 200),
        (get("/v1/audit/logs/default/checkpoint?fresh=true".into()), 200),
        (get("/v1/audit/logs/default/consistency?from_size=1&to_size=2".into()), 200),
    ] {
        let request = request.build().unwrap();
        let what = format!("{} {}", request.method(), request.url().path());
        let answer = world.http.execute(request).await.unwrap();
        let found = answer.status();
        assert_eq!(found, status, "{what}: {}", answer.text().await.unwrap());
    }
    // What the gateway says of the caller's origin is believed, because it shows its own token.
    let script = world.services.lock();
    assert!(script.origins.iter().all(|origin| origin.ip == "127.0.0.1"));
    let register = script.seen.iter().find(|(path, _)| path.ends_with("/Register")).unwrap();
    assert!(register.1["authorization"].starts_with("Bearer "));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_id_goes_in_out_and_through() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    let answer =
        world.get("/v1/jobs").bearer_auth(&token).header("x-request-id", "mine-1").send().await.unwrap();
    assert_eq!(answer.headers()["x-request-id"], "mine-1");
    {
        let script = world.services.lock();
        for call in ["ExchangeToken", "ListJobs"] {
            let (_, headers) = script.seen.iter().find(|(path, _)| path.ends_with(call)).unwrap();
            assert_eq!(headers["x-request-id"], "mine-1", "{call}");
        }
    }
    let answer = world.get("/v1/jobs").header("x-request-id", "no good").send().await.unwrap();
    let made = answer.headers()["x-request-id"].to_str().unwrap();
    assert_eq!(made.len(), 36, "{made}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_came_in_goes_on_behind() {
    use opentelemetry::trace::TracerProvider as _;
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;

    opentelemetry::global::set_text_map_propagator(
        opentelemetry_sdk::propagation::TraceContextPropagator::new(),
    );
    let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    tracing_subscriber::registry().with(layer).init();
    let world = World::start().await;
    let (token, _) = world.person(300);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let answer = world
        .get("/v1/jobs")
        .bearer_auth(&token)
        .header("traceparent", format!("00-{trace}-b7ad6b7169203331-01"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let script = world.services.lock();
    for call in ["ExchangeToken", "ListJobs"] {
        let (_, headers) = script.seen.iter().find(|(path, _)| path.ends_with(call)).unwrap();
        let parent = &headers["traceparent"];
        assert!(parent.contains(trace), "{call}: {parent}");
        assert!(!parent.contains("b7ad6b7169203331"), "{call}: no span of ours");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn https_speaks_http_2_without_connection_headers() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::start_https(folder.path()).await;
    let certificate = std::fs::read(folder.path().join("localhost.pem")).unwrap();
    let http = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(&certificate).unwrap()])
        .build()
        .unwrap();
    let base = format!("https://localhost:{}", world.gateway.https_address().unwrap().port());
    let answer = http.get(format!("{base}/healthz")).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_2));
    let (token, _) = world.person(300);
    world.event(gatehouse_proto::job::v1::JobEventType::End, "{}");
    let answer =
        http.get(format!("{base}/v1/jobs/{}/events", support::JOB)).bearer_auth(&token).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(!answer.headers().contains_key("connection"));
    assert!(answer.text().await.unwrap().contains("event: end"));
    let metadata: Value = http
        .get(format!("{base}/.well-known/oauth-authorization-server"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(metadata["token_endpoint"], format!("{base}/oauth2/token"));
}

/// The certificate that was made for development is for this machine, and so is what it serves, under any name.
#[tokio::test(flavor = "multi_thread")]
async fn hsts_comes_with_a_certificate_of_the_operators() {
    let folder = tempfile::tempdir().unwrap();
    for (configured, host, is_sent) in
        [(false, "api.example", false), (true, "api.example", true), (true, "localhost", false)]
    {
        let file = |name: &str| folder.path().join(name).display().to_string();
        let world = World::start_https_with(folder.path(), |config| {
            if configured {
                (config.tls_certificate_file, config.tls_key_file) =
                    (file("localhost.pem"), file("localhost-key.pem"));
            }
        })
        .await;
        let address = world.gateway.https_address().unwrap();
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_danger_accept_invalid_certs(true)
            .resolve(host, address)
            .build()
            .unwrap();
        let answer = http.get(format!("https://{host}:{}/healthz", address.port())).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_2));
        assert_eq!(
            answer.headers().contains_key("strict-transport-security"),
            is_sent,
            "{configured} {host}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_are_told_what_they_may() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    let preflight = |origin: &str| {
        world
            .http
            .request(reqwest::Method::OPTIONS, format!("{}/v1/jobs", world.base))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
    };
    let allowed = preflight("http://localhost:3000").send().await.unwrap();
    assert_eq!(allowed.status(), 204);
    assert_eq!(allowed.headers()["access-control-allow-origin"], "http://localhost:3000");
    assert!(allowed.headers()["access-control-allow-methods"].to_str().unwrap().contains("POST"));
    assert!(!allowed.headers().contains_key("access-control-allow-credentials"));
    let refused = preflight("https://evil.example").send().await.unwrap();
    assert_eq!(refused.status(), 403);
    assert!(!refused.headers().contains_key("access-control-allow-origin"));
    for (origin, status) in [("http://localhost:3000", 202), ("https://evil.example", 403), ("null", 403)] {
        let answer = world
            .post("/v1/jobs")
            .bearer_auth(&token)
            .header("origin", origin)
            .json(&serde_json::json!({"kind": "a", "input": 1}))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), status, "{origin}");
        assert_eq!(answer.headers().contains_key("access-control-allow-origin"), status == 202, "{origin}");
        assert_eq!(answer.headers()["vary"], "Origin");
    }
    assert_eq!(world.calls("SubmitJob"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn hsts_comes_only_over_https_and_clients_only_from_trusted_proxies() {
    async fn is_sent(world: &World, host: &str) -> bool {
        let request =
            world.get("/healthz").header("x-forwarded-proto", "https").header("x-forwarded-for", "1.2.3.4");
        let answer = request.header("host", host).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{host}");
        answer.headers().contains_key("strict-transport-security")
    }
    let world = World::start().await;
    assert!(!is_sent(&world, "api.example").await);
    let world = World::start_with(|config| config.trusted_proxies = vec!["127.0.0.0/8".into()]).await;
    assert!(is_sent(&world, "api.example").await && is_sent(&world, "localhost.example:443").await);
    // A browser would keep to HTTPS for all that runs on the reader's own machine.
    for host in
        ["localhost", "LOCALHOST:8443", "localhost.:8443", "app.localhost", "127.0.0.1:8443", "[::1]:8443"]
    {
        assert!(!is_sent(&world, host).await, "{host}");
    }
    let body = serde_json::json!({"email": "a@b.c", "password": "p"});
    world.post("/v1/auth/sign-in").header("x-forwarded-for", "1.2.3.4").json(&body).send().await.unwrap();
    assert_eq!(world.services.lock().origins[0].ip, "1.2.3.4");
}

/// A proxy that writes `X-Forwarded-For` passes on what else a client sends.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_chooses_no_address_by_the_header_that_the_proxy_does_not_write() {
    let world = World::start_with(|config| config.trusted_proxies = vec!["127.0.0.0/8".into()]).await;
    let body = serde_json::json!({"email": "a@b.c", "password": "p"});
    let sign_in = world.post("/v1/auth/sign-in").header("x-forwarded-for", "1.2.3.4").json(&body);
    sign_in.header("forwarded", "for=6.6.6.6;proto=https").send().await.unwrap();
    assert_eq!(world.services.lock().origins[0].ip, "1.2.3.4");
}

/// Whoever asks chooses the Host; what is made of it is for nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn metadata_made_of_the_request_is_kept_by_nobody() {
    let world = World::start().await;
    let address = "/.well-known/oauth-authorization-server";
    let answer = world.get(address).header("host", "evil.example").send().await.unwrap();
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let world = World::start_with(|config| config.public_url = "https://api.example.com".into()).await;
    let answer = world.get(address).header("host", "evil.example").send().await.unwrap();
    assert_eq!(answer.headers()["cache-control"], "public, max-age=300");
    let metadata: Value = answer.json().await.unwrap();
    assert_eq!(metadata["token_endpoint"], "https://api.example.com/oauth2/token");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oauth_routes_document_how_they_refuse_and_what_they_send() {
    let world = World::start().await;
    let document: Value = world.get("/openapi.json").send().await.unwrap().json().await.unwrap();
    for path in ["/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"] {
        for status in ["400", "415"] {
            assert!(document["paths"][path]["post"]["responses"][status].is_object(), "{path} {status}");
        }
        let answer = world.post(path).body("x").send().await.unwrap();
        assert_eq!(answer.status(), 415, "{path}");
    }
    let keys = &document["paths"]["/.well-known/jwks.json"]["get"]["responses"]["200"]["content"];
    assert!(keys["application/jwk-set+json"].is_object(), "{keys}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_refuses_with_the_wait_and_charges_before_the_exchange() {
    let world = World::start_limited(|rules| {
        rules.ip = QuotaConfig::new(5, 60);
        rules.api_key = QuotaConfig::new(2, 60);
    })
    .await;
    let (key, _) = world.api_key();
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let answer = world.get("/v1/jobs").header("x-api-key", &key).send().await.unwrap();
        statuses.push(answer.status().as_u16());
        assert!(answer.headers().contains_key("ratelimit"));
        if answer.status() == 429 {
            assert!(answer.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
            let problem: Value = answer.json().await.unwrap();
            assert_eq!(problem["reason"], "RATE_LIMITED");
            assert!(problem["detail"].as_str().unwrap().contains("api-key"), "{problem}");
        }
    }
    assert_eq!(statuses, [200, 200, 429]);
    // The address has three left (a denied request charges nothing); guesses take them, then auth is not asked.
    world.services.lock().calls.clear();
    let mut guesses = Vec::new();
    for guess in 0..5 {
        let answer =
            world.get("/v1/jobs").header("x-api-key", format!("gh_dev_ak_g{guess}")).send().await.unwrap();
        guesses.push(answer.status().as_u16());
    }
    assert_eq!(guesses, [401, 401, 401, 429, 429]);
    assert_eq!(world.calls("ExchangeToken"), 3);
    // Probes are never limited.
    assert_eq!(world.get("/healthz").send().await.unwrap().status(), 200);
}

/// As installed: who asks for upstream tokens in a loop is told to wait, for these alone and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn upstream_tokens_are_limited_for_each_person_by_default() {
    let world = World::start().await;
    let ((token, _), (other, _)) = (world.person(300), world.person(300));
    let ask = |token: &str, upstream: usize| {
        world
            .post(&format!("/v1/connections/upstream-{upstream}/token"))
            .bearer_auth(token)
            .json(&serde_json::json!({}))
            .send()
    };
    let (began, mut given) = (std::time::Instant::now(), 0);
    let refused = loop {
        assert!(given < 1_000, "nobody ever said no");
        // To whichever upstream.
        let answer = ask(&token, given % 3).await.unwrap();
        if answer.status() != 200 {
            break answer;
        }
        given += 1;
    };
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    let problem: Value = refused.json().await.unwrap();
    assert!(
        problem["reason"] == "RATE_LIMITED" && problem["detail"].as_str().unwrap().contains("person"),
        "{problem}"
    );
    // Two come back each second.
    let came_back = usize::try_from(began.elapsed().as_secs()).unwrap() * 2 + 2;
    assert!((120..=120 + came_back).contains(&given), "{given} were given in {:?}", began.elapsed());
    assert_eq!(world.get("/v1/connections").bearer_auth(&token).send().await.unwrap().status(), 200);
    assert_eq!(ask(&other, 0).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_docs_page_needs_nothing_from_elsewhere() {
    let world = World::start().await;
    let answer = world.get("/docs").send().await.unwrap();
    let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'") && policy.contains("style-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe"));
    let page = answer.text().await.unwrap();
    assert!(page.contains("/v1/jobs/{job_id}/events") && page.contains("job.jobs.submit"));
    assert!(!page.contains("<script") && !page.contains("http://") && !page.contains("src="));
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_fails_readiness_finishes_what_runs_and_ends() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    assert_eq!(world.get("/readyz").send().await.unwrap().status(), 200);
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    world.services.lock().held.insert("GetJob", std::sync::Arc::clone(&gate));
    let running = world.get(&format!("/v1/jobs/{}", support::JOB)).bearer_auth(&token);
    let running = tokio::spawn(async move { running.send().await.unwrap().status() });
    eventually(Duration::from_secs(5), || async { world.calls("GetJob") == 1 }).await;
    world.lifecycle.stop();
    let (lifecycle, began) = (world.lifecycle.clone(), std::time::Instant::now());
    let drained = tokio::spawn(async move { lifecycle.drain(Duration::from_secs(10)).await });
    gate.notify_one();
    assert_eq!(running.await.unwrap(), 200);
    assert!(drained.await.unwrap(), "not drained after {:?}", began.elapsed());
    assert!(world.get("/healthz").send().await.is_err(), "still listening");
}
