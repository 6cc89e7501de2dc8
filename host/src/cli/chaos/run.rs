//! `chaos run`: drives load through the application under faults and kills,
//! lets it come to rest, and has it judged.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::super::client::client;
use super::super::{print, print_json};
use super::judge::{Rules, Verdict};
use super::running::Running;
use super::{ChaosRunArgs, CliError, Output, failed};
use crate::config::{Config, QueueTrigger};
use crate::dispatch::chaos::Chaos;

/// Jobs that wait for their answer at one time.
const SENDERS: usize = 16;
/// How long one request may take: a killed host never answers.
const REQUEST_MAX: Duration = Duration::from_secs(15);
/// Pause before a job that was not accepted is sent again, and between looks.
const AGAIN: Duration = Duration::from_millis(100);
/// Jobs sent when neither a number nor a time is given.
const JOBS_DEFAULT: usize = 500;
/// Ended jobs whose ids are sent again.
const REPEATED_MAX: usize = 50;
/// One job in so many outlives its lock, where locks are short enough to wait for.
const LONG_JOBS: usize = 50;
const LONG_JOBS_LOCK_MAX: Duration = Duration::from_secs(5);

/// The faults of a run: enough of each that a few hundred jobs meet them all.
fn faults(seed: u64) -> Chaos {
    Chaos {
        failure_rate: 0.1,
        trap_rate: 0.05,
        latency_rate: 0.1,
        lock_loss_rate: 0.05,
        late_settle_rate: 0.05,
        broker_down_rate: 0.05,
        broker_throttle_rate: 0.05,
        broker_slow_rate: 0.05,
        seed,
        ..Chaos::default()
    }
}

/// Runs the application under faults and judges it.
pub(in crate::cli) async fn run(args: &ChaosRunArgs) -> Result<(), CliError> {
    let config = args.manifest.read()?;
    // Where a job goes that names no queue.
    let name = config.host.default_queue.as_deref();
    let mut queues = config.queues.iter();
    let trigger = queues
        .find(|trigger| name.is_none_or(|name| trigger.queue.name == name))
        .ok_or_else(|| CliError::Usage("the manifest has no `[[trigger.servicebus]]`".to_owned()))?
        .clone();
    let json = |flag: &str, text: &Option<String>| -> Result<Option<Value>, CliError> {
        let parse = |text: &String| {
            serde_json::from_str(text)
                .map_err(|error| CliError::Usage(format!("`{flag}` is not JSON: {error}")))
        };
        text.as_ref().map(parse).transpose()
    };
    let payload = json("--payload", &args.payload)?;
    let expected = json("--expect", &args.expect)?;
    let dir = tempfile::tempdir().map_err(failed)?;
    let mut drive = Drive {
        args,
        config: &config,
        trigger: &trigger,
        dir: dir.path(),
        faults: faults(args.seed),
        began: Instant::now(),
        is_terminal: std::io::stderr().is_terminal(),
    };
    let verdict = drive.run(payload, expected.as_ref()).await?;
    match args.output {
        Output::Json => print_json(&verdict)?,
        Output::Text => print(&verdict.text())?,
    }
    if verdict.is_sound {
        return Ok(());
    }
    if verdict.violations.is_empty() {
        return Err(failed(match verdict.accepted {
            0 => "no job was accepted, so nothing is known: give it more time".to_owned(),
            _ => format!(
                "{} jobs are not due yet: raise `--patience`",
                verdict.not_due
            ),
        }));
    }
    Err(failed(format!(
        "{} promises were broken; repeat it with `--seed {}`",
        verdict.violations.len(),
        args.seed
    )))
}

struct Drive<'a> {
    args: &'a ChaosRunArgs,
    config: &'a Config,
    trigger: &'a QueueTrigger,
    dir: &'a Path,
    faults: Chaos,
    began: Instant,
    is_terminal: bool,
}

impl Drive<'_> {
    async fn run(
        &mut self,
        payload: Option<Value>,
        expected: Option<&Value>,
    ) -> Result<Verdict, CliError> {
        let queue = self.trigger.queue.name.as_str();
        let mut host = Running::start(self.args, self.config, self.dir)?;
        host.switch(queue, Some(&self.faults)).await?;
        let load = Arc::new(self.load(&host, payload));
        let mut senders = JoinSet::new();
        for _ in 0..SENDERS {
            senders.spawn(load.clone().send_jobs(client()?));
        }
        let kills = self.kill(&mut host, &load).await?;
        self.wait_for(&mut host, &load, &mut senders).await?;

        // From here on nothing is injected: what is left must come to rest.
        host.switch(queue, None).await?;
        self.rest(&host).await?;
        let accepted = load.accepted();
        let mut verdict = Verdict {
            seed: self.args.seed,
            accepted: accepted.len(),
            refused: load.refused.load(Ordering::Relaxed),
            kills: kills.len(),
            ..Verdict::default()
        };
        let dispatch = &self.trigger.dispatch;
        let rules = Rules {
            attempts_max: dispatch.attempts_max,
            retry: &dispatch.retry,
            faults: &self.faults,
            kills: &kills,
            expected,
        };
        for id in &accepted {
            verdict.judge(id, host.job(id).await?, &rules);
        }
        self.repeat(&host, &load, &accepted, &mut verdict).await?;
        let last = host.queue(queue).await?;
        if last["locked"].as_u64().unwrap_or(0) > 0 {
            verdict.broken("nothing is locked when nothing runs", "", last);
        }
        verdict.is_sound =
            verdict.violations.is_empty() && verdict.not_due == 0 && verdict.accepted > 0;
        verdict.seconds = self.began.elapsed().as_secs_f64();
        Ok(verdict)
    }

    fn load(&self, host: &Running, payload: Option<Value>) -> Load {
        let lock = self.trigger.queue.lock_duration;
        let long = lock.mul_f64(1.5);
        let fits = lock <= LONG_JOBS_LOCK_MAX && long < self.trigger.dispatch.limits.deadline;
        Load {
            seed: self.args.seed,
            address: Mutex::new(host.app.clone()),
            payload,
            long_job: fits.then_some(long),
            jobs: match (self.args.jobs, self.args.duration) {
                (Some(jobs), _) => jobs,
                (None, Some(_)) => usize::MAX,
                (None, None) => JOBS_DEFAULT,
            },
            began: Instant::now(),
            duration: self.args.duration,
            next: AtomicUsize::new(0),
            accepted: Mutex::default(),
            refused: AtomicU64::new(0),
            refusal: Mutex::default(),
        }
    }

    /// Until every sender is done, or none can be.
    async fn wait_for(
        &self,
        host: &mut Running,
        load: &Load,
        senders: &mut JoinSet<()>,
    ) -> Result<(), CliError> {
        loop {
            tokio::select! {
                done = senders.join_next() => if done.is_none() {
                    return load.check();
                },
                () = tokio::time::sleep(AGAIN) => host.check_alive()?,
            }
            load.check()?;
            self.progress(&format!("{} jobs accepted", load.accepted_count()));
        }
    }

    /// Kills and restarts the host at moments that the seed picks: by jobs
    /// accepted, or by time where that is what ends the run.
    async fn kill(&self, host: &mut Running, load: &Load) -> Result<Vec<Timestamp>, CliError> {
        let mut random = StdRng::seed_from_u64(self.args.seed);
        let mut moments: Vec<f64> = (0..self.args.kills).map(|_| random.random()).collect();
        moments.sort_by(f64::total_cmp);
        let mut kills = Vec::with_capacity(moments.len());
        for (number, moment) in moments.iter().enumerate() {
            loop {
                if load.progress() >= *moment {
                    break;
                }
                host.check_alive()?;
                load.check()?;
                let accepted = load.accepted_count();
                self.progress(&format!("{accepted} jobs accepted, {number} kills"));
                tokio::time::sleep(AGAIN / 10).await;
            }
            host.kill();
            kills.push(Timestamp::now());
            *host = Running::start(self.args, self.config, self.dir)?;
            load.is_at(&host.app);
            let queue = &self.trigger.queue.name;
            host.switch(queue, Some(&self.faults)).await?;
        }
        Ok(kills)
    }

    async fn rest(&self, host: &Running) -> Result<(), CliError> {
        let deadline = Instant::now() + self.args.patience;
        loop {
            let now = host.queue(&self.trigger.queue.name).await?;
            let waiting: u64 = ["ready", "locked", "scheduled"]
                .iter()
                .map(|count| now[count].as_u64().unwrap_or(0))
                .sum();
            if waiting == 0 || Instant::now() >= deadline {
                self.progress("");
                return Ok(());
            }
            self.progress(&format!("{waiting} jobs left"));
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Sends ids of ended jobs once more: inside the duplicate window that
    /// runs nothing.
    async fn repeat(
        &self,
        host: &Running,
        load: &Load,
        accepted: &[String],
        verdict: &mut Verdict,
    ) -> Result<(), CliError> {
        let http = client()?;
        let step = (accepted.len() / REPEATED_MAX).max(1);
        for id in accepted.iter().step_by(step) {
            let before = host.job(id).await?.unwrap_or_default();
            let is_over = ["completed", "dead"]
                .iter()
                .any(|state| before["state"] == *state);
            if !is_over || !matches!(load.post(&http, id, &Value::Null).await, Posted::Accepted) {
                continue;
            }
            let after = host.job(id).await?.unwrap_or_default();
            // Accepted since the beginning at the earliest.
            if self.began.elapsed() >= self.trigger.queue.duplicate_window {
                return Ok(());
            }
            verdict.repeated += 1;
            if (&before["sequence"], &before["state"]) != (&after["sequence"], &after["state"]) {
                verdict.broken("an id that is sent again runs nothing twice", id, after);
            }
        }
        Ok(())
    }

    fn progress(&self, text: &str) {
        if self.is_terminal {
            // A terminal that has gone away is no reason to stop.
            let _ = write!(std::io::stderr(), "\r\x1b[2K{text}");
        }
    }
}

/// The jobs, sent as a careful client does: each again and again until it is
/// accepted, which is what its id is for.
struct Load {
    seed: u64,
    address: Mutex<String>,
    payload: Option<Value>,
    /// How long the job that outlives its lock takes, if there is to be one.
    long_job: Option<Duration>,
    jobs: usize,
    began: Instant,
    duration: Option<Duration>,
    next: AtomicUsize,
    accepted: Mutex<Vec<String>>,
    refused: AtomicU64,
    /// Why no job of this kind will ever be accepted.
    refusal: Mutex<Option<String>>,
}

/// What became of one POST.
enum Posted {
    Accepted,
    /// Not now.
    Again,
    /// Never.
    Refused(String),
}

impl Load {
    async fn send_jobs(self: Arc<Self>, http: reqwest::Client) {
        loop {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            if n >= self.jobs || self.is_over() {
                return;
            }
            let id = format!("chaos-{}-{n}", self.seed);
            let payload = self.payload(n);
            loop {
                match self.post(&http, &id, &payload).await {
                    Posted::Accepted => break,
                    Posted::Again => {
                        self.refused.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(AGAIN).await;
                    }
                    Posted::Refused(why) => {
                        lock(&self.refusal).get_or_insert(why);
                        return;
                    }
                }
            }
            lock(&self.accepted).push(id);
        }
    }

    async fn post(&self, http: &reqwest::Client, id: &str, payload: &Value) -> Posted {
        let to = lock(&self.address).clone();
        let body = json!({ "jobType": "chaos", "jobId": id, "payload": payload });
        let post = http.post(format!("{to}/api/IngestJob")).json(&body);
        let Ok(answer) = post.timeout(REQUEST_MAX).send().await else {
            return Posted::Again;
        };
        match answer.status().as_u16() {
            202 => Posted::Accepted,
            408 | 429 | 500.. => Posted::Again,
            status => {
                let body = answer.text().await.unwrap_or_default();
                Posted::Refused(format!("the application answers {status}: {body}"))
            }
        }
    }

    /// Fails once it is clear that no job will be accepted.
    fn check(&self) -> Result<(), CliError> {
        match &*lock(&self.refusal) {
            Some(why) => Err(failed(why)),
            None => Ok(()),
        }
    }

    fn is_over(&self) -> bool {
        self.duration
            .is_some_and(|time| self.began.elapsed() >= time)
    }

    /// How much of the load is done, from 0 to 1: by time where that ends it,
    /// else by jobs accepted.
    fn progress(&self) -> f64 {
        match self.duration {
            Some(time) => self.began.elapsed().as_secs_f64() / time.as_secs_f64(),
            None => self.accepted_count() as f64 / self.jobs as f64,
        }
    }

    fn payload(&self, n: usize) -> Value {
        match (&self.payload, self.long_job) {
            (Some(given), _) => given.clone(),
            (None, Some(long)) if n % LONG_JOBS == LONG_JOBS / 2 => {
                json!({ "n": n, "workMs": long.as_millis() as u64 })
            }
            (None, _) => json!({ "n": n, "workMs": n % 40 }),
        }
    }

    fn is_at(&self, address: &str) {
        address.clone_into(&mut lock(&self.address));
    }

    fn accepted_count(&self) -> usize {
        lock(&self.accepted).len()
    }

    fn accepted(&self) -> Vec<String> {
        lock(&self.accepted).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
