//! From POST to completion, wherever the queue is, and through kills and stops.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use crate::rig::{Rig, manifest};
use crate::two_ways::Ends;

#[tokio::test]
async fn a_job_is_accepted_done_and_its_page_shows_the_result() {
    for ends in Ends::both("worker", "").await {
        println!("{}", ends.name);
        let body = json!({ "jobType": "demo", "jobId": "one", "payload": { "n": 1 } });
        let response = ends.front.post(&body).await.unwrap();
        assert_eq!(response.status(), 202, "{}", response.text().await.unwrap());
        assert_eq!(response.headers()["location"], "/api/jobs/one");
        assert_eq!(
            response.json::<serde_json::Value>().await.unwrap(),
            json!({ "jobId": "one", "status": "accepted" })
        );
        let rig = ends.worker();
        rig.completed("one").await;
        let (status, page) = rig.get("/api/jobs/one").await;
        assert_eq!((status, &page["attempts"]), (200, &json!(1)));
        // printf '{"n":1}' | sha256sum
        let sha256 = "2bfd14f43d17fc7cea24e0917a8879b4b2f880b8baeec1b9d90fbaad655e71bd";
        assert_eq!(page["result"], json!({ "sha256": sha256, "length": 7 }));
        assert_eq!(rig.get("/api/jobs/nobody").await.0, 404);
        assert_eq!(rig.succeeded(1).await, 1);
    }
}

#[tokio::test]
async fn a_worker_gets_what_the_client_sent_to_the_last_byte() {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    // Blanks, an escape and digits that a second writer would change.
    let payload = "{ \"n\" : 1.50,\"\\u00e4\":\"☃\" }";
    let body = |id: &str| {
        format!(
            "{{\"jobType\":\"ty☃pe\",\"jobId\":\"{id}\",\"payload\":{payload},\"properties\":{{\"tenant\":\"a\\\"b☃\",\"number\":\"007\",\"empty\":\"\"}}}}"
        )
    };
    for ends in Ends::both("tells_job", "").await {
        for trace in [None, Some(TRACE)] {
            let id = trace.map_or("untraced", |_| "traced");
            let mut request = ends
                .front
                .client()
                .post(format!("http://{}/api/IngestJob", ends.front.app_address()))
                .header("content-type", "application/json")
                .body(body(id));
            if let Some(trace) = trace {
                request = request.header("traceparent", trace);
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 202, "{}", response.text().await.unwrap());
            assert_eq!(
                ends.worker().completed(id).await["result"],
                json!({
                    "id": id,
                    "jobType": "ty☃pe",
                    "payload": payload,
                    "contentType": "application/json",
                    "properties": { "tenant": "a\"b☃", "number": "007", "empty": "" },
                    "queue": "jobs",
                    "attempt": 1,
                    "traceparent": trace,
                }),
                "{}",
                ends.name
            );
        }
    }
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
    for ends in Ends::both("worker", "").await {
        let began = jiff::Timestamp::now().as_millisecond();
        let body = |payload: i32| json!({ "jobType": "t", "jobId": "later", "payload": payload, "delaySeconds": 1 });
        for payload in 0..3 {
            let response = ends.front.post(&body(payload)).await.unwrap();
            assert_eq!(response.status(), 202, "{}", response.text().await.unwrap());
        }
        let rig = ends.worker();
        if ends.bus.is_none() {
            assert_eq!(rig.get("/api/jobs/later").await.1["state"], "scheduled");
        }
        let job = rig.completed("later").await;
        assert_eq!(job["deliveryCount"], 1);
        let finished: jiff::Timestamp = job["finishedAt"].as_str().unwrap().parse().unwrap();
        assert!(finished.as_millisecond() - began >= 1_000, "{job}");
        // printf 0 | sha256sum
        let sha256 = "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9";
        assert_eq!(
            job["result"]["sha256"], sha256,
            "the first one's payload stands"
        );
        // What would have come of a second message comes before this one.
        ends.front.accepted("after", json!({})).await;
        rig.completed("after").await;
        assert_eq!(rig.succeeded(2).await, 2, "{}", ends.name);
    }
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
