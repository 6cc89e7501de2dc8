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

/// Another process holds what this one needs to start.
pub struct HandOverAwaited<'a> {
    /// What it holds, and what would help.
    pub why: &'a str,
    /// How long it is waited for.
    pub at_most: Duration,
}

impl HandOverAwaited<'_> {
    /// Writes it down.
    pub fn emit(self) {
        let Self { why, at_most } = self;
        tracing::warn!(why, ?at_most, "waiting for an earlier run to end");
    }
}

/// A flag was given that does nothing here.
pub struct FlagIgnored {
    /// The flag.
    pub flag: &'static str,
    /// What holds instead.
    pub why: &'static str,
}

impl FlagIgnored {
    /// Writes it down.
    pub fn emit(self) {
        let Self { flag, why } = self;
        tracing::warn!(flag, why, "a flag without effect on workers");
    }
}

/// Components that send jobs and workers that do them would use different queues.
pub struct SplitApplication {
    /// Why.
    pub what: &'static str,
    /// What to do.
    pub instead: &'static str,
}

impl SplitApplication {
    /// Writes it down.
    pub fn emit(self) {
        let Self { what, instead } = self;
        tracing::warn!(instead, "{what}");
    }
}

/// The process that started this one is gone.
pub struct ParentGone;

impl ParentGone {
    /// Writes it down.
    pub fn emit(self) {
        tracing::warn!("the process that started this one is gone: stopping");
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

/// What happened to a component's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComponentStep {
    /// A new version came, and is being checked.
    Candidate,
    /// It is not fit to run; nothing was changed.
    Refused,
    /// It does a share of the jobs.
    CanaryBegan,
    /// It runs.
    Promoted,
    /// It was taken back.
    RolledBack,
}

impl ComponentStep {
    /// All there are.
    pub const ALL: [Self; 5] = [
        Self::Candidate,
        Self::Refused,
        Self::CanaryBegan,
        Self::Promoted,
        Self::RolledBack,
    ];

    /// Its name, in events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Candidate => "candidate",
            Self::Refused => "refused",
            Self::CanaryBegan => "canary-began",
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled-back",
        }
    }
}

/// Where the time between a version's arrival and its first job went.
#[derive(Clone, Copy, Debug)]
pub struct ComponentTimes {
    /// Reading its bytes.
    pub read: Duration,
    /// Compiling, or reading compiled code.
    pub compile: Duration,
    /// Checking it against the world, starting it once.
    pub check: Duration,
    /// Writing it down and putting it in place.
    pub publish: Duration,
}

/// A component's version changed, or did not.
pub struct ComponentChanged<'a> {
    /// The component.
    pub component: &'a str,
    /// What happened.
    pub step: ComponentStep,
    /// Digest of the version that it happened to; empty if it was not read.
    pub digest: &'a str,
    /// Why.
    pub why: &'a str,
    /// How long it took, once it runs.
    pub times: Option<ComponentTimes>,
}

impl ComponentChanged<'_> {
    /// Writes it down, counts it, and tells whoever follows events.
    pub fn emit(self, telemetry: &Telemetry) {
        let Self {
            component,
            step,
            why,
            ..
        } = self;
        let digest = &self.digest[..self.digest.floor_char_boundary(12)];
        match (step, self.times) {
            (ComponentStep::Candidate, _) => {
                tracing::info!(component, digest, from = why, "checking a new version");
            }
            (ComponentStep::Refused, _) => {
                tracing::warn!(component, digest, why, "version refused; nothing changed");
            }
            (ComponentStep::RolledBack, _) => {
                tracing::warn!(component, digest, why, "version rolled back");
            }
            (ComponentStep::CanaryBegan | ComponentStep::Promoted, Some(times)) => {
                let ComponentTimes {
                    read,
                    compile,
                    check,
                    publish,
                } = times;
                tracing::info!(
                    component,
                    digest,
                    why,
                    ?read,
                    ?compile,
                    ?check,
                    ?publish,
                    "version {}",
                    step.as_str()
                );
            }
            (ComponentStep::CanaryBegan | ComponentStep::Promoted, None) => {
                tracing::info!(component, digest, why, "version {}", step.as_str());
            }
        }
        telemetry.metrics().component_changed(component, step);
        if let Some(traces) = telemetry.traces() {
            let name = match step {
                ComponentStep::Candidate => "ComponentCandidate",
                ComponentStep::Refused => "ComponentRefused",
                ComponentStep::CanaryBegan => "CanaryBegan",
                ComponentStep::Promoted => "ComponentPromoted",
                ComponentStep::RolledBack => "ComponentRolledBack",
            };
            let facts = [
                ("Component", component.to_owned()),
                ("ComponentDigest", format!("sha256:{}", self.digest)),
                ("Why", why.to_owned()),
            ];
            traces.event(name, &facts);
        }
        let micros = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        telemetry.tell(
            "component",
            &serde_json::json!({
                "component": component,
                "step": step.as_str(),
                "digest": (!self.digest.is_empty()).then(|| format!("sha256:{}", self.digest)),
                "why": why,
                "times": self.times.map(|times| serde_json::json!({
                    "readUs": micros(times.read),
                    "compileUs": micros(times.compile),
                    "checkUs": micros(times.check),
                    "publishUs": micros(times.publish),
                })),
            }),
        );
    }
}

/// A candidate failed a job that the current version then did, or not.
pub struct CanaryFailed<'a> {
    /// The job.
    pub job: &'a str,
    /// Digest of the candidate.
    pub digest: &'a str,
    /// How it failed.
    pub outcome: &'static str,
    /// What went wrong.
    pub error: &'a str,
}

impl CanaryFailed<'_> {
    /// Writes it down, within the rate of lines about jobs.
    pub fn emit(self, telemetry: &Telemetry) {
        if telemetry.may_write_job_line() {
            let digest = &self.digest[..self.digest.floor_char_boundary(12)];
            tracing::warn!(
                job = self.job,
                digest,
                outcome = self.outcome,
                error = self.error,
                "failed on the canary; running it on the current version"
            );
        }
    }
}

/// Faults were switched on or off.
pub struct ChaosSwitched<'a> {
    /// The queue.
    pub queue: &'a str,
    /// The faults; none: those of the manifest again.
    pub chaos: Option<serde_json::Value>,
    /// For how long.
    pub time: Duration,
}

impl ChaosSwitched<'_> {
    /// Writes it down, and tells whoever follows events.
    pub fn emit(self, telemetry: &Telemetry) {
        let Self { queue, chaos, time } = self;
        match &chaos {
            Some(chaos) => tracing::warn!(queue, %chaos, ?time, "chaos: faults are injected"),
            None => tracing::info!(queue, "chaos: the manifest's faults again"),
        }
        telemetry.tell(
            "chaos",
            &serde_json::json!({ "queue": queue, "chaos": &chaos, "forSeconds": time.as_secs() }),
        );
        if let Some(traces) = telemetry.traces() {
            let facts = [
                ("Queue", queue.to_owned()),
                ("Chaos", chaos.unwrap_or_default().to_string()),
            ];
            traces.event("ChaosSwitched", &facts);
        }
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
    /// Digest of the version that ran it.
    pub digest: &'a str,
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

impl Consequence {
    /// Its name, in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed { .. } => "completed",
            Self::Retry { .. } => "retried",
            Self::DeadLettered => "dead-lettered",
            Self::GivenBack => "given-back",
            Self::LockLost => "lock-lost",
        }
    }
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
        let digest = &self.digest[..self.digest.floor_char_boundary(12)];
        let error = self.error.unwrap_or_default();
        match self.consequence {
            Consequence::Completed { .. } => {
                tracing::info!(queue, job, attempt, digest, ?took, "job completed");
            }
            Consequence::Retry { delay } => {
                tracing::warn!(
                    queue,
                    job,
                    attempt,
                    digest,
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
                    digest,
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
                    digest,
                    outcome,
                    error,
                    "job given back; no attempt spent"
                );
            }
            Consequence::LockLost => {
                tracing::warn!(queue, job, attempt, digest, "lock lost; attempt cancelled");
            }
        }
    }

    fn count(&self, telemetry: &Telemetry) {
        let metrics = telemetry.metrics();
        metrics.attempt(
            self.queue,
            self.outcome,
            self.consequence,
            self.digest,
            self.took,
        );
        if self.injected {
            metrics.fault_injected(self.queue);
        }
        match self.consequence {
            Consequence::Completed { .. } => {}
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
        let metrics = telemetry.metrics();
        // One bound on names, for what is scraped and what leaves the host.
        if metrics.guest_metric(self.component, self.name, self.value)
            && let Some(traces) = telemetry.traces()
        {
            traces.guest_measured(self.component, self.name, self.value);
        }
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
    /// Digest of its version; none for the host.
    pub digest: Option<&'a str>,
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
            .request(self.component, self.digest, self.status, self.took);
    }
}

/// What a queue answered to a job that a component sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendAnswer {
    /// It is durable.
    Accepted,
    /// It was known already.
    Duplicate,
    /// No queue takes it as it is.
    Invalid,
    /// The queue is full.
    Full,
    /// It cannot be made durable now.
    Unavailable,
}

impl SendAnswer {
    /// All there are.
    pub const ALL: [Self; 5] = [
        Self::Accepted,
        Self::Duplicate,
        Self::Invalid,
        Self::Full,
        Self::Unavailable,
    ];

    /// Its name, in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Invalid => "invalid",
            Self::Full => "full",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A component sent a job.
pub struct JobSent<'a> {
    /// Name of the queue.
    pub queue: &'a str,
    /// What it answered.
    pub answer: SendAnswer,
}

impl JobSent<'_> {
    /// Counts it.
    pub fn emit(self, telemetry: &Telemetry) {
        telemetry.metrics().sent(self.queue, self.answer);
    }
}
