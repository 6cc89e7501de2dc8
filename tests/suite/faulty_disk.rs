//! A disk that is full, an fsync that fails: nothing is accepted that is not
//! durable, and what was accepted is done once the disk is well again.

use serde_json::{Value, json};

use crate::rig::{Rig, manifest};

fn body(id: &str) -> Value {
    json!({ "jobType": "t", "jobId": id, "payload": {} })
}

#[tokio::test]
async fn a_full_disk_accepts_nothing_says_so_and_recovers_by_itself() {
    let (mut rig, disk) = Rig::up_on_faulty_disk(&manifest(&[("jobs", "sleeps", "")]));
    // One job is running when the disk fills up: its end must be settled later.
    rig.accepted("held", json!({ "ms": 1_000 })).await;
    rig.job_in("held", &["running"]).await;
    disk.fail("full");
    for n in 0..20 {
        let response = rig.post(&body(&format!("refused{n}"))).await.unwrap();
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key("retry-after"));
        let problem: Value = response.json().await.unwrap();
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            detail.contains("cannot be written") && detail.contains("No space left"),
            "{problem}"
        );
    }
    let (status, told) = rig.ops_text("/readyz").await;
    assert!(status == 503 && told.contains("No space left"), "{told}");
    assert_eq!(rig.ops_text("/livez").await.0, 200);

    disk.mend("full");
    rig.until_ready().await;
    rig.accepted("after", json!({ "ms": 0 })).await;
    rig.completed("after").await;
    rig.completed("held").await;
    // What the disk holds is what was answered, and so it is after a crash.
    rig.kill_and_restart();
    for id in ["after", "held"] {
        rig.completed(id).await;
    }
    for n in 0..20 {
        assert_eq!(rig.get(&format!("/api/jobs/refused{n}")).await.0, 404);
    }
}

#[tokio::test]
async fn a_failed_fsync_accepts_nothing_and_stops_the_host_with_a_sentence() {
    let (mut rig, disk) = Rig::up_on_faulty_disk(&manifest(&[("jobs", "worker", "")]));
    rig.accepted("before", json!({})).await;
    rig.completed("before").await;
    disk.fail("sync");
    match rig.post(&body("doubtful")).await {
        Ok(response) => assert_eq!(response.status(), 503),
        Err(error) => panic!("the client got no answer: {error}"),
    }
    assert_eq!(rig.ended().code(), Some(1));
    let said = rig.said();
    assert!(
        said.contains("fsync of the store in") && said.contains("restart the host"),
        "{said}"
    );

    disk.mend("sync");
    rig.restart();
    assert_eq!(rig.completed("before").await["deliveryCount"], 1);
    // Refused, so either way is right; sent again under its id, it runs once.
    rig.accepted("doubtful", json!({})).await;
    let job = rig.completed("doubtful").await;
    assert_eq!(job["attempts"].as_array().unwrap().len(), 1, "{job}");
}
