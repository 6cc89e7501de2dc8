//! `chaos`: switches faults on in a running host, or runs an application under
//! them and judges it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use serde_json::{Value, json};

use super::client::{authorized, client, get, send, url};
use super::{
    ChaosArgs, ChaosRunArgs, CliError, OpsArgs, Output, compiled_dir, environment, failed, print,
    print_json,
};
use crate::config::Config;
use crate::dispatch::chaos::Chaos;

/// Jobs that wait for their answer at one time.
const SENDERS: usize = 16;
/// How long one request may take: a killed host never answers.
const REQUEST_MAX: Duration = Duration::from_secs(15);
/// Pause before a job that was not accepted is sent again, and between looks.
const AGAIN: Duration = Duration::from_millis(100);
/// Violations that are shown whole.
const SHOWN_MAX: usize = 5;

pub(super) async fn show(ops: &OpsArgs) -> Result<(), CliError> {
    print_json(&get(ops, "/v1/chaos").await?)
}

pub(super) async fn set(args: &ChaosArgs) -> Result<(), CliError> {
    let faults = Chaos {
        failure_rate: args.failure_rate,
        trap_rate: args.trap_rate,
        latency_rate: args.latency_rate,
        lock_loss_rate: args.lock_loss_rate,
        late_settle_rate: args.late_settle_rate,
        broker_down_rate: args.broker_down_rate,
        broker_throttle_rate: args.broker_throttle_rate,
        broker_slow_rate: args.broker_slow_rate,
        seed: args.seed,
        ..Chaos::default()
    };
    faults.check().map_err(CliError::Usage)?;
    let path = format!("/v1/chaos/{}?for={}", args.queue, args.time.as_secs());
    let request = client()?.put(url(&args.ops, &path)).json(&faults);
    print_json(&send(&args.ops, request).await?)
}

pub(super) async fn off(queue: &str, ops: &OpsArgs) -> Result<(), CliError> {
    let request = client()?.delete(url(ops, &format!("/v1/chaos/{queue}")));
    print_json(&send(ops, request).await?)
}

/// What a run came to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    seed: u64,
    is_sound: bool,
    accepted: usize,
    completed: usize,
    dead: usize,
    /// Sends that were answered otherwise, or not at all, and were repeated.
    refused: u64,
    kills: usize,
    attempts: u64,
    /// Attempts by how they ended, injected ones apart.
    outcomes: BTreeMap<String, u64>,
    seconds: f64,
    violations: Vec<Violation>,
}

/// A promise that was broken, and what is known of the job.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Violation {
    promise: &'static str,
    job: String,
    history: Value,
}

/// Runs the application under faults and judges it.
pub(super) async fn run(args: &ChaosRunArgs) -> Result<(), CliError> {
    let config = args.manifest.read()?;
    let queue = config
        .queues
        .first()
        .ok_or_else(|| CliError::Usage("the manifest has no `[[trigger.servicebus]]`".to_owned()))?
        .clone();
    let is_terminal = std::io::stderr().is_terminal();
    let progress = |text: String| {
        if is_terminal {
            // A terminal that has gone away is no reason to stop.
            let _ = write!(std::io::stderr(), "\r\x1b[2K{text}");
        }
    };
    let began = Instant::now();
    let dir = tempfile::tempdir().map_err(failed)?;
    let mut random = StdRng::seed_from_u64(args.seed);
    let mut host = Running::start(args, &config, dir.path())?;
    let address = Arc::new(Mutex::new(host.app.clone()));
    let faults = Chaos {
        failure_rate: 0.1,
        trap_rate: 0.05,
        latency_rate: 0.1,
        lock_loss_rate: 0.05,
        late_settle_rate: 0.05,
        broker_down_rate: 0.05,
        broker_slow_rate: 0.05,
        seed: args.seed,
        ..Chaos::default()
    };
    let name = &queue.queue.name;
    host.switch(name, Some(&faults)).await?;

    // The load: each job again and again until it is accepted, which is what a
    // careful client does, and what its id is for.
    let (sent, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let payload: Value = match &args.payload {
        Some(text) => serde_json::from_str(text)
            .map_err(|error| CliError::Usage(format!("`--payload` is not JSON: {error}")))?,
        None => Value::Null,
    };
    let http = client()?;
    let mut senders = tokio::task::JoinSet::new();
    for sender in 0..SENDERS {
        let (address, http, payload) = (address.clone(), http.clone(), payload.clone());
        let (sent, refused) = (sent.clone(), refused.clone());
        let (seed, jobs) = (args.seed, args.jobs);
        senders.spawn(async move {
            for n in (sender..jobs).step_by(SENDERS) {
                let id = format!("chaos-{seed}-{n}");
                let payload = match &payload {
                    Value::Null => json!({ "n": n, "workMs": n % 40 }),
                    given => given.clone(),
                };
                let body = json!({ "jobType": "chaos", "jobId": id, "payload": payload });
                loop {
                    let to = address
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .clone();
                    let post = http.post(format!("{to}/api/IngestJob")).json(&body);
                    match post.timeout(REQUEST_MAX).send().await {
                        Ok(answer) if answer.status() == 202 => break,
                        _ => {
                            refused.fetch_add(1, Ordering::Relaxed);
                            tokio::time::sleep(AGAIN).await;
                        }
                    }
                }
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    // The host is killed at moments that the seed picks, by jobs accepted.
    let mut kills: Vec<usize> = (0..args.kills)
        .map(|_| random.random_range(0..args.jobs))
        .collect();
    kills.sort_unstable();
    for (number, at) in kills.iter().enumerate() {
        while sent.load(Ordering::Relaxed) < *at as u64 {
            host.check_alive()?;
            progress(format!(
                "{} of {} jobs accepted, {number} kills",
                sent.load(Ordering::Relaxed),
                args.jobs
            ));
            tokio::time::sleep(AGAIN / 10).await;
        }
        host.kill();
        host = Running::start(args, &config, dir.path())?;
        address
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&host.app);
        host.switch(name, Some(&faults)).await?;
    }
    while senders.join_next().await.is_some() {}

    // From here on nothing is injected: what is left must come to rest.
    host.switch(name, None).await?;
    let deadline = Instant::now() + args.patience;
    loop {
        let now = host.queue(name).await?;
        let waiting: u64 = ["ready", "locked", "scheduled"]
            .iter()
            .map(|count| now[count].as_u64().unwrap_or(0))
            .sum();
        if waiting == 0 || Instant::now() >= deadline {
            break;
        }
        progress(format!("{waiting} jobs left"));
        tokio::time::sleep(AGAIN).await;
    }
    progress(String::new());

    let mut verdict = Verdict {
        seed: args.seed,
        is_sound: true,
        accepted: args.jobs,
        completed: 0,
        dead: 0,
        refused: refused.load(Ordering::Relaxed),
        kills: kills.len(),
        attempts: 0,
        outcomes: BTreeMap::new(),
        seconds: 0.0,
        violations: Vec::new(),
    };
    for n in 0..args.jobs {
        let id = format!("chaos-{}-{n}", args.seed);
        let job = host.job(&id).await?;
        judge(&mut verdict, &id, job, queue.dispatch.attempts_max);
    }
    let last = host.queue(name).await?;
    if last["locked"].as_u64().unwrap_or(0) > 0 {
        let promise = "nothing is locked when nothing runs";
        verdict.violations.push(Violation {
            promise,
            job: String::new(),
            history: last,
        });
    }
    verdict.is_sound = verdict.violations.is_empty();
    verdict.seconds = began.elapsed().as_secs_f64();
    match args.output {
        Output::Json => print_json(&verdict)?,
        Output::Text => print(&verdict.text())?,
    }
    match verdict.is_sound {
        true => Ok(()),
        false => Err(failed(format!(
            "{} promises were broken; repeat it with `--seed {}`",
            verdict.violations.len(),
            args.seed
        ))),
    }
}

/// Holds one accepted job against what the pipeline promises.
fn judge(verdict: &mut Verdict, id: &str, job: Option<Value>, attempts_max: u32) {
    let mut broken: BTreeSet<&'static str> = BTreeSet::new();
    let Some(job) = job else {
        let promise = "an accepted job is never lost";
        let (job, history) = (id.to_owned(), Value::Null);
        return verdict.violations.push(Violation {
            promise,
            job,
            history,
        });
    };
    let attempts = job["attempts"].as_array().cloned().unwrap_or_default();
    verdict.attempts += job["deliveryCount"].as_u64().unwrap_or(0);
    for attempt in &attempts {
        let outcome = attempt["outcome"].as_str().unwrap_or("unknown");
        let injected = if attempt["injected"] == true {
            " (injected)"
        } else {
            ""
        };
        *verdict
            .outcomes
            .entry(format!("{outcome}{injected}"))
            .or_default() += 1;
    }
    let completions = attempts
        .iter()
        .filter(|attempt| attempt["outcome"] == "completed");
    let completions = completions.count();
    match job["state"].as_str() {
        Some("completed") => {
            verdict.completed += 1;
            if completions != 1 {
                broken.insert("a completed job was completed once");
            }
        }
        Some("dead") => {
            verdict.dead += 1;
            if completions > 0 {
                broken.insert("a dead job was not completed");
            }
            if job["deadLetter"]["reason"]
                .as_str()
                .is_none_or(str::is_empty)
            {
                broken.insert("a dead letter has a reason");
            }
        }
        _ => {
            broken.insert("an accepted job ends");
        }
    }
    if job["deliveryCount"]
        .as_u64()
        .is_none_or(|count| count > u64::from(attempts_max))
    {
        broken.insert("no job has more attempts than it may");
    }
    for promise in broken {
        let (job, history) = (id.to_owned(), job.clone());
        verdict.violations.push(Violation {
            promise,
            job,
            history,
        });
    }
}

impl Verdict {
    fn text(&self) -> String {
        let mut text = format!(
            "seed {}: {} jobs accepted, {} completed, {} dead-lettered; {} attempts, {} sends refused and repeated, {} kills; {:.1} s\n",
            self.seed,
            self.accepted,
            self.completed,
            self.dead,
            self.attempts,
            self.refused,
            self.kills,
            self.seconds
        );
        for (outcome, count) in &self.outcomes {
            text += &format!("  {count:>6}  {outcome}\n");
        }
        if self.is_sound {
            text += "SOUND: every accepted job ended once, within its attempts; no dead letter without a reason; nothing left locked\n";
        }
        // The shortest histories say most.
        let mut shown: Vec<&Violation> = self.violations.iter().collect();
        shown.sort_by_key(|violation| violation.history.to_string().len());
        for violation in shown.iter().take(SHOWN_MAX) {
            text += &format!(
                "BROKEN: {}: job {}\n{:#}\n",
                violation.promise, violation.job, violation.history
            );
        }
        text
    }
}

/// The application, in a process of its own.
struct Running {
    child: Child,
    app: String,
    ops: OpsArgs,
}

impl Running {
    fn start(args: &ChaosRunArgs, config: &Config, dir: &Path) -> Result<Self, CliError> {
        let program = std::env::current_exe().map_err(failed)?;
        let compiled = compiled_dir(
            environment("ORCHESTRATOR_CACHE_DIR"),
            &super::state_dir(None, config),
        );
        let mut child = Command::new(program)
            .args([
                "up",
                "--quiet",
                "--listen",
                "127.0.0.1:0",
                "--ops-listen",
                "127.0.0.1:0",
            ])
            .arg("--from")
            .arg(&args.manifest.from)
            .arg("--state-dir")
            .arg(dir)
            .env("ORCHESTRATOR_CACHE_DIR", compiled)
            .envs(args.manifest.variables.iter().flat_map(|given| {
                let named = |(name, value): &(String, String)| {
                    (
                        format!("SPIN_VARIABLE_{}", name.to_uppercase()),
                        value.clone(),
                    )
                };
                given.0.iter().map(named).collect::<Vec<_>>()
            }))
            // What is judged is this application on a queue of its own.
            .env("SERVICEBUS_CONNECTION_STRING", "")
            .env("APPLICATIONINSIGHTS_CONNECTION_STRING", "")
            // Faults make noise; the verdict says what came of them.
            .env("ORCHESTRATOR_LOG", "off")
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let stdout = child.stdout.take();
        let mut lines = stdout
            .into_iter()
            .flat_map(|stdout| BufReader::new(stdout).lines());
        let mut address = || {
            let line = lines.next()?.ok()?;
            Some(line.split_once(' ')?.1.trim().to_owned())
        };
        let (Some(app), Some(ops)) = (address(), address()) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(
                "the application does not start: see above; `orchestrator doctor` says more",
            ));
        };
        let output = Output::Json;
        let ops = OpsArgs { ops, output };
        Ok(Self { child, app, ops })
    }

    fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn check_alive(&mut self) -> Result<(), CliError> {
        match self.child.try_wait().map_err(failed)? {
            None => Ok(()),
            Some(status) => Err(failed(format!("the host ended by itself, with {status}"))),
        }
    }

    /// Faults on or off. The longest time: the run itself ends it.
    async fn switch(&self, queue: &str, faults: Option<&Chaos>) -> Result<(), CliError> {
        let at = url(&self.ops, &format!("/v1/chaos/{queue}"));
        let request = match faults {
            Some(faults) => client()?.put(format!("{at}?for=86400")).json(faults),
            None => client()?
                .put(format!("{at}?for=86400"))
                .json(&Chaos::default()),
        };
        send(&self.ops, request).await.map(|_| ())
    }

    async fn queue(&self, name: &str) -> Result<Value, CliError> {
        let queues = get(&self.ops, "/v1/queues").await?;
        let mut queues = queues.as_array().into_iter().flatten();
        let found = queues.find(|queue| queue["name"] == name);
        found
            .cloned()
            .ok_or_else(|| failed(format!("the host has no queue `{name}`")))
    }

    async fn job(&self, id: &str) -> Result<Option<Value>, CliError> {
        let request = client()?.get(url(&self.ops, &format!("/v1/jobs/{id}")));
        let answer = authorized(request).send().await;
        let answer = answer.map_err(failed)?;
        match answer.status().as_u16() {
            200 => answer.json().await.map(Some).map_err(failed),
            404 => Ok(None),
            other => Err(failed(format!("the host answers {other} for job `{id}`"))),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict() -> Verdict {
        Verdict {
            seed: 1,
            is_sound: true,
            accepted: 1,
            completed: 0,
            dead: 0,
            refused: 0,
            kills: 0,
            attempts: 0,
            outcomes: BTreeMap::new(),
            seconds: 0.0,
            violations: Vec::new(),
        }
    }

    fn broken(job: Option<Value>) -> Vec<&'static str> {
        let mut verdict = verdict();
        judge(&mut verdict, "j", job, 3);
        verdict
            .violations
            .iter()
            .map(|violation| violation.promise)
            .collect()
    }

    #[test]
    fn the_judge_knows_every_way_to_break_a_promise() {
        let completed = |attempts: Value, count: u32| {
            Some(json!({ "state": "completed", "deliveryCount": count, "attempts": attempts }))
        };
        let done = json!({ "outcome": "completed" });
        let failed = json!({ "outcome": "trap" });
        assert_eq!(broken(completed(json!([failed, done]), 2)), [""; 0]);
        assert_eq!(broken(None), ["an accepted job is never lost"]);
        assert_eq!(
            broken(completed(json!([done, done]), 2)),
            ["a completed job was completed once"]
        );
        assert_eq!(
            broken(completed(json!([failed]), 1)),
            ["a completed job was completed once"]
        );
        assert_eq!(
            broken(completed(json!([done]), 4)),
            ["no job has more attempts than it may"]
        );
        let dead = |reason: &str, attempts: Value| {
            Some(
                json!({ "state": "dead", "deliveryCount": 3, "attempts": attempts, "deadLetter": { "reason": reason } }),
            )
        };
        assert_eq!(broken(dead("Why", json!([failed]))), [""; 0]);
        assert_eq!(
            broken(dead("", json!([failed]))),
            ["a dead letter has a reason"]
        );
        assert_eq!(
            broken(dead("Why", json!([done]))),
            ["a dead job was not completed"]
        );
        let running = json!({ "state": "running", "deliveryCount": 1, "attempts": [] });
        assert_eq!(broken(Some(running)), ["an accepted job ends"]);
    }
}
