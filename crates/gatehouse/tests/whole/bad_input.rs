//! Bad input over HTTP against the whole: each gets the right status and one clear message, nothing of the inside is
//! told, and the service goes on working.

use futures_util::stream;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::support::{Account, Gatehouse, folder, good_search};

const SECURITY_HEADERS: [(&str, &str); 6] = [
    ("content-security-policy", "default-src 'none'"),
    ("x-frame-options", "DENY"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("permissions-policy", "camera=()"),
    ("cache-control", "no-store"),
];

/// What no answer may contain: where and with what we are made.
const INSIDE: [&str; 11] = [
    "panicked",
    "sqlx",
    "tonic",
    "SELECT ",
    "crates/",
    ".rs:",
    "/src/",
    "backtrace",
    "127.0.0.1",
    "Os {",
    "Status {",
];

/// Checks what every answer carries.
fn check_headers(answer: &Response) -> String {
    for (name, expected) in SECURITY_HEADERS {
        let found = answer.headers().get(name).unwrap_or_else(|| panic!("{name} is missing: {answer:?}"));
        assert!(found.to_str().unwrap().contains(expected), "{name}: {found:?}");
    }
    assert!(!answer.headers().contains_key("server") && !answer.headers().contains_key("x-powered-by"));
    answer.headers()["x-request-id"].to_str().unwrap().to_owned()
}

/// Sends `request` and checks that the answer is a problem (RFC 9457) with this status and reason.
async fn problem(request: RequestBuilder, status: u16, reason: &str) -> Value {
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/problem+json", "{reason}: {answer:?}");
    let id = check_headers(&answer);
    assert_eq!(answer.status(), status, "{reason}: {answer:?}");
    if status == 401 {
        assert!(answer.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer "));
    }
    check_problem(&answer.text().await.unwrap(), &id, status, reason)
}

/// Checks the document itself.
fn check_problem(text: &str, request_id: &str, status: u16, reason: &str) -> Value {
    let problem: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("{reason}: {text}"));
    let type_of = format!("urn:gatehouse:problem:{}", reason.to_lowercase().replace('_', "-"));
    for (field, expected) in [
        ("status", json!(status)),
        ("reason", json!(reason)),
        ("type", json!(type_of)),
        ("request_id", json!(request_id)),
        ("instance", json!(format!("urn:gatehouse:request:{request_id}"))),
    ] {
        assert_eq!(problem[field], expected, "{field}: {text}");
    }
    for field in ["title", "detail"] {
        assert!(problem[field].as_str().is_some_and(|words| words.len() >= 5), "{field}: {text}");
    }
    for word in INSIDE {
        assert!(!text.contains(word), "{word}: {text}");
    }
    problem
}

/// A search goes from end to end.
async fn still_works(account: &Account<'_>) {
    let job = account.optimize(&good_search()).await;
    assert_eq!(account.finished(&job).await["state"], "succeeded");
}

#[tokio::test]
async fn bodies_that_are_no_request_are_refused() {
    let place = folder();
    let gatehouse = Gatehouse::start(place.path()).await;
    let ada = gatehouse.account("ada").await;
    let post = |body: &[u8]| {
        ada.request(Method::POST, "/optimize").header("content-type", "application/json").body(body.to_vec())
    };
    for body in ["", "{", "[1,", "nonsense", "{\"objective\": NaN}", "{}{}", "{'a': 1}", "{\"a\": 01}"] {
        problem(post(body.as_bytes()), 400, "MALFORMED_JSON").await;
    }
    problem(post(b"{\"objective\": \"\xff\"}"), 400, "BODY_NOT_UTF8").await;
    let with = |field: &str, value: Value| {
        let mut body = good_search();
        body[field] = value;
        body
    };
    let variable = |value: Value| with("variables", json!([value]));
    for (body, field) in [
        (json!([]), "body"),
        (json!("text"), "body"),
        (json!({}), "body"),
        (with("extra", json!(1)), "extra"),
        (with("objective", json!(1)), "objective"),
        (with("objective", Value::Null), "objective"),
        (with("objective", json!("  ")), "objective"),
        (with("objective", json!("x".repeat(4097))), "objective"),
        (with("objective", json!("x".repeat(8193))), "objective"),
        (with("variables", json!({"x": 1})), "variables"),
        (with("variables", json!([])), "variables"),
        (variable(json!({"name": "x", "lower": 0, "upper": 1, "step": 1})), "variables[0].step"),
        (variable(json!({"name": "x", "lower": "0", "upper": 1})), "variables[0].lower"),
        (variable(json!({"name": "x", "lower": 5, "upper": -5})), "variables[0].upper"),
        (variable(json!({"name": "x", "lower": 1, "upper": 1})), "variables[0].upper"),
        (variable(json!({"name": "x", "lower": -1e200, "upper": 1})), "variables[0].lower"),
        (variable(json!({"name": "1x", "lower": 0, "upper": 1})), "variables[0].name"),
        (variable(json!({"name": "x'; DROP TABLE jobs;--", "lower": 0, "upper": 1})), "variables[0].name"),
        (with("max_iterations", json!(0)), "max_iterations"),
        (with("max_iterations", json!(-1)), "max_iterations"),
        (with("max_iterations", json!(1.5)), "max_iterations"),
        (with("max_iterations", json!(1e30)), "max_iterations"),
        (with("seed", json!("seven")), "seed"),
        (with("seed", json!(u64::MAX)), "seed"),
    ] {
        let found = problem(post(body.to_string().as_bytes()), 400, "INVALID_FIELD").await;
        assert_eq!(found["errors"][0]["field"], field, "{found}");
    }
    let many: Vec<Value> =
        (0..65).map(|n| json!({"name": format!("x{n}"), "lower": 0, "upper": 1})).collect();
    let found =
        problem(post(with("variables", json!(many)).to_string().as_bytes()), 400, "INVALID_FIELD").await;
    assert!(found["detail"].as_str().unwrap().contains("1 to 64"), "{found}");
    let twice = json!([{"name": "x", "lower": 0, "upper": 1}, {"name": "x", "lower": 0, "upper": 1}]);
    let found = problem(post(with("variables", twice).to_string().as_bytes()), 400, "INVALID_FIELD").await;
    assert_eq!(found["errors"][0]["field"], "variables[1].name", "{found}");
    let duplicate = br#"{"objective": "x", "objective": "x^2", "variables": []}"#;
    problem(post(duplicate), 400, "INVALID_FIELD").await;
    let nested = format!("{{\"kind\": \"optimize\", \"input\": {}1{}}}", "[".repeat(5000), "]".repeat(5000));
    let jobs = ada.request(Method::POST, "/v1/jobs").header("content-type", "application/json");
    problem(jobs.body(nested), 400, "INVALID_FIELD").await;
    // What was sent is not repeated: it may be a password in the wrong place.
    let sign_in = gatehouse.request(Method::POST, "/v1/auth/sign-in");
    let found = problem(
        sign_in.json(&json!({"email": "a@example.org", "password": ["hunter2"]})),
        400,
        "INVALID_FIELD",
    );
    assert!(!found.await.to_string().contains("hunter2"));
    for media_type in ["text/plain", "application/json; charset=latin1", "multipart/form-data", ""] {
        let request = ada.request(Method::POST, "/optimize").header("content-type", media_type);
        problem(request.body(good_search().to_string()), 415, "UNSUPPORTED_MEDIA_TYPE").await;
    }
    let (_, list) = ada.get("/v1/jobs").await;
    assert_eq!(list["jobs"], json!([]), "something was half-accepted");
    still_works(&ada).await;
}

#[tokio::test]
async fn bodies_that_are_too_long_are_refused_before_they_are_read() {
    let place = folder();
    let gatehouse = Gatehouse::start_with(place.path(), &[], &[("MAX_REQUEST_BYTES", "2048")]).await;
    let ada = gatehouse.account("ada").await;
    // The announced length alone is enough: not one byte of the body is sent.
    let head = format!(
        "POST /optimize HTTP/1.1\r\nhost: gatehouse\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n",
        ada.token()
    );
    let chunk = format!("800\r\n{}\r\n", "x".repeat(2048));
    for body in [
        "content-length: 10000000\r\n\r\n".to_owned(),
        format!("transfer-encoding: chunked\r\n\r\n{chunk}{chunk}"),
    ] {
        let answer = gatehouse.raw(format!("{head}{body}").as_bytes()).await;
        let (head, document) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 413 "), "{answer}");
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        assert_eq!(header("connection"), Some("close"), "{head}");
        assert_eq!(header("content-type"), Some("application/problem+json"), "{head}");
        let found = check_problem(document, header("x-request-id").unwrap(), 413, "PAYLOAD_TOO_LARGE");
        assert!(found["detail"].as_str().unwrap().contains("2048"), "{found}");
    }
    // Chunked is as good as any within the bound.
    let parts = good_search().to_string().into_bytes();
    let parts: Vec<_> = parts.chunks(16).map(|part| Ok::<_, std::io::Error>(part.to_vec())).collect();
    let request = ada.request(Method::POST, "/optimize").header("content-type", "application/json");
    let answer = request.body(reqwest::Body::wrap_stream(stream::iter(parts))).send().await.unwrap();
    assert_eq!(answer.status(), 202, "{answer:?}");
    let long = format!("/v1/jobs?kind={}", "k".repeat(7000));
    problem(ada.request(Method::GET, &long), 414, "URI_TOO_LONG").await;
    still_works(&ada).await;
}

#[tokio::test]
async fn unknown_addresses_and_methods_are_refused() {
    let place = folder();
    let gatehouse = Gatehouse::start(place.path()).await;
    let ada = gatehouse.account("ada").await;
    for path in [
        "/",
        "/nowhere",
        "/v1",
        "/v1/jobs/",
        "/v2/jobs",
        "/optimize/",
        "/metrics",
        "/.env",
        "/v1/jobs/a/b/c",
        "/%00",
    ] {
        for request in [gatehouse.request(Method::GET, path), ada.request(Method::POST, path)] {
            problem(request, 404, "ROUTE_NOT_FOUND").await;
        }
    }
    for (method, path, allow) in [
        (Method::GET, "/optimize", "POST, OPTIONS"),
        (Method::DELETE, "/v1/jobs", "OPTIONS"),
        (Method::PUT, "/v1/auth/sign-in", "POST, OPTIONS"),
        (Method::POST, "/healthz", "GET, HEAD, OPTIONS"),
        (Method::PATCH, "/v1/tenant", "GET, HEAD, OPTIONS"),
        (Method::from_bytes(b"BREW").unwrap(), "/v1/tenant", "GET, HEAD, OPTIONS"),
    ] {
        let answer = ada.request(method.clone(), path).send().await.unwrap();
        let found = answer.headers()["allow"].to_str().unwrap();
        assert!(found.ends_with(allow) && !found.contains(method.as_str()), "{found}");
        problem(ada.request(method, path), 405, "METHOD_NOT_ALLOWED").await;
    }
    for (path, field) in [
        ("/v1/jobs/17", "job_id"),
        ("/v1/jobs?page_size=many", "page_size"),
        ("/v1/jobs?page=1", "page"),
        ("/v1/jobs?state=asleep", "state"),
        ("/v1/audit/events?occurred_from=yesterday", "occurred_from"),
    ] {
        let found = problem(ada.request(Method::GET, path), 400, "INVALID_FIELD").await;
        assert_eq!(found["errors"][0]["field"], field, "{found}");
    }
    let none = "00000000-0000-7000-8000-000000000000";
    problem(ada.request(Method::GET, &format!("/v1/jobs/{none}")), 404, "JOB_NOT_FOUND").await;
    let kind = ada.request(Method::POST, "/v1/jobs").json(&json!({"kind": "no-such-kind", "input": {}}));
    problem(kind, 404, "KIND_NOT_FOUND").await;
    // An answer that is no problem carries the same headers.
    let good = ada.request(Method::GET, "/v1/jobs").header("x-request-id", "mine-1").send().await.unwrap();
    assert_eq!((good.status().as_u16(), check_headers(&good).as_str()), (200, "mine-1"));
    let forged =
        ada.request(Method::GET, "/v1/jobs").header("x-request-id", "a b<script>").send().await.unwrap();
    assert!(!check_headers(&forged).contains("script"));
    still_works(&ada).await;
}

#[tokio::test]
async fn bad_credentials_are_refused() {
    let place = folder();
    let gatehouse = Gatehouse::start(place.path()).await;
    let ada = gatehouse.account("ada").await;
    let jobs = || gatehouse.request(Method::GET, "/v1/jobs");
    let token = ada.token();
    let parts: Vec<&str> = token.split('.').collect();
    let refresh = ada.session["refresh_token"].as_str().unwrap();
    // {"alg":"none","typ":"at+jwt"}
    let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0.{}.", parts[1]);
    let swapped = format!("{}.{}.{}", parts[0], parts[1], parts[2].chars().rev().collect::<String>());
    // Another tenant's rights under Ada's signature.
    let bob = gatehouse.account("bob").await;
    let grafted = format!("{}.{}.{}", parts[0], bob.token().split('.').nth(1).unwrap(), parts[2]);
    let cut = &token[..token.len() - 5];
    let longer = format!("{token}AAAA");
    for wrong in
        [unsigned.as_str(), &swapped, &grafted, cut, &longer, "x", "a.b.c", "..", "null", "' OR 1=1 --"]
    {
        let answer = jobs().bearer_auth(wrong).send().await.unwrap();
        assert_eq!(answer.status(), 401, "{wrong}: {answer:?}");
        check_headers(&answer);
        let text = answer.text().await.unwrap();
        assert!(!text.contains(wrong) || wrong.len() < 6, "{wrong} is repeated: {text}");
    }
    problem(jobs(), 401, "CREDENTIAL_MISSING").await;
    for (name, value) in [
        ("authorization", "Bearer"),
        ("authorization", refresh),
        ("x-api-key", "x"),
        ("x-api-key", refresh),
        ("authorization", "Bearer gh_dev_ak_"),
        ("authorization", &format!("Bearer {}", "a".repeat(8200))),
    ] {
        problem(jobs().header(name, value), 401, "CREDENTIAL_MALFORMED").await;
    }
    problem(jobs().bearer_auth(refresh), 401, "CREDENTIAL_MALFORMED").await;
    problem(jobs().header("authorization", "Basic YTpi"), 401, "UNSUPPORTED_SCHEME").await;
    problem(
        jobs().header("x-api-key", "gh_prod_ak_0123456789abcdef0123456789abcdef"),
        401,
        "WRONG_ENVIRONMENT",
    )
    .await;
    problem(jobs().bearer_auth(token).header("x-api-key", "gh_dev_ak_x"), 400, "AMBIGUOUS_CREDENTIAL").await;
    problem(jobs().bearer_auth(token).bearer_auth(token), 400, "AMBIGUOUS_CREDENTIAL").await;
    let made = ada.post("/v1/api-keys", &json!({"name": "k"})).await.1;
    let key = made["text"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    assert_eq!(jobs().header("x-api-key", &key).send().await.unwrap().status(), 200);
    let mut other = key.clone();
    other.replace_range(key.len() - 1.., if key.ends_with('A') { "B" } else { "A" });
    let answer = jobs().header("x-api-key", &other).send().await.unwrap();
    assert_eq!(answer.status(), 401, "{answer:?}");
    let id = made["api_key"]["api_key_id"].as_str().or(made["api_key_id"].as_str()).unwrap();
    let revoked = ada.request(Method::DELETE, &format!("/v1/api-keys/{id}")).send().await.unwrap();
    assert!(revoked.status().is_success(), "{revoked:?}");
    refused_soon(|| jobs().header("x-api-key", &key)).await;
    // A session that ended takes its tokens along.
    still_works(&ada).await;
    let out = ada.request(Method::POST, "/v1/auth/sign-out").send().await.unwrap();
    assert!(out.status().is_success(), "{out:?}");
    refused_soon(|| jobs().bearer_auth(token)).await;
    let renewal =
        gatehouse.request(Method::POST, "/v1/auth/refresh").json(&json!({"refresh_token": refresh}));
    assert_eq!(renewal.send().await.unwrap().status(), 401);
    still_works(&bob).await;
}

/// The credential is refused within the time that a revocation may take.
async fn refused_soon(request: impl Fn() -> RequestBuilder) {
    gatehouse_testkit::eventually(std::time::Duration::from_secs(10), || async {
        request().send().await.unwrap().status() == 401
    })
    .await;
}

/// An objective that can't be read is refused at the door, at either, and costs no job.
#[tokio::test]
async fn objectives_that_can_not_be_read_are_refused_at_once() {
    let place = folder();
    let gatehouse = Gatehouse::start(place.path()).await;
    let ada = gatehouse.account("ada").await;
    let nested = format!("{}x{}", "(".repeat(2000), ")".repeat(2000));
    for (objective, words) in [
        ("x +", "missing"),
        ("(x", "')' is missing"),
        ("x; y", "has no meaning"),
        ("import(os)", "no variable"),
        ("X + 1", "did you mean \"x\"?"),
        ("x + unknown_one", "unknown_one"),
        ("1 + 2", "mentions none"),
        (nested.as_str(), "nested"),
    ] {
        let mut body = good_search();
        body["objective"] = json!(objective);
        let shown: String = objective.chars().take(20).collect();
        let found = problem(ada.request(Method::POST, "/optimize").json(&body), 400, "INVALID_FIELD").await;
        assert_eq!(found["errors"][0]["field"], "objective", "{shown}: {found}");
        let detail = found["detail"].as_str().unwrap();
        assert!(detail.contains(words) && detail.len() < 400, "{shown}: {detail}");
        let job = ada.request(Method::POST, "/v1/jobs").json(&json!({"kind": "optimize", "input": body}));
        let found = problem(job, 400, "INVALID_FIELD").await;
        assert_eq!(found["errors"][0]["field"], "input.objective", "{shown}: {found}");
        assert_eq!(found["detail"], format!("input.{detail}"), "{shown}");
    }
    let (status, jobs) = ada.get("/v1/jobs").await;
    assert_eq!((status.as_u16(), jobs["jobs"].as_array().map(Vec::len)), (200, Some(0)), "{jobs}");
    still_works(&ada).await;
}

/// That an objective has no finite value is known only once it is tried. The job then fails with a reason and a sentence,
/// at once.
#[tokio::test]
async fn objectives_that_can_not_be_minimised_fail_with_a_reason() {
    let place = folder();
    let gatehouse = Gatehouse::start(place.path()).await;
    let ada = gatehouse.account("ada").await;
    let (reason, words) = ("OBJECTIVE_NOT_FINITE", "finite");
    for objective in ["ln(-1 - x^2)", "0 / (x - x)"] {
        let mut input = good_search();
        input["objective"] = json!(objective);
        let (status, job) = ada.post("/v1/jobs", &json!({"kind": "optimize", "input": input})).await;
        assert_eq!(status, 202, "{job}");
        let job = job["job_id"].as_str().unwrap();
        let ended = ada.finished(job).await;
        assert_eq!(
            (&ended["state"], &ended["attempt"]),
            (&json!("failed"), &json!(1)),
            "{objective}: {ended}"
        );
        assert_eq!(ended["failure"]["reason"], reason, "{objective}: {ended}");
        let message = ended["failure"]["message"].as_str().unwrap();
        assert!(message.contains(words) && message.len() < 400, "{objective}: {message}");
        let result =
            problem(ada.request(Method::GET, &format!("/v1/jobs/{job}/result")), 409, "JOB_FAILED").await;
        assert!(result["detail"].as_str().is_some(), "{result}");
        let events = ada.request(Method::GET, &format!("/v1/jobs/{job}/events")).send().await.unwrap();
        let events = events.text().await.unwrap();
        assert!(events.contains("event: end") && events.contains(reason), "{events}");
    }
    still_works(&ada).await;
}
