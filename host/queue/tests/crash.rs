//! What the disk holds after a crash: the store's directory is copied at each
//! sync point, and torn in between, then opened again.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use orchestrator_queue::local::{Broker, BrokerOptions, Clock, Queue};
use orchestrator_queue::*;

fn options(dir: &Path) -> BrokerOptions {
    let queue = QueueConfig {
        name: "jobs".to_owned(),
        lock_duration: Duration::from_secs(30),
        max_delivery_count: 10,
        duplicate_window: Duration::from_secs(600),
        time_to_live: None,
        dead_letter_expired: true,
        max_bytes: 1 << 30,
        retention: Retention {
            age: Duration::from_secs(3_600),
            count: 10_000,
            bytes: 1 << 30,
        },
    };
    BrokerOptions {
        dir: dir.to_owned(),
        queues: vec![queue],
        free_disk_bytes_min: 0,
    }
}

fn open(dir: &Path) -> (Broker, Queue) {
    let (broker, _) = Broker::open(options(dir), Clock::machine()).unwrap();
    let queue = broker.queue("jobs").unwrap();
    (broker, queue)
}

/// A copy as the disk would show it. Files are sparse: holes stay zeros.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn message(n: usize) -> Message {
    Message {
        id: format!("m{n}"),
        job_type: String::new(),
        payload: vec![u8::try_from(n % 251).unwrap(); 300 + n].into(),
        content_type: String::new(),
        properties: Vec::new(),
        traceparent: None,
        delay: Duration::ZERO,
        time_to_live: None,
        envelope: Bytes::new(),
    }
}

/// What was acknowledged so far.
#[derive(Clone, Default)]
struct Acknowledged {
    waiting: BTreeSet<usize>,
    completed: BTreeSet<usize>,
    dead: BTreeSet<usize>,
}

async fn check(dir: &Path, acknowledged: &Acknowledged) {
    let (broker, queue) = open(dir);
    for (set, allowed) in [
        (&acknowledged.waiting, None),
        (&acknowledged.completed, Some(JobState::Completed)),
        (&acknowledged.dead, Some(JobState::Dead)),
    ] {
        for n in set {
            let job = queue.job(&format!("m{n}")).await.unwrap();
            let job = job.unwrap_or_else(|| panic!("m{n} was acknowledged and is lost"));
            if let Some(allowed) = allowed {
                assert_eq!(job.state, allowed, "m{n}");
            }
        }
    }
    // Nothing settled comes back, and every body is what was sent.
    let ready = queue.stats().await.ready;
    let mut seen = BTreeSet::new();
    while (seen.len() as u64) < ready {
        for delivery in queue.receive(64).await.unwrap() {
            let n: usize = delivery.message.id[1..].parse().unwrap();
            assert_eq!(delivery.message.payload, message(n).payload, "m{n}");
            assert!(
                !acknowledged.completed.contains(&n) && !acknowledged.dead.contains(&n),
                "m{n} came back"
            );
            assert!(seen.insert(n), "m{n} is there twice");
        }
    }
    broker.close().await;
}

async fn step(queue: &Queue, n: usize, acknowledged: &mut Acknowledged) {
    queue.send(message(n)).await.unwrap();
    acknowledged.waiting.insert(n);
    if n.is_multiple_of(2) {
        return;
    }
    let delivery = queue.receive(1).await.unwrap().pop().unwrap();
    let taken: usize = delivery.message.id[1..].parse().unwrap();
    let settlement = match n % 3 {
        0 => Settlement::DeadLetter {
            reason: "r".to_owned(),
            description: "d".to_owned(),
        },
        1 => Settlement::Retry {
            delay: Duration::ZERO,
        },
        _ => Settlement::Complete {
            output: Output::default(),
        },
    };
    queue.settle(delivery.lock, settlement, None).await.unwrap();
    match n % 3 {
        0 => acknowledged.dead.extend(acknowledged.waiting.take(&taken)),
        1 => {}
        _ => acknowledged
            .completed
            .extend(acknowledged.waiting.take(&taken)),
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_on_the_disk_at_every_sync_point() {
    let (live, images) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (broker, queue) = open(live.path());
    let mut acknowledged = Acknowledged::default();
    for n in 0..24 {
        step(&queue, n, &mut acknowledged).await;
        let image = images.path().join(n.to_string());
        copy(live.path(), &image);
        check(&image, &acknowledged).await;
        std::fs::remove_dir_all(image).unwrap();
    }
    broker.close().await;
}

/// The newest journal, and how far it is written: it is allocated ahead, with zeros.
fn journal(dir: &Path) -> (std::path::PathBuf, usize) {
    let mut journals: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jnl"))
        .collect();
    journals.sort();
    let newest = journals.pop().expect("the store has a journal");
    let bytes = std::fs::read(&newest).unwrap();
    let written = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    (newest, written)
}

#[tokio::test]
async fn a_write_torn_at_any_byte_loses_nothing_acknowledged_before_it() {
    let (live, images) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (broker, queue) = open(live.path());
    let mut acknowledged = Acknowledged::default();
    for n in 0..8 {
        step(&queue, n, &mut acknowledged).await;
    }
    let (_, synced) = journal(live.path());
    let before = acknowledged.clone();
    step(&queue, 8, &mut acknowledged).await;
    let whole = images.path().join("whole");
    copy(live.path(), &whole);
    let (_, end) = journal(&whole);
    assert!(end > synced, "the last step wrote to the journal");
    for cut in (synced..end).step_by(((end - synced) / 12).max(1)) {
        for garbage in [false, true] {
            let image = images.path().join(format!("{cut}-{garbage}"));
            copy(&whole, &image);
            let (path, _) = journal(&image);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[cut..end].fill(if garbage { 0xA5 } else { 0 });
            std::fs::write(&path, bytes).unwrap();
            check(&image, &before).await;
            std::fs::remove_dir_all(image).unwrap();
        }
    }
    broker.close().await;
}
