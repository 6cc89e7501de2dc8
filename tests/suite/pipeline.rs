//! From POST to completion, through kills and stops.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use crate::rig::{Rig, manifest};

#[tokio::test]
async fn a_job_is_accepted_done_and_its_page_shows_the_result() {
    let rig = Rig::up(&manifest(&[("jobs", "worker", "")]));
    let response = rig
        .post(&json!({ "jobType": "demo", "jobId": "one", "payload": { "n": 1 } }))
        .await
        .unwrap();
    assert_eq!(response.status(), 202);
    assert_eq!(response.headers()["location"], "/api/jobs/one");
    assert_eq!(
        response.json::<serde_json::Value>().await.unwrap(),
        json!({ "jobId": "one", "status": "accepted" })
    );
    rig.completed("one").await;
    let (status, page) = rig.get("/api/jobs/one").await;
    assert_eq!((status, &page["attempts"]), (200, &json!(1)));
    // printf '{"n":1}' | sha256sum
    let sha256 = "2bfd14f43d17fc7cea24e0917a8879b4b2f880b8baeec1b9d90fbaad655e71bd";
    assert_eq!(page["result"], json!({ "sha256": sha256, "length": 7 }));
    assert_eq!(rig.get("/api/jobs/nobody").await.0, 404);
    let (_, metrics) = rig.ops_text("/metrics").await;
    assert!(
        metrics.contains("orchestrator_job_success_total{queue=\"jobs\"} 1"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_a_thousand_is_accepted_whole_and_done_within_the_bound() {
    let rig = std::sync::Arc::new(Rig::up(&manifest(&[("jobs", "worker", "concurrency = 8")])));
    let posts: Vec<_> = (0..1_000)
        .map(|n| {
            let rig = rig.clone();
            tokio::spawn(async move {
                rig.accepted(&format!("b{n}"), json!({ "n": n, "workMs": 5 }))
                    .await
            })
        })
        .collect();
    let mut in_flight_max = 0;
    for post in posts {
        post.await.unwrap();
        let queues = rig.ops("/v1/queues").await;
        in_flight_max = in_flight_max.max(queues[0]["inFlight"].as_u64().unwrap());
    }
    assert!(
        (1..=8).contains(&in_flight_max),
        "{in_flight_max} in flight; the bound is 8"
    );
    for n in 0..1_000 {
        let job = rig.completed(&format!("b{n}")).await;
        assert_eq!(job["deliveryCount"], 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_job_ends_though_the_host_is_killed_again_and_again() {
    let mut rig = Rig::up(&manifest(&[(
        "jobs",
        "worker",
        "concurrency = 16\nmax_attempts = 100",
    )]));
    let mut accepted = BTreeSet::new();
    for round in 0..12_u64 {
        let posting = async {
            let mut mine = Vec::new();
            for n in 0.. {
                let id = format!("k{round}-{n}");
                let body = json!({ "jobType": "t", "jobId": id, "payload": { "workMs": n % 20 } });
                match rig.post(&body).await {
                    Ok(response) if response.status() == 202 => mine.push(id),
                    Ok(response) => panic!("{}", response.status()),
                    Err(_) => break,
                }
            }
            mine
        };
        // A moment of load, another one each round; what is cut off is not accepted.
        let kill = async {
            tokio::time::sleep(Duration::from_millis(120 + round * 70)).await;
            rig.signal("KILL");
        };
        let (mine, ()) = tokio::join!(posting, kill);
        accepted.extend(mine);
        rig.kill_and_restart();
    }
    assert!(
        accepted.len() > 50,
        "only {} jobs were accepted",
        accepted.len()
    );
    for id in &accepted {
        rig.completed(id).await;
    }
    let queues = rig.ops("/v1/queues").await;
    assert_eq!(
        (&queues[0]["locked"], &queues[0]["dead"]),
        (&json!(0), &json!(0))
    );
}

#[tokio::test]
async fn stopping_lets_a_job_finish_and_exits_with_success() {
    let mut rig = Rig::up(&manifest(&[("jobs", "worker", "")]));
    rig.accepted("slow", json!({ "workMs": 3_000 })).await;
    rig.job_in("slow", &["running"]).await;
    rig.signal("TERM");
    assert!(rig.ended().success());
    rig.restart();
    assert_eq!(rig.completed("slow").await["deliveryCount"], 1);
}

#[tokio::test]
async fn a_job_that_outlasts_the_stop_is_given_back_and_spends_no_attempt() {
    let settings = "[application.trigger.servicebus]\nshutdown_timeout = \"100ms\"\n";
    let mut rig = Rig::up(&(manifest(&[("jobs", "worker", "")]) + settings));
    rig.accepted("long", json!({ "workMs": 5_000 })).await;
    rig.job_in("long", &["running"]).await;
    rig.signal("TERM");
    assert!(rig.ended().success());
    rig.restart();
    let job = rig.completed("long").await;
    assert_eq!(
        (
            &job["deliveryCount"],
            job["attempts"].as_array().unwrap().len()
        ),
        (&json!(1), 1)
    );
}

#[tokio::test]
async fn a_delayed_job_waits_and_a_repeated_id_runs_once() {
    let rig = Rig::up(&manifest(&[("jobs", "worker", "")]));
    let body = json!({ "jobType": "t", "jobId": "later", "payload": 1, "delaySeconds": 1 });
    for _ in 0..3 {
        assert_eq!(rig.post(&body).await.unwrap().status(), 202);
    }
    assert_eq!(rig.get("/api/jobs/later").await.1["state"], "scheduled");
    let job = rig.completed("later").await;
    assert_eq!(job["deliveryCount"], 1);
    let millis = |field: &str| {
        job[field]
            .as_str()
            .unwrap()
            .parse::<jiff::Timestamp>()
            .unwrap()
            .as_millisecond()
    };
    assert!(
        millis("finishedAt") - millis("enqueuedAt") >= 1_000,
        "{job}"
    );
}

#[tokio::test]
async fn chaos_fails_attempts_by_its_seed_and_marks_them() {
    let keys =
        "max_attempts = 2\nretry = { initial = \"1ms\" }\nchaos = { failure_rate = 1.0, seed = 7 }";
    let rig = Rig::up(&manifest(&[("jobs", "worker", keys)]));
    rig.accepted("doomed", json!({})).await;
    let job = rig.job_in("doomed", &["dead"]).await;
    for attempt in job["attempts"].as_array().unwrap() {
        assert_eq!(
            (&attempt["error"], &attempt["injected"]),
            (&json!("Simulated Crash"), &json!(true))
        );
    }
    assert_eq!(job["deadLetter"]["reason"], "MaxDeliveryCountExceeded");
    let listed = rig.ops("/v1/queues/jobs/dead").await;
    assert_eq!(listed["jobs"][0]["jobId"], "doomed");
    assert_eq!(
        rig.ops_post("/v1/queues/jobs/dead/redrive", json!({ "jobId": "doomed" }))
            .await,
        json!({ "redriven": 1 })
    );
    assert_eq!(
        rig.job_in("doomed", &["dead"]).await["attempts"]
            .as_array()
            .unwrap()
            .len()
            % 2,
        0
    );
}
