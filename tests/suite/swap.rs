//! Components are replaced while their jobs run: whole, checked, remembered,
//! and with a canary judged by what it does.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::rig::{Rig, Way, component, manifest, route};

const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const WORKER: &str = "jobs-worker";

/// A build of a guest that marks what it makes.
fn build(guest: &str, mark: &str) -> Vec<u8> {
    let bytes = std::fs::read(component(guest)).unwrap();
    let place = b"MARK:0000000000000000";
    let mark = format!("MARK:{mark:-<16}");
    assert_eq!(mark.len(), place.len());
    let at = bytes
        .windows(place.len())
        .position(|window| window == place)
        .unwrap();
    let mut build = bytes.clone();
    build[at..at + place.len()].copy_from_slice(mark.as_bytes());
    build
}

pub fn marks(mark: &str) -> Vec<u8> {
    build("marks", mark)
}

/// What a job's result is when this build did all of it.
fn whole(mark: &str) -> Value {
    let mark = format!("{mark:-<16}");
    json!(format!("\"{mark} {mark}\""))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", orchestrator_engine::loader::digest(bytes))
}

/// An application whose worker is a file beside the manifest.
fn own_file(keys: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("worker.wasm"), marks("A")).unwrap();
    let text = manifest(&[("jobs", "marks", keys)]).replace(&component("marks"), "worker.wasm");
    (dir, text)
}

fn up(keys: &str) -> Rig {
    let (dir, text) = own_file(keys);
    Rig::start_in(dir, Way::quiet(), &text)
}

pub async fn put(rig: &Rig, id: &str, query: &str, bytes: Vec<u8>) -> (u16, Value) {
    let answer = rig
        .client()
        .put(format!("{}/v1/components/{id}{query}", rig.ops_url()))
        .body(bytes)
        .send()
        .await
        .unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

pub async fn swapped(rig: &Rig, id: &str, query: &str, bytes: Vec<u8>) -> Value {
    let (status, change) = put(rig, id, query, bytes).await;
    assert_eq!(status, 200, "{change}");
    change
}

async fn seen(rig: &Rig, id: &str) -> Value {
    rig.ops(&format!("/v1/components/{id}")).await
}

/// Waits until the component is as `is` wants it.
async fn until(rig: &Rig, id: &str, is: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let now = seen(rig, id).await;
        if is(&now) {
            return now;
        }
        assert!(began.elapsed() < PATIENCE, "{now}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn until_runs(rig: &Rig, bytes: &[u8]) -> Value {
    let digest = digest(bytes);
    until(rig, WORKER, |now| now["digest"] == *digest).await
}

/// What `/v1/components/{id}` remembers of these bytes.
fn version<'a>(seen: &'a Value, bytes: &[u8]) -> &'a Value {
    let digest = digest(bytes);
    seen["versions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|version| version["digest"] == *digest)
        .unwrap_or(&Value::Null)
}

async fn result(rig: &Rig, id: &str, payload: Value) -> Value {
    rig.accepted(id, payload).await;
    rig.completed(id).await["result"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_comes_by_upload_by_command_and_by_its_file() {
    let rig = up("");
    let (a, b, c, d) = (marks("A"), marks("B"), marks("C"), marks("D"));
    assert_eq!(result(&rig, "a", json!({ "ms": 0 })).await, whole("A"));

    let change = swapped(&rig, WORKER, "?by=me&reason=because", b.clone()).await;
    assert_eq!(
        (&change["outcome"], &change["previous"], &change["digest"]),
        (&json!("promoted"), &json!(digest(&a)), &json!(digest(&b)))
    );
    assert_eq!(result(&rig, "b", json!({ "ms": 0 })).await, whole("B"));
    let job = rig.completed("b").await;
    assert_eq!(job["attempts"][0]["componentDigest"], digest(&b));
    let again = swapped(&rig, WORKER, "", b.clone()).await;
    assert_eq!(again["outcome"], "unchanged");

    let file = rig.dir().join("new.wasm");
    std::fs::write(&file, &c).unwrap();
    let ran = rig.command(&["swap", WORKER, "new.wasm", "--reason", "try"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let (before, after) = (digest(&b), digest(&c));
    assert!(
        ran.printed
            .contains(&format!("{} → {}", &before[..19], &after[..19])),
        "{ran:?}"
    );
    assert_eq!(result(&rig, "c", json!({ "ms": 0 })).await, whole("C"));

    std::fs::write(rig.dir().join("worker.wasm"), &d).unwrap();
    let now = until_runs(&rig, &d).await;
    assert_eq!(result(&rig, "d", json!({ "ms": 0 })).await, whole("D"));
    assert_eq!(version(&now, &b)["reason"], "because");
    assert_eq!(version(&now, &b)["by"], "me");
    assert_eq!(version(&now, &d)["origin"], "file");
    assert_eq!(now["generation"], 4);
    // A file that is written again with the same bytes is no event.
    std::fs::write(rig.dir().join("worker.wasm"), &d).unwrap();

    let ran = rig.command(&["rollback", WORKER]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(result(&rig, "c2", json!({ "ms": 0 })).await, whole("C"));
    let ran = rig.command(&["rollback", WORKER, &digest(&a), "--output", "json"]);
    assert_eq!(ran.json()["digest"], digest(&a));
    assert_eq!(result(&rig, "a2", json!({ "ms": 0 })).await, whole("A"));
    let (_, metrics) = rig.ops_text("/metrics").await;
    let series = format!(
        "outcome=\"completed\",consequence=\"completed\",version=\"{}\"}}",
        &digest(&b)[7..19]
    );
    assert!(metrics.contains(&series), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_candidate_changes_nothing_and_is_told_why() {
    let rig = up("");
    let a = marks("A");
    let core_module = b"\0asm\x01\0\0\0".to_vec();
    let cut = a[..a.len() / 2].to_vec();
    let guest = |name: &str| std::fs::read(component(name)).unwrap();
    for (bytes, why) in [
        (b"not wasm".to_vec(), "not a WebAssembly file"),
        (core_module, "wasm32-wasip2"),
        (cut, "not a valid component"),
        (guest("no-export"), "does not export"),
        (guest("wants-import"), "does not offer"),
        (guest("http-traps"), "so it is not a worker"),
    ] {
        let (status, problem) = put(&rig, WORKER, "", bytes.clone()).await;
        assert_eq!(status, 422, "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(why), "{why}: {detail}");
        let now = seen(&rig, WORKER).await;
        assert_eq!(now["digest"], digest(&a));
        assert_eq!(version(&now, &bytes)["outcome"], "refused");
    }
    let (status, problem) = put(&rig, "nobody", "", a.clone()).await;
    assert_eq!(status, 404, "{problem}");
    let (status, problem) = put(&rig, "ingest", "?canary=10%25", guest("http-marks")).await;
    assert!(status == 422 && problem["detail"].as_str().unwrap().contains("for workers"));
    let (status, problem) = put(&rig, WORKER, "?canary=60%25", marks("B")).await;
    assert!(
        status == 400
            && problem["detail"]
                .as_str()
                .unwrap()
                .contains("at most `50%`")
    );
    let too_large = vec![0; 64 * 1024 * 1024 + 1];
    assert_eq!(put(&rig, WORKER, "", too_large).await.0, 413);
    let ran = rig.command(&["rollback", WORKER]);
    assert!(
        ran.code == 1 && ran.said.contains("no earlier version"),
        "{ran:?}"
    );
    let ran = rig.command(&["promote", WORKER]);
    assert!(ran.code == 1 && ran.said.contains("no canary"), "{ran:?}");
    assert_eq!(result(&rig, "a", json!({ "ms": 0 })).await, whole("A"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_ends_on_the_version_it_began_with() {
    let rig = up("");
    rig.accepted("long", json!({ "ms": 1_500 })).await;
    rig.job_in("long", &["running"]).await;
    swapped(&rig, WORKER, "", marks("B")).await;
    assert_eq!(result(&rig, "short", json!({ "ms": 0 })).await, whole("B"));
    let now = seen(&rig, WORKER).await;
    assert_eq!(now["draining"], 1, "{now}");
    let job = rig.completed("long").await;
    assert_eq!(
        (&job["result"], &job["deliveryCount"]),
        (&whole("A"), &json!(1))
    );
    until(&rig, WORKER, |now| now["draining"] == 0).await;
}

/// Resident memory of a process, in bytes.
pub fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes * 1024
}

/// Pause of one sender between two jobs: a load that the host keeps up with,
/// so that times show swaps and not a backlog.
const PACE: Duration = Duration::from_millis(30);

/// Sends jobs until told to stop; says which.
async fn load(rig: Arc<Rig>, prefix: &'static str, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut ids = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let id = format!("{prefix}{}", ids.len());
        rig.accepted(&id, json!({ "ms": 20 })).await;
        ids.push(id);
        tokio::time::sleep(PACE).await;
    }
    ids
}

/// Reads marked responses until told to stop: each must be of one build, whole.
async fn requests(rig: Arc<Rig>, stop: Arc<AtomicBool>) -> usize {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let response = rig.fetch("/marks").await.unwrap();
        assert_eq!(response.status(), 200);
        let body = response.text().await.unwrap();
        let (one, other) = body.split_at(16);
        assert!(one == other && body.len() == 32, "{body}");
        count += 1;
    }
    count
}

fn millis_between(job: &Value) -> f64 {
    let at = |name: &str| {
        let text = job[name].as_str().unwrap();
        text.parse::<jiff::Timestamp>().unwrap().as_millisecond()
    };
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a test")]
    let millis = (at("finishedAt") - at("enqueuedAt")) as f64;
    millis
}

/// Half, and all but one in a hundred, took no longer.
fn quantiles(mut millis: Vec<f64>) -> (f64, f64) {
    millis.sort_by(f64::total_cmp);
    (millis[millis.len() / 2], millis[millis.len() * 99 / 100])
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_swaps_under_load_interrupt_lose_and_mix_nothing() {
    const SWAPS: usize = 200;
    let (dir, text) = own_file("concurrency = 32");
    let text = text + &route("/marks", "http-marks");
    let rig = Arc::new(Rig::start_in(dir, Way::quiet(), &text));
    let no_export = std::fs::read(component("no-export")).unwrap();

    // The same load without swapping, for comparison.
    let quiet = Arc::new(AtomicBool::new(false));
    let loads =
        ["q", "r", "s"].map(|prefix| tokio::spawn(load(rig.clone(), prefix, quiet.clone())));
    let requesting = tokio::spawn(requests(rig.clone(), quiet.clone()));
    tokio::time::sleep(Duration::from_secs(4)).await;
    quiet.store(true, Ordering::Relaxed);
    let mut without = Vec::new();
    for load in loads {
        without.extend(load.await.unwrap());
    }
    requesting.await.unwrap();
    // Every build has been compiled once before memory is looked at.
    for mark in ["B", "A"] {
        swapped(&rig, WORKER, "", marks(mark)).await;
        swapped(&rig, "http-marks", "", build("http-marks", mark)).await;
    }
    let before = resident(rig.process_id());

    let stop = Arc::new(AtomicBool::new(false));
    let loads: Vec<_> = ["x", "y", "z"]
        .map(|prefix| tokio::spawn(load(rig.clone(), prefix, stop.clone())))
        .into();
    let requesting = tokio::spawn(requests(rig.clone(), stop.clone()));
    for n in 0..SWAPS {
        let mark = ["A", "B"][n % 2];
        match n % 10 {
            // A bad candidate between two good ones.
            3 => assert_eq!(put(&rig, WORKER, "", no_export.clone()).await.0, 422),
            // By the file, written in two halves.
            5 => {
                let (bytes, file) = (marks(mark), rig.dir().join("worker.wasm"));
                let other = format!("f{n}");
                let bytes = if n % 20 == 5 { bytes } else { marks(&other) };
                std::fs::write(&file, &bytes[..bytes.len() / 3]).unwrap();
                tokio::time::sleep(Duration::from_millis(300)).await;
                std::fs::write(&file, &bytes).unwrap();
                until_runs(&rig, &bytes).await;
            }
            7 => drop(swapped(&rig, "http-marks", "", build("http-marks", mark)).await),
            _ => drop(swapped(&rig, WORKER, "", marks(mark)).await),
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut ids = Vec::new();
    for load in loads {
        ids.extend(load.await.unwrap());
    }
    let served = requesting.await.unwrap();
    let (mut by_result, mut times) = (BTreeMap::<String, usize>::new(), Vec::new());
    for id in &ids {
        let job = rig.completed(id).await;
        assert_eq!(job["deliveryCount"], 1, "{job}");
        assert_eq!(job["attempts"].as_array().unwrap().len(), 1, "{job}");
        let result = job["result"].as_str().unwrap().trim_matches('"').to_owned();
        let (one, other) = result.split_once(' ').unwrap();
        assert_eq!(one, other, "{job}");
        *by_result.entry(one.to_owned()).or_default() += 1;
        times.push(millis_between(&job));
    }
    assert!(
        by_result.len() > 2 && ids.len() > 200 && served > 50,
        "{by_result:?}, {served}"
    );
    let mut quiet_times = Vec::new();
    for id in &without {
        quiet_times.push(millis_between(&rig.completed(id).await));
    }
    let ((p50, p99), (quiet_p50, quiet_p99)) = (quantiles(times), quantiles(quiet_times));
    println!(
        "{SWAPS} swaps, {} jobs, {served} requests; job p50/p99 {p50}/{p99} ms while swapping, {quiet_p50}/{quiet_p99} ms without",
        ids.len()
    );
    for id in [WORKER, "http-marks"] {
        until(&rig, id, |now| now["draining"] == 0).await;
    }
    let grown = resident(rig.process_id()).saturating_sub(before);
    println!("memory grew by {} KiB", grown / 1024);
    assert!(grown < 96 * 1024 * 1024, "memory grew by {grown} bytes");
    let said = rig.said();
    assert!(
        !said.contains("lock lost") && !said.contains("crashed"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_comes_back_to_the_version_last_promoted_unless_the_file_is_newer() {
    let mut rig = up("");
    let (b, c) = (marks("B"), marks("C"));
    swapped(&rig, WORKER, "", b.clone()).await;
    rig.kill_and_restart();
    assert_eq!(seen(&rig, WORKER).await["digest"], digest(&b));
    assert_eq!(result(&rig, "b", json!({ "ms": 0 })).await, whole("B"));
    // Even without the file.
    std::fs::remove_file(rig.dir().join("worker.wasm")).unwrap();
    rig.kill_and_restart();
    assert_eq!(result(&rig, "b2", json!({ "ms": 0 })).await, whole("B"));
    // A file that was changed while the host was down is newer.
    rig.signal("KILL");
    rig.ended();
    std::fs::write(rig.dir().join("worker.wasm"), &c).unwrap();
    rig.restart();
    assert_eq!(result(&rig, "c", json!({ "ms": 0 })).await, whole("C"));
    // One that is bad is told, and what ran before runs.
    rig.signal("KILL");
    rig.ended();
    std::fs::write(rig.dir().join("worker.wasm"), b"bad").unwrap();
    rig.restart();
    assert_eq!(result(&rig, "c2", json!({ "ms": 0 })).await, whole("C"));
    assert!(
        rig.said().contains("not a WebAssembly file"),
        "{}",
        rig.said()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_killed_anywhere_in_a_swap_comes_back_with_a_version_that_works() {
    let mut rig = up("");
    let mut before = marks("A");
    let mut landed = 0;
    for round in 0..14_u64 {
        // A build of its own each time, so that it must be compiled.
        let after = marks(&format!("k{round}"));
        let swap = put_until_cut(&rig, after.clone());
        let kill = async {
            tokio::time::sleep(Duration::from_millis(round * round * 12)).await;
            rig.signal("KILL");
        };
        let (answered, ()) = tokio::join!(swap, kill);
        rig.kill_and_restart();
        let now = seen(&rig, WORKER).await["digest"]
            .as_str()
            .unwrap()
            .to_owned();
        let id = format!("j{round}");
        if now == digest(&after) {
            assert_eq!(
                result(&rig, &id, json!({ "ms": 0 })).await,
                whole(&format!("k{round}"))
            );
            before = after;
            landed += 1;
        } else {
            assert_eq!(now, digest(&before));
            assert!(!answered, "a swap that was answered must survive");
            rig.accepted(&id, json!({ "ms": 0 })).await;
            rig.completed(&id).await;
        }
    }
    assert!(
        (1..14).contains(&landed),
        "{landed} of 14 swaps landed: the delays miss"
    );
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_host_killed_between_any_two_writes_of_a_swap_comes_back_with_a_version_that_works() {
    let text = manifest(&[("jobs", "marks", "")]);
    let (mut rig, disk) = Rig::up_on_faulty_disk(&text);
    let mut before = std::fs::read(component("marks")).unwrap();
    let mut landed = Vec::new();
    // Bytes, their directory; record, its directory.
    for sync in 1..=4 {
        let after = marks(&format!("s{sync}"));
        disk.kill_before_sync("components", sync);
        assert!(
            !put_until_cut(&rig, after.clone()).await,
            "it should have been killed"
        );
        rig.ended();
        disk.mend("kill-before-sync");
        rig.restart();
        let now = seen(&rig, WORKER).await["digest"].clone();
        let is_new = now == digest(&after);
        assert!(is_new || now == digest(&before), "{now}");
        rig.accepted(&format!("j{sync}"), json!({ "ms": 0 })).await;
        rig.completed(&format!("j{sync}")).await;
        landed.push(is_new);
        if is_new {
            before = after;
        }
    }
    // The record's rename is what decides.
    assert_eq!(landed, [false, false, false, true]);
    let last = marks("last");
    swapped(&rig, WORKER, "", last.clone()).await;
    rig.kill_and_restart();
    assert_eq!(seen(&rig, WORKER).await["digest"], digest(&last));
}

/// Whether the host answered that the swap is done.
async fn put_until_cut(rig: &Rig, bytes: Vec<u8>) -> bool {
    let url = format!("{}/v1/components/{WORKER}", rig.ops_url());
    let answer = rig.client().put(url).body(bytes).send().await;
    answer.is_ok_and(|answer| answer.status() == 200)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_vanishes_leaves_nothing_half_done() {
    use std::io::Write;
    let rig = up("");
    let bytes = marks("B");
    let address = rig.ops_url().strip_prefix("http://").unwrap();
    let mut caller = std::net::TcpStream::connect(address).unwrap();
    let head = format!(
        "PUT /v1/components/{WORKER} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n",
        bytes.len()
    );
    caller.write_all(head.as_bytes()).unwrap();
    caller.write_all(&bytes[..bytes.len() / 2]).unwrap();
    drop(caller);
    let url = format!("{}/v1/events", rig.ops_url());
    let mut events = rig.client().get(url).send().await.unwrap();
    let mut caller = std::net::TcpStream::connect(address).unwrap();
    caller.write_all(head.as_bytes()).unwrap();
    caller.write_all(&bytes).unwrap();
    // Gone once the swap has begun: it goes on to its end.
    let mut told = String::new();
    while !told.contains("\"step\":\"candidate\"") {
        let chunk = tokio::time::timeout(PATIENCE, events.chunk()).await;
        told += &String::from_utf8_lossy(&chunk.expect("an event").unwrap().unwrap());
    }
    drop(caller);
    assert!(told.contains(&digest(&bytes)), "{told}");
    let now = until_runs(&rig, &bytes).await;
    assert_eq!(version(&now, &bytes)["outcome"], "promoted");
    // The half of it that came before was never a version.
    assert_eq!(now["versions"].as_array().unwrap().len(), 2, "{now}");
    assert_eq!(result(&rig, "j", json!({ "ms": 0 })).await, whole("B"));
}

/// Sends jobs, so many at a time, until the canary is over; says how many.
async fn feed(rig: &Rig, prefix: &str, payload: impl Fn(usize) -> Value) -> usize {
    let mut sent = 0;
    let began = Instant::now();
    loop {
        let ids: Vec<usize> = (sent..sent + 32).collect();
        sent += ids.len();
        let posts = ids.iter().map(|n| {
            let id = format!("{prefix}{n}");
            let payload = payload(*n);
            async move { rig.accepted(&id, payload).await }
        });
        futures_util::future::join_all(posts).await;
        let now = seen(rig, WORKER).await;
        if now["canary"].is_null() {
            return sent;
        }
        assert!(began.elapsed() < PATIENCE, "{now}");
    }
}

const FEW_RETRIES: &str = "retry = { initial = \"100ms\", factor = 1.0, jitter = false }";

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_fails_is_out_within_a_handful_and_costs_no_job_an_attempt() {
    let rig = up(FEW_RETRIES);
    for mark in ["trap", "fail", "dead"] {
        let bad = marks(mark);
        let change = swapped(&rig, WORKER, "?canary=25%25", bad.clone()).await;
        assert_eq!(change["outcome"], "canary");
        let sent = feed(&rig, mark, |_| json!({ "ms": 1 })).await;
        let now = seen(&rig, WORKER).await;
        assert_eq!(now["digest"], digest(&marks("A")), "{now}");
        let told = version(&now, &bad)["told"].as_str().unwrap();
        assert!(
            told.contains("it fails more often: the candidate failed"),
            "{told}"
        );
        let mut spoiled = 0;
        for n in 0..sent {
            let job = rig.completed(&format!("{mark}{n}")).await;
            assert_eq!(
                (&job["result"], &job["deliveryCount"]),
                (&whole("A"), &json!(1)),
                "{job}"
            );
            spoiled += usize::from(
                job["attempts"][0]["logs"]
                    .to_string()
                    .contains("the canary sha256:"),
            );
        }
        // Those that were under way when it was judged come on top.
        assert!((4..=64).contains(&spoiled), "{spoiled}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_is_as_good_is_promoted_through_chaos_and_poison() {
    let keys = format!(
        "{FEW_RETRIES}\nmax_attempts = 4\nconcurrency = 64\nchaos = {{ failure_rate = 0.2, seed = 5 }}"
    );
    let rig = up(&keys);
    let good = marks("B");
    swapped(&rig, WORKER, "?canary=50%25", good.clone()).await;
    let payload = |n: usize| match n % 50 {
        7 => json!({ "ms": 1, "poison": 1 }),
        _ => json!({ "ms": 1 }),
    };
    let sent = feed(&rig, "g", payload).await;
    let now = seen(&rig, WORKER).await;
    assert_eq!(now["digest"], digest(&good), "{now}");
    let told = version(&now, &good)["told"].as_str().unwrap();
    assert!(
        told.contains("it is no worse") && told.contains("failed on both"),
        "{told}"
    );
    println!("{sent} jobs: {told}");
    for n in (0..sent).step_by(50) {
        rig.job_in(&format!("g{}", n + 1), &["completed"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_would_die_is_tried_on_the_candidate_first() {
    let (dir, text) = own_file("max_attempts = 1");
    std::fs::write(dir.path().join("worker.wasm"), marks("dead")).unwrap();
    let rig = Rig::start_in(dir, Way::quiet(), &text);
    let good = marks("B");
    swapped(&rig, WORKER, "?canary=50%25", good.clone()).await;
    let sent = feed(&rig, "d", |_| json!({ "ms": 1 })).await;
    assert_eq!(seen(&rig, WORKER).await["digest"], digest(&good));
    let mut dead = 0;
    for n in 0..sent {
        let job = rig.job_in(&format!("d{n}"), &["completed", "dead"]).await;
        assert_eq!(job["deliveryCount"], 1, "{job}");
        match job["state"] == "completed" {
            true => assert_eq!(job["result"], whole("B")),
            false => dead += 1,
        }
    }
    // Between judgement and publication the current version has the last word.
    assert!(dead <= 64, "{dead} of {sent} died");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_is_slow_is_rolled_back() {
    let rig = up("concurrency = 16");
    let slow = marks("slow");
    swapped(&rig, WORKER, "?canary=50%25", slow.clone()).await;
    feed(&rig, "s", |_| json!({ "ms": 10 })).await;
    let now = seen(&rig, WORKER).await;
    assert_eq!(now["digest"], digest(&marks("A")), "{now}");
    let told = version(&now, &slow)["told"].as_str().unwrap();
    assert!(told.starts_with("it is slower"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_can_be_accepted_taken_back_replaced_and_ends_with_the_host() {
    let (dir, text) = own_file("canary = \"10%\"");
    let mut rig = Rig::start_in(dir, Way::quiet(), &text);
    let (a, b, c) = (marks("A"), marks("B"), marks("C"));
    // As the manifest says, also by the file.
    std::fs::write(rig.dir().join("worker.wasm"), &b).unwrap();
    until(&rig, WORKER, |now| now["canary"]["digest"] == digest(&b)).await;
    swapped(&rig, WORKER, "", c.clone()).await;
    let now = seen(&rig, WORKER).await;
    assert_eq!(now["canary"]["digest"], digest(&c));
    assert_eq!(version(&now, &b)["told"], "a newer candidate came");
    let status = rig.command(&["status"]);
    assert!(
        status.printed.contains("canary of jobs-worker"),
        "{status:?}"
    );
    assert_eq!(rig.command(&["promote", WORKER]).code, 0);
    assert_eq!(result(&rig, "c", json!({ "ms": 0 })).await, whole("C"));

    swapped(&rig, WORKER, "?canary=50%25", b.clone()).await;
    assert_eq!(rig.command(&["rollback", WORKER]).code, 0);
    let now = seen(&rig, WORKER).await;
    assert_eq!(
        (&now["digest"], &now["canary"]),
        (&json!(digest(&c)), &Value::Null)
    );
    let all_at_once = swapped(&rig, WORKER, "?canary=0%25", a.clone()).await;
    assert_eq!(all_at_once["outcome"], "promoted");

    swapped(&rig, WORKER, "?canary=50%25", b.clone()).await;
    rig.kill_and_restart();
    let now = seen(&rig, WORKER).await;
    assert_eq!(
        (&now["digest"], &now["canary"]),
        (&json!(digest(&a)), &Value::Null)
    );
    assert_eq!(version(&now, &b)["outcome"], "rolled-back");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_waits_for_the_judgement_and_ends_as_it_does() {
    let rig = Arc::new(up(FEW_RETRIES));
    std::fs::write(rig.dir().join("bad.wasm"), marks("trap")).unwrap();
    let feeding = {
        let rig = rig.clone();
        tokio::spawn(async move {
            until(&rig, WORKER, |now| !now["canary"].is_null()).await;
            feed(&rig, "w", |_| json!({ "ms": 1 })).await
        })
    };
    let command = {
        let rig = rig.clone();
        tokio::task::spawn_blocking(move || {
            rig.command(&["swap", WORKER, "bad.wasm", "--canary", "50%"])
        })
    };
    let ran = command.await.unwrap();
    feeding.await.unwrap();
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.said.contains("rolled back: it fails more often"),
        "{ran:?}"
    );
    let ran = rig.command(&["swap", WORKER, "bad.wasm", "--canary", "70%"]);
    assert!(
        ran.code == 64 && ran.said.contains("at most `50%`"),
        "{ran:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_an_event_as_it_happens() {
    let rig = up("");
    let url = format!("{}/v1/events", rig.ops_url());
    let mut events = rig.client().get(url).send().await.unwrap();
    swapped(&rig, WORKER, "", marks("B")).await;
    put(&rig, WORKER, "", b"bad".to_vec()).await;
    rig.command(&["rollback", WORKER]);
    let (mut text, wanted) = (
        String::new(),
        ["candidate", "promoted", "refused", "rolled-back"],
    );
    let is_told = |text: &str, step| text.contains(&format!("\"step\":\"{step}\""));
    while !wanted.iter().all(|step| is_told(&text, step)) {
        let chunk = tokio::time::timeout(PATIENCE, events.chunk()).await;
        text += &String::from_utf8_lossy(&chunk.expect(&text).unwrap().unwrap());
    }
    assert!(
        text.contains("event: component") && text.contains("compileUs"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_trusted_keys_only_signed_versions_run() {
    let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    let sign = |bytes: &[u8], path: &Path| {
        let signature = minisign::sign(None, &pair.sk, bytes, None, None).unwrap();
        std::fs::write(path.with_extension("wasm.minisig"), signature.into_string()).unwrap();
    };
    let (dir, text) = own_file("");
    let state = dir.path().join(".spin/orchestrator");
    std::fs::create_dir_all(&state).unwrap();
    let keys = format!("trusted_keys = [\"{}\"]", pair.pk.to_base64());
    std::fs::write(state.join("components.toml"), keys).unwrap();
    // The ingest component is the sample's own file, which is not to be written beside.
    let ingest = std::fs::read(component("ingest")).unwrap();
    std::fs::write(dir.path().join("ingest.wasm"), &ingest).unwrap();
    let text = text.replace(&component("ingest"), "ingest.wasm");
    sign(&ingest, &dir.path().join("ingest.wasm"));
    sign(&marks("A"), &dir.path().join("worker.wasm"));
    let mut rig = Rig::start_in(dir, Way::quiet(), &text);
    let (status, problem) = put(&rig, WORKER, "", marks("B")).await;
    assert!(status == 422 && problem["detail"].as_str().unwrap().contains("no signature"));
    let file = rig.dir().join("new.wasm");
    std::fs::write(&file, marks("B")).unwrap();
    sign(&marks("C"), &file);
    let ran = rig.command(&["swap", WORKER, "new.wasm"]);
    assert!(
        ran.code == 1 && ran.said.contains("of other bytes"),
        "{ran:?}"
    );
    sign(&marks("B"), &file);
    let ran = rig.command(&["swap", WORKER, "new.wasm"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    // The file first and its signature later, as `minisign` does it.
    let file = rig.dir().join("worker.wasm");
    std::fs::write(&file, marks("D")).unwrap();
    until(&rig, WORKER, |now| {
        version(now, &marks("D"))["outcome"] == "refused"
    })
    .await;
    sign(&marks("D"), &file);
    until_runs(&rig, &marks("D")).await;
    let ran = rig.command(&["swap", WORKER, "new.wasm"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    rig.kill_and_restart();
    assert_eq!(result(&rig, "b", json!({ "ms": 0 })).await, whole("B"));
}
