//! What it costs to make items of the spans that one job leaves.

#![expect(
    clippy::unwrap_used,
    reason = "a bench that cannot run should say why and stop"
)]

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use criterion::{Criterion, criterion_group, criterion_main};
use opentelemetry::KeyValue;
use opentelemetry::trace::{Span, SpanKind, Tracer, TracerProvider};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use orchestrator_appinsights::convert::{self, Common, LOG, LOG_MESSAGE, LOG_SEVERITY};
use orchestrator_appinsights::sampler::TraceIdSampler;

/// Keeps what it is to export.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

/// The spans of one job as the host makes them: request, message, attempt with
/// a line of log, settlement.
fn spans_of_a_job() -> Vec<SpanData> {
    let kept = Kept::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(kept.clone())
        .with_sampler(TraceIdSampler::new(1.0))
        .build();
    let tracer = provider.tracer("bench");
    let messaging = || {
        vec![
            KeyValue::new("messaging.system", "servicebus"),
            KeyValue::new("messaging.destination.name", "jobs"),
            KeyValue::new("server.address", "embedded"),
            KeyValue::new("MessageId", "0199f0e2-7b1c-7c2e-8a53-2f1f4f6f7a10"),
        ]
    };
    let span = |name: &'static str, kind, attributes: Vec<KeyValue>| {
        let builder = tracer.span_builder(name).with_kind(kind);
        tracer.build(builder.with_attributes(attributes))
    };
    let http = vec![
        KeyValue::new("http.response.status_code", 202),
        KeyValue::new("url.full", "http://localhost:3000/api/IngestJob"),
        KeyValue::new("ComponentDigest", "sha256:2bfd14f43d17fc7cea24e0917a8879b4"),
    ];
    span("POST /api/IngestJob", SpanKind::Server, http).end();
    span("Message", SpanKind::Producer, messaging()).end();
    let mut attempt = span("worker", SpanKind::Consumer, messaging());
    for attribute in [
        KeyValue::new("JobType", "demo"),
        KeyValue::new("DeliveryCount", 1),
        KeyValue::new("timeSinceEnqueued", 3),
        KeyValue::new("ComponentDigest", "sha256:2bfd14f43d17fc7cea24e0917a8879b4"),
        KeyValue::new("Verdict", "completed"),
        KeyValue::new("Injected", false),
        KeyValue::new("memoryPeakBytes", 1_179_648),
        KeyValue::new("cpuTimeMs", 0.04),
    ] {
        attempt.set_attribute(attribute);
    }
    let line = vec![
        KeyValue::new(LOG_SEVERITY, "info"),
        KeyValue::new(LOG_MESSAGE, "working 0 ms on `demo`, attempt 1 of 10"),
    ];
    attempt.add_event_with_timestamp(LOG, SystemTime::now(), line);
    attempt.end();
    span("ServiceBusReceiver.Complete", SpanKind::Client, messaging()).end();
    let spans = kept.0.lock().unwrap();
    spans.clone()
}

fn bench(criterion: &mut Criterion) {
    let common = Common {
        key: "00000000-0000-0000-0000-000000000000".to_owned(),
        role: "data-orchestrator".to_owned(),
        instance: "host:1".to_owned(),
    };
    let spans = spans_of_a_job();
    criterion.bench_function("items of one job", |bencher| {
        bencher.iter(|| {
            let bytes: usize = spans
                .iter()
                .flat_map(|span| convert::span(&common, span))
                .map(|item| item.len())
                .sum();
            bytes
        });
    });
}

criterion_group!(benches, bench);
criterion_main!(benches);
