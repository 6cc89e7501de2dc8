//! What the wire costs: jobs sent, received and completed, in this process and
//! over REST on loopback, with 1, 8 and 64 of them in flight.
//!
//! `cargo bench -p orchestrator-servicebus`. Both write to the same disk: set
//! `TMPDIR` to measure another one than that for temporary files.
#![allow(clippy::unwrap_used, reason = "a bench that cannot run should stop")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use orchestrator_queue::local::{self, Broker, BrokerOptions, Clock};
use orchestrator_queue::{Delivery, Lock, Message, Output, QueueConfig, Retention, Settlement};
use orchestrator_servicebus::client::{self, Namespace, QueueOptions};
use orchestrator_servicebus::sas::{Rights, Rule, Verifier};
use orchestrator_servicebus::secret::Secret;
use orchestrator_servicebus::server::Server;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const PAYLOAD_BYTES: usize = 1_024;
const IN_FLIGHT: [usize; 3] = [1, 8, 64];

const RETENTION: Retention = Retention {
    age: Duration::from_secs(3_600),
    count: 100_000,
    bytes: 256 << 20,
};

/// A queue for each: polls that wait at one would take the other's messages.
const EMBEDDED: &str = "embedded";
const REST: &str = "rest";

fn config(name: &str) -> QueueConfig {
    QueueConfig {
        name: name.to_owned(),
        lock_duration: Duration::from_secs(300),
        max_delivery_count: 10,
        duplicate_window: Duration::from_secs(600),
        time_to_live: None,
        dead_letter_expired: true,
        max_bytes: u64::MAX,
        retention: RETENTION,
    }
}

/// A queue, either way.
#[derive(Clone)]
enum Queue {
    Embedded(local::Queue),
    Rest(client::Queue),
}

impl Queue {
    async fn send(&self, message: Message) {
        match self {
            Self::Embedded(queue) => drop(queue.send(message).await.unwrap()),
            Self::Rest(queue) => {
                let mut sent = queue.send_many(vec![message]).await;
                sent.remove(0).unwrap();
            }
        }
    }

    async fn receive(&self, max: usize) -> Vec<Delivery> {
        match self {
            Self::Embedded(queue) => queue.receive(max).await.unwrap(),
            Self::Rest(queue) => queue.receive(max).await.unwrap(),
        }
    }

    async fn complete(&self, lock: Lock) {
        let output = Output::default();
        let settlement = Settlement::Complete { output };
        match self {
            Self::Embedded(queue) => queue.settle(lock, settlement, None).await.unwrap(),
            Self::Rest(queue) => queue.settle(lock, settlement, None).await.unwrap(),
        }
    }
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

async fn over_rest(broker: &Broker, state: &std::path::Path) -> Queue {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let rule = Rule {
        name: "k".to_owned(),
        key: Secret::new("secret"),
        rights: Rights {
            listen: true,
            send: true,
            manage: true,
        },
    };
    let server = Server::new(broker.all(), Verifier::new(vec![rule], false));
    tokio::spawn(server.serve(listener, CancellationToken::new()));
    let connection =
        format!("Endpoint=http://{address};SharedAccessKeyName=k;SharedAccessKey=secret");
    let namespace = Namespace::new(&connection.parse().unwrap(), state, RETENTION).unwrap();
    let name = REST.to_owned();
    Queue::Rest(namespace.queue(QueueOptions { name }))
}

/// Each of `in_flight` clients sends its next job when its last one is done.
async fn jobs(queue: &Queue, in_flight: usize, count: u64, next: &Arc<AtomicU64>) -> Duration {
    let began = Instant::now();
    let senders = Arc::new(tokio::sync::Semaphore::new(in_flight));
    let sending = async {
        let mut sends = JoinSet::new();
        for _ in 0..count {
            let permit = senders.clone().acquire_owned().await.unwrap();
            permit.forget();
            let (queue, n) = (queue.clone(), next.fetch_add(1, Ordering::Relaxed));
            sends.spawn(async move { queue.send(message(n)).await });
        }
        sends.join_all().await;
    };
    let working = async {
        let mut works = JoinSet::new();
        let mut taken = 0;
        while taken < count {
            for delivery in queue.receive(in_flight).await {
                taken += 1;
                let (queue, senders) = (queue.clone(), senders.clone());
                works.spawn(async move {
                    queue.complete(delivery.lock).await;
                    senders.add_permits(1);
                });
            }
        }
        works.join_all().await;
    };
    tokio::join!(sending, working);
    began.elapsed()
}

fn bench(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = BrokerOptions {
        dir: dir.path().to_owned(),
        queues: vec![config(EMBEDDED), config(REST)],
        free_disk_bytes_min: 0,
    };
    let (broker, _) = {
        let _in_runtime = runtime.enter();
        Broker::open(options, Clock::machine()).unwrap()
    };
    let next = Arc::new(AtomicU64::new(0));
    let mut group = criterion.benchmark_group("jobs");
    group.throughput(Throughput::Elements(1)).sample_size(20);
    let embedded = Queue::Embedded(broker.queue(EMBEDDED).unwrap());
    let rest = runtime.block_on(over_rest(&broker, state.path()));
    for in_flight in IN_FLIGHT {
        for (name, queue) in [("embedded", &embedded), ("rest", &rest)] {
            group.bench_function(format!("{name}/{in_flight} in flight"), |bencher| {
                bencher.iter_custom(|count| runtime.block_on(jobs(queue, in_flight, count, &next)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
