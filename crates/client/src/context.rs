//! What travels with a request through every hop: its id, and the W3C trace context.

use std::future::Future;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::TraceId;
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::TraceContextExt as _;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The metadata key of the request id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that is passed on.
pub const MAX_REQUEST_ID_LENGTH: usize = 64;

tokio::task_local! {
    static CURRENT: String;
}

/// Runs `future` as part of the request `id`: every call that it makes carries the id.
pub async fn with_request_id<F: Future>(id: String, future: F) -> F::Output {
    CURRENT.scope(id, future).await
}

/// The id of the request that this task works for.
#[must_use]
pub fn request_id() -> Option<String> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Whether `id` may be passed on: 1 to 64 characters of `A-Z a-z 0-9 . _ -`, so that it can stand in any log.
#[must_use]
pub fn is_valid_request_id(id: &str) -> bool {
    (1..=MAX_REQUEST_ID_LENGTH).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Writes the current request id and trace context into the headers of an outgoing call.
pub fn inject(headers: &mut HeaderMap) {
    if let Some(Ok(id)) = request_id().map(|id| HeaderValue::from_str(&id)) {
        headers.insert(REQUEST_ID, id);
    }
    let context = tracing::Span::current().context();
    opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut HeaderInjector(headers));
    });
}

/// The `traceparent` (W3C Trace Context) of the current span; empty where nothing is traced.
#[must_use]
pub fn traceparent() -> String {
    let mut headers = HeaderMap::new();
    inject(&mut headers);
    headers.get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// Makes `span` a child of the trace that the headers of an incoming call name, if they name one.
pub fn adopt(span: &tracing::Span, headers: &HeaderMap) {
    let parent = opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.extract(&HeaderExtractor(headers))
    });
    // Fails only where no OpenTelemetry layer is installed: then there is nothing to adopt.
    let _ = span.set_parent(parent);
}

/// The id of the trace that `span` belongs to, for log lines; none where nothing is traced.
#[must_use]
pub fn trace_id(span: &tracing::Span) -> Option<String> {
    let trace = span.context().span().span_context().trace_id();
    (trace != TraceId::INVALID).then(|| trace.to_string())
}

/// Makes `span` a child of the trace that `traceparent` names; does nothing if it is empty or malformed.
pub fn adopt_traceparent(span: &tracing::Span, traceparent: &str) {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(traceparent) {
        headers.insert("traceparent", value);
        adopt(span, &headers);
    }
}

struct HeaderInjector<'a>(&'a mut HeaderMap);

impl Injector for HeaderInjector<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(key.as_bytes()), HeaderValue::from_str(&value))
        {
            self.0.insert(name, value);
        }
    }
}

struct HeaderExtractor<'a>(&'a HeaderMap);

impl Extractor for HeaderExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_request_ids_are_passed_on() {
        assert!(is_valid_request_id("0190b5c2-7f3e.A_b"));
        for wrong in ["", "a b", "a\nb", "é", &"x".repeat(65), "<script>"] {
            assert!(!is_valid_request_id(wrong), "{wrong:?} was accepted");
        }
    }

    #[tokio::test]
    async fn the_request_id_reaches_the_headers_of_its_own_task_only() {
        let mut headers = HeaderMap::new();
        with_request_id("r-1".into(), async { inject(&mut headers) }).await;
        assert_eq!(headers[REQUEST_ID], "r-1");
        assert_eq!(request_id(), None);
    }
}
