//! Every event that the host emits.

use std::net::SocketAddr;
use std::time::Duration;

use super::Telemetry;

/// A listener is open.
pub struct ListenerOpened {
    /// What it serves.
    pub listener: &'static str,
    /// Where.
    pub addr: SocketAddr,
}

impl ListenerOpened {
    /// Writes it down.
    pub fn emit(self) {
        tracing::info!(listener = self.listener, addr = %self.addr, "listening");
    }
}

/// A component is loaded and checked.
pub struct ComponentLoaded<'a> {
    /// Its name in the manifest.
    pub component: &'a str,
    /// Its digest.
    pub digest: &'a str,
    /// How long reading, compiling and checking took.
    pub took: Duration,
}

impl ComponentLoaded<'_> {
    /// Writes it down.
    pub fn emit(self) {
        let digest = &self.digest[..self.digest.floor_char_boundary(12)];
        tracing::info!(component = self.component, digest, took = ?self.took, "component loaded");
    }
}

/// The store is open, and what it held is known.
pub struct StoreRecovered {
    /// Messages that wait for a worker, due or not.
    pub waiting: u64,
    /// Dead letters.
    pub dead: u64,
    /// How long opening took.
    pub took: Duration,
}

impl StoreRecovered {
    /// Writes it down.
    pub fn emit(self) {
        tracing::info!(waiting = self.waiting, dead = self.dead, took = ?self.took, "store open");
    }
}

/// The store's health changed.
pub struct StoreHealthChanged<'a> {
    /// Why it cannot write, or none when it can again.
    pub trouble: Option<&'a str>,
}

impl StoreHealthChanged<'_> {
    /// Writes it down.
    pub fn emit(self) {
        match self.trouble {
            Some(trouble) => {
                tracing::error!(
                    trouble,
                    "the store cannot write; jobs are refused with 503 until it can"
                );
            }
            None => tracing::info!("the store can write again"),
        }
    }
}

/// The host was told to stop.
pub struct Stopping {
    /// How long requests and jobs may take to finish.
    pub deadline: Duration,
}

impl Stopping {
    /// Writes it down.
    pub fn emit(self) {
        tracing::info!(deadline = ?self.deadline, "stopping: taking no more work; a second signal stops at once");
    }
}

/// The host has stopped.
pub struct Stopped;

impl Stopped {
    /// Writes it down.
    pub fn emit(self) {
        tracing::info!("stopped");
    }
}

/// One attempt has ended and what follows from it is settled.
pub struct AttemptEnded<'a> {
    /// Name of the queue.
    pub queue: &'a str,
    /// The job.
    pub job: &'a str,
    /// Which attempt.
    pub attempt: u32,
    /// How it ended, as a short name.
    pub outcome: &'static str,
    /// What went wrong.
    pub error: Option<&'a str>,
    /// How long it took.
    pub took: Duration,
    /// What follows.
    pub consequence: Consequence,
    /// True if chaos injected the failure.
    pub injected: bool,
}

/// What follows from an attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Consequence {
    /// `JobSuccess`: the job is done.
    Completed {
        /// Time since the queue accepted it.
        since_enqueued: Duration,
    },
    /// Another attempt after a delay.
    Retry {
        /// The delay.
        delay: Duration,
    },
    /// Moved to the dead letters.
    DeadLettered,
    /// Given back, no attempt spent.
    GivenBack,
    /// Nothing was settled: the lock is lost.
    LockLost,
}

impl AttemptEnded<'_> {
    /// Writes it down and counts it.
    pub fn emit(self, telemetry: &Telemetry) {
        self.count(telemetry);
        telemetry.observe(&self);
        if !telemetry.may_write_job_line() {
            return;
        }
        let Self {
            queue,
            job,
            attempt,
            outcome,
            took,
            injected,
            ..
        } = self;
        let error = self.error.unwrap_or_default();
        match self.consequence {
            Consequence::Completed { .. } => {
                tracing::info!(queue, job, attempt, ?took, "job completed");
            }
            Consequence::Retry { delay } => {
                tracing::warn!(
                    queue,
                    job,
                    attempt,
                    outcome,
                    error,
                    injected,
                    ?delay,
                    "attempt failed; retrying"
                );
            }
            Consequence::DeadLettered => {
                tracing::error!(
                    queue,
                    job,
                    attempt,
                    outcome,
                    error,
                    injected,
                    "job dead-lettered"
                );
            }
            Consequence::GivenBack => {
                tracing::info!(
                    queue,
                    job,
                    outcome,
                    error,
                    "job given back; no attempt spent"
                );
            }
            Consequence::LockLost => {
                tracing::warn!(queue, job, attempt, "lock lost; attempt cancelled");
            }
        }
    }

    fn count(&self, telemetry: &Telemetry) {
        let metrics = telemetry.metrics();
        metrics.attempt(self.queue, self.outcome, self.took);
        if self.injected {
            metrics.fault_injected(self.queue);
        }
        match self.consequence {
            Consequence::Completed { since_enqueued } => {
                metrics.succeeded(self.queue, since_enqueued)
            }
            Consequence::Retry { .. } => metrics.retried(self.queue),
            Consequence::DeadLettered => metrics.dead_lettered(self.queue),
            Consequence::GivenBack => metrics.given_back(self.queue),
            Consequence::LockLost => metrics.lock_lost(self.queue),
        }
    }
}

/// A settlement could not be written while the lock lasted: the job will run again.
pub struct SettleFailed<'a> {
    /// Name of the queue.
    pub queue: &'a str,
    /// The job.
    pub job: &'a str,
    /// Why.
    pub error: &'a str,
}

impl SettleFailed<'_> {
    /// Writes it down.
    pub fn emit(self) {
        tracing::warn!(
            queue = self.queue,
            job = self.job,
            error = self.error,
            "outcome not settled; the job will run again"
        );
    }
}

/// Deliveries cannot be taken from a queue right now.
pub struct ReceiveFailed<'a> {
    /// Name of the queue.
    pub queue: &'a str,
    /// Why.
    pub error: &'a str,
    /// When the next try comes.
    pub retry_in: Duration,
}

impl ReceiveFailed<'_> {
    /// Writes it down.
    pub fn emit(self) {
        tracing::warn!(queue = self.queue, error = self.error, retry_in = ?self.retry_in, "receiving from the queue failed");
    }
}

/// A guest wrote a line.
pub struct GuestSaid<'a> {
    /// The component.
    pub component: &'a str,
    /// The job it was working on, if any.
    pub job: Option<&'a str>,
    /// Where it came from, or its level.
    pub level: &'static str,
    /// The line.
    pub message: &'a str,
}

impl GuestSaid<'_> {
    /// Writes it down, within the rate of lines about jobs.
    pub fn emit(self, telemetry: &Telemetry) {
        // Blank lines are kept with the attempt; on the console they tell nothing.
        if !self.message.is_empty() && telemetry.may_write_job_line() {
            let job = self.job.unwrap_or_default();
            tracing::info!(
                component = self.component,
                job,
                // `level` is the line's own, and JSON has each key once.
                guest_level = self.level,
                "{}",
                self.message
            );
        }
    }
}

/// A guest measured something.
pub struct GuestMeasured<'a> {
    /// The component.
    pub component: &'a str,
    /// The measurement's name.
    pub name: &'a str,
    /// Its value.
    pub value: f64,
}

impl GuestMeasured<'_> {
    /// Counts it.
    pub fn emit(self, telemetry: &Telemetry) {
        telemetry
            .metrics()
            .guest_metric(self.component, self.name, self.value);
    }
}

/// Measurements of a guest were dropped.
pub struct GuestMetricsDropped(
    /// How many.
    pub u64,
);

impl GuestMetricsDropped {
    /// Counts them.
    pub fn emit(self, telemetry: &Telemetry) {
        telemetry.metrics().guest_metrics_dropped(self.0);
    }
}

/// An instance of an HTTP component crashed.
pub struct InstanceCrashed<'a> {
    /// The component.
    pub component: &'a str,
    /// Why.
    pub error: &'a str,
}

impl InstanceCrashed<'_> {
    /// Writes it down.
    pub fn emit(self) {
        tracing::warn!(
            component = self.component,
            error = self.error,
            "an instance crashed; others serve on"
        );
    }
}

/// A request on the application listener was answered.
pub struct RequestAnswered<'a> {
    /// The component that answered, or `host`.
    pub component: &'a str,
    /// The status.
    pub status: u16,
    /// How long it took.
    pub took: Duration,
}

impl RequestAnswered<'_> {
    /// Counts it.
    pub fn emit(self, telemetry: &Telemetry) {
        telemetry
            .metrics()
            .request(self.component, self.status, self.took);
    }
}
