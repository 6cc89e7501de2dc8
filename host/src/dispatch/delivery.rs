//! The life of one delivery: run it under its lock, decide, settle.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use orchestrator_engine::guest_log::{Level, Line, Recording};
use orchestrator_engine::worker::{Attempt as Run, Job};
use orchestrator_engine::{Outcome, WorkerComponent};
use orchestrator_queue::planted::{self, Planted};
use orchestrator_queue::{
    Attempt, Delivery, Lock, LogLine, Message, Millis, RenewError, SettleError, Settlement,
};
use tokio::time::Instant;

use super::Dispatcher;
use super::chaos::{Faults, SIMULATED_TRAP};
use super::lock_keeper::{Step, after_failure, after_renewal};
use super::policy::{Ended, Rules, Verdict, decide};
use crate::components::{Canary, Chosen, Loaded, Went, short};
use crate::telemetry::events::{
    AttemptEnded, CanaryFailed, Consequence, GuestMeasured, GuestMetricsDropped, GuestSaid,
    SettleFailed,
};
use crate::telemetry::traces::OpenSpan;

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
        let mut span = self.span(&message, delivery_count, enqueued_at);
        let told = Told {
            job: message.id.clone(),
            attempt: delivery_count,
            enqueued_at,
            started_at: self.0.queue.now(),
            started: Instant::now(),
        };
        // Read once: whatever is swapped in meanwhile, this delivery stays on
        // the version it began with.
        let chosen = self.0.worker.choose(&told.job);
        let faults = self.0.chaos.now().faults(&told.job, told.attempt);
        if planted::is(Planted::SettleBeforeDone) {
            self.0.queue.complete_unrun(&lock).await;
        }
        let (ended, ran) = if faults.failure {
            // Faults that are injected say nothing about any version.
            let (Chosen::Current { current, .. } | Chosen::Candidate { current, .. }) = chosen;
            (Ended::FailedByChaos, Ran::nothing(current))
        } else {
            let mut job = self.job(message, &told);
            if let Some(span) = &span {
                // What the guest calls belongs to this attempt.
                job.traceparent = Some(span.traceparent());
            }
            self.attempt_with(faults, chosen, job, &lock).await
        };
        if matches!(ended, Ended::Attempted(Outcome::NotStarted { .. })) {
            self.pause_receiving();
        }
        let injected = is_injected(faults, &ended);
        let mut verdict = decide(
            ended,
            Rules {
                attempt: told.attempt,
                attempts_max: self.0.config.attempts_max,
                retry: &self.0.config.retry,
                random: rand::random(),
            },
        );
        verdict.injected |= injected;
        if let Some(Settlement::Retry { delay }) = &mut verdict.settlement
            && planted::is(Planted::RetryAtOnce)
        {
            *delay = Duration::ZERO;
        }
        self.tell_guest_output(&told, &ran.recording);
        let digest = &ran.version.version.digest;
        if let Some(span) = &mut span {
            describe(span, &verdict, &ran);
        }
        let attempt = record(&told, self.0.queue.now(), &verdict, digest, ran.recording);
        let took = told.started.elapsed();
        let settling = self.settling(span.as_ref(), &verdict);
        let consequence = self.settle(&told, lock, &verdict, attempt).await;
        if let Some(mut settling) = settling {
            if consequence == Consequence::LockLost {
                settling.fail();
            }
            settling.end();
        }
        if let Some(span) = span {
            self.end_span(span, &told, digest, &verdict, consequence);
        }
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
    ) -> (Ended, Ran) {
        // Should it be cut short, it was this version's.
        let (Chosen::Current { current, .. } | Chosen::Candidate { current, .. }) = &chosen;
        let current = current.clone();
        tokio::select! {
            biased;
            (outcome, ran) = self.on(chosen, job) => (Ended::Attempted(outcome), ran),
            () = self.keep(lock) => (Ended::LockLost, Ran::nothing(current)),
            () = self.0.stop.working.cancelled() => (Ended::Stopping, Ran::nothing(current)),
        }
    }

    /// The same, with what chaos does to it.
    async fn attempt_with(
        &self,
        faults: Faults,
        chosen: Chosen<WorkerComponent>,
        job: Job,
        lock: &Lock,
    ) -> (Ended, Ran) {
        let (Chosen::Current { current, .. } | Chosen::Candidate { current, .. }) = &chosen;
        let current = current.clone();
        if let Some(latency) = faults.latency {
            tokio::select! {
                biased;
                () = tokio::time::sleep(latency) => {}
                () = self.keep(lock) => return (Ended::LockLost, Ran::nothing(current)),
                () = self.0.stop.working.cancelled() => {
                    return (Ended::Stopping, Ran::nothing(current));
                }
            }
        }
        if faults.late_settle {
            // Whoever gets it now runs beside this attempt.
            self.0.queue.lose(lock).await;
        }
        let attempt = self.attempt(chosen, job, lock);
        let (ended, ran) = match faults.lock_loss {
            None => attempt.await,
            Some(after) => match tokio::time::timeout(after, attempt).await {
                Ok(ended) => ended,
                Err(_) => {
                    self.0.queue.lose(lock).await;
                    (Ended::LockLost, Ran::nothing(current))
                }
            },
        };
        match ended {
            Ended::Attempted(Outcome::Done { .. }) if faults.trap => {
                let kind = SIMULATED_TRAP.to_owned();
                let backtrace = String::new();
                (Ended::Attempted(Outcome::Trapped { kind, backtrace }), ran)
            }
            ended => (ended, ran),
        }
    }

    /// Runs the job on the chosen version. One that fails on a candidate is
    /// run again at once on the current version, whose word is the attempt's:
    /// a failed canary costs a job some time and nothing else.
    async fn on(&self, chosen: Chosen<WorkerComponent>, job: Job) -> (Outcome, Ran) {
        let id = job.id.clone();
        match chosen {
            Chosen::Current {
                current,
                canary: None,
            } => self.run_on(&current, job).await,
            Chosen::Current {
                current,
                canary: Some(canary),
            } => {
                let is_last = job.attempt >= job.attempts_max;
                let (outcome, ran) = self.run_on(&current, job.clone()).await;
                match judge(&outcome) {
                    Some(true) => canary.saw(&id, Went::CurrentDid(ran.took), false),
                    Some(false) if is_last || matches!(outcome, Outcome::DeadLetter { .. }) => {
                        // No next attempt would say what this failure was.
                        let _under_way = canary.begin_run();
                        let (second, again) = self.run_on(&canary.candidate, job).await;
                        let did = judge(&second) == Some(true);
                        canary.saw_last_failure(!did);
                        if did {
                            return (second, again);
                        }
                    }
                    Some(false) => canary.saw(&id, Went::CurrentFailed, false),
                    None => {}
                }
                (outcome, ran)
            }
            Chosen::Candidate {
                canary,
                current,
                explains,
            } => {
                let under_way = canary.begin_run();
                let (outcome, ran) = self.run_on(&canary.candidate, job.clone()).await;
                match judge(&outcome) {
                    Some(true) => {
                        canary.saw(&id, Went::CandidateDid(ran.took), explains);
                        return (outcome, ran);
                    }
                    Some(false) => {}
                    // The host's trouble, whichever version it is.
                    None => return (outcome, ran),
                }
                let note = self.canary_failed(&id, &canary, outcome);
                let (outcome, mut ran) = self.run_on(&current, job).await;
                ran.recording.lines.insert(0, note);
                match judge(&outcome) {
                    Some(true) => canary.saw(&id, Went::CandidateFailed, explains),
                    Some(false) => canary.saw(&id, Went::Poison, explains),
                    None => {}
                }
                drop(under_way);
                (outcome, ran)
            }
        }
    }

    async fn run_on(&self, version: &Arc<Loaded<WorkerComponent>>, job: Job) -> (Outcome, Ran) {
        let began = Instant::now();
        let Run {
            outcome,
            recording,
            memory_bytes_peak,
            cpu,
        } = version.component.run(job, self.0.config.limits).await;
        let ran = Ran {
            version: version.clone(),
            recording,
            took: began.elapsed(),
            memory_bytes_peak,
            cpu,
        };
        (outcome, ran)
    }

    /// The attempt's span, if telemetry leaves the host.
    fn span(&self, message: &Message, attempt: u32, enqueued_at: Millis) -> Option<OpenSpan> {
        let traces = self.0.telemetry.traces()?;
        let waited = self.0.queue.now().saturating_sub(enqueued_at);
        let attributes = vec![
            KeyValue::new("messaging.system", "servicebus"),
            KeyValue::new("messaging.destination.name", self.0.queue.name().to_owned()),
            KeyValue::new("server.address", self.0.queue.broker().to_owned()),
            KeyValue::new("MessageId", message.id.clone()),
            KeyValue::new("JobType", message.job_type.clone()),
            KeyValue::new("DeliveryCount", i64::from(attempt)),
            KeyValue::new(
                "timeSinceEnqueued",
                i64::try_from(waited).unwrap_or(i64::MAX),
            ),
        ];
        let name = self.0.worker.id().to_owned();
        let parent = message.traceparent.as_deref();
        Some(traces.begin(name, SpanKind::Consumer, parent, attributes))
    }

    /// The span of the settlement that follows.
    fn settling(&self, attempt: Option<&OpenSpan>, verdict: &Verdict) -> Option<OpenSpan> {
        let name = match verdict.settlement.as_ref()? {
            Settlement::Complete { .. } => "ServiceBusReceiver.Complete",
            Settlement::DeadLetter { .. } => "ServiceBusReceiver.DeadLetter",
            Settlement::Retry { .. } | Settlement::Abandon | Settlement::Release => {
                "ServiceBusReceiver.Abandon"
            }
        };
        let attributes = vec![
            KeyValue::new("messaging.system", "servicebus"),
            KeyValue::new("messaging.destination.name", self.0.queue.name().to_owned()),
            KeyValue::new("server.address", self.0.queue.broker().to_owned()),
        ];
        let parent = attempt?.traceparent();
        let traces = self.0.telemetry.traces()?;
        Some(traces.begin(name, SpanKind::Client, Some(&parent), attributes))
    }

    fn end_span(
        &self,
        mut span: OpenSpan,
        told: &Told,
        digest: &str,
        verdict: &Verdict,
        consequence: Consequence,
    ) {
        let queue = self.0.queue.name();
        let since = || Duration::from_millis(self.0.queue.now().saturating_sub(told.enqueued_at));
        let traces = self.0.telemetry.traces();
        match consequence {
            Consequence::Completed { since_enqueued } => {
                if let Some(traces) = traces {
                    traces.job_ended(queue, short(digest), true, since_enqueued);
                }
            }
            Consequence::DeadLettered => {
                if let Some(Settlement::DeadLetter {
                    reason,
                    description,
                }) = &verdict.settlement
                {
                    span.happened(
                        "JobDeadLettered",
                        &[("Reason", reason), ("Description", description)],
                    );
                }
                if let Some(traces) = traces {
                    traces.job_ended(queue, short(digest), false, since());
                }
            }
            Consequence::Retry { delay } => {
                let delay = format!("{delay:?}");
                span.happened("JobRetried", &[("Delay", &delay)]);
            }
            Consequence::LockLost => span.happened("LockLost", &[]),
            Consequence::GivenBack => span.happened("JobGivenBack", &[]),
        }
        span.end();
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
            at_ms: self.0.queue.now(),
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
        if planted::is(Planted::ForgetRenewal) {
            std::future::pending::<()>().await;
        }
        let mut locked_until = lock.locked_until;
        let mut step = after_renewal(self.0.queue.now(), locked_until);
        while let Step::RenewAfter(wait) = step {
            tokio::time::sleep(wait).await;
            step = match self.0.queue.renew(lock).await {
                Ok(until) => {
                    locked_until = until;
                    after_renewal(self.0.queue.now(), locked_until)
                }
                Err(RenewError::Unavailable(_)) => after_failure(self.0.queue.now(), locked_until),
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
                Ok(()) => return consequence(settlement, told, self.0.queue.now()),
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

/// Whether chaos has a part in how an attempt ended.
fn is_injected(faults: Faults, ended: &Ended) -> bool {
    match ended {
        Ended::Attempted(Outcome::Trapped { kind, .. }) => faults.trap && kind == SIMULATED_TRAP,
        Ended::LockLost => faults.lock_loss.is_some() || faults.late_settle,
        Ended::Attempted(_) => faults.late_settle,
        Ended::FailedByChaos => true,
        Ended::Stopping => false,
    }
}

/// What is known of a run.
struct Ran {
    version: Arc<Loaded<WorkerComponent>>,
    recording: Recording,
    took: Duration,
    memory_bytes_peak: usize,
    cpu: Duration,
}

impl Ran {
    /// Of one that did not come to anything.
    fn nothing(version: Arc<Loaded<WorkerComponent>>) -> Self {
        Self {
            version,
            recording: Recording::default(),
            took: Duration::ZERO,
            memory_bytes_peak: 0,
            cpu: Duration::ZERO,
        }
    }
}

/// What a run came to, on its span.
fn describe(span: &mut OpenSpan, verdict: &Verdict, ran: &Ran) {
    let digest = format!("sha256:{}", ran.version.version.digest);
    span.set(KeyValue::new("ComponentDigest", digest));
    span.set(KeyValue::new("Verdict", verdict.outcome));
    span.set(KeyValue::new("Injected", verdict.injected));
    let memory = i64::try_from(ran.memory_bytes_peak).unwrap_or(i64::MAX);
    span.set(KeyValue::new("memoryPeakBytes", memory));
    span.set(KeyValue::new("cpuTimeMs", ran.cpu.as_secs_f64() * 1_000.0));
    for line in &ran.recording.lines {
        let severity = match line.level {
            Level::Debug => "debug",
            Level::Info | Level::Stdout => "info",
            Level::Warn | Level::Stderr => "warn",
            Level::Error => "error",
        };
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(line.at_ms);
        span.said(at, severity, line.message.clone());
    }
    if let Some(error) = &verdict.error {
        // A trap's further lines are its backtrace.
        let (message, stack) = error.split_once('\n').unwrap_or((error, ""));
        span.failed(
            verdict.outcome.to_owned(),
            message.to_owned(),
            stack.to_owned(),
            verdict.injected,
        );
    }
}

fn consequence(settlement: &Settlement, told: &Told, now: Millis) -> Consequence {
    match settlement {
        Settlement::Complete { .. } => Consequence::Completed {
            since_enqueued: Duration::from_millis(now.saturating_sub(told.enqueued_at)),
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
fn record(
    told: &Told,
    ended_at: Millis,
    verdict: &Verdict,
    digest: &str,
    recording: Recording,
) -> Attempt {
    Attempt {
        number: told.attempt,
        started_at: told.started_at,
        ended_at,
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
