//! What the `/v1` calls answer, as JSON.

use std::time::SystemTime;

use orchestrator_queue::{Attempt, JobState};
use serde::Serialize;

use crate::clock::rfc3339;
use crate::components::store::{Entry, Fate, Record};
use crate::components::swapper::Seen;
use crate::dispatch::Dispatcher;
use crate::dispatch::chaos::Chaos;
use crate::ingest::{JobResult, result_of};
use crate::telemetry::Telemetry;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Component {
    id: String,
    kind: &'static str,
    digest: String,
    generation: u64,
    since: String,
    source: String,
    bytes: u64,
    /// Versions that were replaced and still have a job or request to end.
    draining: usize,
    canary: Option<Canary>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Canary {
    digest: String,
    generation: u64,
    share: f64,
    since: String,
    /// Jobs that the candidate has had.
    jobs: u64,
    told: String,
}

pub(super) fn component(seen: &Seen) -> Component {
    let version = &seen.current;
    Component {
        id: seen.id.clone(),
        kind: seen.kind,
        digest: format!("sha256:{}", version.digest),
        generation: version.generation,
        since: rfc3339(version.since),
        source: version.source.clone(),
        bytes: version.bytes,
        draining: seen.draining,
        canary: seen.canary.as_ref().map(|canary| Canary {
            digest: format!("sha256:{}", canary.version.digest),
            generation: canary.version.generation,
            share: canary.share,
            since: rfc3339(canary.version.since),
            jobs: canary.jobs,
            told: canary.told.clone(),
        }),
    }
}

#[derive(Serialize)]
pub(super) struct ComponentWhole {
    #[serde(flatten)]
    component: Component,
    /// Newest first.
    versions: Vec<OneVersion>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OneVersion {
    digest: String,
    generation: u64,
    bytes: u64,
    origin: String,
    by: String,
    reason: Option<String>,
    at: String,
    outcome: Fate,
    told: Option<String>,
    is_signed: bool,
    /// Whether it can be gone back to.
    is_kept: bool,
}

pub(super) fn component_whole(seen: &Seen, record: Record) -> ComponentWhole {
    let version = |entry: Entry| OneVersion {
        digest: format!("sha256:{}", entry.digest),
        generation: entry.generation,
        bytes: entry.bytes,
        origin: entry.origin,
        by: entry.by,
        reason: entry.reason,
        at: rfc3339(entry.at),
        outcome: entry.fate,
        told: entry.told,
        is_signed: entry.signature.is_some(),
        is_kept: entry.is_kept,
    };
    ComponentWhole {
        component: component(seen),
        versions: record.versions.into_iter().rev().map(version).collect(),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Queue {
    name: String,
    engine: &'static str,
    component: String,
    // Null: this host may not ask for it.
    ready: Option<u64>,
    locked: Option<u64>,
    scheduled: Option<u64>,
    dead: Option<u64>,
    bytes: Option<u64>,
    max_bytes: Option<u64>,
    oldest_due_at: Option<String>,
    concurrency: usize,
    in_flight: u64,
    completed: u64,
    retried: u64,
    dead_lettered: u64,
    locks_lost: u64,
}

pub(super) async fn queue(dispatcher: &Dispatcher, telemetry: &Telemetry) -> Queue {
    let queue = dispatcher.queue();
    let stats = queue.stats().await;
    let totals = telemetry.metrics().totals(queue.name());
    Queue {
        name: queue.name().to_owned(),
        engine: queue.engine(),
        component: dispatcher.worker().id().to_owned(),
        ready: stats.map(|stats| stats.ready),
        locked: stats.map(|stats| stats.locked),
        scheduled: stats.map(|stats| stats.scheduled),
        dead: stats.map(|stats| stats.dead),
        // Service Bus counts messages, not bytes.
        bytes: queue.bytes_max().and(stats).map(|stats| stats.bytes),
        max_bytes: queue.bytes_max(),
        oldest_due_at: stats.and_then(|stats| stats.oldest_due_at).map(rfc3339),
        concurrency: dispatcher.config().concurrency,
        in_flight: dispatcher.in_flight(),
        completed: totals.completed,
        retried: totals.retried,
        dead_lettered: totals.dead_lettered,
        locks_lost: totals.locks_lost,
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct QueueChaos {
    queue: String,
    #[serde(flatten)]
    chaos: Chaos,
    /// When the manifest's faults hold again; null: they do.
    until: Option<String>,
}

pub(super) fn chaos(dispatcher: &Dispatcher) -> QueueChaos {
    let switch = dispatcher.chaos();
    let since = |until: SystemTime| until.duration_since(SystemTime::UNIX_EPOCH);
    let until = switch.until().and_then(|until| since(until).ok());
    QueueChaos {
        queue: dispatcher.queue().name().to_owned(),
        chaos: switch.now(),
        until: until.map(|until| rfc3339(u64::try_from(until.as_millis()).unwrap_or(u64::MAX))),
    }
}

#[derive(Serialize)]
pub(super) struct Dead {
    pub jobs: Vec<Job>,
    pub next: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Job {
    job_id: String,
    queue: String,
    job_type: String,
    state: JobState,
    sequence: u64,
    pub(super) enqueued_at: String,
    due_at: Option<String>,
    finished_at: Option<String>,
    delivery_count: u32,
    max_attempts: u32,
    traceparent: Option<String>,
    attempts: Vec<OneAttempt>,
    #[serde(flatten)]
    result: JobResult,
    dead_letter: Option<orchestrator_queue::DeadLetter>,
}

pub(super) fn job(dispatcher: &Dispatcher, job: orchestrator_queue::Job) -> Job {
    Job {
        job_id: job.id,
        queue: dispatcher.queue().name().to_owned(),
        job_type: job.job_type,
        state: job.state,
        sequence: job.sequence,
        enqueued_at: rfc3339(job.enqueued_at),
        due_at: job.due_at.map(rfc3339),
        finished_at: job.finished_at.map(rfc3339),
        delivery_count: job.delivery_count,
        max_attempts: dispatcher.config().attempts_max,
        traceparent: job.traceparent,
        attempts: job.attempts.into_iter().map(attempt).collect(),
        result: result_of(job.output),
        dead_letter: job.dead_letter,
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OneAttempt {
    number: u32,
    started_at: String,
    ended_at: String,
    outcome: String,
    error: Option<String>,
    injected: bool,
    component_digest: String,
    logs: Vec<Line>,
    log_lines_dropped: u64,
}

#[derive(Serialize)]
struct Line {
    at: String,
    level: String,
    message: String,
}

fn attempt(attempt: Attempt) -> OneAttempt {
    OneAttempt {
        number: attempt.number,
        started_at: rfc3339(attempt.started_at),
        ended_at: rfc3339(attempt.ended_at),
        outcome: attempt.outcome,
        error: attempt.error,
        injected: attempt.injected,
        component_digest: attempt.component_digest,
        logs: attempt
            .logs
            .into_iter()
            .map(|line| Line {
                at: rfc3339(line.at),
                level: line.level,
                message: line.message,
            })
            .collect(),
        log_lines_dropped: attempt.log_lines_dropped,
    }
}
