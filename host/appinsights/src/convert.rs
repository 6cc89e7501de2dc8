//! Spans, log records and metrics of the OpenTelemetry SDK → items.
//!
//! | OpenTelemetry | Application Insights |
//! | --- | --- |
//! | span of kind server or consumer | request |
//! | span of another kind | dependency |
//! | event `exception` on a span | exception |
//! | event `log` on a span | trace (message), with its severity |
//! | any other event on a span; a log record with an event's name | event |
//! | any other log record | trace (message) |
//! | number as an attribute of a span | measurement |
//! | other attribute | property |
//!
//! `messaging.destination.name` and `server.address` make the request's
//! `source` and the dependency's `target`, which must be equal byte by byte for
//! the application map to join two nodes.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use opentelemetry::logs::{AnyValue, Severity as LogSeverity};
use opentelemetry::trace::{Event, SpanId, SpanKind, Status};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::logs::SdkLogRecord;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::trace::SpanData;

use crate::envelope::{
    Data, Envelope, Exception, MESSAGE_BYTES_MAX, Measurements, Metric, NAME_BYTES_MAX,
    PROPERTIES_MAX, PROPERTY_BYTES_MAX, PROPERTY_NAME_BYTES_MAX, Place, Properties, Severity, cut,
};

/// Event on a span: a line of log, with [`LOG_MESSAGE`] and [`LOG_SEVERITY`].
pub const LOG: &str = "log";
/// Attribute of a [`LOG`] event: the line.
pub const LOG_MESSAGE: &str = "message";
/// Attribute of a [`LOG`] event: `debug`, `info`, `warn` or `error`.
pub const LOG_SEVERITY: &str = "severity";
/// Event on a span: something went wrong, with the attributes of the semantic conventions.
pub const EXCEPTION: &str = "exception";
/// Attribute of a span: the percentage of traces that are kept.
pub const SAMPLE_RATE: &str = "_MS.sampleRate";

/// What all items of a process have in common.
#[derive(Clone, Debug, Default)]
pub struct Common {
    /// The resource's key.
    pub key: String,
    /// Name of the role.
    pub role: String,
    /// Which instance of the role.
    pub instance: String,
}

impl Common {
    fn place(&self) -> Place<'_> {
        Place {
            key: &self.key,
            role: &self.role,
            instance: &self.instance,
            ..Place::default()
        }
    }
}

/// A span and what happened in it, as JSON items.
pub fn span(common: &Common, span: &SpanData) -> Vec<String> {
    let find = |name: &str| {
        let mut attributes = span.attributes.iter();
        attributes
            .find(|attribute| attribute.key.as_str() == name)
            .map(|attribute| &attribute.value)
    };
    let text = |name: &str| find(name).map(Value::as_str);
    let is_request = matches!(span.span_kind, SpanKind::Server | SpanKind::Consumer);
    let sample_rate = match find(SAMPLE_RATE) {
        Some(Value::F64(rate)) => *rate,
        _ => 100.0,
    };
    let context = &span.span_context;
    let id = context.span_id();
    let name = cut(&span.name, NAME_BYTES_MAX);
    let within = |parent: Option<SpanId>| Place {
        operation: Some(context.trace_id()),
        operation_name: is_request.then_some(name),
        parent,
        sample_rate: Some(sample_rate),
        ..common.place()
    };
    let took = span
        .end_time
        .duration_since(span.start_time)
        .unwrap_or_default();
    let (properties, measurements) = attributes(&span.attributes);
    let success = !matches!(span.status, Status::Error { .. });
    let status = text("http.response.status_code");
    let destination =
        text("messaging.destination.name").map(|queue| match text("server.address") {
            Some(host) => format!("{host}/{queue}"),
            None => queue.into_owned(),
        });
    let url = text("url.full");
    let data = if is_request {
        Data::Request {
            ver: 2,
            id,
            name,
            duration: took,
            // What Functions says where there is no other code.
            response_code: status.unwrap_or(Cow::Borrowed("0")),
            success,
            source: destination,
            url: url.as_deref(),
            properties,
            measurements,
        }
    } else {
        let is_messaging = find("messaging.system").is_some();
        Data::Dependency {
            ver: 2,
            id,
            name,
            duration: took,
            result_code: status.map(Cow::into_owned),
            success,
            kind: match span.span_kind {
                _ if is_messaging => "Azure Service Bus",
                SpanKind::Internal => "InProc",
                _ => "HTTP",
            },
            target: destination.or_else(|| text("server.address").map(Cow::into_owned)),
            properties,
            measurements,
        }
    };
    let parent = Some(span.parent_span_id).filter(|parent| *parent != SpanId::INVALID);
    let mut items = Vec::with_capacity(1 + span.events.events.len());
    items.push(Envelope::new(within(parent), span.start_time, data).to_json());
    for event in &span.events.events {
        let data = event_data(event);
        items.push(Envelope::new(within(Some(id)), event.timestamp, data).to_json());
    }
    items
}

fn event_data(event: &Event) -> Data<'_> {
    let find = |name: &str| {
        let mut attributes = event.attributes.iter();
        attributes
            .find(|attribute| attribute.key.as_str() == name)
            .and_then(|attribute| match &attribute.value {
                Value::String(text) => Some(text.as_str()),
                _ => None,
            })
    };
    let others = |known: &[&str]| {
        let others = event.attributes.iter();
        properties_of(others.filter(|attribute| !known.contains(&attribute.key.as_str())))
    };
    match event.name.as_ref() {
        EXCEPTION => {
            let stack = find("exception.stacktrace").filter(|stack| !stack.is_empty());
            Data::Exception {
                ver: 2,
                exceptions: [Exception {
                    type_name: cut(find("exception.type").unwrap_or("error"), NAME_BYTES_MAX),
                    message: cut(
                        // The service wants one.
                        find("exception.message")
                            .filter(|text| !text.is_empty())
                            .unwrap_or("no message"),
                        MESSAGE_BYTES_MAX,
                    ),
                    has_full_stack: stack.is_some_and(|stack| stack.len() <= MESSAGE_BYTES_MAX),
                    stack: stack.map(|stack| cut(stack, MESSAGE_BYTES_MAX)),
                }],
                severity_level: Severity::Error,
                properties: others(&[
                    "exception.type",
                    "exception.message",
                    "exception.stacktrace",
                ]),
            }
        }
        LOG => Data::Message {
            ver: 2,
            message: cut(find(LOG_MESSAGE).unwrap_or_default(), MESSAGE_BYTES_MAX),
            severity_level: match find(LOG_SEVERITY) {
                Some("debug") => Severity::Verbose,
                Some("warn") => Severity::Warning,
                Some("error") => Severity::Error,
                _ => Severity::Information,
            },
            properties: others(&[LOG_MESSAGE, LOG_SEVERITY]),
        },
        name => {
            let (properties, measurements) = attributes(&event.attributes);
            Data::Event {
                ver: 2,
                name: cut(name, NAME_BYTES_MAX),
                properties,
                measurements,
            }
        }
    }
}

/// Numbers are measurements, the rest are properties; those that have a place
/// of their own are left out.
fn attributes(attributes: &[KeyValue]) -> (Properties<'_>, Measurements<'_>) {
    const PLACED: [&str; 6] = [
        "http.response.status_code",
        "messaging.destination.name",
        "messaging.system",
        "server.address",
        "url.full",
        SAMPLE_RATE,
    ];
    let others = || {
        let all = attributes.iter();
        all.filter(|attribute| !PLACED.contains(&attribute.key.as_str()))
    };
    let number = |value: &Value| match value {
        #[expect(clippy::cast_precision_loss, reason = "a measurement, not an identity")]
        Value::I64(number) => Some(*number as f64),
        Value::F64(number) => Some(*number).filter(|number| number.is_finite()),
        _ => None,
    };
    let measurements = others()
        .filter_map(|attribute| {
            let name = cut(attribute.key.as_str(), PROPERTY_NAME_BYTES_MAX);
            Some((name, number(&attribute.value)?))
        })
        .take(PROPERTIES_MAX);
    (
        properties_of(others().filter(|attribute| number(&attribute.value).is_none())),
        measurements.collect(),
    )
}

fn properties_of<'a>(attributes: impl Iterator<Item = &'a KeyValue>) -> Properties<'a> {
    let property = |attribute: &'a KeyValue| {
        let name = cut(attribute.key.as_str(), PROPERTY_NAME_BYTES_MAX);
        (name, cut_value(attribute.value.as_str()))
    };
    attributes.map(property).take(PROPERTIES_MAX).collect()
}

fn cut_value(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(cut(text, PROPERTY_BYTES_MAX)),
        Cow::Owned(mut text) => {
            text.truncate(text.floor_char_boundary(PROPERTY_BYTES_MAX));
            Cow::Owned(text)
        }
    }
}

/// A log record as a JSON item: an event if it has the name of one, else a
/// trace.
pub fn log(common: &Common, record: &SdkLogRecord, _scope: &InstrumentationScope) -> String {
    let at = record
        .timestamp()
        .or_else(|| record.observed_timestamp())
        .unwrap_or_else(SystemTime::now);
    let mut place = common.place();
    if let Some(context) = record.trace_context() {
        place.operation = Some(context.trace_id);
        place.parent = Some(context.span_id);
    }
    let (mut properties, mut measurements) = (Properties::default(), Measurements::default());
    for (name, value) in record.attributes_iter().take(PROPERTIES_MAX) {
        let name = cut(name.as_str(), PROPERTY_NAME_BYTES_MAX);
        match value {
            AnyValue::Double(number) if number.is_finite() => {
                measurements.insert(name, *number);
            }
            #[expect(clippy::cast_precision_loss, reason = "a measurement, not an identity")]
            AnyValue::Int(number) => {
                measurements.insert(name, *number as f64);
            }
            other => {
                properties.insert(name, cut_value(any_text(other)));
            }
        }
    }
    let body = record.body().map(any_text).unwrap_or_default();
    let data = match record.event_name() {
        Some(name) => Data::Event {
            ver: 2,
            name: cut(name, NAME_BYTES_MAX),
            properties,
            measurements,
        },
        None => {
            for (name, number) in measurements {
                properties.insert(name, Cow::Owned(number.to_string()));
            }
            Data::Message {
                ver: 2,
                message: cut(&body, MESSAGE_BYTES_MAX),
                severity_level: severity(record.severity_number()),
                properties,
            }
        }
    };
    Envelope::new(place, at, data).to_json()
}

fn any_text(value: &AnyValue) -> Cow<'_, str> {
    match value {
        AnyValue::String(text) => Cow::Borrowed(text.as_str()),
        AnyValue::Boolean(truth) => Cow::Borrowed(if *truth { "true" } else { "false" }),
        AnyValue::Int(number) => Cow::Owned(number.to_string()),
        AnyValue::Double(number) => Cow::Owned(number.to_string()),
        other => Cow::Owned(format!("{other:?}")),
    }
}

fn severity(severity: Option<LogSeverity>) -> Severity {
    match severity {
        Some(level) if level >= LogSeverity::Fatal => Severity::Critical,
        Some(level) if level >= LogSeverity::Error => Severity::Error,
        Some(level) if level >= LogSeverity::Warn => Severity::Warning,
        Some(level) if level >= LogSeverity::Info => Severity::Information,
        Some(_) => Severity::Verbose,
        None => Severity::Information,
    }
}

/// Metrics as JSON items, one for each series.
pub fn metrics(common: &Common, metrics: &ResourceMetrics) -> Vec<String> {
    let mut items = Vec::new();
    for metric in metrics.scope_metrics().flat_map(|scope| scope.metrics()) {
        let name = metric.name();
        match metric.data() {
            AggregatedMetrics::F64(data) => series(common, name, data, |value| value, &mut items),
            #[expect(clippy::cast_precision_loss, reason = "a measurement, not an identity")]
            AggregatedMetrics::U64(data) => {
                series(common, name, data, |value| value as f64, &mut items);
            }
            #[expect(clippy::cast_precision_loss, reason = "a measurement, not an identity")]
            AggregatedMetrics::I64(data) => {
                series(common, name, data, |value| value as f64, &mut items);
            }
        }
    }
    items
}

fn series<T: Copy>(
    common: &Common,
    name: &str,
    data: &MetricData<T>,
    number: impl Fn(T) -> f64,
    items: &mut Vec<String>,
) {
    let mut push = |at: SystemTime, attributes: Properties<'_>, metric: Metric<'_>| {
        if !metric.value.is_finite() {
            return;
        }
        let data = Data::Metric {
            ver: 2,
            metrics: [metric],
            properties: attributes,
        };
        items.push(Envelope::new(common.place(), at, data).to_json());
    };
    let name = cut(name, NAME_BYTES_MAX);
    let one = |value: f64| Metric {
        name,
        value,
        count: None,
        min: None,
        max: None,
    };
    match data {
        MetricData::Gauge(gauge) => {
            for point in gauge.data_points() {
                let properties = properties_of(point.attributes());
                push(gauge.time(), properties, one(number(point.value())));
            }
        }
        MetricData::Sum(sum) => {
            for point in sum.data_points() {
                let properties = properties_of(point.attributes());
                push(sum.time(), properties, one(number(point.value())));
            }
        }
        MetricData::Histogram(histogram) => {
            for point in histogram.data_points() {
                let metric = Metric {
                    count: Some(point.count()),
                    min: point.min().map(&number),
                    max: point.max().map(&number),
                    ..one(number(point.sum()))
                };
                push(histogram.time(), properties_of(point.attributes()), metric);
            }
        }
        MetricData::ExponentialHistogram(histogram) => {
            for point in histogram.data_points() {
                let metric = Metric {
                    count: Some(point.count() as u64),
                    min: point.min().map(&number),
                    max: point.max().map(&number),
                    ..one(number(point.sum()))
                };
                push(histogram.time(), properties_of(point.attributes()), metric);
            }
        }
    }
}

/// How long ago something was, in milliseconds, as a measurement.
pub fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1_000.0
}
