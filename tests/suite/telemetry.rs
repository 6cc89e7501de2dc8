//! What leaves the host: one trace from POST to the last attempt, as
//! Application Insights and an OTLP collector receive it, and never at the
//! pipeline's expense.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use orchestrator_appinsights::transport::{Counts, Transport};
use serde_json::{Value, json};

use crate::rig::{Rig, Way, manifest};

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const KEY: &str = "00000000-1111-2222-3333-444444444444";
const CLIENT_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";

/// What the endpoint answers next: status, headers, body.
type Scripted = (u16, Vec<(&'static str, String)>, String);

/// An ingestion endpoint that keeps what it accepts and answers as it is told.
#[derive(Clone, Default)]
pub struct Endpoint {
    pub items: Arc<Mutex<Vec<Value>>>,
    script: Arc<Mutex<VecDeque<Scripted>>>,
    otlp: Arc<Mutex<Vec<(String, Bytes)>>>,
}

impl Endpoint {
    pub async fn start() -> (Self, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let endpoint = Self::default();
        let serving = endpoint.clone();
        let router = axum::Router::new().fallback(move |request: Request| {
            let endpoint = serving.clone();
            async move { endpoint.answer(request).await }
        });
        tokio::spawn(async { axum::serve(listener, router).await });
        (endpoint, address)
    }

    async fn answer(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 16 << 20).await.unwrap();
        if parts.uri.path().starts_with("/v1/") {
            let path = parts.uri.path().to_owned();
            self.otlp.lock().unwrap().push((path, body));
            return StatusCode::OK.into_response();
        }
        assert_eq!(parts.headers["content-type"], "application/json");
        assert_eq!(parts.uri.path(), "/v2.1/track");
        let items: Vec<Value> = serde_json::from_slice(&body).unwrap();
        items.iter().for_each(check_schema);
        if let Some((status, headers, text)) = self.script.lock().unwrap().pop_front() {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            return response.body(text.into()).unwrap();
        }
        let count = items.len();
        self.items.lock().unwrap().extend(items);
        axum::Json(json!({ "itemsReceived": count, "itemsAccepted": count, "errors": [] }))
            .into_response()
    }

    fn script(&self, answers: impl IntoIterator<Item = Scripted>) {
        self.script.lock().unwrap().extend(answers);
    }

    /// The items of this kind, once there are any that `is` wants.
    async fn until(&self, kind: &str, is: impl Fn(&Value) -> bool) -> Vec<Value> {
        let began = Instant::now();
        loop {
            let items = self.items.lock().unwrap().clone();
            let data = |item: &Value| item["data"]["baseType"] == format!("{kind}Data") && is(item);
            let found: Vec<Value> = items.into_iter().filter(data).collect();
            if !found.is_empty() {
                return found;
            }
            let items = self.items.lock().unwrap();
            assert!(
                began.elapsed() < PATIENCE,
                "no such {kind} among {items:#?}"
            );
            drop(items);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// Fields, types and limits that the service documents.
fn check_schema(item: &Value) {
    let text = |value: &Value, max: usize| {
        let text = value
            .as_str()
            .unwrap_or_else(|| panic!("no text: {item:#}"));
        assert!(!text.is_empty() && text.len() <= max, "{item:#}");
        text.to_owned()
    };
    let kind = text(&item["name"], 1024);
    let kind = kind.strip_prefix("Microsoft.ApplicationInsights.").unwrap();
    assert_eq!(item["iKey"], KEY);
    text(&item["time"], 40).parse::<jiff::Timestamp>().unwrap();
    let limits: BTreeMap<&str, usize> = [
        ("ai.operation.id", 128),
        ("ai.operation.parentId", 128),
        ("ai.operation.name", 1024),
        ("ai.cloud.role", 256),
        ("ai.cloud.roleInstance", 256),
        ("ai.internal.sdkVersion", 64),
    ]
    .into();
    for (tag, value) in item["tags"].as_object().unwrap() {
        text(value, limits[tag.as_str()]);
    }
    let data = &item["data"]["baseData"];
    assert_eq!(item["data"]["baseType"], format!("{kind}Data"));
    assert_eq!(data["ver"], 2);
    let duration = || {
        let took = text(&data["duration"], 40);
        let (days, time) = took.split_once('.').unwrap();
        assert!(
            days.parse::<u32>().unwrap() < 1_000 && time.len() == 15,
            "{took}"
        );
    };
    match kind {
        "Request" => {
            text(&data["id"], 512);
            text(&data["name"], 1024);
            text(&data["responseCode"], 1024);
            assert!(data["success"].is_boolean());
            duration();
        }
        "RemoteDependency" => {
            text(&data["id"], 512);
            text(&data["name"], 1024);
            text(&data["type"], 1024);
            assert!(data["success"].is_boolean());
            duration();
        }
        "Exception" => {
            let exception = &data["exceptions"][0];
            text(&exception["typeName"], 1024);
            text(&exception["message"], 32_768);
            assert!(exception["hasFullStack"].is_boolean());
            assert!((0..=4).contains(&data["severityLevel"].as_i64().unwrap()));
        }
        "Message" => {
            text(&data["message"], 32_768);
            assert!((0..=4).contains(&data["severityLevel"].as_i64().unwrap()));
        }
        "Event" => drop(text(&data["name"], 512)),
        "Metric" => {
            text(&data["metrics"][0]["name"], 1024);
            assert!(data["metrics"][0]["value"].is_number());
        }
        other => panic!("{other} is no kind of item"),
    }
    for (name, value) in data["properties"].as_object().into_iter().flatten() {
        assert!(
            name.len() <= 150 && value.as_str().unwrap().len() <= 8_192,
            "{item:#}"
        );
    }
    for (name, value) in data["measurements"].as_object().into_iter().flatten() {
        assert!(name.len() <= 150 && value.is_number(), "{item:#}");
    }
}

pub fn exporting(address: &str) -> Way {
    Way {
        arguments: vec!["--quiet"],
        environment: vec![
            (
                "APPLICATIONINSIGHTS_CONNECTION_STRING",
                format!("InstrumentationKey={KEY};IngestionEndpoint={address}/;"),
            ),
            ("OTEL_METRIC_EXPORT_INTERVAL", "200".to_owned()),
            ("OTEL_BLRP_SCHEDULE_DELAY", "200".to_owned()),
        ],
        ..Way::default()
    }
}

async fn post_traced(rig: &Rig, id: &str, payload: Value) {
    let answer = rig
        .client()
        .post(format!("http://{}/api/IngestJob", rig.app_address()))
        .header("traceparent", format!("00-{CLIENT_TRACE}-{CLIENT_SPAN}-01"))
        .json(&json!({ "jobType": "t", "jobId": id, "payload": payload }))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 202);
}

fn operation(item: &Value) -> &Value {
    &item["tags"]["ai.operation.id"]
}

fn parent(item: &Value) -> &Value {
    &item["tags"]["ai.operation.parentId"]
}

fn is_of(id: &'static str) -> impl Fn(&Value) -> bool {
    move |item| item["data"]["baseData"]["properties"]["MessageId"] == id
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_leads_from_the_post_to_the_settled_attempt() {
    let (endpoint, address) = Endpoint::start().await;
    let rig = Rig::up_in(&manifest(&[("jobs", "echo", "")]), exporting(&address));
    post_traced(&rig, "traced", json!({ "n": 1 })).await;
    rig.completed("traced").await;

    let attempts = endpoint.until("Request", is_of("traced")).await;
    let [attempt] = attempts.as_slice() else {
        panic!("{attempts:#?}")
    };
    let posts = endpoint
        .until("Request", |item| {
            item["data"]["baseData"]["name"] == "POST /api/IngestJob"
        })
        .await;
    let messages = endpoint.until("RemoteDependency", is_of("traced")).await;
    let name = |name: &'static str| move |item: &Value| item["data"]["baseData"]["name"] == name;
    let settled = endpoint
        .until("RemoteDependency", name("ServiceBusReceiver.Complete"))
        .await;
    let (post, message, settled) = (&posts[0], &messages[0], &settled[0]);
    for item in [post, message, attempt, settled] {
        assert_eq!(operation(item), CLIENT_TRACE);
        assert_eq!(item["tags"]["ai.cloud.role"], "test");
    }
    let id = |item: &Value| item["data"]["baseData"]["id"].clone();
    assert_eq!(parent(post), CLIENT_SPAN);
    assert_eq!(*parent(message), id(post));
    assert_eq!(*parent(attempt), id(message));
    assert_eq!(*parent(settled), id(attempt));

    let data = &attempt["data"]["baseData"];
    assert_eq!(data["source"], message["data"]["baseData"]["target"]);
    assert_eq!(data["source"], "embedded/jobs");
    assert_eq!(
        (&data["success"], &data["responseCode"]),
        (&json!(true), &json!("0"))
    );
    assert_eq!(message["data"]["baseData"]["type"], "Azure Service Bus");
    let properties = &data["properties"];
    assert_eq!(properties["Verdict"], "completed");
    let digest = rig.completed("traced").await["attempts"][0]["componentDigest"].clone();
    assert_eq!(properties["ComponentDigest"], digest);
    for measurement in [
        "DeliveryCount",
        "timeSinceEnqueued",
        "memoryPeakBytes",
        "cpuTimeMs",
    ] {
        assert!(
            data["measurements"][measurement].is_number(),
            "{measurement}: {data:#}"
        );
    }
    assert_eq!(post["data"]["baseData"]["responseCode"], "202");

    // What the guest said, under its attempt.
    for (line, severity) in [("stdout", 1), ("stderr", 2), ("in the log", 1)] {
        let wanted = format!(
            "traced {}{line}",
            if line.starts_with("std") { "on " } else { "" }
        );
        let lines = endpoint
            .until("Message", |item| {
                item["data"]["baseData"]["message"] == *wanted
            })
            .await;
        assert_eq!(*parent(&lines[0]), id(attempt));
        assert_eq!(
            lines[0]["data"]["baseData"]["severityLevel"], severity,
            "{wanted}"
        );
    }
    let success = endpoint
        .until("Metric", |item| {
            item["data"]["baseData"]["metrics"][0]["name"] == "JobSuccess"
        })
        .await;
    assert_eq!(success[0]["data"]["baseData"]["metrics"][0]["value"], 1.0);
    endpoint
        .until("Metric", |item| {
            item["data"]["baseData"]["properties"]["name"] == "EchoBytes"
        })
        .await;
    let (_, metrics) = rig.ops_text("/metrics").await;
    let sent = metrics
        .lines()
        .find_map(|line| line.strip_prefix("orchestrator_telemetry_items_total{fate=\"sent\"} "));
    assert!(
        sent.is_some_and(|sent| sent.parse::<u64>().unwrap() > 5),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_show_with_their_words_and_every_attempt_is_in_the_trace() {
    let (endpoint, address) = Endpoint::start().await;
    let keys = "max_attempts = 3\nretry = { initial = \"10ms\", jitter = false }\nchaos = { failure_rate = 1.0, seed = 1 }";
    let mut rig = Rig::up_in(&manifest(&[("jobs", "echo", keys)]), exporting(&address));
    post_traced(&rig, "doomed", json!({})).await;
    rig.job_in("doomed", &["dead"]).await;
    let dead = endpoint
        .until("Event", |item| {
            item["data"]["baseData"]["name"] == "JobDeadLettered"
        })
        .await;
    let reason = &dead[0]["data"]["baseData"]["properties"]["Reason"];
    assert_eq!(reason, "MaxDeliveryCountExceeded");
    let attempts = endpoint.until("Request", is_of("doomed")).await;
    let counts: Vec<f64> = attempts
        .iter()
        .map(|item| {
            item["data"]["baseData"]["measurements"]["DeliveryCount"]
                .as_f64()
                .unwrap()
        })
        .collect();
    assert_eq!(counts, [1.0, 2.0, 3.0]);
    let crashes = endpoint
        .until("Exception", |item| operation(item) == CLIENT_TRACE)
        .await;
    assert_eq!(crashes.len(), 3);
    for (attempt, crash) in attempts.iter().zip(&crashes) {
        assert_eq!(operation(attempt), CLIENT_TRACE);
        assert_eq!(attempt["data"]["baseData"]["success"], false);
        let exception = &crash["data"]["baseData"];
        assert_eq!(exception["exceptions"][0]["message"], "Simulated Crash");
        assert_eq!(exception["properties"]["Injected"], "true");
    }
    let retried = |item: &Value| item["data"]["baseData"]["name"] == "JobRetried";
    assert_eq!(endpoint.until("Event", retried).await.len(), 2);
    rig.signal("TERM");
    assert!(rig.ended().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_calls_is_in_the_trace_of_its_attempt() {
    let (endpoint, address) = Endpoint::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let called = format!("http://{}", listener.local_addr().unwrap());
    let (told, mut headers) = tokio::sync::mpsc::channel(4);
    let router = axum::Router::new().fallback(move |request: Request| {
        let told = told.clone();
        async move {
            let value = request.headers().get("traceparent").cloned();
            told.send(value).await.unwrap();
            StatusCode::OK
        }
    });
    tokio::spawn(async { axum::serve(listener, router).await });
    let text = manifest(&[("jobs", "wants-network", "")])
        + &format!("allowed_outbound_hosts = [\"{called}\"]\n");
    let rig = Rig::up_in(&text, exporting(&address));
    post_traced(&rig, "calls", json!({ "url": called })).await;
    let job = rig.completed("calls").await;
    assert_eq!(job["result"]["status"], 200, "{job}");
    let header = headers.recv().await.unwrap().expect("a traceparent");
    let attempts = endpoint.until("Request", is_of("calls")).await;
    let attempt = attempts[0]["data"]["baseData"]["id"].as_str().unwrap();
    let expected = format!("00-{CLIENT_TRACE}-{attempt}-01");
    assert_eq!(header.to_str().unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_after_a_restart_and_with_another_host() {
    let (endpoint, address) = Endpoint::start().await;
    let rig = manifest(&[("jobs", "sleeps", "")]);
    let mut rig = Rig::up_in(&rig, exporting(&address));
    post_traced(&rig, "long", json!({ "ms": 1_000 })).await;
    rig.job_in("long", &["running"]).await;
    rig.kill_and_restart();
    rig.completed("long").await;
    let attempts = endpoint.until("Request", is_of("long")).await;
    assert_eq!(operation(&attempts[0]), CLIENT_TRACE);
    assert_eq!(
        attempts[0]["data"]["baseData"]["measurements"]["DeliveryCount"],
        2.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_away_costs_the_pipeline_nothing_and_the_stop_little() {
    let mut rig = Rig::up_in(
        &manifest(&[("jobs", "echo", "")]),
        // Nothing listens there.
        exporting("http://127.0.0.1:9"),
    );
    for n in 0..200 {
        rig.accepted(&format!("j{n}"), json!({ "n": n })).await;
    }
    for n in 0..200 {
        rig.completed(&format!("j{n}")).await;
    }
    rig.signal("TERM");
    let stopping = tokio::task::spawn_blocking(move || rig.ended());
    let status = tokio::time::timeout(Duration::from_secs(30), stopping).await;
    assert!(status.expect("it stops in time").unwrap().success());
}

fn transport(address: &str) -> Transport {
    let http = orchestrator_servicebus::http_client()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    Transport::start(address.parse().unwrap(), http)
}

/// An item that the service would take, told from others by its name.
fn item(name: &str) -> String {
    json!({
        "name": "Microsoft.ApplicationInsights.Event",
        "time": "2026-11-24T00:00:00Z",
        "iKey": KEY,
        "tags": {},
        "data": { "baseType": "EventData", "baseData": { "ver": 2, "name": name } },
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_means_what_the_official_exporters_take_it_for() {
    let no = Vec::new;
    let errors =
        |errors: Value| json!({ "itemsReceived": 2, "itemsAccepted": 0, "errors": errors });
    // Answers, then what is counted of two items.
    let sent = |sent, dropped_there| Counts {
        sent,
        dropped_there,
        ..Counts::default()
    };
    let cases: Vec<(Vec<Scripted>, Counts)> = vec![
        (vec![], sent(2, 0)),
        (vec![(429, vec![("retry-after", "1".to_owned())], String::new())], sent(2, 0)),
        (vec![(503, no(), String::new())], sent(2, 0)),
        (vec![(401, no(), String::new())], sent(2, 0)),
        (vec![(400, no(), String::new())], sent(0, 2)),
        (vec![(402, no(), String::new())], sent(0, 2)),
        (vec![(439, no(), String::new())], sent(0, 2)),
        (vec![(404, no(), String::new())], sent(0, 2)),
        (
            vec![(206, no(), errors(json!([{ "index": 0, "statusCode": 500, "message": "x" }, { "index": 1, "statusCode": 400, "message": "y" }])).to_string())],
            sent(1, 1),
        ),
        (vec![(307, vec![("location", "/v2.1/track".to_owned())], String::new())], sent(2, 0)),
        (vec![(308, vec![("location", "http://evil.example/".to_owned())], String::new())], sent(0, 2)),
    ];
    for (answers, expected) in cases {
        let (endpoint, address) = Endpoint::start().await;
        let told = format!("{answers:?}");
        endpoint.script(answers);
        let transport = transport(&address);
        transport.offer(item("a"));
        transport.offer(item("b"));
        let began = Instant::now();
        loop {
            let Counts {
                sent,
                dropped_there,
                ..
            } = transport.counts();
            if sent + dropped_there == 2 {
                assert_eq!(
                    (sent, dropped_there),
                    (expected.sent, expected.dropped_there),
                    "{told}"
                );
                break;
            }
            assert!(began.elapsed() < PATIENCE, "{told}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        assert_eq!(
            endpoint.items.lock().unwrap().len() as u64,
            expected.sent,
            "{told}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_bounded_dropped_and_counted() {
    // Nothing listens there.
    let transport = transport("http://127.0.0.1:9");
    let item = item(&"x".repeat(1_000));
    for _ in 0..40_000 {
        transport.offer(item.clone());
    }
    transport.offer("x".repeat(70_000));
    let counts = transport.counts();
    assert_eq!(counts.sent + counts.dropped_there, 0);
    assert!(counts.dropped_here > 20_000, "{counts:?}");
    assert_eq!(counts.dropped_here + counts.waiting, 40_001);
    let began = Instant::now();
    transport.close(Duration::from_secs(1)).await;
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "closing is bounded"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_otlp_collector_gets_the_same_trace_beside_application_insights() {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message;
    let (endpoint, address) = Endpoint::start().await;
    let mut way = exporting(&address);
    way.environment
        .push(("OTEL_EXPORTER_OTLP_ENDPOINT", address.clone()));
    let rig = Rig::up_in(&manifest(&[("jobs", "echo", "")]), way);
    post_traced(&rig, "both", json!({})).await;
    rig.completed("both").await;
    let attempts = endpoint.until("Request", is_of("both")).await;
    let attempt = attempts[0]["data"]["baseData"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let began = Instant::now();
    loop {
        let received = endpoint.otlp.lock().unwrap().clone();
        let spans = received
            .iter()
            .filter(|(path, _)| path == "/v1/traces")
            .flat_map(|(_, body)| {
                ExportTraceServiceRequest::decode(body.clone())
                    .unwrap()
                    .resource_spans
            })
            .flat_map(|resource| resource.scope_spans)
            .flat_map(|scope| scope.spans);
        let hex = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        let is_there = spans
            .into_iter()
            .any(|span| hex(&span.trace_id) == CLIENT_TRACE && hex(&span.span_id) == attempt);
        if is_there && received.iter().any(|(path, _)| path == "/v1/metrics") {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{} exports", received.len());
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
