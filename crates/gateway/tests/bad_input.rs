//! Bad input: each gets one clear message, the right status, every header, and reaches no service.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use support::World;

/// Every answer carries these.
fn check_headers(headers: &reqwest::header::HeaderMap, what: &str) {
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(headers.get(name).map(|found| found.to_str().unwrap()), Some(value), "{what}: {name}");
    }
    for name in ["content-security-policy", "permissions-policy", "x-request-id", "cache-control", "vary"] {
        assert!(headers.contains_key(name), "{what}: no {name}");
    }
    assert!(!headers.contains_key("strict-transport-security"), "{what}: HSTS over plain HTTP");
    assert!(!headers.contains_key("server"), "{what}: tells what it is");
}

async fn problem(answer: reqwest::Response, status: u16, what: &str) -> Value {
    assert_eq!(answer.status(), status, "{what}");
    check_headers(answer.headers(), what);
    assert_eq!(answer.headers()["content-type"], "application/problem+json", "{what}");
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["status"], status, "{what}");
    assert_eq!(problem["request_id"], id.as_str(), "{what}");
    assert_eq!(problem["instance"], format!("urn:gatehouse:request:{id}"), "{what}");
    assert!(problem["type"].as_str().unwrap().starts_with("urn:gatehouse:problem:"), "{what}");
    assert!(!problem["detail"].as_str().unwrap().is_empty(), "{what}");
    problem
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_json_is_refused_with_the_field_and_never_submitted() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    let variable = json!({"name": "x", "lower": 0, "upper": 1});
    let with = |change: &dyn Fn(&mut Value)| {
        let mut body = json!({"objective": "x^2", "variables": [variable]});
        change(&mut body);
        body.to_string().into_bytes()
    };
    let corpus: Vec<(Vec<u8>, &str, &str)> = vec![
        (b"".to_vec(), "MALFORMED_JSON", ""),
        (b"{".to_vec(), "MALFORMED_JSON", ""),
        (b"{\"objective\":}".to_vec(), "MALFORMED_JSON", ""),
        ([with(&|_| {}), b"x".to_vec()].concat(), "MALFORMED_JSON", ""),
        (b"\xc3\x28".to_vec(), "BODY_NOT_UTF8", ""),
        (b"null".to_vec(), "INVALID_FIELD", "body"),
        (b"[]".to_vec(), "INVALID_FIELD", "body"),
        (br#"["x^2",[{"name":"x","lower":0,"upper":1}],null,null,null]"#.to_vec(), "INVALID_FIELD", "body"),
        (with(&|body| body["variables"] = json!([["x", 0, 1]])), "INVALID_FIELD", "variables[0]"),
        (with(&|body| body["extra"] = 1.into()), "INVALID_FIELD", "extra"),
        (with(&|body| body["objective"] = 1.into()), "INVALID_FIELD", "objective"),
        (with(&|body| body["objective"] = " ".into()), "INVALID_FIELD", "objective"),
        (with(&|body| body["objective"] = "x".repeat(8193).into()), "INVALID_FIELD", "objective"),
        (with(&|body| body["variables"] = json!([])), "INVALID_FIELD", "variables"),
        (with(&|body| body["variables"][0]["lower"] = "0".into()), "INVALID_FIELD", "variables[0].lower"),
        (with(&|body| body["variables"][0]["lower"] = 2.into()), "INVALID_FIELD", "variables[0].upper"),
        (with(&|body| body["variables"][0]["name"] = "1x".into()), "INVALID_FIELD", "variables[0].name"),
        (with(&|body| body["variables"][0]["more"] = 1.into()), "INVALID_FIELD", "variables[0].more"),
        (with(&|body| body["variables"] = json!([variable, variable])), "INVALID_FIELD", "variables[1].name"),
        (with(&|body| body["max_iterations"] = (-1).into()), "INVALID_FIELD", "max_iterations"),
        (with(&|body| body["max_iterations"] = 0.into()), "INVALID_FIELD", "max_iterations"),
        (with(&|body| body["max_iterations"] = 1.5.into()), "INVALID_FIELD", "max_iterations"),
        (br#"{"objective":"x","objective":"y","variables":[]}"#.to_vec(), "INVALID_FIELD", "body"),
        (format!("{}{}", "[".repeat(50), "]".repeat(50)).into_bytes(), "INVALID_FIELD", ""),
    ];
    for (body, reason, field) in corpus {
        let what = String::from_utf8_lossy(&body).chars().take(80).collect::<String>();
        let answer = world
            .post("/optimize")
            .bearer_auth(&token)
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await
            .unwrap();
        let problem = problem(answer, 400, &what).await;
        assert_eq!(problem["reason"], reason, "{what}: {problem}");
        if !field.is_empty() {
            assert_eq!(problem["errors"][0]["field"], field, "{what}: {problem}");
        }
    }
    assert_eq!(world.calls("SubmitJob"), 0);
}

/// Asking for nothing is not asking for everything.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_choice_is_none() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    for (path, body, field) in [
        ("/v1/api-keys", json!({"name": "k", "permissions": []}), "permissions"),
        ("/v1/api-keys", json!({"name": "k", "lifetime_seconds": 0}), "lifetime_seconds"),
        ("/v1/api-keys", json!({"name": "k", "lifetime_seconds": -1}), "lifetime_seconds"),
        ("/v1/connections", json!({"upstream": "demo", "scopes": []}), "scopes"),
        ("/v1/connections/demo/token", json!({"scopes": []}), "scopes"),
        (
            "/v1/offline-grants",
            json!({"connection_id": support::JOB, "client_id": "c", "scopes": []}),
            "scopes",
        ),
    ] {
        let what = format!("{path} {body}");
        let answer = world.post(path).bearer_auth(&token).json(&body).send().await.unwrap();
        let problem = problem(answer, 400, &what).await;
        assert_eq!(
            (&problem["reason"], &problem["errors"][0]["field"]),
            (&json!("INVALID_FIELD"), &json!(field))
        );
    }
    let good = json!({"objective": "x^2", "variables": [{"name": "x", "lower": -1, "upper": 1}]});
    let answer = world.post("/optimize").bearer_auth(&token).header("idempotency-key", "").json(&good);
    let problem = problem(answer.send().await.unwrap(), 400, "an empty idempotency key").await;
    assert_eq!(problem["errors"][0]["field"], "idempotency-key");
    assert_eq!(world.calls("SubmitJob"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_body_is_submitted_as_it_was_meant() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    let body = json!({"objective": "x^2", "variables": [{"name": "x", "lower": -1, "upper": 1}], "seed": 7});
    let answer = world
        .post("/optimize")
        .bearer_auth(&token)
        .header("idempotency-key", "once")
        .json(&body)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 202);
    check_headers(answer.headers(), "202");
    assert_eq!(answer.headers()["location"], format!("/v1/jobs/{}", support::JOB));
    let job: Value = answer.json().await.unwrap();
    assert_eq!(job["state"], "queued");
    let submitted = world.services.lock().submitted.pop().unwrap();
    assert_eq!((submitted.kind.as_str(), submitted.idempotency_key.as_str()), ("optimize", "once"));
    let input: Value = serde_json::from_str(&submitted.input_json).unwrap();
    assert_eq!(
        input,
        json!({"objective": "x^2", "variables": [{"name": "x", "lower": -1.0, "upper": 1.0}], "seed": 7})
    );
}

/// A number read and printed again may be another; so the worker gets what was sent, and it is checked as before.
#[tokio::test(flavor = "multi_thread")]
async fn the_input_of_a_job_is_passed_on_as_it_stands() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    let send = |body: String| {
        let request = world.post("/v1/jobs").bearer_auth(&token).header("content-type", "application/json");
        request.body(body).send()
    };
    for input in [
        "18446744073709551617",
        "1.10",
        "-0.0",
        "1E+2",
        "0.1000000000000000055511151231257827",
        "null",
        "\"\\u00e9\\/\"",
        "{ \"b\" : [1.0 ,\n\t2e0],\"a\":{} }",
    ] {
        for body in [
            format!("{{\"kind\":\"any\",\"input\": {input} }}"),
            format!("\n{{ \"\\u0069nput\":{input},\"kind\":\"any\"}}\n"),
        ] {
            assert_eq!(send(body.clone()).await.unwrap().status(), 202, "{body}");
            assert_eq!(world.services.lock().submitted.pop().unwrap().input_json, input, "{body}");
        }
    }
    let deep = format!("{}1{}", "[".repeat(32), "]".repeat(32));
    for (input, reason) in [
        (r#"{"a":{"b":1,"b":2}}"#, "INVALID_FIELD"),
        (r#"{"a":1,"\u0061":2}"#, "INVALID_FIELD"),
        (&deep, "INVALID_FIELD"),
        (&format!("\"{}\"", "x".repeat(8193)), "INVALID_FIELD"),
        ("1e999", "MALFORMED_JSON"),
        ("01", "MALFORMED_JSON"),
        ("\"\\ud800\"", "MALFORMED_JSON"),
        ("1,\"input\":2", "INVALID_FIELD"),
        ("1,\"more\":2", "INVALID_FIELD"),
    ] {
        let body = format!("{{\"kind\":\"any\",\"input\":{input}}}");
        let found = problem(send(body).await.unwrap(), 400, input).await;
        assert_eq!(found["reason"], reason, "{input}: {found}");
    }
    let found = problem(send("{\"kind\":\"any\"}".to_owned()).await.unwrap(), 400, "no input").await;
    assert_eq!(found["reason"], "INVALID_FIELD", "{found}");
    assert!(world.services.lock().submitted.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_media_types_paths_methods_ids_and_queries_are_refused() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    for media in
        ["text/plain", "application/json; charset=latin1", "application/jsonx", "multipart/form-data"]
    {
        let answer = world
            .post("/optimize")
            .bearer_auth(&token)
            .header("content-type", media)
            .body("{}")
            .send()
            .await
            .unwrap();
        assert_eq!(problem(answer, 415, media).await["reason"], "UNSUPPORTED_MEDIA_TYPE");
    }
    let answer = world.post("/optimize").bearer_auth(&token).body("{}").send().await.unwrap();
    problem(answer, 415, "no content type").await;
    let twice = world
        .post("/optimize")
        .bearer_auth(&token)
        .header("content-type", "application/json")
        .header("content-type", "text/plain")
        .body("{}");
    assert_eq!(problem(twice.send().await.unwrap(), 400, "two types").await["reason"], "DUPLICATE_HEADER");
    for path in [
        "/",
        "/v1",
        "/v2/jobs",
        "/v1/jobs/",
        "//v1/jobs",
        "/V1/JOBS",
        "/v1/jobs/%00",
        "/docs/../etc/passwd",
        "/.git/config",
    ] {
        let answer = world.get(path).bearer_auth(&token).send().await.unwrap();
        assert!([400, 404].contains(&answer.status().as_u16()), "{path}: {}", answer.status());
        check_headers(answer.headers(), path);
    }
    let answer = world.http.delete(format!("{}/v1/jobs", world.base)).send().await.unwrap();
    assert_eq!(answer.headers()["allow"], "POST, GET, HEAD, OPTIONS");
    assert_eq!(problem(answer, 405, "DELETE").await["reason"], "METHOD_NOT_ALLOWED");
    for id in ["1", "{0190b5c2-7f3e-7a52-9d2c-0b1d7cbb1f5e}", "%27%20OR%201=1", "..%2f..%2fetc"] {
        let answer = world.get(&format!("/v1/jobs/{id}")).bearer_auth(&token).send().await.unwrap();
        let status = answer.status().as_u16();
        assert!([400, 404].contains(&status), "{id}: {status}");
        check_headers(answer.headers(), id);
    }
    for query in
        ["page_size=x", "unknown=1", "state=nope", "page_size=1&page_size=2", "page_size=99999999999"]
    {
        let answer = world.get(&format!("/v1/jobs?{query}")).bearer_auth(&token).send().await.unwrap();
        assert_eq!(problem(answer, 400, query).await["reason"], "INVALID_FIELD", "{query}");
    }
    for path in [format!("/v1/jobs?kind={}", "x".repeat(7000)), format!("/v1/{}", "x".repeat(9000))] {
        let answer = world.get(&path).bearer_auth(&token).send().await.unwrap();
        assert_eq!(problem(answer, 414, "long").await["reason"], "URI_TOO_LONG");
    }
    let both =
        world.get("/v1/jobs").bearer_auth(&token).header("x-api-key", "gh_dev_ak_a").send().await.unwrap();
    assert_eq!(problem(both, 400, "two credentials").await["reason"], "AMBIGUOUS_CREDENTIAL");
    let key = world
        .post("/optimize")
        .bearer_auth(&token)
        .header("idempotency-key", "a b")
        .json(&json!({"objective": "x", "variables": [{"name": "x", "lower": 0, "upper": 1}]}));
    problem(key.send().await.unwrap(), 400, "idempotency key").await;
    let body =
        world.post(&format!("/v1/jobs/{}/cancel", support::JOB)).bearer_auth(&token).json(&json!({"a": 1}));
    assert_eq!(problem(body.send().await.unwrap(), 400, "body").await["reason"], "BODY_NOT_EXPECTED");
    assert_eq!(world.calls("SubmitJob") + world.calls("CancelJob"), 0);
}

/// Sends raw bytes; the whole answer.
fn raw(world: &World, parts: &[&[u8]]) -> String {
    let mut socket = TcpStream::connect(world.gateway.address()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for part in parts {
        // The gateway may answer and close before everything is sent.
        if socket.write_all(part).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// A search that can't be done is refused at once, whichever way it comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_search_is_read_in_the_same_way_at_both_routes() {
    let world = World::start_limited(|rules| rules.classes.clear()).await;
    let (token, _) = world.person(300);
    let send = |path: &'static str, body: Value| world.post(path).bearer_auth(&token).json(&body).send();
    let variables = json!([{"name": "x", "lower": 0, "upper": 1}]);
    for (input, field) in [
        (json!({"objective": "x +* 2", "variables": variables}), "objective"),
        (json!({"objective": "y", "variables": variables}), "objective"),
        (
            json!({"objective": "x", "variables": [{"name": "x", "lower": 2, "upper": 1}]}),
            "variables[0].upper",
        ),
        (json!({"objective": "x", "variables": []}), "variables"),
        (json!({"objective": "x", "variables": variables, "more": 1}), "more"),
    ] {
        let direct = problem(send("/optimize", input.clone()).await.unwrap(), 400, field).await;
        let answer = send("/v1/jobs", json!({"kind": "optimize", "input": input})).await.unwrap();
        let general = problem(answer, 400, field).await;
        let at = format!("input.{field}");
        assert_eq!(
            (&direct["reason"], &general["reason"]),
            (&json!("INVALID_FIELD"), &json!("INVALID_FIELD"))
        );
        assert_eq!(
            (&direct["errors"][0]["field"], &general["errors"][0]["field"]),
            (&json!(field), &json!(at))
        );
        assert!(general["detail"].as_str().unwrap().starts_with(&format!("{at}: ")), "{general}");
    }
    let no_object = send("/v1/jobs", json!({"kind": "optimize", "input": [1]})).await.unwrap();
    let no_object = problem(no_object, 400, "no object").await;
    assert_eq!(no_object["errors"][0]["field"], "input");
    assert!(no_object["detail"].as_str().unwrap().starts_with("input: "), "{no_object}");
    assert_eq!(world.calls("SubmitJob"), 0);
    // What other kinds take is theirs to judge.
    let other = send("/v1/jobs", json!({"kind": "other", "input": {"objective": "+*"}})).await.unwrap();
    assert_eq!(other.status(), 202);
    let good = json!({"kind": "optimize", "input": {"objective": "x^2", "variables": variables}});
    assert_eq!(send("/v1/jobs", good).await.unwrap().status(), 202);
}

/// RFC 9562, section 4: read in either case, written in lower.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_the_same_in_letters_of_either_case() {
    let world = World::start_limited(|rules| rules.classes.clear()).await;
    let (token, _) = world.person(300);
    let get = |id: String| world.get(&format!("/v1/jobs/{id}")).bearer_auth(&token).send();
    for id in [support::JOB.to_owned(), support::JOB.to_uppercase(), support::JOB.replace('b', "B")] {
        let answer = get(id.clone()).await.unwrap();
        assert_eq!(answer.status(), 200, "{id}");
        assert_eq!(answer.json::<Value>().await.unwrap()["job_id"], support::JOB);
    }
    for id in [support::JOB.replace('-', ""), support::JOB.replace('0', "g"), format!("{}0", support::JOB)] {
        let refused = problem(get(id.clone()).await.unwrap(), 400, &id).await;
        assert_eq!(refused["errors"][0]["field"], "job_id");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_is_read_as_rfc_3339_or_as_microseconds() {
    const FIVE: i64 = 1_795_410_000_000_000;
    let world = World::start_limited(|rules| rules.classes.clear()).await;
    let (token, _) = world.person(300);
    let get = |from: &str, to: &str| {
        let query = [("occurred_from", from), ("occurred_to", to)];
        world.get("/v1/audit/events").query(&query).bearer_auth(&token).send()
    };
    for (text, micros) in [
        ("2026-11-23T05:00:00Z", FIVE),
        ("2026-11-23t05:00:00.000007z", FIVE + 7),
        ("2026-11-23T06:00:00+01:00", FIVE),
        ("1795410000000000", FIVE),
        ("1970-01-01T00:00:00Z", 0),
        ("0", 0),
        ("", 0),
    ] {
        assert_eq!(get(text, text).await.unwrap().status(), 200, "{text}");
        let asked = world.services.lock().listed_events.pop().unwrap();
        assert_eq!((asked.occurred_from, asked.occurred_to), (micros, micros), "{text}");
    }
    for wrong in
        ["yesterday", "2026-11-23", "2026-11-23T05:00:00", "2026-13-01T00:00:00Z", "-1", "1.5", "1e9"]
            .into_iter()
            .chain(["1969-12-31T23:59:59Z", "9223372036854775808"])
    {
        for (from, to, field) in [(wrong, "", "occurred_from"), ("", wrong, "occurred_to")] {
            let refused = problem(get(from, to).await.unwrap(), 400, wrong).await;
            assert_eq!(refused["errors"][0]["field"], field, "{wrong}");
            let detail = refused["detail"].as_str().unwrap();
            assert!(detail.contains("2026-11-23T05:00:00Z") && detail.contains("microseconds"), "{detail}");
        }
    }
    assert!(world.services.lock().listed_events.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn long_bodies_are_refused_before_they_are_read() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    let head = |more: &str| {
        format!(
            "POST /optimize HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n{more}\r\n\r\n"
        )
    };
    // Declared: not one byte of the body is sent, and the answer comes all the same.
    let answer = tokio::task::block_in_place(|| raw(&world, &[head("content-length: 65537").as_bytes()]));
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("PAYLOAD_TOO_LARGE") && answer.contains("x-request-id"), "{answer}");
    // Chunked, without end: refused as soon as the bound is passed.
    let chunk = format!("4000\r\n{}\r\n", "a".repeat(0x4000));
    let started = head("transfer-encoding: chunked");
    let mut parts: Vec<&[u8]> = vec![started.as_bytes()];
    parts.extend(std::iter::repeat_n(chunk.as_bytes(), 5));
    let answer = tokio::task::block_in_place(|| raw(&world, &parts));
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    // Nor is a body read on that nobody asked for, whatever the answer is.
    for target in ["GET /v1/jobs", "POST /nowhere", "DELETE /optimize"] {
        let began = std::time::Instant::now();
        let started = format!("{target} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
        let mut parts: Vec<&[u8]> = vec![started.as_bytes()];
        parts.extend(std::iter::repeat_n(chunk.as_bytes(), 5));
        let answer = tokio::task::block_in_place(|| raw(&world, &parts));
        assert!(answer.starts_with("HTTP/1.1 40"), "{answer}");
        assert!(began.elapsed() < Duration::from_secs(8), "{target}: the connection stayed open");
    }
    // Exactly the bound is read.
    let body = format!("{}{{}}", " ".repeat(65534));
    let answer = world
        .post("/optimize")
        .bearer_auth(&token)
        .header("content-type", "application/json")
        .body(body)
        .send()
        .await
        .unwrap();
    assert_eq!(problem(answer, 400, "at the bound").await["errors"][0]["field"], "body");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_no_object() {
    let world = World::start().await;
    let body = json!(["ada@example.com", "password", "tenant"]);
    let answer = world.post("/v1/auth/sign-in").json(&body).send().await.unwrap();
    let problem = problem(answer, 400, "a list").await;
    assert_eq!(problem["errors"][0]["field"], "body", "{problem}");
    assert_eq!(problem["errors"][0]["detail"], "expected an object, found an array", "{problem}");
    assert_eq!(world.calls("SignIn"), 0);
}

/// RFC 9112, section 9.6: whoever says `close` sends nothing after that request, and nothing after it is done.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_after_the_last_request_of_a_connection() {
    let world = World::start().await;
    let body = r#"{"email":"a@b.c","password":"p"}"#;
    let register = |connection: &str| {
        format!(
            "POST /v1/auth/register HTTP/1.1\r\nhost: x\r\nconnection: {connection}\r\ncontent-type: \
             application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let pipelined =
        register("keep-alive") + &register("close") + &register("close") + &register("keep-alive");
    let answer = tokio::task::block_in_place(|| raw(&world, &[pipelined.as_bytes()]));
    assert_eq!(answer.matches("HTTP/1.1 201").count(), 2, "{answer}");
    assert_eq!(world.calls("Register"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_none_is_refused() {
    let world = World::start().await;
    for host in ["a/b", "a b", "me@here", "x:y:z", "\"x\"", "<x>"] {
        let request = format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = tokio::task::block_in_place(|| raw(&world, &[request.as_bytes()]));
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("INVALID_HOST"), "{host}: {answer}");
    }
    let twice = b"GET /healthz HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n";
    let answer = tokio::task::block_in_place(|| raw(&world, &[twice]));
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    for host in ["a.example", "a.example:443", "[::1]:8080", ""] {
        let request = format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = tokio::task::block_in_place(|| raw(&world, &[request.as_bytes()]));
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_arrive_is_not_waited_for() {
    let world = World::start_with(|config| config.body_timeout_ms = 200).await;
    let (token, _) = world.person(300);
    let head = format!(
        "POST /optimize HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{{"
    );
    let answer = tokio::task::block_in_place(|| raw(&world, &[head.as_bytes()]));
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("BODY_TIMEOUT"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oauth_endpoints_speak_rfc_6749() {
    let world = World::start().await;
    let form = |path: &str, body: &str| {
        world.post(path).header("content-type", "application/x-www-form-urlencoded").body(body.to_owned())
    };
    for (body, status, error) in [
        ("", 400, "invalid_request"),
        ("grant_type=password", 400, "unsupported_grant_type"),
        ("grant_type=client_credentials", 401, "invalid_client"),
        ("grant_type=client_credentials&client_id=a&client_secret=b", 400, "invalid_request"),
        (
            "grant_type=client_credentials&client_id=a&client_secret=wrong&audience=gatehouse.job",
            401,
            "invalid_client",
        ),
        ("grant_type=client_credentials&grant_type=x", 400, "invalid_request"),
        ("grant_type=refresh_token", 400, "invalid_request"),
    ] {
        let answer = form("/oauth2/token", body).send().await.unwrap();
        assert_eq!(answer.status(), status, "{body}");
        check_headers(answer.headers(), body);
        assert_eq!(answer.headers()["cache-control"], "no-store");
        assert_eq!(answer.headers().contains_key("www-authenticate"), status == 401, "{body}");
        assert_eq!(answer.json::<Value>().await.unwrap()["error"], error, "{body}");
    }
    let answer = form("/oauth2/token", "grant_type=client_credentials&audience=gatehouse.job&unknown=1")
        .basic_auth("reporting", Some("s%3A"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let token: Value = answer.json().await.unwrap();
    assert_eq!(token["token_type"], "Bearer");
    assert!(token["expires_in"].as_i64().unwrap() > 250);
    let answer = form("/oauth2/token", "grant_type=refresh_token&refresh_token=r").send().await.unwrap();
    assert_eq!(answer.json::<Value>().await.unwrap()["refresh_token"], "refresh");
    for (token, active) in [("live", true), ("dead", false)] {
        let answer = form("/oauth2/introspect", &format!("token={token}"))
            .basic_auth("reporting", Some("s"))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.json::<Value>().await.unwrap()["active"], active);
    }
    assert_eq!(form("/oauth2/introspect", "token=live").send().await.unwrap().status(), 401);
    let refused =
        form("/oauth2/introspect", "token=live").basic_auth("narrow", Some("s")).send().await.unwrap();
    assert_eq!(refused.status(), 403);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["error"], "unauthorized_client", "{refused}");
    assert_eq!(form("/oauth2/revoke", "token=x").send().await.unwrap().status(), 200);
    let metadata: Value =
        world.get("/.well-known/oauth-authorization-server/dev").send().await.unwrap().json().await.unwrap();
    assert_eq!(metadata["issuer"], support::ISSUER);
    assert_eq!(metadata["token_endpoint"], format!("{}/oauth2/token", world.base));
    assert_eq!(world.get("/.well-known/oauth-authorization-server/prod").send().await.unwrap().status(), 404);
    let keys: Value = world.get("/.well-known/jwks.json").send().await.unwrap().json().await.unwrap();
    assert_eq!(keys["keys"][0]["kty"], "OKP");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_failure_tells_nothing_of_the_inside() {
    let world = World::start().await;
    let (token, _) = world.person(300);
    for (status, expected) in [
        (tonic::Status::internal("panicked at /home/secret.rs"), 500),
        (tonic::Status::unknown("connect to 10.9.8.7 secret"), 503),
        (tonic::Status::data_loss("secret"), 500),
        (tonic::Status::deadline_exceeded("secret"), 504),
    ] {
        world.fail("GetJob", status);
        let answer =
            world.get(&format!("/v1/jobs/{}", support::JOB)).bearer_auth(&token).send().await.unwrap();
        let problem = problem(answer, expected, "failure").await.to_string();
        assert!(!problem.contains("secret") && !problem.contains("10.9"), "{problem}");
    }
}
