//! What a bad wire may not do: lose a job, run one without need, make the
//! client hammer the service, or lead it astray.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use orchestrator_queue::*;

use crate::queue_rig::*;
use crate::wire::{Asked, Fate};

fn is_send(asked: &Asked) -> bool {
    asked.method == "POST" && asked.path.ends_with("/messages")
}

fn is_poll(asked: &Asked) -> bool {
    asked.method == "POST" && asked.path.contains("/messages/head")
}

fn is_delete(asked: &Asked) -> bool {
    asked.method == "DELETE"
}

/// The fate of the first request of this kind; the others fare well.
fn first(is: fn(&Asked) -> bool, fate: Fate) -> impl FnMut(&Asked) -> Fate {
    let mut fate = Some(fate);
    move |asked| {
        if is(asked) {
            fate.take().unwrap_or_default()
        } else {
            Fate::default()
        }
    }
}

/// Every way in which a request can have its effect, or none, and no answer.
fn losses() -> [(&'static str, Fate); 4] {
    let fate = Fate::default;
    [
        (
            "cut",
            Fate {
                cut: true,
                ..fate()
            },
        ),
        (
            "lost",
            Fate {
                answer_lost: true,
                ..fate()
            },
        ),
        (
            "truncated",
            Fate {
                truncated: true,
                ..fate()
            },
        ),
        (
            "half open",
            Fate {
                half_open: true,
                ..fate()
            },
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_whose_answer_is_lost_is_repeated_and_is_one_message() {
    for (how, fate) in losses() {
        let bench = Bench::over_a_wire().await;
        let wire = bench.kept.wire.as_ref().unwrap();
        wire.script(first(is_send, fate));
        bench.send(message("once")).await;
        bench.until(|stats| stats.ready == 1).await;
        let delivery = bench.take().await;
        bench.settle(delivery.lock, done(), None).await;
        bench.nothing_comes().await;
        assert_eq!(bench.state("once").await, JobState::Completed, "{how}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_whose_answer_is_lost_comes_again_when_its_lock_runs_out() {
    for (how, fate) in losses().into_iter().filter(|(how, _)| *how != "half open") {
        let bench = Bench::over_a_wire().await;
        bench.send(message("m")).await;
        let wire = bench.kept.wire.as_ref().unwrap();
        let has_effect = !fate.cut;
        wire.script(first(is_poll, fate));
        let error = bench.queue.receive(1).await.unwrap_err();
        assert!(error.to_string().contains("does not answer"), "{error}");
        if has_effect {
            bench.until(|stats| stats.locked == 1).await;
            bench.clock.advance(LOCK + Duration::from_secs(1));
        }
        let delivery = bench.take().await;
        let count = 1 + u32::from(has_effect);
        assert_eq!(delivery.delivery_count, count, "{how}");
        bench.settle(delivery.lock, done(), None).await;
        bench.until(|stats| stats.ready + stats.locked == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_whose_answer_is_lost_is_one_and_the_job_does_not_run_again() {
    for (how, fate) in losses() {
        let bench = Bench::over_a_wire().await;
        bench.send(message("m")).await;
        let delivery = bench.take().await;
        let wire = bench.kept.wire.as_ref().unwrap();
        wire.script(first(is_delete, fate));
        bench.settle(delivery.lock, done(), None).await;
        bench.until(|stats| stats.ready + stats.locked == 0).await;
        bench.clock.advance(LOCK + Duration::from_secs(1));
        bench.nothing_comes().await;
        assert_eq!(bench.state("m").await, JobState::Completed, "{how}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_dead_letter_or_return_that_loses_any_answer_makes_one_copy() {
    let delay = Duration::from_secs(1);
    let kinds = [
        (Settlement::Retry { delay }, 2),
        (Settlement::Release, 1),
        (dead_letter(), 1),
    ];
    for (settlement, count) in kinds {
        for (how, fate) in losses().into_iter().filter(|(how, _)| *how != "half open") {
            for is in [is_send as fn(&Asked) -> bool, is_delete] {
                let bench = Bench::over_a_wire().await;
                bench.send(message("m")).await;
                let delivery = bench.take().await;
                let wire = bench.kept.wire.as_ref().unwrap();
                wire.script(first(is, fate.clone()));
                bench
                    .settle(delivery.lock, settlement.clone(), Some(attempt(1)))
                    .await;
                bench.clock.advance(delay * 3);
                if let Settlement::DeadLetter { .. } = settlement {
                    assert_eq!(bench.queue.redrive(Selection::All).await.unwrap(), 1);
                }
                let delivery = bench.take().await;
                assert_eq!(delivery.delivery_count, count, "{settlement:?} {how}");
                bench.settle(delivery.lock, done(), None).await;
                bench
                    .until(|stats| stats.ready + stats.locked + stats.scheduled == 0)
                    .await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_cut_off_between_copy_and_deletion_does_not_run_the_original_again() {
    let bench = Bench::over_a_wire().await;
    bench.send(message("m")).await;
    let delivery = bench.take().await;
    let wire = bench.kept.wire.as_ref().unwrap();
    wire.script(|asked| Fate {
        cut: is_delete(asked),
        ..Fate::default()
    });
    let delay = Duration::from_secs(1);
    let settled = bench
        .queue
        .settle(delivery.lock, Settlement::Retry { delay }, Some(attempt(1)))
        .await;
    assert!(matches!(settled, Err(SettleError::Unavailable { .. })));
    bench
        .until(|stats| stats.scheduled == 1 && stats.locked == 1)
        .await;
    // The host gives up; later both the original and its copy are there.
    wire.script(|_| Fate::default());
    bench.clock.advance(LOCK + Duration::from_secs(1));
    let delivery = bench.take().await;
    assert_eq!(delivery.delivery_count, 2, "the copy, and not the original");
    bench.settle(delivery.lock, done(), None).await;
    bench.nothing_comes().await;
    bench.until(|stats| stats.ready + stats.locked == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_host_that_gets_an_original_with_a_copy_makes_no_third_message() {
    let bench = Bench::over_a_wire().await;
    bench.send(message("m")).await;
    let delivery = bench.take().await;
    let wire = bench.kept.wire.as_ref().unwrap();
    wire.script(|asked| Fate {
        cut: is_delete(asked),
        ..Fate::default()
    });
    let delay = Duration::from_secs(1);
    let retry = Settlement::Retry { delay };
    let settled = bench.queue.settle(delivery.lock, retry.clone(), None).await;
    assert!(matches!(settled, Err(SettleError::Unavailable { .. })));
    wire.script(|_| Fate::default());
    bench.clock.advance(LOCK + Duration::from_secs(1));
    let state = tempfile::tempdir().unwrap();
    let other = bench.another_host(wire.address, state.path());
    let (first, second) = (take(&other).await, take(&other).await);
    assert_eq!(
        [first.delivery_count, second.delivery_count],
        [2, 2],
        "the job runs twice, as at-least-once allows"
    );
    // Whichever was the original: its copy has an id that is there already.
    for delivery in [first, second] {
        assert!(settle(&other, delivery.lock, retry.clone(), Some(attempt(2))).await);
    }
    bench.clock.advance(delay * 3);
    let mut counts = Vec::new();
    while let Ok(Ok(deliveries)) = tokio::time::timeout(NOTHING, other.receive(1)).await {
        for delivery in deliveries {
            counts.push(delivery.delivery_count);
            assert!(settle(&other, delivery.lock, done(), None).await);
        }
    }
    assert_eq!(counts, [3], "one job goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_stays_away_refuses_sends_within_their_deadline_and_keeps_nothing() {
    let bench = Bench::over_a_wire().await;
    let wire = bench.kept.wire.as_ref().unwrap();
    wire.script(|_| Fate {
        refused: Some((503, None)),
        ..Fate::default()
    });
    let sent = bench.queue.send_many(vec![message("m")]).await.remove(0);
    assert!(matches!(sent, Err(SendError::Unavailable(_))), "{sent:?}");
    wire.script(|_| Fate::default());
    bench.nothing_comes().await;
    assert_eq!(bench.queue.job("m").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_points_to_another_origin_is_refused() {
    let bench = Bench::over_a_wire().await;
    bench.send(message("m")).await;
    let wire = bench.kept.wire.as_ref().unwrap();
    wire.script(|_| Fate {
        location_elsewhere: true,
        ..Fate::default()
    });
    let error = bench.queue.receive(1).await.unwrap_err();
    assert!(error.to_string().contains("another origin"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_costs_three_requests() {
    let bench = Bench::over_a_wire().await;
    let wire = bench.kept.wire.as_ref().unwrap();
    for n in 0..20 {
        bench.send(message(&format!("m{n}"))).await;
        let delivery = bench.take().await;
        bench.settle(delivery.lock, done(), None).await;
    }
    assert_eq!(wire.requests(), 60);
    // Together, sends share requests.
    let messages = (0..200).map(|n| message(&format!("t{n}"))).collect();
    for sent in bench.queue.send_many(messages).await {
        sent.unwrap();
    }
    assert!(wire.requests() <= 60 + 8, "{} requests", wire.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_polls_return_at_once_is_not_asked_in_a_hot_loop() {
    for answer in [(204, None), (503, None), (500, None), (401, None)] {
        let bench = Bench::over_a_wire().await;
        let wire = bench.kept.wire.as_ref().unwrap();
        wire.script(move |_| Fate {
            refused: Some(answer),
            ..Fate::default()
        });
        let asking = async {
            loop {
                let _ = bench.queue.receive(64).await;
            }
        };
        let _: Result<(), _> = tokio::time::timeout(Duration::from_secs(3), asking).await;
        assert!(
            (1..=8).contains(&wire.requests()),
            "{answer:?}: {}",
            wire.requests()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_waits_for_the_polls_under_way_and_loses_none() {
    let bench = Bench::over_a_wire().await;
    let wire = bench.kept.wire.as_ref().unwrap();
    let (polls, is_held) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let (seen, held) = (polls.clone(), is_held.clone());
    wire.script(move |asked| {
        seen.fetch_add(usize::from(is_poll(asked)), Ordering::Relaxed);
        held.store(true, Ordering::Relaxed);
        Fate::default()
    });
    // The host stops receiving while its poll waits.
    let stopped = tokio::time::timeout(NOTHING, bench.queue.receive(1)).await;
    assert!(stopped.is_err() && is_held.load(Ordering::Relaxed));
    let (drained, receipt) = tokio::join!(bench.queue.drain(), bench.send(message("late")));
    assert!(!receipt.duplicate);
    assert_eq!(drained.len(), 1);
    assert_eq!(polls.load(Ordering::Relaxed), 1);
    for delivery in drained {
        assert_eq!(delivery.delivery_count, 1);
        bench.settle(delivery.lock, done(), None).await;
    }
}
