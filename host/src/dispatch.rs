//! Pulls deliveries from a queue and ends each one.
//!
//! A permit is taken before a message is: nothing is locked that no hand is
//! free for. Every delivery ends through one table, [`policy`], and is settled
//! at most once, by the task that owns its lock.

pub mod chaos;
mod delivery;
mod lock_keeper;
pub mod policy;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use orchestrator_engine::worker::Limits;
use orchestrator_queue::Delivery;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::components::WorkerSlot;
use crate::queue::Queue;
use crate::telemetry::Telemetry;
use crate::telemetry::events::ReceiveFailed;
use chaos::{Chaos, Switch};
use policy::RetryPolicy;

/// Deliveries asked for at one time: more would wait here, locked, while the
/// first of them start.
const RECEIVE_BATCH_MAX: usize = 64;
/// First and longest wait after receiving failed: short enough to notice a
/// store that recovered, long enough not to hammer one that did not.
const RECEIVE_RETRY_MIN: Duration = Duration::from_millis(100);
const RECEIVE_RETRY_MAX: Duration = Duration::from_secs(5);
/// How long receiving pauses after an instance could not be started, so that
/// deliveries do not spin between queue and host.
const NOT_STARTED_PAUSE: Duration = Duration::from_millis(250);

/// How one queue's jobs are run.
#[derive(Clone, Debug)]
pub struct DispatchConfig {
    /// Jobs in flight at one time.
    pub concurrency: usize,
    /// Attempts after which a failing job is dead-lettered.
    pub attempts_max: u32,
    /// What one attempt may use.
    pub limits: Limits,
    /// When a failed attempt is repeated.
    pub retry: RetryPolicy,
    /// Faults to inject.
    pub chaos: Chaos,
}

/// Runs the jobs of one queue. Clones share it.
#[derive(Clone)]
pub struct Dispatcher(Arc<Inner>);

struct Inner {
    queue: Queue,
    worker: Arc<WorkerSlot>,
    config: DispatchConfig,
    telemetry: Telemetry,
    stop: Stop,
    chaos: Arc<Switch>,
    in_flight: AtomicU64,
    pause: tokio::sync::watch::Sender<Option<tokio::time::Instant>>,
}

/// The two steps of stopping.
#[derive(Clone, Default)]
pub struct Stop {
    /// Take no more deliveries.
    pub receiving: CancellationToken,
    /// Give back what is still running.
    pub working: CancellationToken,
}

impl Dispatcher {
    /// A dispatcher that does nothing until [`run`](Self::run).
    pub fn new(
        queue: Queue,
        worker: Arc<WorkerSlot>,
        config: DispatchConfig,
        telemetry: Telemetry,
        stop: Stop,
    ) -> Self {
        let (pause, _) = tokio::sync::watch::channel(None);
        let in_flight = AtomicU64::new(0);
        let chaos = queue.chaos().clone();
        Self(Arc::new(Inner {
            chaos,
            queue,
            worker,
            config,
            telemetry,
            stop,
            in_flight,
            pause,
        }))
    }

    /// The queue it serves.
    pub fn queue(&self) -> &Queue {
        &self.0.queue
    }

    /// Its settings.
    pub fn config(&self) -> &DispatchConfig {
        &self.0.config
    }

    /// The faults that are injected into its jobs.
    pub fn chaos(&self) -> &Switch {
        &self.0.chaos
    }

    /// The worker it runs.
    pub fn worker(&self) -> &WorkerSlot {
        &self.0.worker
    }

    /// Deliveries in hand right now.
    pub fn in_flight(&self) -> u64 {
        self.0.in_flight.load(Ordering::Relaxed)
    }

    /// Receives and works until told to stop, then until every delivery in
    /// hand has ended. Has no `Result`: no error may end the loop.
    pub async fn run(self) {
        let permits = Arc::new(Semaphore::new(self.0.config.concurrency));
        let tasks = TaskTracker::new();
        let mut retry_in = RECEIVE_RETRY_MIN;
        loop {
            let taken = tokio::select! {
                biased;
                () = self.0.stop.receiving.cancelled() => break,
                taken = self.receive(&permits) => taken,
            };
            match taken {
                Ok(deliveries) => {
                    retry_in = RECEIVE_RETRY_MIN;
                    for (delivery, permit) in deliveries {
                        self.start(&tasks, delivery, permit);
                    }
                }
                Err(error) => {
                    let queue = self.0.queue.name();
                    ReceiveFailed {
                        queue,
                        error: &error.to_string(),
                        retry_in,
                    }
                    .emit();
                    let _ = self
                        .0
                        .stop
                        .receiving
                        .run_until_cancelled(tokio::time::sleep(retry_in))
                        .await;
                    retry_in = (retry_in * 2).min(RECEIVE_RETRY_MAX);
                }
            }
        }
        // What is on its way already has counted a delivery: it is done, too.
        let working = self.0.stop.working.clone();
        let last = working.run_until_cancelled(self.0.queue.drain()).await;
        for delivery in last.into_iter().flatten() {
            // The semaphore is never closed, so acquiring cannot fail.
            if let Ok(permit) = permits.clone().acquire_owned().await {
                self.start(&tasks, delivery, permit);
            }
        }
        tasks.close();
        tasks.wait().await;
    }

    /// One permit, then as many more as are free; then at least one delivery
    /// for them. Permits without a delivery go back. Dropping the future gives
    /// back what it took.
    async fn receive(
        &self,
        permits: &Arc<Semaphore>,
    ) -> Result<Vec<(Delivery, OwnedSemaphorePermit)>, orchestrator_queue::Unavailable> {
        let pause_until = *self.0.pause.borrow();
        if let Some(until) = pause_until {
            tokio::time::sleep_until(until).await;
        }
        let mut hands = Vec::new();
        // The semaphore is never closed, so acquiring cannot fail.
        hands.extend(permits.clone().acquire_owned().await);
        while hands.len() < RECEIVE_BATCH_MAX
            && let Ok(permit) = permits.clone().try_acquire_owned()
        {
            hands.push(permit);
        }
        let deliveries = self.0.queue.receive(hands.len()).await?;
        Ok(deliveries.into_iter().zip(hands).collect())
    }

    fn start(&self, tasks: &TaskTracker, delivery: Delivery, permit: OwnedSemaphorePermit) {
        let dispatcher = self.clone();
        tasks.spawn(async move {
            let _in_flight = InFlight::enter(&dispatcher.0.in_flight);
            let _permit = permit;
            dispatcher.deliver(delivery).await;
        });
    }

    /// Holds off receiving for a moment: an instance could not be started.
    fn pause_receiving(&self) {
        self.0
            .pause
            .send_replace(Some(tokio::time::Instant::now() + NOT_STARTED_PAUSE));
    }
}

/// Counts a delivery for as long as it is in hand, even if its task panics.
struct InFlight<'a>(&'a AtomicU64);

impl<'a> InFlight<'a> {
    fn enter(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
