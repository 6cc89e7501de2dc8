//! One trace from a client's POST to a job's last attempt, through the
//! OpenTelemetry SDK: to Application Insights, to an OTLP collector, or both.
//!
//! | what | span |
//! | --- | --- |
//! | a request on the application listener | server; child of the client's `traceparent` |
//! | a message that a guest sends | producer, `Message`; child of that request. Its context goes with the message |
//! | an attempt | consumer, named after the component; child of the message's span |
//! | a settlement | client, `ServiceBusReceiver.…`; child of the attempt |
//!
//! Lines that a guest writes and errors are events on their attempt's span.
//! Names, `source` and `target` are those that Azure Functions shows.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use opentelemetry::logs::{AnyValue, LogRecord, Logger, LoggerProvider, Severity};
use opentelemetry::metrics::{Counter, Histogram, MeterProvider};
use opentelemetry::trace::{
    Span, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId,
    TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::{SdkLogger, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, SpanLimits,
};
use orchestrator_appinsights::Exporter;
use orchestrator_appinsights::connection_string::ConnectionString;
use orchestrator_appinsights::convert::{EXCEPTION, LOG, LOG_MESSAGE, LOG_SEVERITY, millis};
use orchestrator_appinsights::sampler::TraceIdSampler;
use orchestrator_appinsights::transport::{Counts, Transport};

/// Spans that wait to be exported; more are dropped by the SDK. A second of a
/// busy host's attempts.
const SPANS_WAITING_MAX: usize = 32_768;
/// Spans of one export.
const SPANS_PER_EXPORT_MAX: usize = 2_048;
/// How often spans are exported at least.
const SPANS_EVERY: Duration = Duration::from_secs(1);
/// Events on one span: an attempt's log lines are bounded to about as many.
const EVENTS_PER_SPAN_MAX: u32 = 300;
/// How long the last spans may take to become items when the host stops, and
/// how long those may take to be sent.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// Name of what instruments: the same for spans, logs and metrics.
const SCOPE: &str = "orchestrator";

/// Where telemetry goes, and as whose.
#[derive(Clone, Debug, Default)]
pub struct TracesConfig {
    /// Application Insights, if it is used.
    pub application_insights: Option<ConnectionString>,
    /// Whether an OTLP endpoint is named in the environment (`OTEL_EXPORTER_OTLP_ENDPOINT`).
    pub otlp: bool,
    /// Name of the application: the role on the application map.
    pub role: String,
    /// Share of traces that are kept.
    pub sampled: f64,
}

/// Telemetry that leaves the host.
pub struct Traces {
    tracer: SdkTracer,
    logger: SdkLogger,
    job_success: Counter<u64>,
    job_failure: Counter<u64>,
    job_millis: Histogram<f64>,
    guest_metrics: Histogram<f64>,
    spans: SdkTracerProvider,
    logs: SdkLoggerProvider,
    metrics: SdkMeterProvider,
    application_insights: Option<Transport>,
}

/// Why telemetry cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The HTTP client cannot be set up.
    #[error("the HTTP client for telemetry cannot be set up: {0}")]
    Http(String),
    /// The OTLP exporter cannot be set up.
    #[error("the OTLP exporter cannot be set up (`OTEL_EXPORTER_OTLP_…`): {0}")]
    Otlp(String),
}

impl Traces {
    /// Starts exporting; none if nothing is to be exported. On a runtime.
    pub fn start(config: &TracesConfig) -> Result<Option<Self>, TracesError> {
        if config.application_insights.is_none() && !config.otlp {
            return Ok(None);
        }
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(config.role.clone());
        }
        let instance = KeyValue::new("service.instance.id", instance());
        let resource = resource.with_attribute(instance).build();
        let limits = SpanLimits {
            max_events_per_span: EVENTS_PER_SPAN_MAX,
            ..SpanLimits::default()
        };
        let mut spans = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_span_limits(limits)
            .with_sampler(TraceIdSampler::new(config.sampled));
        let mut logs = SdkLoggerProvider::builder().with_resource(resource.clone());
        let mut metrics = SdkMeterProvider::builder().with_resource(resource);
        let mut application_insights = None;
        if let Some(connection) = &config.application_insights {
            let http = orchestrator_servicebus::http_client()
                // The transport decides which redirects are followed.
                .redirect(reqwest::redirect::Policy::none())
                .build()
                .map_err(|error| TracesError::Http(error.to_string()))?;
            let transport = Transport::start(connection.endpoint.clone(), http);
            let exporter = Exporter::new(transport.clone(), &connection.instrumentation_key);
            spans = spans.with_span_processor(batched(exporter.clone()));
            logs = logs.with_batch_exporter(exporter.clone());
            metrics = metrics.with_reader(PeriodicReader::builder(exporter).build());
            application_insights = Some(transport);
        }
        if config.otlp {
            let failed = |error: &dyn std::fmt::Display| TracesError::Otlp(error.to_string());
            let exporter = opentelemetry_otlp::SpanExporter::builder()
                .with_http()
                .build();
            spans = spans.with_span_processor(batched(exporter.map_err(|error| failed(&error))?));
            let exporter = opentelemetry_otlp::LogExporter::builder()
                .with_http()
                .build();
            logs = logs.with_batch_exporter(exporter.map_err(|error| failed(&error))?);
            let exporter = opentelemetry_otlp::MetricExporter::builder()
                .with_http()
                .build();
            let exporter = exporter.map_err(|error| failed(&error))?;
            metrics = metrics.with_reader(PeriodicReader::builder(exporter).build());
        }
        let (spans, logs, metrics) = (spans.build(), logs.build(), metrics.build());
        let meter = metrics.meter(SCOPE);
        Ok(Some(Self {
            tracer: spans.tracer(SCOPE),
            logger: logs.logger(SCOPE),
            job_success: meter.u64_counter("JobSuccess").build(),
            job_failure: meter.u64_counter("JobFailure").build(),
            job_millis: meter.f64_histogram("JobDuration").with_unit("ms").build(),
            guest_metrics: meter.f64_histogram("GuestMetric").build(),
            spans,
            logs,
            metrics,
            application_insights,
        }))
    }

    /// What became of items for Application Insights.
    pub fn counts(&self) -> Option<Counts> {
        self.application_insights.as_ref().map(Transport::counts)
    }

    /// Begins a span under this parent, or a new trace. What follows from it
    /// carries [`traceparent`].
    pub fn begin(
        &self,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        parent: Option<&str>,
        attributes: Vec<KeyValue>,
    ) -> OpenSpan {
        let builder = SpanBuilder::from_name(name)
            .with_kind(kind)
            .with_attributes(attributes);
        let parent = match parent.and_then(parse) {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        OpenSpan(self.tracer.build_with_context(builder, &parent))
    }

    /// A job is done, or failed for good.
    pub fn job_ended(&self, queue: &str, version: &str, is_success: bool, took: Duration) {
        let labels = [
            KeyValue::new("queue", queue.to_owned()),
            KeyValue::new("version", version.to_owned()),
        ];
        match is_success {
            true => self.job_success.add(1, &labels),
            false => self.job_failure.add(1, &labels),
        }
        self.job_millis.record(millis(took), &labels);
    }

    /// A guest measured something.
    pub fn guest_measured(&self, component: &str, name: &str, value: f64) {
        let labels = [
            KeyValue::new("component", component.to_owned()),
            KeyValue::new("name", name.to_owned()),
        ];
        self.guest_metrics.record(value, &labels);
    }

    /// Something happened that belongs to no job.
    pub fn event(&self, name: &'static str, facts: &[(&'static str, String)]) {
        let mut record = self.logger.create_log_record();
        record.set_event_name(name);
        record.set_timestamp(SystemTime::now());
        record.set_severity_number(Severity::Info);
        for (name, value) in facts {
            record.add_attribute(*name, AnyValue::from(value.clone()));
        }
        self.logger.emit(record);
    }

    /// Exports what is left, within a bound; blocks for as long.
    pub async fn close(&self) {
        let (spans, logs, metrics) = (self.spans.clone(), self.logs.clone(), self.metrics.clone());
        let closing = tokio::task::spawn_blocking(move || {
            // What cannot be exported in time is lost: the host is to stop.
            let _ = spans.shutdown_with_timeout(CLOSE_MAX);
            let _ = logs.shutdown_with_timeout(CLOSE_MAX);
            let _ = metrics.shutdown_with_timeout(CLOSE_MAX);
        });
        let _ = tokio::time::timeout(CLOSE_MAX, closing).await;
        if let Some(transport) = &self.application_insights {
            transport.close(CLOSE_MAX).await;
        }
    }
}

fn batched(exporter: impl opentelemetry_sdk::trace::SpanExporter + 'static) -> BatchSpanProcessor {
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(SPANS_WAITING_MAX)
        .with_max_export_batch_size(SPANS_PER_EXPORT_MAX)
        .with_scheduled_delay(SPANS_EVERY)
        .build();
    BatchSpanProcessor::builder(exporter)
        .with_batch_config(config)
        .build()
}

/// This process, told from others of the same role.
fn instance() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = Some(host.trim()).filter(|host| !host.is_empty());
    format!("{}:{}", host.unwrap_or("host"), std::process::id())
}

/// A span that is under way; ends when it is dropped, or by [`end`](Self::end).
pub struct OpenSpan(opentelemetry_sdk::trace::Span);

impl OpenSpan {
    /// Its context, for what follows from it.
    pub fn traceparent(&self) -> String {
        let context = self.0.span_context();
        format!(
            "00-{}-{}-{:02x}",
            context.trace_id(),
            context.span_id(),
            context.trace_flags().to_u8()
        )
    }

    /// Adds a fact.
    pub fn set(&mut self, attribute: KeyValue) {
        self.0.set_attribute(attribute);
    }

    /// A line that was written.
    pub fn said(&mut self, at: SystemTime, severity: &'static str, message: String) {
        let attributes = vec![
            KeyValue::new(LOG_SEVERITY, severity),
            KeyValue::new(LOG_MESSAGE, message),
        ];
        self.0.add_event_with_timestamp(LOG, at, attributes);
    }

    /// It went wrong.
    pub fn failed(&mut self, kind: String, message: String, stack: String, injected: bool) {
        self.0.set_status(Status::error(message.clone()));
        let attributes = vec![
            KeyValue::new("exception.type", kind),
            KeyValue::new("exception.message", message),
            KeyValue::new("exception.stacktrace", stack),
            KeyValue::new("Injected", injected),
        ];
        self.0.add_event(EXCEPTION, attributes);
    }

    /// Something happened in it.
    pub fn happened(&mut self, name: &'static str, facts: &[(&'static str, &str)]) {
        let fact = |(name, value): &(&'static str, &str)| KeyValue::new(*name, (*value).to_owned());
        self.0.add_event(name, facts.iter().map(fact).collect());
    }

    /// It went wrong, and its child says how.
    pub fn fail(&mut self) {
        self.0.set_status(Status::error(""));
    }

    /// Ends it now.
    pub fn end(mut self) {
        self.0.end();
    }
}

/// A `traceparent` header as a remote parent; none if it is not one.
fn parse(text: &str) -> Option<SpanContext> {
    let mut parts = text.trim().split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_sound = version.len() == 2
        && version != "ff"
        && trace.len() == 32
        && span.len() == 16
        && flags.len() == 2
        && (version != "00" || parts.next().is_none());
    if !is_sound {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_strictly() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = parse(good).expect("it is one");
        assert_eq!(
            context.trace_id().to_string(),
            "0af7651916cd43dd8448eb211c80319c"
        );
        assert!(context.is_sampled() && context.is_remote());
        for bad in [
            "",
            "|root.1.2.",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
