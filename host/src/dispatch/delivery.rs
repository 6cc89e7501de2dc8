//! The life of one delivery: run it under its lock, decide, settle.

use std::sync::Arc;
use std::time::Duration;

use orchestrator_engine::WorkerComponent;
use orchestrator_engine::guest_log::Recording;
use orchestrator_engine::worker::{Attempt as Run, Job};
use orchestrator_queue::{
    Attempt, Delivery, Lock, LogLine, Message, Millis, RenewError, SettleError, Settlement,
};
use tokio::time::Instant;

use super::Dispatcher;
use super::lock_keeper::{Step, after_failure, after_renewal};
use super::policy::{Ended, Rules, Verdict, decide};
use crate::clock::now_ms;
use crate::telemetry::events::{
    AttemptEnded, Consequence, GuestMeasured, GuestMetricsDropped, GuestSaid, SettleFailed,
};

/// Pause between two tries to settle while the store cannot write.
const SETTLE_RETRY: Duration = Duration::from_millis(100);

/// What is told of a delivery, kept while the guest owns its message.
struct Told {
    job: String,
    attempt: u32,
    enqueued_at: Millis,
    started_at: Millis,
    started: Instant,
}

impl Dispatcher {
    /// Runs one delivery to its end. Never fails: whatever happens ends in a
    /// row of the table, and what cannot be settled comes back by itself when
    /// its lock runs out.
    pub(super) async fn deliver(&self, delivery: Delivery) {
        let Delivery {
            message,
            lock,
            delivery_count,
            enqueued_at,
        } = delivery;
        let told = Told {
            job: message.id.clone(),
            attempt: delivery_count,
            enqueued_at,
            started_at: now_ms(),
            started: Instant::now(),
        };
        // Read once: whatever is swapped in meanwhile, this delivery stays on
        // the version it began with.
        let worker = self.0.worker.current();
        let (ended, recording) = if self.0.config.chaos.fails(&told.job, told.attempt) {
            (Ended::FailedByChaos, Recording::default())
        } else {
            let job = self.job(message, &told);
            self.attempt(&worker, job, &lock).await
        };
        if matches!(
            ended,
            Ended::Attempted(orchestrator_engine::Outcome::NotStarted { .. })
        ) {
            self.pause_receiving();
        }
        let verdict = decide(
            ended,
            Rules {
                attempt: told.attempt,
                attempts_max: self.0.config.attempts_max,
                retry: &self.0.config.retry,
                random: rand::random(),
            },
        );
        self.tell_guest_output(&told, &recording);
        let attempt = record(&told, &verdict, worker.digest(), recording);
        let took = told.started.elapsed();
        let consequence = self.settle(&told, lock, &verdict, attempt).await;
        AttemptEnded {
            queue: self.0.queue.name(),
            job: &told.job,
            attempt: told.attempt,
            outcome: verdict.outcome,
            error: verdict.error.as_deref(),
            took,
            consequence,
            injected: verdict.injected,
        }
        .emit(&self.0.telemetry);
    }

    fn job(&self, message: Message, told: &Told) -> Job {
        Job {
            id: message.id,
            job_type: message.job_type,
            payload: message.payload.into(),
            content_type: message.content_type,
            properties: message.properties,
            queue: self.0.queue.name().to_owned(),
            attempt: told.attempt,
            attempts_max: self.0.config.attempts_max,
            enqueued_at_ms: told.enqueued_at,
            traceparent: message.traceparent,
        }
    }

    /// The guest runs, its lock is kept, and the host may have to stop: the
    /// first of the three to end decides, and drops the other two.
    async fn attempt(
        &self,
        worker: &Arc<WorkerComponent>,
        job: Job,
        lock: &Lock,
    ) -> (Ended, Recording) {
        tokio::select! {
            biased;
            Run { outcome, recording, .. } = worker.run(job, self.0.config.limits) => {
                (Ended::Attempted(outcome), recording)
            }
            () = self.keep(lock) => (Ended::LockLost, Recording::default()),
            () = self.0.stop.working.cancelled() => (Ended::Stopping, Recording::default()),
        }
    }

    /// Renews the lock until it is lost.
    async fn keep(&self, lock: &Lock) {
        let mut locked_until = lock.locked_until;
        let mut step = after_renewal(now_ms(), locked_until);
        while let Step::RenewAfter(wait) = step {
            tokio::time::sleep(wait).await;
            step = match self.0.queue.renew(lock).await {
                Ok(until) => {
                    locked_until = until;
                    after_renewal(now_ms(), locked_until)
                }
                Err(RenewError::Unavailable(_)) => after_failure(now_ms(), locked_until),
                Err(RenewError::LockLost) => Step::Lost,
            };
        }
    }

    async fn settle(
        &self,
        told: &Told,
        lock: Lock,
        verdict: &Verdict,
        attempt: Attempt,
    ) -> Consequence {
        let Some(settlement) = &verdict.settlement else {
            return Consequence::LockLost;
        };
        // A delivery given back leaves no trace: it spent no attempt.
        let attempt = (*settlement != Settlement::Release).then_some(attempt);
        let give_up_at = Instant::now() + lock.duration;
        let mut lock = lock;
        loop {
            match self
                .0
                .queue
                .settle(lock, settlement.clone(), attempt.clone())
                .await
            {
                Ok(()) => return consequence(settlement, told),
                Err(SettleError::LockLost) => return Consequence::LockLost,
                Err(SettleError::Unavailable { reason, .. }) if Instant::now() >= give_up_at => {
                    return self.not_settled(told, &reason);
                }
                Err(SettleError::Unavailable { lock: again, .. }) => {
                    lock = again;
                    tokio::time::sleep(SETTLE_RETRY).await;
                }
            }
        }
    }

    fn not_settled(&self, told: &Told, error: &str) -> Consequence {
        SettleFailed {
            queue: self.0.queue.name(),
            job: &told.job,
            error,
        }
        .emit();
        Consequence::LockLost
    }

    fn tell_guest_output(&self, told: &Told, recording: &Recording) {
        let component = self.0.worker.id();
        for line in &recording.lines {
            let (level, message) = (line.level.as_str(), line.message.as_str());
            GuestSaid {
                component,
                job: Some(&told.job),
                level,
                message,
            }
            .emit(&self.0.telemetry);
        }
        for (name, value) in &recording.metrics {
            GuestMeasured {
                component,
                name,
                value: *value,
            }
            .emit(&self.0.telemetry);
        }
        if recording.metrics_dropped > 0 {
            GuestMetricsDropped(recording.metrics_dropped).emit(&self.0.telemetry);
        }
    }
}

fn consequence(settlement: &Settlement, told: &Told) -> Consequence {
    match settlement {
        Settlement::Complete { .. } => Consequence::Completed {
            since_enqueued: Duration::from_millis(now_ms().saturating_sub(told.enqueued_at)),
        },
        Settlement::Retry { delay } => Consequence::Retry { delay: *delay },
        Settlement::Abandon => Consequence::Retry {
            delay: Duration::ZERO,
        },
        Settlement::DeadLetter { .. } => Consequence::DeadLettered,
        Settlement::Release => Consequence::GivenBack,
    }
}

/// What is kept of the attempt with the job.
fn record(told: &Told, verdict: &Verdict, digest: &str, recording: Recording) -> Attempt {
    Attempt {
        number: told.attempt,
        started_at: told.started_at,
        ended_at: now_ms(),
        outcome: verdict.outcome.to_owned(),
        error: verdict.error.clone(),
        injected: verdict.injected,
        component_digest: format!("sha256:{digest}"),
        logs: recording
            .lines
            .into_iter()
            .map(|line| LogLine {
                at: line.at_ms,
                level: line.level.as_str().to_owned(),
                message: line.message,
            })
            .collect(),
        log_lines_dropped: recording.lines_dropped,
    }
}
