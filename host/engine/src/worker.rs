//! One attempt at one job: a fresh instance, its limits, one [`Outcome`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::component::Accessor;
use wasmtime::{PoolConcurrencyLimitError, Store, Trap, WasmBacktrace};

use crate::bindings::{types, worker, worker_sync};
use crate::compose::Source;
use crate::cpu_time::CpuTime;
use crate::guest_log::{GuestLog, Recording, cut};
use crate::loader::{self, LoadError, LoadTimes, TRIAL_START_MAX, one_line};
use crate::runtime::Runtime;
pub use crate::state::Grants;
use crate::state::GuestState;

/// Largest result of one attempt, in bytes: it is kept with the job.
pub const RESULT_BYTES_MAX: usize = 64 * 1024;
/// Longest media type of a result, in bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 256;
/// Longest reason of a dead letter, in bytes.
pub const REASON_BYTES_MAX: usize = 256;
/// Longest description of a failure, in bytes.
pub const DESCRIPTION_BYTES_MAX: usize = 4096;
/// Longest delay a guest may ask for, in milliseconds: 365 days.
pub const DELAY_MS_MAX: u64 = 365 * 24 * 3600 * 1000;

/// A job as the guest sees it.
#[derive(Clone, Debug)]
pub struct Job {
    /// The job's id.
    pub id: String,
    /// Its type.
    pub job_type: String,
    /// Its data.
    pub payload: Vec<u8>,
    /// Media type of the data.
    pub content_type: String,
    /// Custom properties.
    pub properties: Vec<(String, String)>,
    /// Name of its queue.
    pub queue: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// How many there may be.
    pub attempts_max: u32,
    /// When the queue accepted it: milliseconds since 1970-01-01 UTC.
    pub enqueued_at_ms: u64,
    /// Trace context.
    pub traceparent: Option<String>,
}

/// What one attempt may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Linear memory, in bytes.
    pub memory_bytes_max: usize,
    /// Wall-clock time, instantiation included.
    pub deadline: Duration,
}

/// How an attempt ended. The first three are the guest's own words; the rest
/// only the host can say.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The guest did the job.
    Done {
        /// Its result; empty if it has none.
        result: Vec<u8>,
        /// Media type of the result.
        content_type: String,
    },
    /// The guest wants another attempt.
    Retry {
        /// Why.
        reason: String,
        /// After how long, if it cares.
        delay: Option<Duration>,
    },
    /// The guest gives the job up.
    DeadLetter {
        /// Short name of the cause.
        reason: String,
        /// What happened.
        description: String,
    },
    /// The guest's answer breaks the contract (a result over its limit).
    BadAnswer {
        /// What is wrong with it.
        description: String,
    },
    /// The guest crashed.
    Trapped {
        /// Kind of trap, such as `wasm trap: integer divide by zero`.
        kind: String,
        /// Where, as far as names are known.
        backtrace: String,
    },
    /// The guest was still busy at its deadline.
    TimedOut,
    /// The guest ran into its memory limit.
    OutOfMemory,
    /// No instance could be started: the host is short of something. Not the
    /// job's fault; no attempt is spent.
    NotStarted {
        /// What was short.
        description: String,
    },
}

/// What is known after an attempt.
#[derive(Debug)]
pub struct Attempt {
    /// How it ended.
    pub outcome: Outcome,
    /// What the guest said meanwhile.
    pub recording: Recording,
    /// Linear memory it used at most, in bytes.
    pub memory_bytes_peak: usize,
    /// Processor time it took.
    pub cpu: Duration,
}

/// A worker component, checked and ready to be started any number of times.
pub struct WorkerComponent {
    digest: String,
    times: LoadTimes,
    body: Body,
}

/// What a worker is made of.
enum Body {
    Guest(Guest),
    #[cfg(feature = "simulation")]
    Native(NativeWorker),
}

/// A component and what its instances get.
struct Guest {
    runtime: Runtime,
    grants: Grants,
    export: Export,
}

/// A worker without WebAssembly: how it ends a job.
#[cfg(feature = "simulation")]
pub type NativeWorker =
    Box<dyn Fn(Job) -> futures_util::future::BoxFuture<'static, Outcome> + Send + Sync>;

enum Export {
    Async(worker::WorkerPre<GuestState>),
    Sync(worker_sync::WorkerSyncPre<GuestState>),
}

enum Started {
    Async(worker::Worker),
    Sync(worker_sync::WorkerSync),
}

const ASYNC_EXPORT: &str = "orchestrator:pipeline/processor@";
const SYNC_EXPORT: &str = "orchestrator:pipeline/processor-sync@";

impl WorkerComponent {
    /// Compiles, checks and starts a component once, under `limits`.
    pub async fn load(
        runtime: &Runtime,
        source: impl Into<Source>,
        grants: Grants,
        limits: Limits,
    ) -> Result<Arc<Self>, LoadError> {
        let Source { digest, bytes } = source.into();
        let began = Instant::now();
        let component = loader::compile(runtime, bytes).await?;
        let (compile, began) = (began.elapsed(), Instant::now());
        let name = loader::find_export(
            runtime,
            &component,
            &[ASYNC_EXPORT, SYNC_EXPORT],
            "`orchestrator:pipeline/processor@0.1.0` (or `processor-sync`), so it is not a worker",
        )?;
        let linked = loader::link(runtime.worker_linker(), &component)?;
        let export = if name.starts_with(ASYNC_EXPORT) {
            worker::WorkerPre::new(linked).map(Export::Async)
        } else {
            worker_sync::WorkerSyncPre::new(linked).map(Export::Sync)
        }
        .map_err(|error| LoadError::WrongType(one_line(&error)))?;
        let guest = Guest {
            runtime: runtime.clone(),
            grants,
            export,
        };
        guest.trial(limits).await?;
        let check = began.elapsed();
        Ok(Arc::new(Self {
            digest,
            times: LoadTimes { compile, check },
            body: Body::Guest(guest),
        }))
    }

    /// A worker that is a function.
    #[cfg(feature = "simulation")]
    pub fn native(worker: NativeWorker) -> Arc<Self> {
        Arc::new(Self {
            digest: loader::digest(b"native"),
            times: LoadTimes::default(),
            body: Body::Native(worker),
        })
    }

    /// How long loading it took.
    pub fn times(&self) -> LoadTimes {
        self.times
    }

    /// SHA-256 of its own file, in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Makes one attempt. Dropping the future stops the guest at once.
    pub async fn run(&self, job: Job, limits: Limits) -> Attempt {
        match &self.body {
            Body::Guest(guest) => guest.run(job, limits).await,
            #[cfg(feature = "simulation")]
            Body::Native(worker) => {
                let ended = tokio::time::timeout(limits.deadline, worker(job)).await;
                Attempt {
                    outcome: ended.unwrap_or(Outcome::TimedOut),
                    recording: Recording::default(),
                    memory_bytes_peak: 0,
                    cpu: Duration::ZERO,
                }
            }
        }
    }
}

impl Guest {
    /// Names are checked when linking, types only when starting.
    async fn trial(&self, limits: Limits) -> Result<(), LoadError> {
        let mut store = self.store(limits.memory_bytes_max, GuestLog::default());
        let started = tokio::time::timeout(TRIAL_START_MAX, self.start(&mut store)).await;
        match started {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) if store.data().memory.was_refused() => {
                Err(LoadError::DoesNotStart(format!(
                    "it needs more memory at once than its limit of {} bytes; raise `memory_limit`",
                    limits.memory_bytes_max
                )))
            }
            Ok(Err(error)) if error.is::<PoolConcurrencyLimitError>() => {
                Err(LoadError::Host(one_line(&error)))
            }
            Ok(Err(error)) if error.is::<Trap>() => Err(LoadError::DoesNotStart(one_line(&error))),
            Ok(Err(error)) => Err(LoadError::WrongType(one_line(&error))),
            Err(_) => Err(LoadError::DoesNotStart(format!(
                "it was not ready after {TRIAL_START_MAX:?}"
            ))),
        }
    }

    async fn run(&self, job: Job, limits: Limits) -> Attempt {
        let log = GuestLog::default();
        let mut store = self.store(limits.memory_bytes_max, log.clone());
        store.data_mut().trace(job.traceparent.as_deref());
        let mut cpu = Duration::ZERO;
        let outcome = {
            let attempt = std::pin::pin!(self.attempt(&mut store, job));
            let counted = CpuTime::of(attempt, &mut cpu);
            let ended = tokio::time::timeout(limits.deadline, counted).await;
            ended.unwrap_or(Outcome::TimedOut)
        };
        let memory_bytes_peak = store.data().memory.used_bytes();
        drop(store);
        Attempt {
            outcome,
            recording: log.take(),
            memory_bytes_peak,
            cpu,
        }
    }

    async fn attempt(&self, store: &mut Store<GuestState>, job: Job) -> Outcome {
        let started = match self.start(store).await {
            Ok(started) => started,
            Err(error) if error.is::<Trap>() || store.data().memory.was_refused() => {
                return failed(store, &error);
            }
            Err(error) => {
                return Outcome::NotStarted {
                    description: one_line(&error),
                };
            }
        };
        let job = guest_job(job);
        let answer = match started {
            Started::Async(guest) => store
                .run_concurrent(async |accessor: &Accessor<GuestState>| {
                    guest
                        .orchestrator_pipeline_processor()
                        .call_process(accessor, job)
                        .await
                })
                .await
                .and_then(|answer| answer),
            Started::Sync(guest) => {
                guest
                    .orchestrator_pipeline_processor_sync()
                    .call_process(&mut *store, &job)
                    .await
            }
        };
        match answer {
            Ok(answer) => answered(answer),
            Err(error) => failed(store, &error),
        }
    }

    async fn start(&self, store: &mut Store<GuestState>) -> wasmtime::Result<Started> {
        match &self.export {
            Export::Async(pre) => pre.instantiate_async(store).await.map(Started::Async),
            Export::Sync(pre) => pre.instantiate_async(store).await.map(Started::Sync),
        }
    }

    fn store(&self, memory_bytes_max: usize, log: GuestLog) -> Store<GuestState> {
        new_store(
            &self.runtime,
            GuestState::new(&self.grants, memory_bytes_max, log, None),
        )
    }
}

/// A store under its memory limit that yields at every tick of the engine.
pub(crate) fn new_store(runtime: &Runtime, state: GuestState) -> Store<GuestState> {
    let mut store = Store::new(runtime.engine(), state);
    store.limiter(|state| &mut state.memory);
    store.epoch_deadline_async_yield_and_update(1);
    store
}

fn guest_job(job: Job) -> types::Job {
    types::Job {
        id: job.id,
        job_type: job.job_type,
        payload: job.payload,
        content_type: job.content_type,
        properties: job
            .properties
            .into_iter()
            .map(|(name, value)| types::Property { name, value })
            .collect(),
        queue: job.queue,
        attempt: job.attempt,
        attempts_max: job.attempts_max,
        enqueued_at_ms: job.enqueued_at_ms,
        traceparent: job.traceparent,
    }
}

fn answered(answer: Result<types::Output, types::Failure>) -> Outcome {
    match answer {
        Ok(output) if output.body.len() > RESULT_BYTES_MAX => Outcome::BadAnswer {
            description: format!(
                "the result has {} bytes; at most {RESULT_BYTES_MAX} are kept, so store it elsewhere and return where",
                output.body.len()
            ),
        },
        Ok(output) if output.content_type.len() > CONTENT_TYPE_BYTES_MAX => Outcome::BadAnswer {
            description: format!(
                "the result's content type has {} bytes; at most {CONTENT_TYPE_BYTES_MAX} are kept",
                output.content_type.len()
            ),
        },
        Ok(output) => Outcome::Done {
            result: output.body,
            content_type: output.content_type,
        },
        Err(types::Failure::Retry(retry)) => Outcome::Retry {
            reason: cut(&retry.reason, DESCRIPTION_BYTES_MAX).to_owned(),
            delay: retry
                .delay_ms
                .map(|ms| Duration::from_millis(ms.min(DELAY_MS_MAX))),
        },
        Err(types::Failure::DeadLetter(letter)) => Outcome::DeadLetter {
            reason: cut(&letter.reason, REASON_BYTES_MAX).to_owned(),
            description: cut(&letter.description, DESCRIPTION_BYTES_MAX).to_owned(),
        },
    }
}

fn failed(store: &Store<GuestState>, error: &wasmtime::Error) -> Outcome {
    if store.data().memory.was_refused() {
        return Outcome::OutOfMemory;
    }
    let backtrace = error
        .downcast_ref::<WasmBacktrace>()
        .map(ToString::to_string)
        .unwrap_or_default();
    let kind = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => one_line(&wasmtime::Error::msg(error.root_cause().to_string())),
    };
    Outcome::Trapped {
        kind: cut(&kind, DESCRIPTION_BYTES_MAX).to_owned(),
        backtrace: cut(&backtrace, DESCRIPTION_BYTES_MAX).to_owned(),
    }
}
