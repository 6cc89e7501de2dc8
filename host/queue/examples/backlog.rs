//! How the embedded queue bears a backlog: fills it, is killed, opens again.
//!
//! `cargo run --release -p orchestrator-queue --example backlog -- [messages]`
//! (default: a million of 1 KB). Prints what each step took and what memory the
//! process had. Linux; files lie in the directory for temporary files.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use orchestrator_queue::local::{Broker, BrokerOptions, Clock, Queue};
use orchestrator_queue::{Attempt, Message, Output, QueueConfig, Retention, Settlement};

const PAYLOAD_BYTES: usize = 1_024;
const MESSAGES_DEFAULT: usize = 1_000_000;
const SENT_AT_ONCE: usize = 1_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    let runtime = tokio::runtime::Runtime::new()?;
    if first.as_deref() == Some("fill") {
        let dir = arguments.next().ok_or("no directory")?;
        let count = arguments.next().ok_or("no count")?.parse()?;
        return runtime.block_on(fill(Path::new(&dir), count));
    }
    let count = first.map_or(Ok(MESSAGES_DEFAULT), |count| count.parse())?;
    let dir = tempfile::tempdir()?;
    // Another process fills the queue and dies by SIGKILL.
    let mut filler = Command::new(std::env::current_exe()?)
        .arg("fill")
        .arg(dir.path())
        .arg(count.to_string())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = std::io::BufReader::new(filler.stdout.take().ok_or("no stdout")?);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line)?;
    print!("{line}");
    filler.kill()?;
    filler.wait()?;
    runtime.block_on(recover(dir.path()))
}

async fn fill(dir: &Path, count: usize) -> Result<(), Box<dyn std::error::Error>> {
    let began = Instant::now();
    let (_broker, queue, _) = open(dir)?;
    for first in (0..count).step_by(SENT_AT_ONCE) {
        let messages = (first..count.min(first + SENT_AT_ONCE)).map(message);
        for sent in queue.send_many(messages.collect()).await {
            sent?;
        }
    }
    println!(
        "filled with {count}: {:?}, {} MiB resident",
        began.elapsed(),
        resident_mib()?
    );
    // Until killed.
    std::future::pending().await
}

async fn recover(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (broker, queue, recovery) = open(dir)?;
    println!(
        "opened after kill -9 with {} waiting: {:?}, {} MiB resident",
        recovery.waiting,
        recovery.took,
        resident_mib()?
    );
    let began = Instant::now();
    let deliveries = queue.receive(SENT_AT_ONCE).await?;
    println!(
        "first {} deliveries: {:?}",
        deliveries.len(),
        began.elapsed()
    );
    let began = Instant::now();
    let mut count = 0;
    let mut hand = deliveries;
    while !hand.is_empty() {
        let settles = hand.into_iter().map(|delivery| {
            let settlement = Settlement::Complete {
                output: Output::default(),
            };
            tokio::spawn(settle(queue.clone(), delivery.lock, settlement))
        });
        for settled in settles.collect::<Vec<_>>() {
            settled.await??;
            count += 1;
        }
        hand = match tokio::time::timeout(Duration::from_millis(100), queue.receive(SENT_AT_ONCE))
            .await
        {
            Ok(received) => received?,
            Err(_) => Vec::new(),
        };
    }
    println!(
        "worked off {count}: {:?}, {} MiB resident",
        began.elapsed(),
        resident_mib()?
    );
    broker.close().await;
    Ok(())
}

async fn settle(
    queue: Queue,
    lock: orchestrator_queue::Lock,
    settlement: Settlement,
) -> Result<(), orchestrator_queue::SettleError> {
    queue
        .settle(lock, settlement, Some(Attempt::default()))
        .await
}

fn open(
    dir: &Path,
) -> Result<(Broker, Queue, orchestrator_queue::local::Recovery), Box<dyn std::error::Error>> {
    let options = BrokerOptions {
        dir: dir.to_owned(),
        queues: vec![QueueConfig {
            name: "q".to_owned(),
            lock_duration: Duration::from_secs(300),
            max_delivery_count: 10,
            duplicate_window: Duration::from_secs(600),
            time_to_live: None,
            dead_letter_expired: true,
            max_bytes: u64::MAX,
            retention: Retention {
                age: Duration::from_secs(3600),
                count: 100_000,
                bytes: 256 << 20,
            },
        }],
        free_disk_bytes_min: 0,
    };
    let (broker, recovery) = Broker::open(options, Clock::machine())?;
    let queue = broker.queues()[0].clone();
    Ok((broker, queue, recovery))
}

fn message(n: usize) -> Message {
    let mut payload = n.to_string().into_bytes();
    payload.resize(PAYLOAD_BYTES, b'.');
    Message {
        id: format!("m{n}"),
        job_type: "backlog".to_owned(),
        payload: Bytes::from(payload),
        content_type: "text/plain".to_owned(),
        properties: Vec::new(),
        traceparent: None,
        delay: Duration::ZERO,
        time_to_live: None,
        envelope: Bytes::new(),
    }
}

fn resident_mib() -> Result<usize, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .ok_or("no VmRSS")?;
    let kib: usize = line.split_whitespace().nth(1).ok_or("no value")?.parse()?;
    Ok(kib / 1024)
}
