//! The dashboards against a real host: what they ask for is what it tells.
//!
//! Hosts have a varied day: jobs that succeed, are retried, die, lose their
//! lock and fail by chaos, and versions that are swapped, refused, tried as a
//! canary and taken back. All that they expose and send away is kept, and
//! the queries of the dashboards are held against that.

mod kql;
mod promql;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::rig::{Rig, manifest};
use crate::swap::{marks, put, swapped};
use crate::telemetry::{Endpoint, exporting};

const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const GRAFANA: &str = include_str!("../../host/dashboards/grafana.json");
const AZURE: &str = include_str!("../../host/dashboards/azure.md");
const README: &str = include_str!("../../README.md");

/// What the hosts told.
struct Observed {
    /// Of `/metrics`, of the last one while a canary was under way.
    metrics: String,
    /// Sent to Application Insights, to the last item.
    items: Vec<Value>,
}

async fn observed() -> &'static Observed {
    static OBSERVED: OnceCell<Observed> = OnceCell::const_new();
    OBSERVED.get_or_init(a_varied_day).await
}

async fn chaos(rig: &Rig, faults: Value) {
    let url = format!("{}/v1/chaos/jobs?for=60", rig.ops_url());
    let answer = rig.client().put(url).json(&faults).send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

async fn a_varied_day() -> Observed {
    let (endpoint, address) = Endpoint::start().await;
    let quick = "max_attempts = 2\nretry = { initial = \"10ms\", jitter = false }";
    let mut rigs = Vec::new();
    let mut metrics = String::new();
    // A job goes to the manifest's first queue: one host for each worker.
    for (worker, payload, state) in [
        ("fails-until", json!({ "attempt": 2 }), "completed"),
        (
            "rejects",
            json!({ "reason": "Unwanted", "description": "never" }),
            "dead",
        ),
        ("echo", json!({ "n": 1 }), "completed"),
    ] {
        let rig = Rig::up_in(&manifest(&[("jobs", worker, quick)]), exporting(&address));
        rig.accepted("one", payload).await;
        rig.job_in("one", &[state]).await;
        rig.get("/api/jobs/one").await;
        metrics += &rig.ops_text("/metrics").await.1;
        rigs.push(rig);
    }
    let rig = Rig::up_in(&manifest(&[("jobs", "marks", quick)]), exporting(&address));
    rig.accepted("before", json!({ "ms": 0 })).await;
    rig.completed("before").await;
    chaos(&rig, json!({ "failureRate": 1 })).await;
    rig.accepted("unlucky", json!({ "ms": 0 })).await;
    rig.job_in("unlucky", &["dead"]).await;
    chaos(&rig, json!({ "lockLossRate": 1 })).await;
    rig.accepted("lost", json!({ "ms": 300 })).await;
    let began = Instant::now();
    while rig.ops("/v1/queues").await[0]["locksLost"] == 0 {
        assert!(began.elapsed() < PATIENCE, "no lock was lost");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    chaos(&rig, json!({})).await;
    let worker = "jobs-worker";
    swapped(&rig, worker, "", marks("B")).await;
    assert_eq!(put(&rig, worker, "", b"not wasm".to_vec()).await.0, 422);
    swapped(&rig, worker, "?canary=50%25", marks("C")).await;
    for n in 0..20 {
        let id = format!("canary-{n}");
        rig.accepted(&id, json!({ "ms": 0 })).await;
        rig.completed(&id).await;
    }
    metrics += &rig.ops_text("/metrics").await.1;
    rig.ops_post(&format!("/v1/components/{worker}/rollback"), json!({}))
        .await;
    rigs.push(rig);
    // The last items leave with the host.
    for rig in &mut rigs {
        rig.signal("TERM");
        assert!(rig.ended().success());
    }
    let items = endpoint.items.lock().unwrap().clone();
    Observed { metrics, items }
}

#[tokio::test(flavor = "multi_thread")]
async fn grafana_shows_what_a_host_exposes_and_nothing_else() {
    let exposed = promql::Exposed::read(&observed().await.metrics);
    let dashboard: Value = serde_json::from_str(GRAFANA).unwrap();
    let mistakes = promql::check(&exposed, &dashboard);
    assert!(mistakes.is_empty(), "{mistakes:#?}");
    let mistakes = exposed.undocumented(README);
    assert!(mistakes.is_empty(), "{mistakes:#?}");

    // What is wrong is found.
    for (right, wrong) in [
        ("orchestrator_retries_total", "orchestrator_retry_total"),
        ("by (queue, answer)", "by (queue, answers)"),
        ("{{outcome}} {{version}}", "{{outcome}} {{digest}}"),
        ("state=\\\"dead\\\"", "state=\\\"died\\\""),
        ("queue=~\\\"$queue\\\"", "queues=~\\\"$queue\\\""),
        ("queue=~\\\"$queue\\\"", "queue=~\\\"$queues\\\""),
        ("histogram_quantile(", "histogram_quantil("),
        (
            "rate(orchestrator_sends_total",
            "avg(orchestrator_sends_total",
        ),
        ("process_threads", "process_open_fds"),
        (
            "label_values(orchestrator_build_info",
            "label_values(orchestrator_info",
        ),
    ] {
        assert!(GRAFANA.contains(right), "{right}");
        let text = GRAFANA.replace(right, wrong);
        let mistakes = promql::check(&exposed, &serde_json::from_str(&text).unwrap());
        assert!(!mistakes.is_empty(), "{wrong} was not noticed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_azure_page_asks_for_what_a_host_sends() {
    let tables = kql::Tables::of(&observed().await.items);
    let queries = kql::queries(AZURE);
    assert!(queries.len() >= 8, "{}", queries.len());
    let mistakes: Vec<String> = queries
        .iter()
        .flat_map(|query| kql::check(&tables, query))
        .collect();
    assert!(mistakes.is_empty(), "{mistakes:#?}");

    // What is wrong is found.
    for (right, wrong) in [
        ("customEvents", "customEvent"),
        ("operation_Id", "operation_ID"),
        ("customDimensions.Reason", "customDimensions.Reasons"),
        ("customMeasurements.cpuTimeMs", "customMeasurements.cpuTime"),
        ("\"JobRetried\"", "\"JobRetry\""),
        ("\"GuestMetric\"", "\"GuestMetrics\""),
        ("\"Azure Service Bus\"", "\"Azure Service Bu\""),
        ("summarize", "sumarize"),
    ] {
        assert!(AZURE.contains(right), "{right}");
        let text = AZURE.replace(right, wrong);
        let mut queries = kql::queries(&text).into_iter();
        let is_found = queries.any(|query| !kql::check(&tables, &query).is_empty());
        assert!(is_found, "{wrong} was not noticed");
    }
}
