//! Runs a plan: one host after the other on the same disk, and keeps its own
//! record of what clients were told and what workers did.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orchestrator::components::{Loaded, Version, WorkerSlot};
use orchestrator::dispatch::{DispatchConfig, Dispatcher, Stop};
use orchestrator::queue::Queue;
use orchestrator::telemetry::Telemetry;
use orchestrator_engine::Outcome;
use orchestrator_engine::worker::{Job as Given, Limits, WorkerComponent};
use orchestrator_queue::local::{Broker, Clock, Crash, Fault, Health, Operation, SimulatedDisk};
use orchestrator_queue::{Job, Message, Millis, QueueConfig, QueueStats, Retention, SendError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::plan::{End, Plan};

const QUEUE: &str = "jobs";
/// When simulated time begins.
const BEGINNING: Millis = 1_000_000_000;
/// Simulated time after which a job that has not ended never will.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Simulated time between two looks at the queue.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How long a client waits before it repeats what was not accepted, and for how long it does.
const SEND_AGAIN: Duration = Duration::from_millis(100);
const SENDS_MAX: usize = 2_000;
/// What a job's payload has.
const PAYLOAD_BYTES: usize = 100;

/// Everything that was seen.
#[derive(Default)]
pub struct Seen {
    /// Jobs that a client was told are accepted: when, and as which message.
    pub accepted: BTreeMap<String, Vec<(Millis, u64)>>,
    /// Jobs that may or may not be there: the answer was never heard.
    pub unheard: BTreeSet<String>,
    pub runs: Vec<Run>,
    pub ends: Vec<(Millis, &'static str)>,
    /// Moments of storage faults.
    pub storage_faults: Vec<Millis>,
    /// What the queue says in the end, by job.
    pub jobs: BTreeMap<String, Option<Job>>,
    /// Every job that the queue lists in the end.
    pub listed: Vec<Job>,
    pub stats: QueueStats,
    /// True if everything came to rest in time.
    pub rested: bool,
}

/// One run of the worker.
pub struct Run {
    pub job: String,
    pub attempt: u32,
    pub began: Millis,
    /// When and how it ended; without an outcome it was cut short.
    pub ended: Option<(Millis, Option<Outcome>)>,
    /// Which host it ran on.
    pub host: usize,
}

impl Seen {
    /// All of it, as text.
    pub fn log(&self) -> String {
        let mut lines: Vec<(Millis, String)> = Vec::new();
        for (id, times) in &self.accepted {
            for (at, sequence) in times {
                lines.push((*at, format!("{id} accepted as {sequence}")));
            }
        }
        for (n, run) in self.runs.iter().enumerate() {
            let what = format!(
                "{} attempt {}, run {n}, host {}",
                run.job, run.attempt, run.host
            );
            lines.push((run.began, format!("{what} begins")));
            if let Some((at, outcome)) = &run.ended {
                let how = match outcome {
                    Some(Outcome::Done { .. }) => "done".to_owned(),
                    Some(outcome) => format!("{outcome:?}"),
                    None => "cut short".to_owned(),
                };
                lines.push((*at, format!("{what} ends: {how}")));
            }
        }
        lines.extend(
            self.ends
                .iter()
                .map(|(at, how)| (*at, format!("host ends: {how}"))),
        );
        let faults = self.storage_faults.iter();
        lines.extend(faults.map(|at| (*at, "the disk fails".to_owned())));
        lines.sort();
        let mut text = String::new();
        for (at, line) in lines {
            text += &format!("{:>9.3} s  {line}\n", (at - BEGINNING) as f64 / 1_000.0);
        }
        for (id, job) in &self.jobs {
            let Some(job) = job else {
                text += &format!("{id}: unknown\n");
                continue;
            };
            let history: Vec<String> = (job.attempts.iter())
                .map(|attempt| format!("{} {}", attempt.number, attempt.outcome))
                .collect();
            text += &format!(
                "{id}: {} after {} deliveries [{}] {:?}\n",
                job.state.as_str(),
                job.delivery_count,
                history.join(", "),
                job.dead_letter.as_ref().map(|letter| &letter.reason)
            );
        }
        text
    }
}

/// What hosts share, and outlives them.
#[derive(Clone)]
struct World {
    /// A copy for the worker.
    plan: Arc<Plan>,
    seen: Arc<Mutex<Seen>>,
    /// The time when no host runs.
    time: Arc<Mutex<Millis>>,
    /// The clock of the host that runs.
    clock: Arc<Mutex<Option<Clock>>>,
}

impl World {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the plan to its end.
pub fn run(plan: &Plan) -> Seen {
    let world = World {
        plan: Arc::new(Plan::of(plan.seed)),
        seen: Arc::default(),
        time: Arc::new(Mutex::new(BEGINNING)),
        clock: Arc::default(),
    };
    let disk = SimulatedDisk::default();
    let mut random = StdRng::seed_from_u64(!plan.seed);
    let delay = plan.disk_delay;
    let mut pauses = StdRng::seed_from_u64(random.random());
    disk.set_pauses(move || delay.mul_f64(pauses.random()));
    disk.set_faults(storage_faults(plan, &world, random.random()));
    let mut ends = plan.ends.iter();
    for host in 0.. {
        let end = ends.next().copied();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let how = runtime.block_on(live(plan, &world, &disk, host, end));
        // What ran on it is gone with it, wherever it was.
        drop(runtime);
        let now = *lock(&world.time);
        let name = match how {
            Ended::Rested => return std::mem::take(&mut *world.seen()),
            Ended::Crashed(Crash::Kill) => "killed",
            Ended::Crashed(Crash::PowerLoss { .. }) => "power lost",
            Ended::Stopped => "stopped",
        };
        world.seen().ends.push((now, name));
        if let Ended::Crashed(crash) = how {
            disk.crash(crash);
        }
        *lock(&world.time) += random.random_range(0..2_000);
        world.seen().cut_short(now);
    }
    unreachable!("the last host runs until all is at rest")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seen {
    /// Runs that ended with their host.
    fn cut_short(&mut self, now: Millis) {
        for run in self.runs.iter_mut().filter(|run| run.ended.is_none()) {
            run.ended = Some((now, None));
        }
    }
}

fn storage_faults(
    plan: &Plan,
    world: &World,
    seed: u64,
) -> impl FnMut(Operation) -> Option<Fault> + Send + 'static {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut left, rate) = (plan.storage_faults, plan.storage_fault_rate);
    let world = world.clone();
    move |operation| {
        // A failed fsync ends the host, so it is rarer.
        let rate = match operation {
            Operation::Sync => rate / 4.0,
            Operation::Open | Operation::Commit => rate,
        };
        if left == 0 || !random.random_bool(rate) {
            return None;
        }
        left -= 1;
        let clock = lock(&world.clock).clone();
        let now = clock.map_or(*lock(&world.time), |clock| clock.now());
        world.seen().storage_faults.push(now);
        Some(match random.random_bool(0.5) {
            true => Fault::With,
            false => Fault::Without,
        })
    }
}

enum Ended {
    Rested,
    Crashed(Crash),
    Stopped,
}

async fn live(
    plan: &Plan,
    world: &World,
    disk: &SimulatedDisk,
    host: usize,
    end: Option<(Duration, End)>,
) -> Ended {
    let clock = Clock::of_runtime(*lock(&world.time));
    *lock(&world.clock) = Some(clock.clone());
    let Ok((broker, _)) = Broker::simulated(disk.clone(), vec![queue(plan)], clock.clone()) else {
        // A disk that fails at the start: the next host tries again.
        return Ended::Crashed(Crash::Kill);
    };
    let queue = Queue::from(broker.queue(QUEUE).expect("it was given")).with_chaos(plan.chaos);
    let stop = Stop::default();
    let dispatcher = Dispatcher::new(
        queue.clone(),
        Arc::new(worker(world, &clock, host)),
        dispatch(plan),
        Telemetry::default(),
        stop.clone(),
    );
    let dispatching = tokio::spawn(dispatcher.run());
    let clients: Vec<_> = plan
        .jobs
        .iter()
        .enumerate()
        .filter(|(_, job)| {
            !world
                .seen()
                .is_done_with(&job.id, job.repeat_after.is_some())
        })
        .map(|(n, _)| {
            let (world, queue, clock) = (world.clone(), queue.clone(), clock.clone());
            tokio::spawn(client(world, queue, clock, Plan::of(plan.seed), n))
        })
        .collect();
    let mut health = broker.health();
    let poisoned = async {
        let is_poisoned = |health: &Health| matches!(health, Health::Poisoned { .. });
        if health.wait_for(is_poisoned).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let ended = async {
        match end {
            None => rest(world, &queue, &clients).await,
            Some((after, how)) => {
                tokio::time::sleep(after).await;
                match how {
                    End::Kill => Ended::Crashed(Crash::Kill),
                    End::PowerLoss { kept } => Ended::Crashed(Crash::PowerLoss { kept }),
                    End::Stop { patience } => {
                        clients.iter().for_each(tokio::task::JoinHandle::abort);
                        stop.receiving.cancel();
                        let mut dispatching = dispatching;
                        if tokio::time::timeout(patience, &mut dispatching)
                            .await
                            .is_err()
                        {
                            stop.working.cancel();
                            // As the host does: what is not given back by then is cut.
                            let bound = Duration::from_secs(5);
                            let _ = tokio::time::timeout(bound, dispatching).await;
                        }
                        Ended::Stopped
                    }
                }
            }
        }
    };
    let ended = tokio::select! {
        biased;
        () = poisoned => Ended::Crashed(Crash::PowerLoss { kept: plan.seed as usize % 3 }),
        ended = ended => ended,
    };
    *lock(&world.time) = clock.now();
    if matches!(ended, Ended::Stopped) {
        broker.close().await;
    }
    ended
}

/// Until every client is done and every job has ended, or long past that.
async fn rest(world: &World, queue: &Queue, clients: &[tokio::task::JoinHandle<()>]) -> Ended {
    let began = tokio::time::Instant::now();
    loop {
        let stats = queue.stats().await.unwrap_or_default();
        let waiting = stats.ready + stats.locked + stats.scheduled;
        let is_over = waiting == 0 && clients.iter().all(tokio::task::JoinHandle::is_finished);
        if is_over || began.elapsed() > PATIENCE {
            world.seen().rested = is_over;
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let mut jobs = BTreeMap::new();
    let ids: BTreeSet<String> = {
        let seen = world.seen();
        seen.accepted.keys().chain(&seen.unheard).cloned().collect()
    };
    for id in ids {
        let job = queue.job(&id).await.expect("the disk reads");
        jobs.insert(id, job);
    }
    let listed = queue.jobs(10_000, None).await.expect("the disk reads");
    let stats = queue.stats().await.expect("it is kept here");
    let mut seen = world.seen();
    seen.jobs = jobs;
    seen.listed = listed;
    seen.stats = stats;
    Ended::Rested
}

impl Seen {
    fn is_done_with(&self, id: &str, repeats: bool) -> bool {
        let times = self.accepted.get(id).map_or(0, Vec::len);
        times > usize::from(repeats)
    }
}

/// A careful client: it repeats until it is told that its job is accepted, and
/// some repeat themselves after that.
async fn client(world: World, queue: Queue, clock: Clock, plan: Plan, n: usize) {
    let job = &plan.jobs[n];
    let accepted = world.seen().accepted.get(&job.id).map_or(0, Vec::len);
    let due = BEGINNING + millis(job.send_at);
    if accepted == 0 {
        wait_until(&clock, due).await;
        if !send(&world, &queue, &clock, &job.id, job.delay).await {
            return;
        }
    }
    if let Some(after) = job.repeat_after {
        let first = world.seen().accepted[&job.id][0].0;
        wait_until(&clock, first + millis(after)).await;
        send(&world, &queue, &clock, &job.id, job.delay).await;
    }
}

async fn wait_until(clock: &Clock, at: Millis) {
    let left = at.saturating_sub(clock.now());
    tokio::time::sleep(Duration::from_millis(left)).await;
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).expect("times here are short")
}

async fn send(world: &World, queue: &Queue, clock: &Clock, id: &str, delay: Duration) -> bool {
    for _ in 0..SENDS_MAX {
        let message = Message {
            id: id.to_owned(),
            job_type: "simulated".to_owned(),
            payload: vec![b'x'; PAYLOAD_BYTES].into(),
            content_type: String::new(),
            properties: Vec::new(),
            traceparent: None,
            delay,
            time_to_live: None,
            envelope: Default::default(),
        };
        // Should the host end meanwhile, the answer is never heard.
        world.seen().unheard.insert(id.to_owned());
        let mut sent = queue.send_many(vec![message]).await;
        match sent.pop().expect("one message, one answer") {
            Ok(receipt) => {
                let told = (clock.now(), receipt.sequence);
                let mut seen = world.seen();
                seen.accepted.entry(id.to_owned()).or_default().push(told);
                return true;
            }
            Err(SendError::Invalid(why)) => panic!("{id} is invalid: {why}"),
            Err(SendError::Full { .. } | SendError::Unavailable(_)) => {
                tokio::time::sleep(SEND_AGAIN).await;
            }
        }
    }
    false
}

/// Notes that a run was cut short, unless it came to its end.
struct Running {
    world: World,
    clock: Clock,
    run: usize,
    outcome: Option<Outcome>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let ended = Some((self.clock.now(), self.outcome.take()));
        self.world.seen().runs[self.run].ended = ended;
    }
}

fn worker(world: &World, clock: &Clock, host: usize) -> WorkerSlot {
    let (world, clock) = (world.clone(), clock.clone());
    let component = WorkerComponent::native(Box::new(move |job: Given| {
        let (world, clock) = (world.clone(), clock.clone());
        Box::pin(async move {
            let run = {
                let mut seen = world.seen();
                seen.runs.push(Run {
                    job: job.id.clone(),
                    attempt: job.attempt,
                    began: clock.now(),
                    ended: None,
                    host,
                });
                seen.runs.len() - 1
            };
            let (busy, outcome) = world.plan.behaviour(&job.id, job.attempt, run);
            let mut running = Running {
                world,
                clock,
                run,
                outcome: None,
            };
            tokio::time::sleep(busy).await;
            running.outcome = Some(outcome.clone());
            outcome
        })
    }));
    let version = Version {
        digest: component.digest().to_owned(),
        ..Version::default()
    };
    WorkerSlot::new("worker", Loaded { component, version })
}

fn queue(plan: &Plan) -> QueueConfig {
    QueueConfig {
        name: QUEUE.to_owned(),
        lock_duration: plan.lock,
        max_delivery_count: plan.attempts_max,
        duplicate_window: PATIENCE,
        time_to_live: None,
        dead_letter_expired: true,
        max_bytes: plan.bytes_max,
        retention: Retention {
            age: PATIENCE * 2,
            count: 1_000_000,
            bytes: u64::MAX,
        },
    }
}

fn dispatch(plan: &Plan) -> DispatchConfig {
    DispatchConfig {
        concurrency: plan.concurrency,
        attempts_max: plan.attempts_max,
        limits: Limits {
            memory_bytes_max: 0,
            deadline: plan.timeout,
        },
        retry: plan.retry,
        chaos: plan.chaos,
    }
}
