//! Receiving: long polls, as many as there is use for and free hands.
//!
//! One request brings one message, so many are needed to fill many hands. An
//! idle queue is asked by one poll; each that brings something doubles their
//! number, each that brings nothing halves it. A poll that is under way is
//! never cut off: a message that the service locks for a client that has gone
//! costs a delivery and stays away until its lock runs out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::Instant;

use super::api::{Api, Received};
use crate::refusal::ApiError;

/// How long one poll waits at the service: what a stopping host waits for its
/// last polls, and six requests a minute on an idle queue.
pub const POLL: Duration = Duration::from_secs(10);
/// An empty answer that comes sooner than this is no long poll: then the next
/// one waits a while.
const POLL_MIN: Duration = Duration::from_secs(2);
/// First and longest wait after a poll failed.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Deliveries that may lie between poll and hand: one for each poll.
const DELIVERIES_MAX: usize = 1_024;

/// A message and when it came.
pub struct Arrival {
    pub received: Received,
    pub at: Instant,
}

/// Polls one queue.
pub struct Receiver {
    api: Arc<Api>,
    queue: Arc<str>,
    shared: Arc<Shared>,
    arrivals: Mutex<mpsc::Receiver<Result<Arrival, ApiError>>>,
    sender: mpsc::Sender<Result<Arrival, ApiError>>,
}

struct Shared {
    /// Polls under way.
    polls: AtomicUsize,
    /// How many there is use for.
    wanted: AtomicUsize,
    /// Failures in a row.
    failures: AtomicUsize,
    ended: watch::Sender<()>,
}

impl Receiver {
    pub fn new(api: Arc<Api>, queue: Arc<str>) -> Self {
        let (sender, arrivals) = mpsc::channel(DELIVERIES_MAX);
        let shared = Shared {
            polls: AtomicUsize::new(0),
            wanted: AtomicUsize::new(1),
            failures: AtomicUsize::new(0),
            ended: watch::Sender::new(()),
        };
        Self {
            api,
            queue,
            shared: Arc::new(shared),
            arrivals: Mutex::new(arrivals),
            sender,
        }
    }

    /// At least one message, and at most as many as there are free `hands`.
    /// Cancel safe: what arrives later waits for the next call.
    pub async fn receive(&self, hands: usize) -> Result<Vec<Arrival>, ApiError> {
        let mut arrivals = self.arrivals.lock().await;
        let mut ended = self.shared.ended.subscribe();
        loop {
            let waiting = arrivals.len();
            self.poll(hands.saturating_sub(waiting));
            tokio::select! {
                biased;
                // The channel has a sender here, so it does not close.
                Some(first) = arrivals.recv() => {
                    let mut taken = vec![first?];
                    while taken.len() < hands && let Ok(next) = arrivals.try_recv() {
                        // An error is told by the next call, if it lasts.
                        taken.extend(next);
                    }
                    return Ok(taken);
                }
                // A poll came back with nothing.
                _ = ended.changed() => {}
            }
        }
    }

    /// Starts polls until there are as many as there is use for.
    fn poll(&self, hands: usize) {
        let wanted = self.shared.wanted.load(Ordering::Relaxed).min(hands);
        while self.shared.polls.load(Ordering::Relaxed) < wanted {
            self.shared.polls.fetch_add(1, Ordering::Relaxed);
            let (api, queue, shared) = (self.api.clone(), self.queue.clone(), self.shared.clone());
            let sender = self.sender.clone();
            tokio::spawn(async move {
                let polled = once(&api, &queue, &shared).await;
                match polled {
                    // Its receiver lives as long as the queue.
                    Ok(Some(arrival)) => drop(sender.send(Ok(arrival)).await),
                    Ok(None) => {}
                    Err(error) => drop(sender.send(Err(error)).await),
                }
                // After what it brought: whoever sees no poll sees all of it.
                shared.polls.fetch_sub(1, Ordering::AcqRel);
                shared.ended.send_replace(());
            });
        }
    }

    /// Waits for the last polls, and returns what they bring.
    pub async fn drain(&self) -> Vec<Arrival> {
        let mut arrivals = self.arrivals.lock().await;
        let mut ended = self.shared.ended.subscribe();
        let mut last = Vec::new();
        loop {
            while let Ok(arrival) = arrivals.try_recv() {
                last.extend(arrival);
            }
            if self.shared.polls.load(Ordering::Acquire) == 0 && arrivals.is_empty() {
                return last;
            }
            // The sender lives here.
            let _ = ended.changed().await;
        }
    }
}

async fn once(api: &Api, queue: &str, shared: &Shared) -> Result<Option<Arrival>, ApiError> {
    let began = Instant::now();
    let polled = api.peek_lock(queue, POLL).await;
    let at = Instant::now();
    match polled {
        Ok(Some(received)) => {
            shared.failures.store(0, Ordering::Relaxed);
            resize(shared, |wanted| {
                wanted.saturating_mul(2).min(DELIVERIES_MAX)
            });
            Ok(Some(Arrival { received, at }))
        }
        Ok(None) => {
            shared.failures.store(0, Ordering::Relaxed);
            resize(shared, |wanted| (wanted / 2).max(1));
            if began.elapsed() < POLL_MIN {
                tokio::time::sleep(POLL_MIN - began.elapsed()).await;
            }
            Ok(None)
        }
        Err(error) => {
            resize(shared, |_| 1);
            let failures = shared.failures.fetch_add(1, Ordering::Relaxed).min(10);
            let wait =
                (RETRY_MIN * 2_u32.pow(u32::try_from(failures).unwrap_or(10))).min(RETRY_MAX);
            let wait = match &error {
                ApiError::Busy {
                    retry_after: Some(after),
                    ..
                } => *after,
                _ => wait,
            };
            // Hosts that lost the service together do not come back together.
            tokio::time::sleep(wait.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
            Err(error)
        }
    }
}

fn resize(shared: &Shared, size: impl Fn(usize) -> usize) {
    // Two that change it at once may lose one step, which costs nothing.
    let wanted = shared.wanted.load(Ordering::Relaxed);
    shared.wanted.store(size(wanted), Ordering::Relaxed);
}
