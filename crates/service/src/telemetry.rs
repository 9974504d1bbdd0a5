//! Logs, traces and metrics of a process.
//!
//! Logs go to standard error, one JSON object a line (or plain text for a person at a terminal), redacted line by
//! line before they are written. Traces and metrics go to an OTLP collector where one is configured; metrics are
//! always on the private port's `/metrics`.

use std::io::Write;
use std::time::Duration;

use gatehouse_core::{Environment, Error, Result};
use http::Uri;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{ExporterBuildError, MetricExporter, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{
    Aggregation, Instrument, InstrumentKind, PeriodicReader, SdkMeterProvider, Stream,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use prometheus::{Encoder as _, Registry, TextEncoder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Anyone can send what is no HTTP, as often as they like; for actix-http each is an error, without saying whose. What sqlx
/// can't read of an address or a line of `.pgpass`, password and all, it logs. `RUST_LOG` can turn both on.
const QUIET: &str = "actix_http::h1::dispatcher=off,sqlx_postgres::options=off";

/// The bounds of every histogram in seconds: those of the semantic conventions for durations of calls, and two more below
/// for calls between services. The SDK's own are meant for milliseconds.
const SECONDS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The bounds of `instrument`, where they are not the SDK's.
fn bounds(instrument: &Instrument) -> Option<Stream> {
    if instrument.kind() != InstrumentKind::Histogram || instrument.unit() != "s" {
        return None;
    }
    let buckets = Aggregation::ExplicitBucketHistogram { boundaries: SECONDS.to_vec(), record_min_max: true };
    Stream::builder().with_aggregation(buckets).build().ok()
}

/// What a process tells of itself, and where.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// Which log lines are written, in the syntax of `RUST_LOG`, such as `info,gatehouse_auth=debug`.
    #[schemars(extend("x-env" = "RUST_LOG"))]
    pub log_filter: String,
    /// `json` or `text`.
    pub log_format: LogFormat,
    /// Address of an OTLP/gRPC collector, such as `http://127.0.0.1:4317`; empty for none.
    #[schemars(extend("x-env" = "OTEL_EXPORTER_OTLP_ENDPOINT"))]
    pub otlp_endpoint: String,
    /// The share of traces that begin here and are kept, 0.0 to 1.0. A trace that came in sampled stays so.
    pub trace_ratio: f64,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For a person.
    Text,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            log_filter: "info".to_owned(),
            log_format: LogFormat::Json,
            otlp_endpoint: String::new(),
            trace_ratio: 1.0,
        }
    }
}

impl TelemetryConfig {
    /// What is wrong with it; empty if nothing is.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if EnvFilter::try_new(&self.log_filter).is_err() {
            problems.push(
                "log_filter: must be a level or levels for targets, such as info,gatehouse_audit=debug"
                    .to_owned(),
            );
        }
        if !(0.0..=1.0).contains(&self.trace_ratio) {
            problems.push("trace_ratio: must be from 0.0 to 1.0".to_owned());
        }
        if !self.otlp_endpoint.is_empty() && !is_collector(&self.otlp_endpoint) {
            problems.push(
                "otlp_endpoint: must be an address such as http://127.0.0.1:4317, without user name or password"
                    .to_owned(),
            );
        }
        problems
    }
}

/// Whether `text` is an address that the exporter takes, and holds no secret.
fn is_collector(text: &str) -> bool {
    text.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && !text.contains('@')
    })
}

/// The exporter's own words repeat the address.
fn no_exporter(_: ExporterBuildError) -> Error {
    Error::failed_precondition(
        "OTLP_EXPORTER",
        "nothing can be sent to telemetry.otlp_endpoint: it, or a variable OTEL_EXPORTER_OTLP_..., can't be used",
    )
}

/// What `/metrics` shows. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Registry);

impl Metrics {
    /// The metrics as Prometheus text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        // Writing to memory can't fail; a metric that can't be encoded leaves the others.
        if let Err(error) = TextEncoder::new().encode(&self.0.gather(), &mut text) {
            tracing::warn!(%error, "some metrics could not be shown");
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Running telemetry. Call [`Telemetry::shutdown`] last, so that the last spans are sent.
#[derive(Debug)]
pub struct Telemetry {
    metrics: Metrics,
    meters: SdkMeterProvider,
    tracers: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Starts logs, traces and metrics for this process; once a process.
    ///
    /// # Errors
    /// If they were started before, or the collector's address is wrong. Must be called inside a tokio runtime.
    pub fn start(config: &TelemetryConfig, service: &'static str, environment: Environment) -> Result<Self> {
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.namespace", "gatehouse"))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("deployment.environment.name", environment.as_str()))
            .build();
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());

        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .build()
            .map_err(Error::internal)?;
        let mut meters = SdkMeterProvider::builder()
            .with_resource(resource.clone())
            .with_reader(exporter)
            .with_view(bounds);
        if !config.otlp_endpoint.is_empty() {
            let exporter = MetricExporter::builder()
                .with_tonic()
                .with_endpoint(&config.otlp_endpoint)
                .with_timeout(Duration::from_secs(5))
                .build()
                .map_err(no_exporter)?;
            meters = meters.with_reader(PeriodicReader::builder(exporter).build());
        }
        let meters = meters.build();
        opentelemetry::global::set_meter_provider(meters.clone());

        let tracers = Self::tracers(config, resource)?;
        let layer = tracing_opentelemetry::layer().with_tracer(tracers.tracer("gatehouse"));
        let log = tracing_subscriber::fmt::layer().with_writer(RedactingWriter);
        let log = match config.log_format {
            LogFormat::Json => {
                let lines = Format::default().json().flatten_event(true).with_span_list(false);
                log.fmt_fields(JsonFields::new()).event_format(WithIds(lines)).boxed()
            }
            LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        };
        let filter = EnvFilter::try_new(format!("{QUIET},{}", config.log_filter)).map_err(Error::internal)?;
        tracing_subscriber::registry()
            .with(log.with_filter(filter))
            .with(layer.with_filter(EnvFilter::new("info,h2=off,hyper=off,tower=off")))
            .try_init()
            .map_err(Error::internal)?;
        Ok(Self { metrics: Metrics(registry), meters, tracers: Some(tracers) })
    }

    // Spans are made even without a collector: their ids stand in logs and audit events.
    fn tracers(config: &TelemetryConfig, resource: Resource) -> Result<SdkTracerProvider> {
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.trace_ratio)));
        let mut tracers = SdkTracerProvider::builder().with_resource(resource).with_sampler(sampler);
        if !config.otlp_endpoint.is_empty() {
            let exporter = SpanExporter::builder()
                .with_tonic()
                .with_endpoint(&config.otlp_endpoint)
                .with_timeout(Duration::from_secs(5))
                .build()
                .map_err(no_exporter)?;
            tracers = tracers.with_batch_exporter(exporter);
        }
        Ok(tracers.build())
    }

    /// What `/metrics` shows.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// Sends what is left. Blocks for a few seconds at most.
    pub fn shutdown(mut self) {
        if let Some(tracers) = self.tracers.take() {
            let _ = tracers.shutdown_with_timeout(Duration::from_secs(3));
        }
        let _ = self.meters.shutdown();
    }
}

/// JSON lines that begin with the ids of the request and the trace that they belong to, however deep inside they are
/// written (requirement L9): the spans of transactions and of jobs carry no request id themselves.
#[derive(Debug)]
struct WithIds(Format<Json>);

impl<S> FormatEvent<S, JsonFields> for WithIds
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        writer.write_char('{')?;
        for name in ["request_id", "trace_id"] {
            let id = context.event_scope().into_iter().flatten().find_map(|span| {
                let extensions = span.extensions();
                let fields = &extensions.get::<FormattedFields<JsonFields>>()?.fields;
                // Most spans have neither; the rest is worth reading.
                let fields =
                    fields.contains(name).then(|| serde_json::from_str::<serde_json::Value>(fields))?;
                fields.ok()?.get(name).cloned()
            });
            if let Some(id) = id {
                write!(writer, "\"{name}\":{id},")?;
            }
        }
        writer.write_str(line.strip_prefix('{').unwrap_or(&line))
    }
}

/// Standard error, with every line redacted on its way.
#[derive(Clone, Copy, Debug)]
struct RedactingWriter;

impl<'a> MakeWriter<'a> for RedactingWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self::Writer {
        Self
    }
}

impl Write for RedactingWriter {
    /// `tracing-subscriber` writes each event with one call, so no secret is split between two.
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        std::io::stderr().lock().write_all(gatehouse_core::redact(&text).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().lock().flush()
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::metrics::MeterProvider as _;

    use super::*;

    #[test]
    fn a_collector_is_an_address_without_a_secret() {
        let problems = |endpoint: &str| {
            TelemetryConfig { otlp_endpoint: endpoint.to_owned(), ..TelemetryConfig::default() }.validate()
        };
        for good in ["", "http://127.0.0.1:4317", "https://collector.example:4317/", "http://[::1]:4317"] {
            assert_eq!(problems(good), [""; 0], "{good}");
        }
        for wrong in [
            "http",
            "http://",
            "hunter2",
            "grpc://collector:4317",
            "http://me:hunter2@collector:4317",
            "http://me:hunter2 @collector:4317",
            "http://me:p@hunter2/x@collector:4317",
        ] {
            let found = problems(wrong);
            assert!(found.len() == 1 && found[0].starts_with("otlp_endpoint: "), "{wrong}: {found:?}");
            assert!(!found[0].contains("hunter2"), "{found:?}");
        }
    }

    #[test]
    fn a_histogram_in_seconds_tells_milliseconds_from_seconds() {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone()).build().unwrap();
        let meters = SdkMeterProvider::builder().with_reader(exporter).with_view(bounds).build();
        let meter = meters.meter("test");
        let duration =
            meter.f64_histogram("call.duration").with_unit("s").with_description("Of a call.").build();
        duration.record(0.002, &[]);
        duration.record(4.9, &[]);
        meter.u64_histogram("group").build().record(700, &[]);
        let shown = Metrics(registry).render();
        for line in ["{le=\"0.0025\"} 1", "{le=\"2.5\"} 1", "{le=\"5\"} 2"] {
            let line = line.replace('{', "{otel_scope_name=\"test\",");
            assert!(shown.contains(&format!("call_duration_seconds_bucket{line}")), "{line} of {shown}");
        }
        assert!(shown.contains("# HELP call_duration_seconds Of a call."), "{shown}");
        assert!(shown.contains("le=\"750\"} 1") && !shown.contains("group_bucket{le=\"0.005\""), "{shown}");
    }
}
