//! Memory does not grow with the backlog. Alone in its process, because it
//! looks at the process's memory.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use bytes::Bytes;
use orchestrator_queue::local::{Broker, BrokerOptions, Clock};
use orchestrator_queue::{Message, QueueConfig, Retention};

const MESSAGES: usize = 40_000;
const PAYLOAD_BYTES: usize = 8 * 1024;
/// What the backlog of some 320 MB may add to the process: the store's cache
/// and memtables fill up once, whatever comes after.
const GROWTH_BYTES_MAX: usize = 160 * 1024 * 1024;

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        * 1024
}

fn message(n: usize) -> Message {
    // Unlike its neighbours, so that no compression hides the size.
    let seed = n.to_le_bytes();
    let mut state = u64::from_le_bytes(seed) ^ 0x9e37_79b9_7f4a_7c15;
    let payload: Bytes = (0..PAYLOAD_BYTES)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    Message {
        id: format!("m{n}"),
        job_type: "t".to_owned(),
        payload,
        content_type: "application/octet-stream".to_owned(),
        properties: Vec::new(),
        traceparent: None,
        delay: Duration::ZERO,
        time_to_live: None,
        envelope: Bytes::new(),
    }
}

#[tokio::test]
async fn a_backlog_many_times_the_memory_is_held_and_recovered_within_it() {
    let dir = tempfile::tempdir().unwrap();
    let options = || BrokerOptions {
        dir: dir.path().to_owned(),
        queues: vec![QueueConfig {
            name: "q".to_owned(),
            lock_duration: Duration::from_secs(30),
            max_delivery_count: 10,
            duplicate_window: Duration::from_secs(600),
            time_to_live: None,
            dead_letter_expired: true,
            max_bytes: u64::MAX,
            retention: Retention {
                age: Duration::from_secs(60),
                count: 10,
                bytes: 1 << 20,
            },
        }],
        free_disk_bytes_min: 0,
    };
    let before = resident_bytes();
    let (broker, _) = Broker::open(options(), Clock::machine()).unwrap();
    let queue = broker.queues()[0].clone();
    for first in (0..MESSAGES).step_by(500) {
        let messages = (first..first + 500).map(message).collect();
        for sent in queue.send_many(messages).await {
            sent.unwrap();
        }
    }
    let filled = resident_bytes().saturating_sub(before);
    assert!(
        filled < GROWTH_BYTES_MAX,
        "the backlog takes {filled} bytes of memory"
    );
    drop(queue);
    broker.close().await;

    let (broker, recovery) = Broker::open(options(), Clock::machine()).unwrap();
    assert_eq!(recovery.waiting, MESSAGES as u64);
    let recovered = resident_bytes().saturating_sub(before);
    assert!(
        recovered < GROWTH_BYTES_MAX,
        "recovery takes {recovered} bytes of memory"
    );
    let deliveries = broker.queues()[0].receive(64).await.unwrap();
    assert_eq!(deliveries[0].message, message(0));
    assert_eq!(deliveries[63].message, message(63));
    broker.close().await;
}
