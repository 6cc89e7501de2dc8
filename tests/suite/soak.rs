//! The pipeline for minutes on end, its telemetry with nobody to take it in
//! the first half and with an endpoint in the second:
//!
//! `SOAK_MINUTES=10 cargo test --release -p orchestrator --test suite -- --ignored --nocapture soak`
//!
//! Prints rate, memory and what became of items, row by row. Fails if a job or
//! an item is unaccounted for, or memory grows. Rates are for who reads them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio::sync::watch;

use crate::rig::{Rig, manifest};
use crate::swap::resident;
use crate::telemetry::exporting;

const MINUTES: &str = "SOAK_MINUTES";
const MINUTES_DEFAULT: u64 = 10;
/// Clients that send one job after the other.
const SENDERS: usize = 32;
/// Jobs accepted and not completed, at most: rates are those of a pipeline that
/// keeps up, and no backlog hides in the memory that is looked at.
const OPEN_MAX: u64 = 2_000;
/// Jobs of the first third from which on memory is judged: the store's cache
/// and the memtables of its tables, some 200 MiB, fill up once before.
const WARM_JOBS: u64 = 250_000;
/// Few enough that as many are kept long before the last third.
const FINISHED: &str = "finished_jobs = { count = 10000 }";
/// Between two looks at the host.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// A row of the table is a minute, of a short run a tenth.
const ROW_MAX: Duration = Duration::from_secs(60);
/// How long the last jobs and items may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// By how much the most memory in the last third may exceed that in the middle
/// one: an allocator's noise; a hundred bytes left by each of some hundred
/// thousand jobs would be more.
const GROWTH_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What the host tells of itself.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    accepted: u64,
    completed: u64,
    dead: u64,
    sent: u64,
    dropped_here: u64,
    dropped_there: u64,
    waiting: u64,
}

async fn look(rig: &Rig) -> Seen {
    let (_, text) = rig.ops_text("/metrics").await;
    let value = |series: &str| {
        let found = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let found = found.unwrap_or_else(|| panic!("{series} is missing from {text}"));
        found.parse::<u64>().unwrap()
    };
    let item = |fate: &str| {
        value(&format!(
            "orchestrator_telemetry_items_total{{fate=\"{fate}\"}}"
        ))
    };
    Seen {
        accepted: value("orchestrator_sends_total{queue=\"jobs\",answer=\"accepted\"}"),
        completed: value("orchestrator_job_success_total{queue=\"jobs\"}"),
        dead: value("orchestrator_dead_letters_total{queue=\"jobs\"}"),
        sent: item("sent"),
        dropped_here: item("dropped-here"),
        dropped_there: item("dropped-there"),
        waiting: value("orchestrator_telemetry_waiting_items"),
    }
}

/// Sends jobs while there is room, until told to stop; counts those accepted.
async fn load(
    rig: Arc<Rig>,
    sender: usize,
    open: watch::Receiver<u64>,
    stop: Arc<AtomicBool>,
) -> u64 {
    let mut open = open;
    let mut accepted = 0;
    while !stop.load(Ordering::Relaxed) {
        if open.wait_for(|open| *open < OPEN_MAX).await.is_err() {
            break;
        }
        rig.accepted(&format!("{sender}-{accepted}"), json!({ "n": accepted }))
            .await;
        accepted += 1;
    }
    accepted
}

/// Takes items at this address and counts them.
fn take(socket: TcpSocket, taken: Arc<AtomicU64>) {
    let listener = socket.listen(64).unwrap();
    let count = move |body: Bytes| {
        let items: Vec<Value> = serde_json::from_slice(&body).unwrap();
        taken.fetch_add(items.len() as u64, Ordering::Relaxed);
        async move {
            axum::Json(
                json!({ "itemsReceived": items.len(), "itemsAccepted": items.len(), "errors": [] }),
            )
        }
    };
    let router = axum::Router::new().fallback(count);
    tokio::spawn(async { axum::serve(listener, router).await });
}

#[expect(clippy::cast_precision_loss, reason = "numbers of a table")]
fn row(at: Duration, is_up: bool, took: Duration, before: Seen, now: Seen, resident: u64) {
    let rate = (now.completed - before.completed) as f64 / took.as_secs_f64();
    println!(
        "{:>6.0}s  {:<5} {rate:>9.0}/s {:>7.1} MiB  sent {:>9}  dropped {:>9} here {:>4} there  waiting {:>6}",
        at.as_secs_f64(),
        if is_up { "up" } else { "down" },
        resident as f64 / (1024.0 * 1024.0),
        now.sent,
        now.dropped_here,
        now.dropped_there,
        now.waiting,
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn soak_without_and_with_somebody_to_take_telemetry() {
    let minutes = std::env::var(MINUTES).map_or(MINUTES_DEFAULT, |text| text.parse().unwrap());
    let whole = Duration::from_secs(60 * minutes);
    // Nobody else's, and refused until the second half listens on it.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let way = exporting(&format!("http://{}", socket.local_addr().unwrap()));
    let mut socket = Some(socket);
    let manifest = manifest(&[("jobs", "worker", FINISHED)]);
    let rig = Arc::new(Rig::up_in(&manifest, way));
    let (told, open) = watch::channel(0);
    let stop = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| tokio::spawn(load(rig.clone(), sender, open.clone(), stop.clone())))
        .collect();

    let taken = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let (mut row_began, mut before) = (began, Seen::default());
    let (mut row_resident, mut middle, mut last, mut warm) = (0, 0, 0, 0);
    let mut now = before;
    while began.elapsed() < whole {
        tokio::time::sleep(LOOK_AGAIN).await;
        now = look(&rig).await;
        told.send_replace(now.accepted.saturating_sub(now.completed));
        let at = began.elapsed();
        let memory = resident(rig.process_id());
        row_resident = row_resident.max(memory);
        match at {
            at if at < whole / 3 => warm = now.completed,
            at if at < whole * 2 / 3 => middle = middle.max(memory),
            _ => last = last.max(memory),
        }
        if row_began.elapsed() >= ROW_MAX.min(whole / 10) {
            row(
                at,
                socket.is_none(),
                row_began.elapsed(),
                before,
                now,
                row_resident,
            );
            (row_began, before, row_resident) = (Instant::now(), now, 0);
        }
        if at >= whole / 2
            && let Some(socket) = socket.take()
        {
            assert_eq!(now.sent, 0, "nobody took anything yet");
            take(socket, taken.clone());
        }
    }
    stop.store(true, Ordering::Relaxed);
    // Whoever waits for room is to see that it is over.
    told.send_replace(0);
    let mut accepted = 0;
    for sender in senders {
        accepted += sender.await.unwrap();
    }
    let ending = Instant::now();
    while now.completed < accepted || now.waiting > 0 {
        assert!(ending.elapsed() < PATIENCE, "{accepted} accepted, {now:?}");
        tokio::time::sleep(LOOK_AGAIN).await;
        now = look(&rig).await;
    }
    println!(
        "accepted {accepted}, {now:?}, taken {}",
        taken.load(Ordering::Relaxed)
    );
    #[expect(clippy::cast_precision_loss, reason = "for who reads it")]
    let per_job = (now.sent + now.dropped_here) as f64 / accepted as f64;
    println!("items of a job: {per_job:.2}; the SDK's own drops make it less than 5");
    println!("memory: {middle} bytes at most in the middle third, {last} in the last");
    assert_eq!(
        (now.accepted, now.completed, now.dead),
        (accepted, accepted, 0)
    );
    // What the SDK itself dropped is not known: the host's counts are of items.
    assert!(now.sent > 0 && now.dropped_there == 0, "{now:?}");
    let taken = taken.load(Ordering::Relaxed);
    assert!(taken >= now.sent, "{taken} taken, {now:?}");
    if warm < WARM_JOBS {
        println!("memory is not judged: {warm} jobs in the first third, {WARM_JOBS} needed");
        return;
    }
    let is_flat = last <= middle + GROWTH_BYTES_MAX;
    assert!(is_flat, "memory grew from {middle} to {last} bytes");
}
