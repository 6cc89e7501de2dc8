//! The queue contract: one suite for every engine, and for every wire between.

use std::collections::BTreeSet;
use std::time::Duration;

use orchestrator_queue::*;

use crate::queue_rig::*;

async fn a_message_is_delivered_whole_and_completed_once(bench: Bench) {
    let mut bytes = message("bytes");
    bytes.payload = vec![0, 159, 146, 150, 255].into();
    for sent in [message("text"), bytes] {
        bench.send(sent.clone()).await;
        let delivery = bench.take().await;
        let came = Message {
            envelope: bytes::Bytes::new(),
            ..delivery.message
        };
        assert_eq!(came, sent);
        assert_eq!(delivery.delivery_count, 1);
        assert_eq!(bench.state(&sent.id).await, JobState::Running);
        let again = Lock {
            ..copy(&delivery.lock)
        };
        bench.settle(delivery.lock, done(), Some(attempt(1))).await;
        assert!(!settle(&bench.queue, again, done(), None).await);
        let job = bench.queue.job(&sent.id).await.unwrap().unwrap();
        assert_eq!(job.state, JobState::Completed);
        assert_eq!(job.output.unwrap().body, b"ok");
        assert_eq!(job.attempts, [attempt(1)]);
    }
    bench.nothing_comes().await;
}

async fn an_id_that_is_sent_again_runs_once(bench: Bench) {
    for _ in 0..3 {
        bench.send(message("same")).await;
    }
    let delivery = bench.take().await;
    bench.settle(delivery.lock, done(), None).await;
    bench.send(message("same")).await;
    bench.nothing_comes().await;
    assert_eq!(bench.state("same").await, JobState::Completed);
}

async fn a_retry_waits_and_counts_and_keeps_its_history(bench: Bench) {
    bench.send(message("r")).await;
    for number in 1..=2 {
        let delivery = bench.take().await;
        assert_eq!(delivery.delivery_count, number);
        let sent = message("r");
        assert_eq!(
            (&delivery.message.id, &delivery.message.payload),
            (&sent.id, &sent.payload)
        );
        assert_eq!(delivery.message.properties, sent.properties);
        let delay = Duration::from_secs(20);
        let settlement = Settlement::Retry { delay };
        bench
            .settle(delivery.lock, settlement, Some(attempt(number)))
            .await;
        assert_eq!(bench.state("r").await, JobState::Retrying);
        bench
            .until(|stats| stats.scheduled == 1 && stats.ready == 0)
            .await;
        bench.clock.advance(delay + Duration::from_secs(2));
    }
    let delivery = bench.take().await;
    bench.settle(delivery.lock, done(), Some(attempt(3))).await;
    let job = bench.queue.job("r").await.unwrap().unwrap();
    assert_eq!(job.attempts, (1..=3).map(attempt).collect::<Vec<_>>());
    assert_eq!(job.state, JobState::Completed);
}

async fn a_scheduled_message_comes_when_it_is_due(bench: Bench) {
    let delay = Duration::from_secs(60);
    bench
        .send(Message {
            delay,
            ..message("later")
        })
        .await;
    assert_eq!(bench.state("later").await, JobState::Scheduled);
    bench.nothing_comes().await;
    bench.clock.advance(delay + Duration::from_secs(1));
    let delivery = bench.take().await;
    assert_eq!(delivery.delivery_count, 1);
    bench.settle(delivery.lock, done(), None).await;
}

async fn a_lock_that_runs_out_makes_the_message_come_again(bench: Bench) {
    bench.send(message("slow")).await;
    let first = bench.take().await;
    bench.clock.advance(LOCK + Duration::from_secs(1));
    let second = bench.take().await;
    assert_eq!((&*second.message.id, second.delivery_count), ("slow", 2));
    assert!(!settle(&bench.queue, first.lock, done(), None).await);
    bench.settle(second.lock, done(), None).await;
    bench
        .until(|stats| {
            *stats
                == QueueStats {
                    locks_lost: stats.locks_lost,
                    ..QueueStats::default()
                }
        })
        .await;
}

async fn a_lock_that_is_renewed_holds(bench: Bench) {
    bench.send(message("long")).await;
    let delivery = bench.take().await;
    for _ in 0..4 {
        bench.clock.advance(LOCK * 2 / 3);
        while let Err(error) = bench.queue.renew(&delivery.lock).await {
            assert!(matches!(error, RenewError::Unavailable(_)), "{error}");
        }
    }
    bench.nothing_comes().await;
    bench.settle(delivery.lock, done(), None).await;
    let stale = bench.another("x").await;
    bench.clock.advance(LOCK + Duration::from_secs(1));
    bench
        .until(|stats| stats.ready + stats.locked == 1 && stats.locks_lost == 0)
        .await;
    loop {
        match bench.queue.renew(&stale).await {
            Err(RenewError::LockLost) => break,
            Err(RenewError::Unavailable(_)) => {}
            Ok(_) => panic!("a lock that ran out was renewed"),
        }
    }
}

async fn what_is_given_back_spends_no_attempt(bench: Bench) {
    bench.send(message("g")).await;
    for _ in 0..5 {
        let delivery = bench.take().await;
        assert_eq!(delivery.delivery_count, 1);
        bench.settle(delivery.lock, Settlement::Release, None).await;
    }
    let delivery = bench.take().await;
    bench.settle(delivery.lock, done(), Some(attempt(1))).await;
    let job = bench.queue.job("g").await.unwrap().unwrap();
    assert_eq!(job.attempts, [attempt(1)]);
}

async fn what_is_abandoned_comes_again_at_once_and_counts(bench: Bench) {
    bench.send(message("a")).await;
    let delivery = bench.take().await;
    bench.settle(delivery.lock, Settlement::Abandon, None).await;
    let delivery = bench.take().await;
    assert_eq!(delivery.delivery_count, 2);
    bench.settle(delivery.lock, done(), None).await;
}

async fn a_dead_letter_keeps_its_reason_and_comes_back_with_fresh_attempts(bench: Bench) {
    for id in ["d1", "d2", "d3"] {
        bench.send(message(id)).await;
        let delivery = bench.take().await;
        bench
            .settle(delivery.lock, dead_letter(), Some(attempt(1)))
            .await;
    }
    bench.nothing_comes().await;
    let dead = bench.queue.dead(None, 10).await.unwrap();
    let mut ids: Vec<&str> = dead.iter().map(|job| job.id.as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["d1", "d2", "d3"]);
    assert_eq!(
        dead[0].dead_letter,
        Some(DeadLetter {
            reason: "BadOrder".to_owned(),
            description: "no such item".to_owned()
        })
    );
    assert_eq!(dead[0].attempts, [attempt(1)]);
    assert_eq!(bench.queue.stats().await.unwrap().dead, 3);

    let one = Selection::One("d2".to_owned());
    assert_eq!(persist(|| bench.queue.redrive(one.clone())).await, 1);
    let delivery = bench.take().await;
    assert_eq!((&*delivery.message.id, delivery.delivery_count), ("d2", 1));
    bench.settle(delivery.lock, done(), None).await;
    assert_eq!(bench.state("d2").await, JobState::Completed);

    let purged = persist(|| bench.queue.purge(Selection::All)).await;
    assert_eq!(purged, 2);
    assert_eq!(persist(|| bench.queue.redrive(Selection::All)).await, 0);
    bench.nothing_comes().await;
}

async fn a_message_that_nobody_settles_ends_as_a_dead_letter_and_can_be_brought_back(bench: Bench) {
    bench.send(message("crasher")).await;
    for number in 1..=3 {
        let delivery = bench.take().await;
        assert_eq!(delivery.delivery_count, number);
        bench.clock.advance(LOCK + Duration::from_secs(1));
    }
    bench.nothing_comes().await;
    bench.until(|stats| stats.dead == 1).await;
    let one = Selection::One("crasher".to_owned());
    assert_eq!(persist(|| bench.queue.redrive(one.clone())).await, 1);
    let delivery = bench.take().await;
    assert_eq!(delivery.delivery_count, 1);
    bench.settle(delivery.lock, done(), None).await;
}

async fn each_of_many_comes_to_one_of_many_hands(bench: Bench) {
    const MANY: usize = 300;
    let messages = (0..MANY).map(|n| message(&format!("m{n}"))).collect();
    for sent in bench.queue.send_many(messages).await {
        sent.unwrap();
    }
    let bench = std::sync::Arc::new(bench);
    let mut seen = BTreeSet::new();
    let mut done_with = tokio::task::JoinSet::new();
    while seen.len() < MANY {
        let deliveries = match bench.queue.receive(16).await {
            Ok(deliveries) => deliveries,
            Err(Unavailable(_)) => continue,
        };
        assert!(deliveries.len() <= 16);
        for delivery in deliveries {
            assert!(seen.insert(delivery.message.id), "delivered twice");
            let bench = bench.clone();
            done_with.spawn(async move { bench.settle(delivery.lock, done(), None).await });
        }
    }
    done_with.join_all().await;
    bench.until(|stats| stats.ready + stats.locked == 0).await;
}

async fn a_receive_that_is_dropped_loses_nothing(bench: Bench) {
    for n in 0..20 {
        let waiting = bench.queue.receive(1);
        // Dropped while it waits, or with a message on its way to it.
        let _ = tokio::time::timeout(Duration::from_millis(n), async {
            let (received, _) = tokio::join!(
                waiting,
                bench.queue.send_many(vec![message(&format!("w{n}"))])
            );
            received
        })
        .await
        .map(|taken| taken.map(std::mem::forget));
    }
    // Each is there, or was taken and is locked, or was never sent.
    let queue = bench.kept.queues.find("jobs").unwrap();
    let held = queue.stats().await;
    bench.clock.advance(LOCK + Duration::from_secs(1));
    let mut seen = BTreeSet::new();
    while seen.len() < usize::try_from(held.ready + held.locked).unwrap() {
        let delivery = bench.take().await;
        seen.insert(delivery.message.id.clone());
        // One that was polled before the clock moved has lost its lock.
        settle(&bench.queue, delivery.lock, done(), None).await;
    }
}

async fn a_message_that_cannot_be_sent_says_so_and_spares_its_neighbours(bench: Bench) {
    let mut wrong = message("wrong");
    wrong.properties = vec![("k".to_owned(), "v".repeat(PROPERTY_VALUE_BYTES_MAX + 1))];
    let sent = bench
        .queue
        .send_many(vec![message("before"), wrong, message("after")])
        .await;
    assert!(sent[0].is_ok() && sent[2].is_ok(), "{sent:?}");
    assert!(matches!(sent[1], Err(SendError::Invalid(_))), "{sent:?}");
    let mut came = BTreeSet::new();
    for _ in 0..2 {
        let delivery = bench.take().await;
        came.insert(delivery.message.id);
        bench.settle(delivery.lock, done(), None).await;
    }
    assert_eq!(came, ["after".to_owned(), "before".to_owned()].into());
}

macro_rules! on_every_engine {
    ($($promise:ident)*) => {
        on!(embedded: $($promise)*);
        on!(over_rest: $($promise)*);
        on!(over_a_bad_wire: $($promise)*);
    };
}

macro_rules! on {
    ($engine:ident: $($promise:ident)*) => {
        mod $engine {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $promise() {
                    super::$promise(super::Bench::$engine().await).await;
                }
            )*
        }
    };
}

on_every_engine! {
    a_message_is_delivered_whole_and_completed_once
    an_id_that_is_sent_again_runs_once
    a_retry_waits_and_counts_and_keeps_its_history
    a_scheduled_message_comes_when_it_is_due
    a_lock_that_runs_out_makes_the_message_come_again
    a_lock_that_is_renewed_holds
    what_is_given_back_spends_no_attempt
    what_is_abandoned_comes_again_at_once_and_counts
    a_dead_letter_keeps_its_reason_and_comes_back_with_fresh_attempts
    a_message_that_nobody_settles_ends_as_a_dead_letter_and_can_be_brought_back
    each_of_many_comes_to_one_of_many_hands
    a_receive_that_is_dropped_loses_nothing
    a_message_that_cannot_be_sent_says_so_and_spares_its_neighbours
}
