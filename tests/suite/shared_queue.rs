//! Several hosts on one queue, over the wire of Service Bus, through kills and
//! a bad network.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orchestrator_servicebus::atom::{self, QueueDescription};
use serde_json::{Value, json};

use crate::rig::{Rig, Way, manifest};
use crate::two_ways::{self, KEY, KEY_NAME, management};
use crate::wire::ToxicNetwork;

/// Short, so that what a killed host held comes back soon.
const LOCK: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(120);

/// A process that keeps the queue and does no work.
pub async fn bus() -> Rig {
    let description = QueueDescription {
        lock_duration: Some(LOCK),
        requires_duplicate_detection: Some(true),
        ..QueueDescription::default()
    };
    two_ways::bus(&description).await
}

/// Messages that wait or are locked, scheduled ones, and dead ones.
async fn counts(bus: &Rig) -> Option<(u64, u64, u64)> {
    let answer = management(bus, reqwest::Method::GET).send().await.ok()?;
    let (_, counts) = atom::parse_counts(&answer.bytes().await.ok()?).unwrap();
    Some((counts.active, counts.scheduled, counts.dead_letter))
}

/// A host that works the bus's queue, reached at this address.
fn host(address: &str) -> Rig {
    let way = Way {
        arguments: vec!["--quiet"],
        environment: vec![(
            "SERVICEBUS_CONNECTION_STRING",
            format!("Endpoint={address};SharedAccessKeyName={KEY_NAME};SharedAccessKey={KEY}"),
        )],
        ..Way::default()
    };
    let keys = "concurrency = 8\nmax_attempts = 50\nretry = { initial = \"1s\", max = \"2s\" }";
    Rig::up_in(&manifest(&[("jobs", "worker", keys)]), way)
}

/// A queue that wants a token of Entra ID, and the endpoint that gives managed
/// identities theirs; says where, and what each was asked.
async fn guarded_by_entra() -> (String, tokio::sync::mpsc::Receiver<(String, String)>) {
    use axum::extract::Request;
    use axum::http::StatusCode;
    use axum::response::IntoResponse;
    let (told, asked) = tokio::sync::mpsc::channel(64);
    let answer = move |request: Request| async move {
        let header = |name: &str| {
            let value = request.headers().get(name);
            value.map_or(String::new(), |value| value.to_str().unwrap().to_owned())
        };
        let proof = header("authorization") + &header("x-identity-header");
        // More than it holds is not looked at.
        let _ = told.try_send((request.uri().to_string(), proof));
        if request.uri().path() == "/token" {
            let token = json!({
                "access_token": "the-token",
                "expires_on": "4102444800",
                "resource": "https://servicebus.azure.net",
                "token_type": "Bearer",
            });
            return axum::Json(token).into_response();
        }
        match request.method().as_str() == "POST" && request.uri().path() == "/jobs/messages" {
            true => StatusCode::CREATED,
            false => StatusCode::NO_CONTENT,
        }
        .into_response()
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    (format!("http://{address}"), asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_the_host_uses_its_managed_identity() {
    let (address, mut asked) = guarded_by_entra().await;
    let way = Way {
        arguments: vec!["--quiet"],
        environment: vec![
            (
                "SERVICEBUS_CONNECTION_STRING",
                format!("Endpoint={address}"),
            ),
            ("IDENTITY_ENDPOINT", format!("{address}/token")),
            ("IDENTITY_HEADER", "the-secret".to_owned()),
        ],
        ..Way::default()
    };
    let host = Rig::up_in(&manifest(&[("jobs", "worker", "")]), way);
    send(std::slice::from_ref(&host), 0, json!({})).await;
    let (mut tokens, mut is_sent) = (0, false);
    while !is_sent {
        let (path, proof) = asked.recv().await.unwrap();
        if path.starts_with("/token") {
            tokens += 1;
            assert!(path.contains("servicebus.azure.net"), "{path}");
            assert_eq!(proof, "the-secret");
        } else {
            assert_eq!(proof, "Bearer the-token", "{path}");
            is_sent = path.starts_with("/jobs/messages") && !path.contains("head");
        }
    }
    assert_eq!(tokens, 1, "a token is kept");
    assert!(!host.said().contains("the-token"), "{}", host.said());
}

/// Waits until nothing waits, is locked or is scheduled any more.
async fn until_empty(bus: &Rig) {
    let began = Instant::now();
    loop {
        let now = counts(bus).await;
        if let Some((0, 0, dead)) = now {
            assert_eq!(dead, 0, "no job may end as a dead letter here");
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{now:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Sends until it is accepted, as a client with retries does, through whichever
/// host answers.
async fn send(hosts: &[Rig], n: usize, payload: Value) -> String {
    let id = format!("s{n}");
    let body = json!({ "jobType": "t", "jobId": id, "payload": payload });
    let began = Instant::now();
    for n in n.. {
        if let Ok(answer) = hosts[n % hosts.len()].post(&body).await {
            match answer.status().as_u16() {
                202 => return id,
                503 => assert!(answer.headers().contains_key("retry-after")),
                other => panic!("{other}: {}", answer.text().await.unwrap()),
            }
        }
        assert!(began.elapsed() < PATIENCE, "{id} is not accepted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    unreachable!()
}

/// Which hosts say of a job that it is completed.
async fn completed_on(hosts: &[Rig], ids: &BTreeSet<String>) -> BTreeMap<usize, usize> {
    let mut by_host = BTreeMap::new();
    for id in ids {
        let mut is_done = false;
        for (number, host) in hosts.iter().enumerate() {
            if host.ops(&format!("/v1/jobs/{id}")).await["state"] == "completed" {
                is_done = true;
                *by_host.entry(number).or_default() += 1;
            }
        }
        assert!(is_done, "no host completed {id}");
    }
    by_host
}

/// Attempts that succeeded on this host.
async fn runs(host: &Rig) -> u64 {
    let (_, metrics) = host.ops_text("/metrics").await;
    metrics
        .lines()
        .find_map(|line| line.strip_prefix("orchestrator_job_success_total{queue=\"jobs\"} "))
        .map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hosts_share_a_burst_though_one_of_them_and_the_queue_are_killed() {
    const JOBS: usize = 300;
    let mut bus = bus().await;
    let mut hosts: Vec<Rig> = (0..3).map(|_| host(bus.bus())).collect();
    let mut ids = BTreeSet::new();
    for n in 0..JOBS {
        ids.insert(send(&hosts, n, json!({ "workMs": 50 })).await);
        if n == JOBS / 2 {
            // In the middle of its jobs.
            hosts[2].kill_and_restart();
        }
        if n == JOBS * 3 / 4 {
            bus.kill_and_restart();
        }
    }
    until_empty(&bus).await;
    let by_host = completed_on(&hosts, &ids).await;
    assert!(
        by_host.len() == 3 && by_host.values().all(|jobs| *jobs > JOBS / 20),
        "work spreads: {by_host:?}"
    );
    // What one host held when it was killed, and what was on its way when the
    // queue was, may have run again.
    let total: usize = by_host.values().sum();
    assert!(total <= JOBS + 3 * 8, "{by_host:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_say_that_the_queue_is_away_and_go_on_when_it_is_back() {
    let mut bus = bus().await;
    let hosts = [host(bus.bus())];
    let [host] = &hosts;
    host.until_ready().await;
    send(&hosts, 0, json!({ "workMs": 1 })).await;
    host.completed("s0").await;
    bus.signal("KILL");
    bus.ended();
    let body = json!({ "jobType": "t", "jobId": "away", "payload": 1 });
    let answer = host.post(&body).await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    let (status, told) = host.ops_text("/readyz").await;
    assert!(status == 503 && told.contains("Service Bus"), "{told}");
    bus.restart();
    host.until_ready().await;
    send(&hosts, 1, json!({ "workMs": 1 })).await;
    host.completed("s1").await;
    assert_eq!(host.get("/api/jobs/away").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_toxic_network_loses_no_job_and_doubles_few() {
    const JOBS: usize = 200;
    let bus = bus().await;
    let server = bus.bus().strip_prefix("http://").unwrap().parse().unwrap();
    let network = ToxicNetwork::to(server, 7, 12).await;
    let hosts: Arc<Vec<Rig>> = {
        let address = format!("http://{}", network.address);
        Arc::new((0..2).map(|_| host(&address)).collect())
    };
    let mut ids = BTreeSet::new();
    let mut sends = tokio::task::JoinSet::new();
    for n in 0..JOBS {
        let hosts = hosts.clone();
        sends.spawn(async move { send(&hosts, n, json!({ "workMs": 5 })).await });
        while sends.len() >= 8 {
            ids.insert(sends.join_next().await.unwrap().unwrap());
        }
    }
    ids.extend(sends.join_all().await);
    network.mend();
    let mended = Instant::now();
    until_empty(&bus).await;
    let took = mended.elapsed();
    completed_on(&hosts, &ids).await;
    let runs = runs(&hosts[0]).await + runs(&hosts[1]).await;
    let cuts = network.cuts();
    println!("{JOBS} jobs, {cuts} connections cut, {runs} runs, at rest {took:?} after mending");
    assert!(cuts > 10, "only {cuts} cuts");
    assert!(
        runs <= (JOBS + cuts) as u64,
        "{runs} runs of {JOBS} jobs with {cuts} cuts"
    );
}
