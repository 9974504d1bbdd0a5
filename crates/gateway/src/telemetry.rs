//! The span, the metrics and the log line of each request, by the OpenTelemetry semantic conventions for HTTP.

use std::time::Duration;

use actix_web::http::header::HeaderMap;
use gatehouse_client::context;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Histogram, UpDownCounter};
use opentelemetry::trace::TraceContextExt as _;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Metrics of the HTTP server.
pub(crate) struct HttpMetrics {
    duration: Histogram<f64>,
    active: UpDownCounter<i64>,
}

impl HttpMetrics {
    pub(crate) fn new() -> Self {
        let meter = opentelemetry::global::meter("gatehouse");
        Self {
            duration: meter
                .f64_histogram("http.server.request.duration")
                .with_unit("s")
                .with_description("Time from a request's arrival to its answer's head.")
                .build(),
            active: meter
                .i64_up_down_counter("http.server.active_requests")
                .with_description("Requests whose answer has not begun.")
                .build(),
        }
    }

    pub(crate) fn began(&self, method: &str) {
        self.active.add(1, &[KeyValue::new("http.request.method", known_method(method))]);
    }

    pub(crate) fn ended(&self, method: &str, route: Option<&str>, status: u16, took: Duration) {
        let method = KeyValue::new("http.request.method", known_method(method));
        self.active.add(-1, std::slice::from_ref(&method));
        let mut attributes = vec![method, KeyValue::new("http.response.status_code", i64::from(status))];
        if let Some(route) = route {
            attributes.push(KeyValue::new("http.route", route.to_owned()));
        }
        self.duration.record(took.as_secs_f64(), &attributes);
    }
}

/// The method if it is a usual one: others would let clients make metrics without bound.
fn known_method(method: &str) -> &'static str {
    ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"]
        .into_iter()
        .find(|known| *known == method)
        .unwrap_or("_OTHER")
}

/// The span of one request, within the trace that its `traceparent` names.
pub(crate) fn request_span(method: &str, path: &str, request_id: &str, headers: &HeaderMap) -> Span {
    // Logs are redacted on their way out, spans are not.
    let path = gatehouse_core::redact(path);
    let span = tracing::info_span!(
        "http",
        otel.name = known_method(method),
        otel.kind = "server",
        otel.status_code = tracing::field::Empty,
        http.request.method = known_method(method),
        http.route = tracing::field::Empty,
        http.response.status_code = tracing::field::Empty,
        url.path = path.chars().take(256).collect::<String>(),
        request_id,
        trace_id = tracing::field::Empty,
        caller = tracing::field::Empty,
    );
    let mut carrier = http::HeaderMap::new();
    for name in ["traceparent", "tracestate"] {
        if let Some(Ok(value)) =
            headers.get(name).map(|value| http::HeaderValue::from_bytes(value.as_bytes()))
        {
            carrier.insert(name, value);
        }
    }
    context::adopt(&span, &carrier);
    let trace = span.context().span().span_context().trace_id();
    if trace != opentelemetry::TraceId::INVALID {
        span.record("trace_id", trace.to_string());
    }
    span
}

/// Names the span after the route, as the conventions want it. A recorded `otel.name` would come too late: the span
/// was begun when its trace was adopted.
pub(crate) fn name_after_route(span: &Span, method: &str, route: &str) {
    span.context().span().update_name(format!("{} {route}", known_method(method)));
}
