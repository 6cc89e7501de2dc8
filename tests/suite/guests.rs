//! Guests that misbehave: each comes to its right end, and a job beside them
//! is not disturbed.

use serde_json::{Value, json};

use crate::rig::{Rig, component, manifest, refused, route};

const ONCE: &str = "max_attempts = 1\ntimeout = \"500ms\"\nmemory_limit = \"32MiB\"";

/// One job on a worker that misbehaves, with one attempt to do it.
async fn end_of(guest: &str, payload: Value) -> Value {
    let rig = Rig::up(&manifest(&[("jobs", guest, ONCE)]));
    rig.accepted("job", payload).await;
    rig.job_in("job", &["completed", "dead"]).await
}

fn outcome(job: &Value) -> &str {
    job["attempts"][0]["outcome"].as_str().unwrap()
}

#[tokio::test]
async fn a_guest_that_panics_is_a_trap_with_its_words_in_the_log() {
    let job = end_of("traps", json!("it broke")).await;
    assert_eq!(outcome(&job), "trap");
    assert!(
        job["attempts"][0]["logs"].to_string().contains("it broke"),
        "{job}"
    );
}

#[tokio::test]
async fn guests_that_never_end_meet_their_deadline() {
    for guest in ["spins", "oversleeps", "oversleeps_sync"] {
        assert_eq!(
            outcome(&end_of(guest, json!({})).await),
            "timeout",
            "{guest}"
        );
    }
}

#[tokio::test]
async fn a_guest_that_eats_memory_meets_its_limit() {
    assert_eq!(
        outcome(&end_of("eats_memory", json!({})).await),
        "out-of-memory"
    );
}

#[tokio::test]
async fn a_result_over_its_limit_fails_the_attempt() {
    assert_eq!(
        outcome(&end_of("huge_result", json!({ "bytes": 65_537 })).await),
        "bad-answer"
    );
    assert_eq!(
        outcome(&end_of("huge_result", json!({ "bytes": 65_536 })).await),
        "completed"
    );
}

#[tokio::test]
async fn endless_recursion_is_a_trap() {
    assert_eq!(outcome(&end_of("deep_recursion", json!({})).await), "trap");
}

#[tokio::test]
async fn a_flood_of_output_is_cut_and_counted() {
    let rig = Rig::up(&manifest(&[("jobs", "floods_stdout", "")]));
    rig.accepted("job", json!({})).await;
    let attempt = &rig.completed("job").await["attempts"][0];
    assert_eq!(attempt["logs"].as_array().unwrap().len(), 256);
    assert!(
        attempt["logLinesDropped"].as_u64().unwrap() > 100_000,
        "{}",
        attempt["logLinesDropped"]
    );
}

#[tokio::test]
async fn a_guest_that_gives_up_is_dead_at_once_with_its_words() {
    let rig = Rig::up(&manifest(&[("jobs", "rejects", "")]));
    rig.accepted(
        "job",
        json!({ "reason": "InvalidOrder", "description": "no lines" }),
    )
    .await;
    let job = rig.job_in("job", &["dead"]).await;
    assert_eq!(
        job["deadLetter"],
        json!({ "reason": "InvalidOrder", "description": "no lines" })
    );
    assert_eq!(job["deliveryCount"], 1);
}

#[tokio::test]
async fn a_failing_guest_is_retried_until_it_succeeds_and_keeps_its_history() {
    let rig = Rig::up(&manifest(&[(
        "jobs",
        "fails_until",
        "retry = { initial = \"1ms\" }",
    )]));
    rig.accepted("job", json!({ "attempt": 3 })).await;
    let job = rig.completed("job").await;
    let outcomes: Vec<_> = job["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|attempt| attempt["outcome"].clone())
        .collect();
    assert_eq!(outcomes, ["retry", "retry", "completed"]);
}

#[tokio::test]
async fn every_attempt_gets_a_fresh_instance() {
    let rig = Rig::up(&manifest(&[("jobs", "counts_memory", "")]));
    for id in ["a", "b", "c"] {
        rig.accepted(id, json!({})).await;
        assert_eq!(
            rig.completed(id).await["result"]
                .to_string()
                .trim_matches('"'),
            "1"
        );
    }
}

#[tokio::test]
async fn a_plain_export_works_as_an_async_one_does() {
    for guest in ["echo", "sync_echo"] {
        let rig = Rig::up(&manifest(&[("jobs", guest, "")]));
        rig.accepted("job", json!({ "x": [1, 2] })).await;
        assert_eq!(
            rig.completed("job").await["result"],
            json!({ "x": [1, 2] }),
            "{guest}"
        );
    }
}

#[tokio::test]
async fn a_guest_reaches_no_network_that_the_manifest_does_not_allow() {
    let rig = Rig::up(&manifest(&[("jobs", "wants_network", "")]));
    rig.accepted("job", json!({ "url": "http://127.0.0.1:9/" }))
        .await;
    let result = rig.completed("job").await["result"].to_string();
    assert!(result.contains("HttpRequestDenied"), "{result}");
}

#[tokio::test]
async fn an_http_guest_that_crashes_or_never_answers_is_told_apart() {
    let text = manifest(&[("jobs", "worker", "")])
        + &route("/traps", "http-traps")
        + &route("/spins", "http-spins")
        + &route("/sleeps", "http-sleeps")
        + "[application.trigger.servicebus]\nrequest_timeout = \"1s\"\n";
    let rig = Rig::up(&text);
    let (traps, spins, sleeps, job) = tokio::join!(
        rig.get("/traps"),
        rig.get("/spins"),
        rig.get("/sleeps"),
        rig.accepted("job", json!({})),
    );
    assert_eq!((traps.0, spins.0, sleeps.0, job), (500, 504, 504, ()));
    assert!(
        traps.1["detail"].as_str().unwrap().contains("crashed"),
        "{traps:?}"
    );
    rig.completed("job").await;
}

#[tokio::test]
async fn a_response_that_its_guest_never_ends_is_broken_off_not_ended() {
    let text = manifest(&[("jobs", "worker", "")])
        + &route("/slow", "http-slow-body")
        + "[application.trigger.servicebus]\nrequest_timeout = \"1s\"\n";
    let rig = Rig::up(&text);
    let response = rig.fetch("/slow").await.unwrap();
    assert_eq!(response.status(), 200);
    let error = response.text().await.unwrap_err();
    assert!(error.is_body() || error.is_decode(), "{error:?}");
}

#[tokio::test]
async fn busy_loops_delay_no_job_of_another_queue() {
    let keys = "concurrency = 8\ntimeout = \"60s\"";
    let text = manifest(&[("jobs", "worker", ""), ("busy", "spins", keys)]);
    // The sample's ingest sends to the default queue; here that is the busy one.
    let busy_first = format!("{text}[application.trigger.servicebus]\ndefault_queue = \"busy\"\n");
    let mut rig = Rig::up(&busy_first);
    for n in 0..8 {
        rig.accepted(&format!("busy{n}"), json!({})).await;
    }
    rig.job_in("busy7", &["running"]).await;
    rig.signal("KILL");
    rig.ended();
    rig.rewrite(&text);
    rig.restart();
    rig.job_in("busy0", &["running"]).await;
    for n in 0..20 {
        rig.accepted(&format!("ok{n}"), json!({})).await;
        rig.completed(&format!("ok{n}")).await;
    }
    assert_eq!(
        rig.job_in("busy0", &["running", "queued"]).await["deliveryCount"],
        2,
        "still within its deadline"
    );
}

#[test]
fn a_component_that_does_not_fit_is_refused_with_what_is_missing() {
    for (guest, told) in [
        (
            "no_export",
            "it does not export `orchestrator:pipeline/processor@0.1.0`",
        ),
        ("wants_import", "test:missing/thing"),
    ] {
        let (code, said) = refused(&manifest(&[("jobs", guest, "")]));
        assert_eq!(code, 1);
        assert!(
            said.contains(told) && said.contains(&component(guest)),
            "{said}"
        );
    }
}

#[test]
fn a_manifest_with_an_unknown_key_is_refused_with_its_line() {
    let (code, said) = refused(&manifest(&[("jobs", "worker", "concurency = 3")]));
    assert_eq!(code, 64);
    assert!(
        said.contains("unknown field `concurency`") && said.contains("spin.toml:"),
        "{said}"
    );
}
