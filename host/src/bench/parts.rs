//! Parts of the pipeline on their own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use orchestrator_engine::worker::Job;
use orchestrator_engine::{Outcome, Runtime as Engine, WorkerComponent};
use orchestrator_queue::local::{Broker, BrokerOptions, Clock, Queue};
use orchestrator_queue::{Attempt, Message, Output, QueueConfig, Retention, Settlement};
use tokio::runtime::Runtime;

use super::load::{Bodies, Connection};
use super::{BenchError, Plan, Sample, fresh_dir, latencies, micros, repeat, runtime};
use crate::clock::now_ms;
use crate::components::TrustedKeys;
use crate::host::{read, runtime_config_of, worker_of};

/// Messages put there for each second of receiving and settling: more than it gets through.
const BACKLOG_PER_SECOND: f64 = 150_000.0;
/// Messages put there at a time.
const SENT_AT_ONCE: usize = 1_000;
/// Messages received at a time.
const RECEIVED_AT_ONCE: usize = 64;

/// The queue of the benches that need no manifest: the defaults.
pub fn queue_config() -> QueueConfig {
    QueueConfig {
        name: "bench".to_owned(),
        lock_duration: Duration::from_secs(30),
        max_delivery_count: 10,
        duplicate_window: Duration::from_secs(600),
        time_to_live: None,
        dead_letter_expired: true,
        max_bytes: 64 << 30,
        retention: Retention {
            age: Duration::from_secs(24 * 3600),
            count: 100_000,
            bytes: 256 << 20,
        },
    }
}

fn refused(error: impl std::fmt::Display) -> BenchError {
    BenchError::Refused(error.to_string())
}

fn open(dir: &Path) -> Result<(Broker, Queue), BenchError> {
    let options = BrokerOptions {
        dir: dir.join("queue"),
        queues: vec![queue_config()],
        free_disk_bytes_min: 0,
    };
    let (broker, _) = Broker::open(options, Clock::machine()).map_err(refused)?;
    let queue = broker.queues()[0].clone();
    Ok((broker, queue))
}

fn message(n: usize, payload: &Bytes) -> Message {
    Message {
        id: format!("bench-{n}"),
        job_type: "bench".to_owned(),
        payload: payload.clone(),
        content_type: "application/json".to_owned(),
        properties: Vec::new(),
        traceparent: None,
        delay: Duration::ZERO,
        time_to_live: None,
        envelope: Bytes::new(),
    }
}

/// Durable sends, so many at a time.
pub fn enqueue(plan: &Plan, in_flight: usize) -> Result<Sample, BenchError> {
    let dir = fresh_dir(plan)?;
    let runtime = runtime("senders")?;
    runtime.block_on(async {
        let (broker, queue) = open(dir.path())?;
        let payload = Bytes::from(plan.payload.clone());
        let (mut histogram, mut count, mut next) = (latencies(), 0, 0);
        let began = Instant::now();
        let mut sends = FuturesUnordered::new();
        loop {
            while sends.len() < in_flight && began.elapsed() < plan.duration {
                next += 1;
                let (queue, message) = (queue.clone(), message(next, &payload));
                sends.push(async move {
                    let began = Instant::now();
                    queue.send(message).await.map(|_| began.elapsed())
                });
            }
            let Some(sent) = sends.next().await else {
                break;
            };
            histogram.saturating_record(micros(sent.map_err(refused)?));
            count += 1;
        }
        let sample = Sample::new(count, began.elapsed(), &histogram);
        broker.close().await;
        Ok(sample)
    })
}

/// Deliveries received, done by nobody, and completed durably.
pub fn receive_settle(plan: &Plan, in_flight: usize) -> Result<Sample, BenchError> {
    let dir = fresh_dir(plan)?;
    let runtime = runtime("consumers")?;
    runtime.block_on(async {
        let (broker, queue) = open(dir.path())?;
        let payload = Bytes::from(plan.payload.clone());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a number of messages, positive and far below 2^52"
        )]
        let mut left = (BACKLOG_PER_SECOND * plan.duration.as_secs_f64()).ceil() as usize;
        for first in (0..left).step_by(SENT_AT_ONCE) {
            let messages = (first..left.min(first + SENT_AT_ONCE)).map(|n| message(n, &payload));
            for sent in queue.send_many(messages.collect()).await {
                sent.map_err(refused)?;
            }
        }
        let (mut histogram, mut count) = (latencies(), 0);
        let began = Instant::now();
        let mut settles = FuturesUnordered::new();
        loop {
            while settles.len() + RECEIVED_AT_ONCE <= in_flight
                && left > 0
                && began.elapsed() < plan.duration
            {
                let received = Instant::now();
                let deliveries = queue.receive(RECEIVED_AT_ONCE).await.map_err(refused)?;
                left = left.saturating_sub(deliveries.len());
                for delivery in deliveries {
                    let queue = queue.clone();
                    settles.push(async move {
                        let output = Output::default();
                        let settlement = Settlement::Complete { output };
                        let settled =
                            queue.settle(delivery.lock, settlement, Some(Attempt::default()));
                        settled.await.map(|()| received.elapsed())
                    });
                }
            }
            let Some(settled) = settles.next().await else {
                break;
            };
            histogram.saturating_record(micros(settled.map_err(refused)?));
            count += 1;
        }
        let sample = Sample::new(count, began.elapsed(), &histogram);
        broker.close().await;
        Ok(sample)
    })
}

/// The first worker of the manifest does the job again and again, each time in
/// a fresh instance, one after the other.
pub fn attempts(plan: &Plan) -> Result<Sample, BenchError> {
    let runtime = runtime("jobs")?;
    runtime.block_on(async {
        let trigger =
            plan.config.queues.first().ok_or_else(|| {
                refused("the manifest has no `[[trigger.servicebus]]`, so no worker")
            })?;
        let engine =
            Engine::new(&runtime_config_of(&plan.config, &plan.compiled_dir)).map_err(refused)?;
        let limits = trigger.dispatch.limits;
        let keys = TrustedKeys::read(&plan.dir).map_err(refused)?;
        let id = &trigger.component;
        let bytes = read(id, &plan.config.components[id]).await?;
        let worker = worker_of(&plan.config, trigger, &engine, &keys, bytes).await?;
        let job = || Job {
            id: "bench".to_owned(),
            job_type: "bench".to_owned(),
            payload: plan.payload.clone().into_bytes(),
            content_type: "application/json".to_owned(),
            properties: Vec::new(),
            queue: trigger.queue.name.clone(),
            attempt: 1,
            attempts_max: 1,
            enqueued_at_ms: now_ms(),
            traceparent: None,
        };
        repeat(plan.duration, async || {
            attempt(&worker, job(), limits).await
        })
        .await
    })
}

async fn attempt(
    worker: &WorkerComponent,
    job: Job,
    limits: orchestrator_engine::worker::Limits,
) -> Result<(), BenchError> {
    match worker.run(job, limits).await.outcome {
        Outcome::Done { .. } => Ok(()),
        other => Err(refused(format!(
            "the worker does not do the job (`--payload`): {other:?}"
        ))),
    }
}

/// Starts the program anew until it has answered its first 202.
pub fn start(plan: &Plan, load: &Runtime) -> Result<Sample, BenchError> {
    let program = std::env::current_exe()?;
    let once = || -> Result<Duration, BenchError> {
        let dir = fresh_dir(plan)?;
        let began = Instant::now();
        let mut child = Stopped::new(
            Command::new(&program)
                .args(["up", "--quiet", "--listen", "127.0.0.1:0"])
                .args(["--ops-listen", "127.0.0.1:0", "--state-dir"])
                .arg(dir.path())
                .arg("-f")
                .arg(&plan.config.path)
                .env("ORCHESTRATOR_CACHE_DIR", &plan.compiled_dir)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()?,
        );
        let addr = child.address()?;
        load.block_on(async {
            let mut connection = Connection::open(addr).await?;
            let (_, body) = Bodies::due(&plan.payload).next();
            connection.post(body).await
        })?;
        Ok(began.elapsed())
    };
    // Once to compile what is not cached.
    once()?;
    let mut histogram = latencies();
    let took = once()?;
    histogram.saturating_record(micros(took));
    Ok(Sample::new(1, took, &histogram))
}

/// A program that is ended when dropped.
struct Stopped(Child, Option<BufReader<ChildStdout>>);

impl Stopped {
    fn new(mut child: Child) -> Self {
        let stdout = child.stdout.take().map(BufReader::new);
        Self(child, stdout)
    }

    /// The address that it prints first.
    fn address(&mut self) -> Result<SocketAddr, BenchError> {
        let mut line = String::new();
        if let Some(stdout) = &mut self.1 {
            stdout.read_line(&mut line)?;
        }
        match line.split_once("http://") {
            Some((_, addr)) => addr.trim().parse().map_err(refused),
            None => Err(refused("`up` ended before it listened; try it by itself")),
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
