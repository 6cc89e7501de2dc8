//! The life of one delivery: run it under its lock, decide, settle.

use std::sync::Arc;
use std::time::Duration;

use orchestrator_engine::guest_log::{Level, Line, Recording};
use orchestrator_engine::worker::{Attempt as Run, Job};
use orchestrator_engine::{Outcome, WorkerComponent};
use orchestrator_queue::{
    Attempt, Delivery, Lock, LogLine, Message, Millis, RenewError, SettleError, Settlement,
};
use tokio::time::Instant;

use super::Dispatcher;
use super::lock_keeper::{Step, after_failure, after_renewal};
use super::policy::{Ended, Rules, Verdict, decide};
use crate::clock::now_ms;
use crate::components::{Canary, Chosen, Loaded, Went, short};
use crate::telemetry::events::{
    AttemptEnded, CanaryFailed, Consequence, GuestMeasured, GuestMetricsDropped, GuestSaid,
    SettleFailed,
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
        let chosen = self.0.worker.choose(&told.job);
        let (ended, recording, worker) = if self.0.config.chaos.fails(&told.job, told.attempt) {
            // Faults that are injected say nothing about any version.
            let (Chosen::Current { current, .. } | Chosen::Candidate { current, .. }) = chosen;
            (Ended::FailedByChaos, Recording::default(), current)
        } else {
            let job = self.job(message, &told);
            self.attempt(chosen, job, &lock).await
        };
        if matches!(ended, Ended::Attempted(Outcome::NotStarted { .. })) {
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
        let digest = &worker.version.digest;
        let attempt = record(&told, &verdict, digest, recording);
        let took = told.started.elapsed();
        let consequence = self.settle(&told, lock, &verdict, attempt).await;
        AttemptEnded {
            queue: self.0.queue.name(),
            job: &told.job,
            attempt: told.attempt,
            digest,
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
        chosen: Chosen<WorkerComponent>,
        job: Job,
        lock: &Lock,
    ) -> (Ended, Recording, Arc<Loaded<WorkerComponent>>) {
        // Should it be cut short, it was this version's.
        let (Chosen::Current { current, .. } | Chosen::Candidate { current, .. }) = &chosen;
        let current = current.clone();
        tokio::select! {
            biased;
            (outcome, recording, version) = self.on(chosen, job) => {
                (Ended::Attempted(outcome), recording, version)
            }
            () = self.keep(lock) => (Ended::LockLost, Recording::default(), current),
            () = self.0.stop.working.cancelled() => {
                (Ended::Stopping, Recording::default(), current)
            }
        }
    }

    /// Runs the job on the chosen version. One that fails on a candidate is
    /// run again at once on the current version, whose word is the attempt's:
    /// a failed canary costs a job some time and nothing else.
    async fn on(
        &self,
        chosen: Chosen<WorkerComponent>,
        job: Job,
    ) -> (Outcome, Recording, Arc<Loaded<WorkerComponent>>) {
        let limits = self.0.config.limits;
        let run = async |version: &Loaded<WorkerComponent>, job| {
            let began = Instant::now();
            let Run {
                outcome, recording, ..
            } = version.component.run(job, limits).await;
            (outcome, recording, began.elapsed())
        };
        let id = job.id.clone();
        match chosen {
            Chosen::Current { current, canary } => {
                let (outcome, recording, took) = run(&current, job).await;
                if let Some(canary) = canary {
                    match judge(&outcome) {
                        Some(true) => canary.saw(&id, Went::CurrentDid(took), false),
                        Some(false) => canary.saw(&id, Went::CurrentFailed, false),
                        None => {}
                    }
                }
                (outcome, recording, current)
            }
            Chosen::Candidate {
                canary,
                current,
                explains,
            } => {
                let (outcome, recording, took) = run(&canary.candidate, job.clone()).await;
                match judge(&outcome) {
                    Some(true) => {
                        canary.saw(&id, Went::CandidateDid(took), explains);
                        return (outcome, recording, canary.candidate.clone());
                    }
                    Some(false) => {}
                    // The host's trouble, whichever version it is.
                    None => return (outcome, recording, canary.candidate.clone()),
                }
                let note = self.canary_failed(&id, &canary, outcome);
                let (outcome, mut recording, _) = run(&current, job).await;
                recording.lines.insert(0, note);
                match judge(&outcome) {
                    Some(true) => canary.saw(&id, Went::CandidateFailed, explains),
                    Some(false) => canary.saw(&id, Went::Poison, explains),
                    None => {}
                }
                (outcome, recording, current)
            }
        }
    }

    /// Tells of it; says what the attempt's log begins with.
    fn canary_failed(&self, job: &str, canary: &Canary<WorkerComponent>, outcome: Outcome) -> Line {
        let rules = Rules {
            attempt: 1,
            attempts_max: 1,
            retry: &self.0.config.retry,
            random: 0.0,
        };
        let verdict = decide(Ended::Attempted(outcome), rules);
        let digest = &canary.candidate.version.digest;
        let error = verdict.error.as_deref().unwrap_or_default();
        CanaryFailed {
            job,
            digest,
            outcome: verdict.outcome,
            error,
        }
        .emit(&self.0.telemetry);
        let first_line = error.lines().next().unwrap_or_default();
        Line {
            at_ms: now_ms(),
            level: Level::Warn,
            message: format!(
                "the canary sha256:{} failed this job first ({}): {first_line}",
                short(digest),
                verdict.outcome
            ),
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

/// Whether a version did its job; none if the host could not even start it.
fn judge(outcome: &Outcome) -> Option<bool> {
    match outcome {
        Outcome::Done { .. } => Some(true),
        Outcome::NotStarted { .. } => None,
        Outcome::Retry { .. }
        | Outcome::DeadLetter { .. }
        | Outcome::BadAnswer { .. }
        | Outcome::Trapped { .. }
        | Outcome::TimedOut
        | Outcome::OutOfMemory => Some(false),
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
