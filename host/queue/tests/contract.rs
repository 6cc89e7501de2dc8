//! The peek-lock contract, kept by the embedded engine on a real directory.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::time::Duration;

use bytes::Bytes;

use orchestrator_queue::local::{Broker, BrokerOptions, Clock, ManualClock, OpenError, Queue};
use orchestrator_queue::*;

const SECOND: Duration = Duration::from_secs(1);
const START: Millis = 1_700_000_000_000;

struct Rig {
    broker: Broker,
    queue: Queue,
    clock: ManualClock,
    dir: tempfile::TempDir,
}

fn config() -> QueueConfig {
    QueueConfig {
        name: "jobs".to_owned(),
        lock_duration: 30 * SECOND,
        max_delivery_count: 3,
        duplicate_window: 600 * SECOND,
        time_to_live: None,
        dead_letter_expired: true,
        max_bytes: 1 << 30,
        retention: Retention {
            age: 3_600 * SECOND,
            count: 100,
            bytes: 1 << 20,
        },
    }
}

fn options(dir: &tempfile::TempDir, config: QueueConfig) -> BrokerOptions {
    BrokerOptions {
        dir: dir.path().to_owned(),
        queues: vec![config],
        free_disk_bytes_min: 0,
    }
}

fn rig(config: QueueConfig) -> Rig {
    open(tempfile::tempdir().unwrap(), config, START)
}

fn open(dir: tempfile::TempDir, config: QueueConfig, now: Millis) -> Rig {
    let (time, clock) = Clock::manual(now);
    let (broker, _) = Broker::open(options(&dir, config), time).unwrap();
    let queue = broker.queue("jobs").unwrap();
    Rig {
        broker,
        queue,
        clock,
        dir,
    }
}

impl Rig {
    async fn reopen(self, config: QueueConfig, now: Millis) -> Self {
        drop(self.queue);
        self.broker.close().await;
        open(self.dir, config, now)
    }

    async fn take(&self) -> Delivery {
        self.queue.receive(1).await.unwrap().pop().unwrap()
    }

    async fn state(&self, id: &str) -> JobState {
        self.queue.job(id).await.unwrap().unwrap().state
    }
}

fn message(id: &str) -> Message {
    Message {
        id: id.to_owned(),
        job_type: "demo".to_owned(),
        payload: format!("payload of {id}").into_bytes().into(),
        content_type: "text/plain".to_owned(),
        properties: vec![("k".to_owned(), "v".to_owned())],
        traceparent: None,
        delay: Duration::ZERO,
        time_to_live: None,
        envelope: Bytes::new(),
    }
}

fn done() -> Settlement {
    Settlement::Complete {
        output: Output {
            body: b"ok".to_vec(),
            content_type: "text/plain".to_owned(),
        },
    }
}

fn attempt(number: u32) -> Attempt {
    Attempt {
        number,
        outcome: "trap".to_owned(),
        ..Attempt::default()
    }
}

#[tokio::test]
async fn a_message_is_delivered_whole_and_completed_once() {
    let rig = rig(config());
    rig.queue.send(message("a")).await.unwrap();
    let delivery = rig.take().await;
    assert_eq!(delivery.message, message("a"));
    assert_eq!((delivery.delivery_count, delivery.enqueued_at), (1, START));
    let again = Lock {
        ..clone(&delivery.lock)
    };
    rig.queue
        .settle(delivery.lock, done(), Some(attempt(1)))
        .await
        .unwrap();
    assert!(matches!(
        rig.queue.settle(again, done(), None).await,
        Err(SettleError::LockLost)
    ));
    let job = rig.queue.job("a").await.unwrap().unwrap();
    assert_eq!((job.state, job.attempts.len()), (JobState::Completed, 1));
    assert_eq!(job.output.unwrap().body, b"ok");
}

fn clone(lock: &Lock) -> Lock {
    Lock {
        sequence: lock.sequence,
        token: lock.token,
        locked_until: lock.locked_until,
        duration: lock.duration,
    }
}

#[tokio::test]
async fn an_id_known_within_the_window_runs_once() {
    let rig = rig(config());
    assert!(!rig.queue.send(message("a")).await.unwrap().duplicate);
    assert!(rig.queue.send(message("a")).await.unwrap().duplicate);
    let lock = rig.take().await.lock;
    rig.queue.settle(lock, done(), None).await.unwrap();
    assert!(rig.queue.send(message("a")).await.unwrap().duplicate);
    rig.clock.advance(601 * SECOND);
    assert!(!rig.queue.send(message("a")).await.unwrap().duplicate);
}

#[tokio::test]
async fn an_id_stays_a_duplicate_past_the_window_while_its_job_waits() {
    let rig = rig(config());
    rig.queue
        .send(Message {
            delay: 7_200 * SECOND,
            ..message("a")
        })
        .await
        .unwrap();
    rig.clock.advance(3_600 * SECOND);
    assert!(rig.queue.send(message("a")).await.unwrap().duplicate);
}

#[tokio::test]
async fn a_lock_that_runs_out_makes_its_message_ready_again() {
    let rig = rig(config());
    rig.queue.send(message("a")).await.unwrap();
    let first = rig.take().await;
    assert_eq!(rig.state("a").await, JobState::Running);
    rig.clock.advance(31 * SECOND);
    let second = rig.take().await;
    assert_eq!(second.delivery_count, 2);
    assert!(matches!(
        rig.queue.settle(first.lock, done(), None).await,
        Err(SettleError::LockLost)
    ));
    rig.queue.settle(second.lock, done(), None).await.unwrap();
}

#[tokio::test]
async fn a_renewed_lock_lasts_its_length_from_the_renewal() {
    let rig = rig(config());
    rig.queue.send(message("a")).await.unwrap();
    let delivery = rig.take().await;
    rig.clock.advance(20 * SECOND);
    assert_eq!(rig.queue.renew(&delivery.lock).await, Ok(START + 50_000));
    rig.clock.advance(20 * SECOND);
    rig.queue.settle(delivery.lock, done(), None).await.unwrap();
}

#[tokio::test]
async fn a_retry_waits_for_its_delay_and_keeps_its_history() {
    let rig = rig(config());
    rig.queue.send(message("a")).await.unwrap();
    let lock = rig.take().await.lock;
    rig.queue
        .settle(
            lock,
            Settlement::Retry { delay: 5 * SECOND },
            Some(attempt(1)),
        )
        .await
        .unwrap();
    assert_eq!(rig.queue.stats().await.scheduled, 1);
    let waiting = rig.queue.receive(1);
    tokio::pin!(waiting);
    rig.clock.advance(4 * SECOND);
    assert!(futures_pending(&mut waiting).await);
    rig.clock.advance(SECOND);
    let delivery = waiting.await.unwrap().pop().unwrap();
    assert_eq!(delivery.delivery_count, 2);
    assert_eq!(
        rig.queue.job("a").await.unwrap().unwrap().attempts,
        [attempt(1)]
    );
}

/// True if the future is not ready after the queue has answered another call.
async fn futures_pending<F: Future + Unpin>(future: &mut F) -> bool {
    tokio::select! {
        biased;
        _ = future => false,
        () = std::future::ready(()) => true,
    }
}

#[tokio::test]
async fn what_is_given_back_is_not_counted_and_keeps_its_place() {
    let rig = rig(config());
    for id in ["a", "b"] {
        rig.queue.send(message(id)).await.unwrap();
    }
    let lock = rig.take().await.lock;
    rig.queue
        .settle(lock, Settlement::Release, None)
        .await
        .unwrap();
    let delivery = rig.take().await;
    assert_eq!(
        (delivery.message.id.as_str(), delivery.delivery_count),
        ("a", 1)
    );
}

#[tokio::test]
async fn a_receive_that_is_dropped_gives_back_what_it_was_given() {
    let rig = rig(config());
    for _ in 0..50 {
        let queue = rig.queue.clone();
        let receiving = tokio::spawn(async move { queue.receive(1).await });
        tokio::task::yield_now().await;
        receiving.abort();
    }
    rig.queue.send(message("a")).await.unwrap();
    let delivery = rig.take().await;
    assert_eq!(delivery.delivery_count, 1);
}

#[tokio::test]
async fn a_message_delivered_too_often_without_an_end_is_dead() {
    let rig = rig(config());
    rig.queue.send(message("a")).await.unwrap();
    for _ in 0..3 {
        rig.take().await;
        rig.clock.advance(31 * SECOND);
    }
    rig.queue.send(message("b")).await.unwrap();
    assert_eq!(rig.take().await.message.id, "b");
    let dead = rig.queue.dead(None, 10).await.unwrap();
    assert_eq!(
        dead[0].dead_letter.as_ref().unwrap().reason,
        REASON_MAX_DELIVERY_COUNT
    );
}

#[tokio::test]
async fn a_message_past_its_time_to_live_is_dead_unrun() {
    let rig = rig(QueueConfig {
        time_to_live: Some(10 * SECOND),
        ..config()
    });
    rig.queue.send(message("a")).await.unwrap();
    rig.clock.advance(10 * SECOND);
    rig.queue.send(message("b")).await.unwrap();
    assert_eq!(rig.take().await.message.id, "b");
    let dead = rig.queue.dead(None, 10).await.unwrap();
    assert_eq!(
        dead[0].dead_letter.as_ref().unwrap().reason,
        REASON_TTL_EXPIRED
    );
}

#[tokio::test]
async fn dead_letters_are_brought_back_with_fresh_attempts_or_thrown_away() {
    let rig = rig(config());
    for id in ["a", "b"] {
        rig.queue.send(message(id)).await.unwrap();
        let letter = Settlement::DeadLetter {
            reason: "Bad".to_owned(),
            description: "no".to_owned(),
        };
        let lock = rig.take().await.lock;
        rig.queue
            .settle(lock, letter, Some(attempt(1)))
            .await
            .unwrap();
    }
    assert_eq!(rig.queue.stats().await.dead, 2);
    assert_eq!(
        rig.queue.redrive(Selection::One("a".to_owned())).await,
        Ok(1)
    );
    let delivery = rig.take().await;
    assert_eq!(delivery.delivery_count, 1);
    rig.queue
        .settle(delivery.lock, done(), Some(attempt(1)))
        .await
        .unwrap();
    assert_eq!(rig.queue.job("a").await.unwrap().unwrap().attempts.len(), 2);
    assert_eq!(rig.queue.purge(Selection::All).await, Ok(1));
    assert_eq!(rig.queue.job("b").await.unwrap(), None);
    let stats = rig.queue.stats().await;
    assert_eq!((stats.dead, stats.bytes), (0, 0));
}

#[tokio::test]
async fn a_full_queue_refuses_and_takes_again_once_there_is_room() {
    let rig = rig(QueueConfig {
        max_bytes: 400,
        ..config()
    });
    rig.queue.send(message("a")).await.unwrap();
    rig.queue.send(message("b")).await.unwrap();
    assert!(matches!(
        rig.queue.send(message("c")).await,
        Err(SendError::Full { .. })
    ));
    let lock = rig.take().await.lock;
    rig.queue.settle(lock, done(), None).await.unwrap();
    rig.queue.send(message("c")).await.unwrap();
}

#[tokio::test]
async fn finished_jobs_are_forgotten_oldest_first_beyond_their_bounds() {
    let retention = Retention {
        age: 60 * SECOND,
        count: 2,
        bytes: 1 << 20,
    };
    let rig = rig(QueueConfig {
        retention,
        ..config()
    });
    for id in ["a", "b", "c"] {
        rig.queue.send(message(id)).await.unwrap();
        let lock = rig.take().await.lock;
        rig.queue.settle(lock, done(), None).await.unwrap();
        rig.clock.advance(SECOND);
    }
    // The next batch forgets what is over the bound; this one makes sure there was one.
    rig.queue.send(message("d")).await.unwrap();
    assert_eq!(rig.queue.job("a").await.unwrap(), None);
    assert!(rig.queue.job("c").await.unwrap().is_some());
    assert!(
        rig.queue.send(message("a")).await.unwrap().duplicate,
        "forgotten, but still in its window"
    );
    rig.clock.advance(70 * SECOND);
    rig.queue.send(message("e")).await.unwrap();
    assert_eq!(rig.queue.job("c").await.unwrap(), None);
}

#[tokio::test]
async fn a_restart_unlocks_everything_and_forgets_nothing() {
    let rig = rig(config());
    rig.queue.send(message("a")).await.unwrap();
    rig.queue
        .send(Message {
            delay: 60 * SECOND,
            ..message("later")
        })
        .await
        .unwrap();
    rig.take().await;
    let rig = rig.reopen(config(), START + 1_000).await;
    let stats = rig.queue.stats().await;
    assert_eq!((stats.ready, stats.locked, stats.scheduled), (1, 0, 1));
    let delivery = rig.take().await;
    assert_eq!(
        (delivery.message.id.as_str(), delivery.delivery_count),
        ("a", 2)
    );
}

#[tokio::test]
async fn a_clock_that_went_back_delays_nothing_that_is_due_by_it() {
    let rig = rig(config());
    rig.queue.send(message("a")).await.unwrap();
    rig.queue
        .send(Message {
            delay: 60 * SECOND,
            ..message("later")
        })
        .await
        .unwrap();
    let rig = rig.reopen(config(), START - 3_600_000).await;
    assert_eq!(rig.queue.stats().await.scheduled, 2);
    rig.clock.advance(3_600 * SECOND);
    assert_eq!(rig.take().await.message.id, "a");
    assert_eq!(rig.queue.stats().await.scheduled, 1);
}

#[tokio::test]
async fn one_directory_serves_one_broker_at_a_time() {
    let rig = rig(config());
    let second = Broker::open(options(&rig.dir, config()), Clock::machine());
    assert!(matches!(second, Err(OpenError::Locked(_))));
}

#[tokio::test]
async fn a_nearly_full_disk_takes_no_message_but_settles_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let rig = open(dir, config(), START);
    rig.queue.send(message("a")).await.unwrap();
    drop(rig.queue);
    rig.broker.close().await;
    let full = BrokerOptions {
        free_disk_bytes_min: u64::MAX,
        ..options(&rig.dir, config())
    };
    let (broker, _) = Broker::open(full, Clock::machine()).unwrap();
    let queue = broker.queue("jobs").unwrap();
    assert!(matches!(
        queue.send(message("b")).await,
        Err(SendError::Unavailable(_))
    ));
    let lock = queue.receive(1).await.unwrap().pop().unwrap().lock;
    queue.settle(lock, done(), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_senders_share_one_fsync() {
    let rig = rig(config());
    let before = rig.broker.syncs();
    let sends: Vec<_> = (0..1_000)
        .map(|n| {
            let queue = rig.queue.clone();
            tokio::spawn(async move { queue.send(message(&format!("m{n}"))).await })
        })
        .collect();
    for send in sends {
        send.await.unwrap().unwrap();
    }
    let syncs = rig.broker.syncs() - before;
    assert!(syncs < 500, "{syncs} fsyncs for 1,000 sends");
    assert_eq!(rig.queue.stats().await.ready, 1_000);
}

#[tokio::test]
async fn a_message_over_a_limit_is_refused_with_the_limit() {
    let rig = rig(config());
    for (bad, told) in [
        (
            Message {
                id: String::new(),
                ..message("x")
            },
            "0 characters; 1 to 128",
        ),
        (
            Message {
                id: "a\tb".to_owned(),
                ..message("x")
            },
            "control character",
        ),
        (
            Message {
                payload: vec![0; PAYLOAD_BYTES_MAX + 1].into(),
                ..message("x")
            },
            "1048576",
        ),
        (
            Message {
                delay: DELAY_MAX + SECOND,
                ..message("x")
            },
            "the delay",
        ),
    ] {
        let Err(SendError::Invalid(why)) = rig.queue.send(bad).await else {
            panic!("accepted: {told}")
        };
        assert!(why.contains(told), "{why}");
    }
}

#[tokio::test]
async fn an_abandoned_delivery_comes_back_at_once_in_its_place_and_counts() {
    let rig = rig(config());
    for id in ["a", "b"] {
        rig.queue.send(message(id)).await.unwrap();
    }
    for count in 1..=3 {
        let first = rig.take().await;
        assert_eq!(
            (first.message.id.as_str(), first.delivery_count),
            ("a", count)
        );
        rig.queue
            .settle(first.lock, Settlement::Abandon, None)
            .await
            .unwrap();
    }
    assert_eq!(rig.take().await.message.id, "b");
    let dead = rig.queue.dead_messages(None, 10).await.unwrap();
    assert_eq!(dead[0].message, message("a"));
    assert_eq!(
        (dead[0].delivery_count, dead[0].dead_letter.reason.as_str()),
        (3, REASON_MAX_DELIVERY_COUNT)
    );
    let one = Selection::Sequence(dead[0].sequence);
    assert_eq!(rig.queue.purge(one.clone()).await, Ok(1));
    assert_eq!(rig.queue.purge(one).await, Ok(0));
}

#[tokio::test]
async fn an_expired_message_is_dropped_where_the_queue_says_so() {
    let rig = rig(QueueConfig {
        time_to_live: Some(SECOND),
        dead_letter_expired: false,
        ..config()
    });
    rig.queue.send(message("a")).await.unwrap();
    rig.clock.advance(2 * SECOND);
    rig.queue.send(message("b")).await.unwrap();
    assert_eq!(rig.take().await.message.id, "b");
    let stats = rig.queue.stats().await;
    assert_eq!((stats.dead, stats.ready, stats.locked), (0, 0, 1));
}

#[tokio::test]
async fn an_envelope_comes_back_as_it_was_sent() {
    let rig = rig(config());
    let sent = Message {
        envelope: Bytes::from_static(b"\x00any bytes"),
        ..message("a")
    };
    rig.queue.send(sent.clone()).await.unwrap();
    assert_eq!(rig.take().await.message, sent);
}

#[tokio::test]
async fn a_created_queue_works_at_once_and_after_a_restart_and_is_gone_when_deleted() {
    let rig = rig(config());
    let all = rig.broker.all();
    let settings = QueueConfig {
        name: "Orders".to_owned(),
        ..config()
    };
    let orders = all.create(settings.clone()).await.unwrap();
    assert!(all.create(settings.clone()).await.is_err());
    orders.send(message("a")).await.unwrap();
    orders.send(message("b")).await.unwrap();
    let changed = QueueConfig {
        max_delivery_count: 1,
        ..settings.clone()
    };
    assert!(all.configure(changed.clone()).await.unwrap().is_some());
    assert_eq!(
        all.configure(config()).await.unwrap().map(|_| ()),
        None,
        "the manifest's own"
    );
    drop((orders, all));

    let rig = rig.reopen(config(), START).await;
    let all = rig.broker.all();
    let orders = all.find("orders").unwrap();
    assert_eq!(orders.config(), &changed);
    let delivery = orders.receive(1).await.unwrap().pop().unwrap();
    assert_eq!(delivery.message, message("a"));

    let waiting = tokio::spawn(async move { orders.receive(10).await.map(|taken| taken.len()) });
    assert_eq!(waiting.await.unwrap(), Ok(1));
    let orders = all.find("orders").unwrap();
    assert_eq!(all.delete("ORDERS").await, Ok(true));
    assert_eq!(all.delete("orders").await, Ok(false));
    assert_eq!(all.delete("jobs").await, Ok(false), "the manifest's own");
    assert!(orders.send(message("c")).await.is_err());
    let again = all.create(settings).await.unwrap();
    assert_eq!(again.stats().await, QueueStats::default());
    again.send(message("a")).await.unwrap();
    assert_eq!(again.receive(2).await.unwrap().len(), 1);
}
