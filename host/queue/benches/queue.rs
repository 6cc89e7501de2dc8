//! The embedded queue alone: durable sends, and deliveries settled.
//!
//! `cargo bench -p orchestrator-queue`. Its files lie in the directory for
//! temporary files: set `TMPDIR` to measure another disk than that one's.
#![allow(clippy::unwrap_used, reason = "a bench that cannot run should stop")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use orchestrator_queue::local::{Broker, BrokerOptions, Clock, Queue};
use orchestrator_queue::{Attempt, Message, Output, QueueConfig, Retention, Settlement};
use tokio::task::JoinSet;

const PAYLOAD_BYTES: usize = 1_024;
/// Messages received at a time.
const RECEIVED_AT_ONCE: usize = 64;

fn config() -> QueueConfig {
    QueueConfig {
        name: "bench".to_owned(),
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
    }
}

fn open(dir: &std::path::Path) -> (Broker, Queue) {
    let options = BrokerOptions {
        dir: dir.to_owned(),
        queues: vec![config()],
        free_disk_bytes_min: 0,
    };
    let (broker, _) = Broker::open(options, Clock::machine()).unwrap();
    let queue = broker.queues()[0].clone();
    (broker, queue)
}

fn message(n: u64) -> Message {
    Message {
        id: format!("m{n}"),
        job_type: "bench".to_owned(),
        payload: Bytes::from(vec![b'x'; PAYLOAD_BYTES]),
        content_type: "text/plain".to_owned(),
        properties: Vec::new(),
        traceparent: None,
        delay: Duration::ZERO,
        time_to_live: None,
        envelope: Bytes::new(),
    }
}

/// Sends `count` messages from `senders` tasks.
async fn send(queue: &Queue, first: u64, count: u64, senders: u64) {
    let mut tasks = JoinSet::new();
    for sender in 0..senders.min(count) {
        let queue = queue.clone();
        tasks.spawn(async move {
            for n in (first + sender..first + count).step_by(usize::try_from(senders).unwrap()) {
                queue.send(message(n)).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
}

/// Receives and completes `count` messages.
async fn settle(queue: &Queue, count: u64) {
    let mut tasks = JoinSet::new();
    let mut left = usize::try_from(count).unwrap();
    while left > 0 {
        let deliveries = queue.receive(left.min(RECEIVED_AT_ONCE)).await.unwrap();
        left -= deliveries.len();
        for delivery in deliveries {
            let queue = queue.clone();
            tasks.spawn(async move {
                let output = Output::default();
                let settlement = Settlement::Complete { output };
                let attempt = Some(Attempt::default());
                queue
                    .settle(delivery.lock, settlement, attempt)
                    .await
                    .unwrap();
            });
        }
    }
    tasks.join_all().await;
}

fn benches(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (broker, queue) = runtime.block_on(async { open(dir.path()) });
    let mut first = 0;
    let mut group = criterion.benchmark_group("queue");
    group.throughput(Throughput::Elements(1)).sample_size(20);
    for senders in [1, 64, 512] {
        group.bench_function(format!("enqueue/{senders}"), |bencher| {
            bencher.iter_custom(|count| {
                let began = Instant::now();
                runtime.block_on(send(&queue, first, count, senders));
                let took = began.elapsed();
                first += count;
                // What was sent must not be what the next round works on.
                runtime.block_on(settle(&queue, count));
                took
            });
        });
    }
    group.bench_function("receive_settle", |bencher| {
        bencher.iter_custom(|count| {
            runtime.block_on(send(&queue, first, count, 512));
            first += count;
            let began = Instant::now();
            runtime.block_on(settle(&queue, count));
            began.elapsed()
        });
    });
    group.finish();
    runtime.block_on(broker.close());
}

criterion_group!(queue, benches);
criterion_main!(queue);
