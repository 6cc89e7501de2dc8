//! Faults on purpose: injected where they are asked for, marked, and survived.

use std::time::Duration;

use serde_json::{Value, json};

use crate::rig::{Rig, Way, manifest};

const QUICK: &str = "max_attempts = 3\nlock_duration = \"5s\"\nretry = { initial = \"10ms\", factor = 1.0, jitter = false }";

async fn switch(rig: &Rig, faults: Value) -> (u16, Value) {
    let url = format!("{}/v1/chaos/jobs?for=60", rig.ops_url());
    let answer = rig.client().put(url).json(&faults).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_switched_on_and_off_while_jobs_run() {
    let rig = Rig::up(&manifest(&[("jobs", "echo", QUICK)]));
    rig.accepted("before", json!({})).await;
    assert_eq!(rig.completed("before").await["deliveryCount"], 1);
    let set = [
        "chaos",
        "set",
        "--failure-rate",
        "1",
        "--for",
        "1m",
        "--seed",
        "7",
    ];
    let ran = rig.command(&set);
    assert_eq!(
        (ran.code, &ran.json()["failureRate"]),
        (0, &json!(1.0)),
        "{ran:?}"
    );
    rig.accepted("during", json!({})).await;
    let job = rig.job_in("during", &["dead"]).await;
    assert_eq!(job["attempts"].as_array().unwrap().len(), 3);
    for attempt in job["attempts"].as_array().unwrap() {
        assert_eq!(
            (&attempt["injected"], &attempt["error"]),
            (&json!(true), &json!("Simulated Crash"))
        );
    }
    assert!(rig.command(&["chaos", "show"]).json()[0]["until"].is_string());
    let ran = rig.command(&["chaos", "off"]);
    assert_eq!(
        (ran.code, &ran.json()["until"]),
        (0, &Value::Null),
        "{ran:?}"
    );
    rig.accepted("after", json!({})).await;
    rig.completed("after").await;

    let (status, problem) = switch(&rig, json!({ "trapRate": 2 })).await;
    assert!(
        status == 400
            && problem["detail"]
                .as_str()
                .unwrap()
                .contains("`trapRate` is 2")
    );
    assert_eq!(rig.command(&["chaos", "set", "--trap-rate", "-1"]).code, 64);
    let (_, metrics) = rig.ops_text("/metrics").await;
    assert!(
        metrics.contains("orchestrator_faults_injected_total{queue=\"jobs\"} 3"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_that_is_injected_loses_the_answer_and_is_marked() {
    let rig = Rig::up(&manifest(&[("jobs", "echo", QUICK)]));
    switch(
        &rig,
        json!({ "trapRate": 1, "latencyRate": 1, "latencyMs": 5 }),
    )
    .await;
    rig.accepted("t", json!({})).await;
    let job = rig.job_in("t", &["dead"]).await;
    let attempt = &job["attempts"][0];
    assert_eq!(
        (&attempt["outcome"], &attempt["error"], &attempt["injected"]),
        (&json!("trap"), &json!("Simulated Trap"), &json!(true))
    );
    // The worker ran all the same.
    assert!(
        attempt["logs"].to_string().contains("t in the log"),
        "{attempt}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_lost_on_purpose_ends_the_attempt_and_settles_nothing() {
    for fault in ["lockLossRate", "lateSettleRate"] {
        let rig = Rig::up(&manifest(&[("jobs", "sleeps", QUICK)]));
        switch(&rig, json!({ fault: 1 })).await;
        rig.accepted("l", json!({ "ms": 300 })).await;
        // Each delivery is lost: the queue gives up by its own count.
        let job = rig.job_in("l", &["dead"]).await;
        assert_eq!(
            job["deadLetter"]["reason"], "MaxDeliveryCountExceeded",
            "{fault}"
        );
        assert_eq!(job["deliveryCount"], 3, "{fault}");
        assert_eq!(job["attempts"], json!([]), "{fault}: nothing was settled");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_on_purpose_refuses_and_loses_nothing() {
    let rig = Rig::up(&manifest(&[("jobs", "echo", QUICK)]));
    switch(&rig, json!({ "brokerDownRate": 1 })).await;
    let body = json!({ "jobType": "t", "jobId": "b", "payload": {} });
    let answer = rig.post(&body).await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    switch(
        &rig,
        json!({ "brokerDownRate": 0.3, "brokerSlowRate": 0.5, "brokerDelayMs": 20 }),
    )
    .await;
    for n in 0..50 {
        let body = json!({ "jobType": "t", "jobId": format!("b{n}"), "payload": {} });
        while rig.post(&body).await.unwrap().status() != 202 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    for n in 0..50 {
        assert_eq!(rig.completed(&format!("b{n}")).await["deliveryCount"], 1);
    }
}

#[test]
fn an_application_is_judged_under_faults_and_kills_and_repeats_by_its_seed() {
    // Protected by a token, as an operator may have it in the environment.
    let way = Way {
        environment: vec![("ORCHESTRATOR_OPS_TOKEN", "s3cret".to_owned())],
        ..Way::quiet()
    };
    let rig = Rig::up_in(&manifest(&[("jobs", "worker", QUICK)]), way);
    for seed in ["1", "2"] {
        let ran = rig.command(&[
            "chaos", "run", "--seed", seed, "--jobs", "200", "--kills", "2", "--output", "json",
        ]);
        let verdict = ran.json();
        assert_eq!(
            (ran.code, &verdict["isSound"]),
            (0, &json!(true)),
            "{ran:?}"
        );
        let count = |name: &str| verdict[name].as_u64().unwrap();
        assert_eq!(count("completed") + count("dead"), 200);
        assert!(count("attempts") > 220, "faults were injected: {verdict}");
        assert!(
            verdict["outcomes"]["chaos (injected)"].as_u64() > Some(5),
            "{verdict}"
        );
        assert_eq!(ran.said, "", "progress stays silent in a pipe");
    }
}

#[test]
fn a_run_can_be_bounded_by_time() {
    let rig = Rig::up(&manifest(&[("jobs", "worker", QUICK)]));
    let ran = rig.command(&[
        "chaos",
        "run",
        "--duration",
        "5s",
        "--kills",
        "1",
        "--output",
        "json",
    ]);
    let verdict = ran.json();
    assert_eq!(
        (ran.code, &verdict["isSound"], &verdict["kills"]),
        (0, &json!(true), &json!(1)),
        "{ran:?}"
    );
    assert!(verdict["accepted"].as_u64() > Some(0), "{verdict}");
}

#[test]
fn a_load_that_is_never_accepted_is_told_and_ends_the_run() {
    let elsewhere = manifest(&[("jobs", "worker", QUICK)]).replace("/api/IngestJob", "/api/Other");
    let rig = Rig::up(&elsewhere);
    let ran = rig.command(&["chaos", "run", "--kills", "0"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.said.contains("the application answers 404"), "{ran:?}");
}

/// Short locks, so that jobs outlive them; backoffs long enough to be missed.
const STRICT: &str = "max_attempts = 5\nlock_duration = \"1s\"\nretry = { initial = \"200ms\", factor = 1.0, jitter = false }";

#[test]
fn the_verdict_finds_each_bug_that_is_planted() {
    // A power failure cannot be had here: the simulation finds what needs one.
    let bugs = [
        ("", "", ""),
        (
            "ForgetDuplicates",
            "an id that is sent again runs nothing twice",
            "",
        ),
        (
            "AcceptStaleSettlement",
            "what is settled under a lost lock changes nothing",
            "",
        ),
        ("ForgetReady", "an accepted job ends", "3s"),
        (
            "SettleBeforeDone",
            "a completed job has the result that was expected",
            "",
        ),
        ("ForgetRenewal", "a job that runs keeps its lock", ""),
        (
            "RetryAtOnce",
            "a failed attempt is repeated after its backoff",
            "",
        ),
    ];
    for (bug, promise, patience) in bugs {
        let worker = if bug == "SettleBeforeDone" {
            "echo"
        } else {
            "worker"
        };
        let mut arguments = vec![
            "chaos", "run", "--seed", "3", "--jobs", "200", "--kills", "1", "--output", "json",
        ];
        if bug == "SettleBeforeDone" {
            arguments.extend(["--payload", "{\"a\":1}", "--expect", "{\"a\":1}"]);
        }
        if !patience.is_empty() {
            arguments.extend(["--patience", patience]);
        }
        let environment = match bug {
            "" => Vec::new(),
            bug => vec![("ORCHESTRATOR_PLANTED_BUG", bug.to_owned())],
        };
        let way = Way {
            environment,
            ..Way::quiet()
        };
        let rig = Rig::up_in(&manifest(&[("jobs", worker, STRICT)]), way);
        let ran = rig.command(&arguments);
        let verdict = ran.json();
        let broken: Vec<&str> = verdict["violations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|violation| violation["promise"].as_str().unwrap())
            .collect();
        if bug.is_empty() {
            assert_eq!((ran.code, broken.len()), (0, 0), "{verdict:#}");
        } else {
            assert_eq!(ran.code, 1, "{bug} is not found");
            assert!(broken.contains(&promise), "{bug}: {broken:?}");
        }
    }
}
