//! What the product tells of itself: one trace through every hop, logs that name their request and keep secrets and
//! personal data to themselves, metrics on the private port only.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use reqwest::Method;
use serde_json::{Value, json};
use tokio_stream::wrappers::TcpListenerStream;

use crate::support::{Gatehouse, PATIENCE, answer, folder, good_search};

/// A collector that keeps every span it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let scopes =
            request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        self.0.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Starts it and returns its address. It ends with the test's runtime.
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }

    fn spans(&self) -> Vec<Span> {
        self.0.lock().unwrap().clone()
    }
}

fn text<'a>(span: &'a Span, key: &str) -> &'a str {
    let value = span
        .attributes
        .iter()
        .find(|attribute| attribute.key == key)
        .and_then(|attribute| attribute.value.as_ref());
    match value.and_then(|value| value.value.as_ref()) {
        Some(Any::StringValue(text)) => text,
        _ => "",
    }
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_goes_through_gateway_service_database_and_worker() {
    let place = folder();
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let gatehouse = Gatehouse::start_with(
        place.path(),
        &[],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("RUST_LOG", "debug")],
    )
    .await;
    let ada = gatehouse.account("ada").await;
    let submit = ada
        .request(Method::POST, "/optimize")
        .header("traceparent", format!("00-{TRACE}-{PARENT}-01"))
        .header("x-request-id", "the-traced-request");
    let (status, job) = answer(submit.json(&good_search())).await;
    assert_eq!(status, 202, "{job}");
    let job = job["job_id"].as_str().unwrap().to_owned();
    assert_eq!(ada.finished(&job).await["state"], "succeeded");
    let log = place.path().join("gatehouse.log");
    assert!(gatehouse.stop().await.success());

    let spans: Vec<Span> =
        collector.spans().into_iter().filter(|span| hex(&span.trace_id) == TRACE).collect();
    let by_id: HashMap<String, &Span> = spans.iter().map(|span| (hex(&span.span_id), span)).collect();
    let names: Vec<_> = spans.iter().map(|span| (&span.name, text(span, "tx"))).collect();
    let find = |name: &str| {
        spans
            .iter()
            .find(|span| span.name == name)
            .unwrap_or_else(|| panic!("no span {name} among {names:?}"))
    };
    // Whether one span lies within another, by their parents.
    let within = |inner: &Span, outer: &Span| {
        let mut at = Some(inner);
        while let Some(span) = at {
            if span.span_id == outer.span_id {
                return true;
            }
            at = by_id.get(&hex(&span.parent_span_id)).copied();
        }
        false
    };
    let http = find("POST /optimize");
    assert_eq!(hex(&http.parent_span_id), PARENT);
    assert_eq!(text(http, "request_id"), "the-traced-request");
    let rpc = find("gatehouse.job.v1.JobService/SubmitJob");
    assert!(within(rpc, http), "{names:?}");
    assert_eq!(text(rpc, "request_id"), "the-traced-request");
    let submitted = spans.iter().find(|span| span.name == "db.tx" && within(span, rpc));
    assert!(submitted.is_some_and(|span| text(span, "tx").starts_with("job.")), "{names:?}");
    let run = find("job.run");
    assert_eq!((text(run, "job_id"), text(run, "outcome")), (job.as_str(), "succeeded"));
    assert!(within(run, http), "the worker's run has lost its parent: {names:?}");
    // The token that the gateway asked auth for is of the same trace.
    assert!(
        spans.iter().any(|span| span.name.starts_with("gatehouse.auth.v1.") && within(span, http)),
        "{names:?}"
    );

    let log = std::fs::read_to_string(log).unwrap();
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    let of_request: Vec<_> =
        lines.iter().filter(|line| line.to_string().contains("the-traced-request")).collect();
    assert!(
        of_request.iter().any(|line| line["message"] == "answered" && line["status"] == 202),
        "{of_request:?}"
    );
    for line in of_request {
        assert_eq!(
            (&line["request_id"], &line["trace_id"]),
            (&json!("the-traced-request"), &json!(TRACE)),
            "{line}"
        );
    }
    let of_trace = lines.iter().filter(|line| line["trace_id"] == TRACE);
    assert!(of_trace.clone().count() >= 1);
    for line in &lines {
        let inside = line["span"]["trace_id"].as_str();
        assert!(inside.is_none() || inside == line["trace_id"].as_str(), "{line}");
    }
}

/// Requirements T5 and L9: a corpus of personal data and secrets through the routes, then a search of the whole log
/// and of every span for any of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_and_traces_keep_secrets_and_personal_data_to_themselves() {
    let place = folder();
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("RUST_LOG", "debug")];
    let gatehouse = Gatehouse::start_with(place.path(), &[], &variables).await;
    let (email, phone, card) = ("grace.hopper@navy.example.org", "+442079460958", "4111111111111111");
    let password = "SecretHorse-4711-Battery";
    let words = [email, phone, card, password];
    let post = |path: &str, body: Value| gatehouse.request(Method::POST, path).json(&body);
    let credentials = json!({"email": email, "password": password});
    let mut registration = credentials.clone();
    registration["display_name"] = json!(format!("Grace {phone} {card}"));
    registration["tenant_name"] = json!(format!("{email} {phone}"));
    assert_eq!(answer(post("/v1/auth/register", registration.clone())).await.0, 201);
    assert_eq!(answer(post("/v1/auth/register", registration)).await.0, 409);
    let (_, session) = answer(post("/v1/auth/sign-in", credentials.clone())).await;
    let (access, refresh) =
        (session["access_token"].as_str().unwrap(), session["refresh_token"].as_str().unwrap());
    let (_, renewed) = answer(post("/v1/auth/refresh", json!({"refresh_token": refresh}))).await;
    let mut secrets: Vec<String> =
        vec![access.into(), refresh.into(), renewed["refresh_token"].as_str().unwrap().into()];
    let mine = |method: Method, path: &str| gatehouse.request(method, path).bearer_auth(access);
    let (_, key) =
        answer(mine(Method::POST, "/v1/api-keys").json(&json!({"name": format!("key of {email}")}))).await;
    secrets.push(key["text"].as_str().unwrap().to_owned());

    let bad = json!({"email": email, "password": format!("{password}-wrong")});
    assert_eq!(answer(post("/v1/auth/sign-in", bad)).await.0, 401);
    for word in words {
        // In the wrong place of a body, a query, a path, a header; raw and percent-encoded.
        let encoded: String = word
            .bytes()
            .map(|byte| {
                if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("%{byte:02X}") }
            })
            .collect();
        let mut wrong = good_search();
        wrong["objective"] = json!(format!("x + ? {word}"));
        assert_eq!(answer(mine(Method::POST, "/optimize").json(&wrong)).await.0, 400);
        let raw = json!({"kind": "optimize", "input": wrong});
        assert_eq!(answer(mine(Method::POST, "/v1/jobs").json(&raw)).await.0, 400);
        for request in [
            mine(Method::POST, "/optimize").json(&json!({word: 1})),
            mine(Method::POST, "/optimize").json(&json!({"objective": [word]})),
            post("/v1/auth/sign-in", json!({"email": word, "password": password})),
            post("/v1/auth/sign-in", json!({"email": email, "password": [password], "token": word})),
            post("/v1/auth/refresh", json!({"refresh_token": word})),
            mine(Method::GET, &format!("/v1/jobs?kind={encoded}")),
            mine(Method::GET, &format!("/v1/jobs?access_token={access}&password={password}")),
            mine(Method::GET, "/v1/tenant").header("user-agent", word),
            mine(Method::POST, "/optimize").header("idempotency-key", word).json(&good_search()),
            gatehouse.request(Method::GET, "/v1/tenant").header("x-api-key", word),
            gatehouse.request(Method::GET, "/v1/tenant").header("authorization", format!("Basic {word}")),
            gatehouse.request(Method::POST, "/oauth2/token").form(&[
                ("grant_type", "client_credentials"),
                ("client_id", "job"),
                ("client_secret", password),
            ]),
        ] {
            let status = answer(request).await.0;
            assert!(status.as_u16() < 500, "{word}: {status}");
        }
        if word != password {
            for path in
                [format!("/nowhere/{word}"), format!("/v1/jobs/{word}"), format!("/v1/jobs/{encoded}")]
            {
                assert!(answer(mine(Method::GET, &path)).await.0.is_client_error());
            }
        }
    }
    let forget = json!({"current_password": password, "new_password": format!("{password}-next")});
    answer(mine(Method::POST, "/v1/auth/password").json(&forget)).await;
    let admin = gatehouse.ready["first_admin"]["password"].as_str().unwrap().to_owned();
    secrets.push(admin);
    for client in ["gateway", "job"] {
        let file = place.path().join(format!("data/clients/{client}.secret"));
        secrets.push(std::fs::read_to_string(file).unwrap());
    }
    let log = place.path().join("gatehouse.log");
    assert!(gatehouse.stop().await.success());

    let log = std::fs::read_to_string(log).unwrap();
    let spans = format!("{:?}", collector.spans());
    assert!(log.contains("[email]") && log.lines().count() > 100 && spans.len() > 10_000);
    for (place, text) in [("the log", &log), ("the traces", &spans)] {
        for word in words.iter().map(|word| (*word).to_owned()).chain(secrets.clone()) {
            // A part is as bad as the whole: the signature of a token, the digits of a number.
            let parts = [word.clone(), word.replace('@', "%40"), word.rsplit('.').next().unwrap().to_owned()];
            for part in parts.iter().filter(|part| part.len() > 8) {
                let line = text.lines().find(|line| line.contains(part.as_str()));
                let shown = line.and_then(|line| {
                    line.find(part.as_str())
                        .map(|at| &line[at.saturating_sub(300)..(at + 80).min(line.len())])
                });
                assert!(line.is_none(), "{part} stands in {place}: {shown:?}");
            }
        }
    }
}

#[tokio::test]
async fn metrics_are_on_the_private_port_only() {
    let place = folder();
    let gatehouse = Gatehouse::start(place.path()).await;
    let ada = gatehouse.account("ada").await;
    let job = ada.optimize(&good_search()).await;
    ada.finished(&job).await;
    let metrics = gatehouse.probe("/metrics").await;
    let shown = |name: &str, labels: &[&str]| {
        metrics.lines().any(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)))
    };
    let http =
        ["http_route=\"/optimize\"", "http_request_method=\"POST\"", "http_response_status_code=\"202\""];
    assert!(shown("http_server_request_duration_seconds_count", &http), "{metrics}");
    let rpc = ["rpc_service=\"gatehouse.job.v1.JobService\"", "rpc_method=\"SubmitJob\""];
    assert!(shown("rpc_server_call_duration_seconds_count", &rpc), "{metrics}");
    // What is measured in seconds is told apart in milliseconds.
    let buckets = |bound: &str| {
        let bound = format!("le=\"{bound}\"");
        metrics.lines().filter(|line| line.contains("_seconds_bucket{") && line.contains(&bound)).count()
    };
    assert!(buckets("+Inf") > 2 && buckets("0.005") == buckets("+Inf"), "{metrics}");
    assert!(!metrics.contains("ada@example.org") && !metrics.contains(&job), "{metrics}");
    assert_eq!(gatehouse.probe("/healthz").await, "alive\n");
    gatehouse.probe("/readyz").await;
    assert_eq!(ada.get("/metrics").await.0, 404);
    assert_eq!(tokio::time::timeout(PATIENCE, gatehouse.stop()).await.unwrap().code(), Some(0));
}
