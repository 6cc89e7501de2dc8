//! The operations listener: health, metrics, and the `/v1` calls that the
//! command line uses.
//!
//! Requests of a browser that belong to another page are refused (their
//! `Origin` is foreign), and so are those for a name that is not this
//! machine's (their `Host` is, unless a token protects the listener).

mod view;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use futures_util::Stream;
use orchestrator_queue::local::Health;
use orchestrator_queue::{JobState, Selection, Unavailable};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::components::swapper::Origin;
use crate::components::{self, COMPONENT_BYTES_MAX, Candidate, SwapError, Swapper};
use crate::dispatch::Dispatcher;
use crate::dispatch::chaos::Chaos;
use crate::telemetry::events::ChaosSwitched;
use crate::telemetry::{ComponentGauges, Held, QueueGauges, Telemetry};

/// Rows of one listing when the caller names no limit, and at most.
const ROWS_DEFAULT: usize = 50;
const ROWS_MAX: usize = 1_000;

/// What operations look at and act on.
pub struct Operations {
    /// The components and their versions.
    pub swapper: Swapper,
    /// One for each queue.
    pub dispatchers: Vec<Dispatcher>,
    /// The store's health.
    pub health: watch::Receiver<Health>,
    /// Cancelled once the host stops taking work.
    pub stopping: CancellationToken,
    /// Needed by every call but the probes, if there is one.
    pub token: Option<String>,
    /// For `/metrics`.
    pub telemetry: Telemetry,
}

type Ops = State<Arc<Operations>>;

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, operations: Arc<Operations>, stop: CancellationToken) {
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .route("/v1/components", get(components))
        .route(
            "/v1/components/{id}",
            get(component)
                .put(upload)
                .layer(DefaultBodyLimit::max(COMPONENT_BYTES_MAX)),
        )
        .route("/v1/components/{id}/rollback", post(roll_back))
        .route("/v1/components/{id}/promote", post(promote))
        .route("/v1/events", get(events))
        .route("/v1/chaos", get(chaos))
        .route("/v1/chaos/{queue}", put(set_chaos).delete(reset_chaos))
        .route("/v1/queues", get(queues))
        .route("/v1/queues/{queue}/dead", get(dead))
        .route("/v1/queues/{queue}/dead/redrive", post(redrive))
        .route("/v1/queues/{queue}/dead/purge", post(purge))
        .route("/v1/jobs", get(jobs))
        .route("/v1/jobs/{id}", get(job))
        .layer(middleware::from_fn_with_state(operations.clone(), guard));
    let router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .merge(guarded)
        .fallback(async || {
            Refusal::new(
                StatusCode::NOT_FOUND,
                "nothing is served here; see `/v1/queues`, `/v1/jobs`, `/metrics`",
            )
        })
        .with_state(operations);
    // An accept error is retried inside; the future ends with `stop` only.
    let _ = axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await;
}

/// A problem with one sentence.
struct Refusal {
    status: StatusCode,
    detail: String,
}

impl Refusal {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
        }
    }
}

impl From<Unavailable> for Refusal {
    fn from(error: Unavailable) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let body = serde_json::json!({
            "type": "about:blank", "title": title, "status": self.status.as_u16(), "detail": self.detail,
        });
        (
            self.status,
            [(header::CONTENT_TYPE, "application/problem+json")],
            body.to_string(),
        )
            .into_response()
    }
}

async fn guard(State(ops): Ops, request: Request, next: Next) -> Response {
    match admit(&ops, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

fn admit(ops: &Operations, headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &header::HeaderValue| value.to_str().ok())
    };
    let host = text(header::HOST).unwrap_or_default();
    if let Some(token) = &ops.token {
        let given = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        if !given.is_some_and(|given| same(given, token)) {
            return Err(Refusal::new(
                StatusCode::UNAUTHORIZED,
                "this host needs its token: send `Authorization: Bearer …` (ORCHESTRATOR_OPS_TOKEN)",
            ));
        }
    } else if !is_this_machine(host) {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            format!("`{host}` is not a name of this machine"),
        ));
    }
    match text(header::ORIGIN) {
        Some(origin)
            if origin
                .split_once("://")
                .is_none_or(|(_, origin)| origin != host) =>
        {
            Err(Refusal::new(
                StatusCode::FORBIDDEN,
                format!("calls from pages of `{origin}` are refused"),
            ))
        }
        _ => Ok(()),
    }
}

/// Compares without telling by its duration how much was right.
fn same(given: &str, token: &str) -> bool {
    use sha2::{Digest, Sha256};
    Sha256::digest(given) == Sha256::digest(token)
}

fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let ip = name
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<std::net::IpAddr>();
    name.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.is_loopback())
}

async fn ready(State(ops): Ops) -> Result<&'static str, Refusal> {
    let unready = |why: String| Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
    if ops.stopping.is_cancelled() {
        return unready("the host is stopping".to_owned());
    }
    match &*ops.health.borrow() {
        Health::Ready => Ok("ready\n"),
        Health::Degraded { reason } | Health::Poisoned { reason } => unready(reason.clone()),
    }
}

async fn metrics(State(ops): Ops) -> Result<Response, Refusal> {
    let mut queues = Vec::new();
    for dispatcher in &ops.dispatchers {
        let queue = dispatcher.queue();
        let stats = queue.stats().await;
        let age_ms = |oldest| queue.now().saturating_sub(oldest);
        let gauges = QueueGauges {
            held: stats.map(|stats| Held {
                ready: stats.ready,
                locked: stats.locked,
                scheduled: stats.scheduled,
                dead: stats.dead,
                // Service Bus counts messages, not bytes.
                bytes: queue.bytes_max().map(|_| stats.bytes),
                oldest_age: Duration::from_millis(stats.oldest_due_at.map_or(0, age_ms)),
            }),
            bytes_max: queue.bytes_max(),
            in_flight: dispatcher.in_flight(),
            concurrency: dispatcher.config().concurrency,
        };
        queues.push((queue.name(), gauges));
    }
    let components = ops.swapper.all();
    let counts = ops.telemetry.traces().and_then(|traces| traces.counts());
    let is_ready = matches!(*ops.health.borrow(), Health::Ready);
    let text = ops.telemetry.metrics().scrape(|metrics| {
        for (queue, gauges) in queues {
            metrics.set_queue(queue, gauges);
        }
        for seen in components {
            metrics.set_component(&ComponentGauges {
                component: seen.id,
                current: seen.current.digest,
                canary: seen.canary.map(|canary| canary.version.digest),
                draining: seen.draining,
            });
        }
        if let Some(counts) = counts {
            metrics.set_telemetry(counts);
        }
        metrics.set_store_ready(is_ready);
    });
    let text =
        text.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

async fn components(State(ops): Ops) -> Json<Vec<view::Component>> {
    let all = ops.swapper.all();
    Json(all.iter().map(view::component).collect())
}

async fn component(
    State(ops): Ops,
    Path(id): Path<String>,
) -> Result<Json<view::ComponentWhole>, Refusal> {
    let (seen, record) = ops.swapper.one(&id).ok_or(SwapError::Unknown(id))?;
    Ok(Json(view::component_whole(&seen, record)))
}

/// What may be said beside a component's bytes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Upload {
    canary: Option<String>,
    by: Option<String>,
    reason: Option<String>,
}

/// Header with a detached signature, as base64 of the signature file.
const SIGNATURE: &str = "x-minisign";
/// Longest name of who makes a change, and longest reason, in characters.
const WORDS_MAX: usize = 500;
/// Who made a change that does not say.
const SOMEBODY: &str = "the operations listener";

fn words(text: Option<String>) -> Option<String> {
    text.map(|text| text.chars().take(WORDS_MAX).collect())
}

async fn upload(
    State(ops): Ops,
    Path(id): Path<String>,
    Query(upload): Query<Upload>,
    headers: HeaderMap,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<Json<components::Change>, Refusal> {
    let began = Instant::now();
    let bytes = bytes.map_err(|error| {
        let status = error.status();
        let detail = match status {
            StatusCode::PAYLOAD_TOO_LARGE => {
                format!("a component may have {COMPONENT_BYTES_MAX} bytes")
            }
            _ => error.body_text(),
        };
        Refusal::new(status, detail)
    })?;
    let bad = |why: String| Refusal::new(StatusCode::BAD_REQUEST, why);
    let canary = match upload.canary.as_deref() {
        None => None,
        Some("0%") => Some(0.0),
        Some(share) => Some(components::share(share).map_err(bad)?),
    };
    let signature = match headers.get(SIGNATURE) {
        None => None,
        Some(value) => {
            use base64::Engine;
            let decoded = base64::engine::general_purpose::STANDARD.decode(value.as_bytes());
            let text = decoded.ok().and_then(|text| String::from_utf8(text).ok());
            Some(text.ok_or_else(|| bad(format!("`{SIGNATURE}` is not base64 of text")))?)
        }
    };
    let candidate = Candidate {
        bytes: bytes.into(),
        origin: Origin::Upload,
        by: words(upload.by).unwrap_or_else(|| SOMEBODY.to_owned()),
        reason: words(upload.reason),
        signature,
        canary,
        read: began.elapsed(),
    };
    changed(ops.swapper.swap(&id, candidate)).await
}

/// The body of a rollback or a promotion; may be left out.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    digest: Option<String>,
    by: Option<String>,
    reason: Option<String>,
}

async fn roll_back(
    State(ops): Ops,
    Path(id): Path<String>,
    wanted: Option<Json<Wanted>>,
) -> Result<Json<components::Change>, Refusal> {
    let Wanted { digest, by, reason } = wanted.unwrap_or_default().0;
    let by = words(by).unwrap_or_else(|| SOMEBODY.to_owned());
    changed(ops.swapper.roll_back(&id, digest, by, words(reason))).await
}

async fn promote(
    State(ops): Ops,
    Path(id): Path<String>,
    wanted: Option<Json<Wanted>>,
) -> Result<Json<components::Change>, Refusal> {
    let by = words(wanted.unwrap_or_default().0.by);
    changed(
        ops.swapper
            .promote(&id, by.unwrap_or_else(|| SOMEBODY.to_owned())),
    )
    .await
}

async fn changed(
    answer: tokio::sync::oneshot::Receiver<Result<components::Change, SwapError>>,
) -> Result<Json<components::Change>, Refusal> {
    let stopping = || SwapError::Unavailable("the host is stopping".to_owned());
    let answer = answer.await.unwrap_or_else(|_| Err(stopping()));
    Ok(Json(answer?))
}

impl From<SwapError> for Refusal {
    fn from(error: SwapError) -> Self {
        let status = match error {
            SwapError::Unknown(_) => StatusCode::NOT_FOUND,
            SwapError::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
            SwapError::Nothing(_) | SwapError::Superseded(_) => StatusCode::CONFLICT,
            SwapError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

/// Events from now on, until the client goes or the host stops.
async fn events(State(ops): Ops) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let (told, stopping) = (ops.telemetry.follow(), ops.stopping.clone());
    let stream = futures_util::stream::unfold((told, stopping), async |(mut told, stopping)| {
        let next = stopping.run_until_cancelled(told.recv()).await?;
        let event = match next {
            Ok(event) => Event::default().event(event.kind).data(&*event.json),
            Err(RecvError::Lagged(missed)) => {
                Event::default().event("missed").data(missed.to_string())
            }
            Err(RecvError::Closed) => return None,
        };
        Some((Ok(event), (told, stopping)))
    });
    Sse::new(stream).keep_alive(KeepAlive::default())
}

/// How long faults are injected that are switched on without saying for how long.
const CHAOS_DEFAULT: Duration = Duration::from_secs(300);
/// How long they may be at most: nobody leaves them on for good by mistake.
const CHAOS_MAX: Duration = Duration::from_secs(24 * 3600);

async fn chaos(State(ops): Ops) -> Json<Vec<view::QueueChaos>> {
    Json(ops.dispatchers.iter().map(view::chaos).collect())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HowLong {
    /// In seconds.
    #[serde(rename = "for")]
    seconds: Option<u64>,
}

async fn set_chaos(
    State(ops): Ops,
    Path(queue): Path<String>,
    Query(how_long): Query<HowLong>,
    Json(chaos): Json<Chaos>,
) -> Result<Json<view::QueueChaos>, Refusal> {
    let dispatcher = dispatcher(&ops, &queue)?;
    let bad = |why: String| Refusal::new(StatusCode::BAD_REQUEST, why);
    chaos.check().map_err(bad)?;
    let time = how_long.seconds.map_or(CHAOS_DEFAULT, Duration::from_secs);
    if time > CHAOS_MAX {
        let most = CHAOS_MAX.as_secs();
        return Err(bad(format!(
            "`for` is {} seconds; at most {most}",
            time.as_secs()
        )));
    }
    dispatcher.chaos().set(chaos, SystemTime::now() + time);
    ChaosSwitched {
        queue: &queue,
        chaos: serde_json::to_value(chaos).ok(),
        time,
    }
    .emit(&ops.telemetry);
    Ok(Json(view::chaos(dispatcher)))
}

async fn reset_chaos(
    State(ops): Ops,
    Path(queue): Path<String>,
) -> Result<Json<view::QueueChaos>, Refusal> {
    let dispatcher = dispatcher(&ops, &queue)?;
    dispatcher.chaos().reset();
    ChaosSwitched {
        queue: &queue,
        chaos: None,
        time: Duration::ZERO,
    }
    .emit(&ops.telemetry);
    Ok(Json(view::chaos(dispatcher)))
}

async fn queues(State(ops): Ops) -> Json<Vec<view::Queue>> {
    let mut queues = Vec::new();
    for dispatcher in &ops.dispatchers {
        queues.push(view::queue(dispatcher, &ops.telemetry).await);
    }
    Json(queues)
}

#[derive(Deserialize)]
struct Listing {
    limit: Option<usize>,
    after: Option<u64>,
    state: Option<JobState>,
    queue: Option<String>,
}

impl Listing {
    fn rows(&self) -> usize {
        self.limit.unwrap_or(ROWS_DEFAULT).min(ROWS_MAX)
    }
}

fn dispatcher<'a>(ops: &'a Operations, queue: &str) -> Result<&'a Dispatcher, Refusal> {
    let found = ops
        .dispatchers
        .iter()
        .find(|dispatcher| dispatcher.queue().name() == queue);
    found.ok_or_else(|| {
        Refusal::new(
            StatusCode::NOT_FOUND,
            format!("no queue `{queue}`; `/v1/queues` lists them"),
        )
    })
}

async fn jobs(
    State(ops): Ops,
    Query(listing): Query<Listing>,
) -> Result<Json<Vec<view::Job>>, Refusal> {
    let mut jobs = Vec::new();
    for dispatcher in &ops.dispatchers {
        if listing
            .queue
            .as_ref()
            .is_none_or(|queue| queue == dispatcher.queue().name())
        {
            let found = dispatcher
                .queue()
                .jobs(listing.rows(), listing.state)
                .await?;
            jobs.extend(found.into_iter().map(|job| view::job(dispatcher, job)));
        }
    }
    jobs.sort_by(|one, other| other.enqueued_at.cmp(&one.enqueued_at));
    jobs.truncate(listing.rows());
    Ok(Json(jobs))
}

async fn job(State(ops): Ops, Path(id): Path<String>) -> Result<Json<view::Job>, Refusal> {
    for dispatcher in &ops.dispatchers {
        if let Some(job) = dispatcher.queue().job(&id).await? {
            return Ok(Json(view::job(dispatcher, job)));
        }
    }
    let detail =
        format!("no job `{id}` is known here: it was never accepted, or finished too long ago");
    Err(Refusal::new(StatusCode::NOT_FOUND, detail))
}

async fn dead(
    State(ops): Ops,
    Path(queue): Path<String>,
    Query(listing): Query<Listing>,
) -> Result<Json<view::Dead>, Refusal> {
    let dispatcher = dispatcher(&ops, &queue)?;
    let rows = listing.rows();
    let jobs = dispatcher.queue().dead(listing.after, rows).await?;
    let next = if jobs.len() == rows {
        jobs.last().map(|job| job.sequence)
    } else {
        None
    };
    Ok(Json(view::Dead {
        jobs: jobs
            .into_iter()
            .map(|job| view::job(dispatcher, job))
            .collect(),
        next,
    }))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selected {
    job_id: Option<String>,
    #[serde(default)]
    all: bool,
}

impl Selected {
    fn selection(self) -> Result<Selection, Refusal> {
        match (self.job_id, self.all) {
            (Some(id), false) => Ok(Selection::One(id)),
            (None, true) => Ok(Selection::All),
            _ => Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "give either `jobId` or `\"all\": true`",
            )),
        }
    }
}

async fn redrive(
    State(ops): Ops,
    Path(queue): Path<String>,
    Json(selected): Json<Selected>,
) -> Result<Json<serde_json::Value>, Refusal> {
    let count = dispatcher(&ops, &queue)?
        .queue()
        .redrive(selected.selection()?)
        .await?;
    Ok(Json(serde_json::json!({ "redriven": count })))
}

async fn purge(
    State(ops): Ops,
    Path(queue): Path<String>,
    Json(selected): Json<Selected>,
) -> Result<Json<serde_json::Value>, Refusal> {
    let count = dispatcher(&ops, &queue)?
        .queue()
        .purge(selected.selection()?)
        .await?;
    Ok(Json(serde_json::json!({ "purged": count })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_its_own() {
        for host in [
            "localhost",
            "LOCALHOST:3001",
            "127.0.0.1:3001",
            "127.9.9.9",
            "[::1]:3001",
            "[::1]",
        ] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:3001",
            "10.0.0.1:3001",
        ] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
