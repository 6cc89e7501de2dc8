//! What this machine does with an application: `orchestrator bench`.
//!
//! Every figure comes from the real parts, in this process: the host as `up`
//! assembles it (sending to Application Insights if the application does), on its own two runtimes, with the load beside it on a third.
//! Figures of one machine mean little on another, so those that matter are
//! ratios to a [`native`] counterpart, measured in turns with it.

mod load;
mod native;
mod parts;
mod swaps;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::host::{Host, HostError, Options};
use crate::telemetry::events::Consequence;
use crate::telemetry::{Telemetry, Traces, TracesConfig};
use load::{Bodies, Witness};

/// Requests in flight when accepting is measured: the prototype's number, and
/// more than the cores of a usual machine.
const ACCEPT_IN_FLIGHT: usize = 64;
/// Jobs that are on their way at the same time when the whole pipeline is
/// measured: enough to fill every fsync group.
const PIPELINE_IN_FLIGHT: usize = 256;
/// Share of the maximum rate at which latency is measured: at the maximum
/// itself, latency only says how long the line is.
const LATENCY_LOAD: f64 = 0.5;
/// Senders in the measurements of the queue alone.
const ENQUEUE_IN_FLIGHT: [usize; 3] = [1, 64, 512];

/// What to measure, and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The application.
    pub config: Config,
    /// A directory on the disk to measure; a fresh one is made in it and removed.
    pub dir: PathBuf,
    /// Where compiled code lies.
    pub compiled_dir: PathBuf,
    /// The job's payload, as JSON.
    pub payload: String,
    /// How long each figure is measured in each round.
    pub duration: Duration,
    /// How often; medians are over rounds.
    pub rounds: usize,
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The host does not start.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Files, sockets or threads.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The application did not take the load.
    #[error("{0}")]
    Refused(String),
}

/// All that was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Processors that this process may use.
    pub cores: usize,
    /// The directory whose disk was used.
    pub dir: String,
    /// Bytes of a job's payload.
    pub payload_bytes: usize,
    /// Seconds of each measurement.
    pub seconds: f64,
    /// How often each was repeated.
    pub rounds: usize,
    /// One row for each thing measured.
    pub rows: Vec<Row>,
}

/// One thing that was measured. Each figure is the median of its rounds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// What was done.
    pub what: String,
    /// How many at the same time; none where a rate was given instead.
    pub in_flight: Option<usize>,
    /// How many in a second.
    pub per_second: f64,
    /// Half of them took no longer, in microseconds.
    pub p50_us: u64,
    /// All but one in a hundred took no longer, in microseconds.
    pub p99_us: u64,
    /// `per_second` as a share of the counterpart's, measured in the same round.
    pub ratio: Option<f64>,
    /// The counterpart.
    pub ratio_to: Option<String>,
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct Sample {
    per_second: f64,
    p50_us: u64,
    p99_us: u64,
}

impl Sample {
    fn new(count: u64, took: Duration, latencies: &Histogram<u64>) -> Self {
        Self {
            #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
            per_second: count as f64 / took.as_secs_f64(),
            p50_us: latencies.value_at_quantile(0.5),
            p99_us: latencies.value_at_quantile(0.99),
        }
    }

    /// How many were done in a second.
    pub fn per_second(&self) -> f64 {
        self.per_second
    }
}

/// Latencies in microseconds, up to a minute, to three digits.
fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3)
        .unwrap_or_else(|_| unreachable!("the bounds are sound"))
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1)
}

/// Measures everything; tells `progress` what comes next.
pub fn run(plan: &Plan, progress: &dyn Fn(&str)) -> Result<Report, BenchError> {
    std::fs::create_dir_all(&plan.dir)?;
    let load = Builder::new_current_thread().enable_all().build()?;
    let mut rows = Vec::new();

    let starts = each_round(plan, |_| {
        progress("start to first 202, compiled code cached");
        parts::start(plan, &load)
    })?;
    rows.push(row("start → first 202 (code cached)", Some(1), &starts));

    let attempts = each_round(plan, |_| {
        progress("attempts in fresh instances");
        parts::attempts(plan)
    })?;
    rows.push(row("attempt in a fresh instance", Some(1), &attempts));

    for in_flight in ENQUEUE_IN_FLIGHT {
        let sends = each_round(plan, |_| {
            progress(&format!("enqueue, {in_flight} at a time"));
            parts::enqueue(plan, in_flight)
        })?;
        rows.push(row("enqueue", Some(in_flight), &sends));
    }
    let settles = each_round(plan, |_| {
        progress("receive and settle");
        parts::receive_settle(plan, PIPELINE_IN_FLIGHT)
    })?;
    rows.push(row("receive → settle", Some(PIPELINE_IN_FLIGHT), &settles));

    let accepts = each_round(plan, |_| {
        progress("accepting, through the component and natively");
        let ours = accept(&Target::host(plan)?, plan, &load)?;
        Ok((ours, accept(&Target::native_accept(plan)?, plan, &load)?))
    })?;
    push_pair(
        &mut rows,
        ["POST → 202", "POST → 202, native code, same queue"],
        ACCEPT_IN_FLIGHT,
        &accepts,
    );

    let pipelines = each_round(plan, |_| {
        progress("the whole pipeline, ours and a native one on a plain file");
        let ours = pipeline(&Target::host(plan)?, plan, &load)?;
        Ok((ours, pipeline(&Target::native_file(plan)?, plan, &load)?))
    })?;
    push_pair(
        &mut rows,
        [
            "POST → completed",
            "POST → completed, native no-op on a plain file",
        ],
        PIPELINE_IN_FLIGHT,
        &pipelines,
    );

    let rate = median(pipelines.iter().map(|(ours, _)| ours.per_second)) * LATENCY_LOAD;
    let steady = each_round(plan, |_| {
        progress("latency at half of the maximum rate");
        let target = Target::host(plan)?;
        load.block_on(load::steady(
            target.addr,
            &target.witness,
            &Bodies::due(&plan.payload),
            rate,
            plan.duration,
        ))
    })?;
    rows.push(row("POST → completed, at half that rate", None, &steady));

    let swapping = each_round(plan, |_| {
        progress("the same, while the worker is swapped again and again");
        swaps::under_load(plan, &load, rate)
    })?;
    rows.push(row(
        "POST → completed, at half that rate, while swapping",
        None,
        &swapping,
    ));
    for (name, is_new) in [("compiled before", false), ("compiled anew", true)] {
        let rounds = each_round(plan, |_| {
            progress(&format!("swap → first job on the new version, {name}"));
            swaps::alone(plan, &load, is_new)
        })?;
        for (step, what) in swaps::STEPS.iter().enumerate() {
            let samples: Vec<Sample> = rounds.iter().map(|round| round[step].clone()).collect();
            rows.push(row(&format!("{what}, {name}"), Some(1), &samples));
        }
    }

    Ok(Report {
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        dir: plan.dir.display().to_string(),
        payload_bytes: plan.payload.len(),
        seconds: plan.duration.as_secs_f64(),
        rounds: plan.rounds,
        rows,
    })
}

/// Completed jobs in a second through the whole pipeline, once.
pub fn pipeline_once(plan: &Plan) -> Result<Sample, BenchError> {
    std::fs::create_dir_all(&plan.dir)?;
    let load = Builder::new_current_thread().enable_all().build()?;
    pipeline(&Target::host(plan)?, plan, &load)
}

fn accept(target: &Target, plan: &Plan, load: &Runtime) -> Result<Sample, BenchError> {
    // Jobs that are due in a day: accepted and stored, and no worker beside.
    let bodies = Bodies::delayed(&plan.payload);
    load.block_on(load::accepting(
        target.addr,
        &bodies,
        ACCEPT_IN_FLIGHT,
        plan.duration,
    ))
}

fn pipeline(target: &Target, plan: &Plan, load: &Runtime) -> Result<Sample, BenchError> {
    load.block_on(load::completing(
        target.addr,
        &target.witness,
        &Bodies::due(&plan.payload),
        PIPELINE_IN_FLIGHT,
        plan.duration,
    ))
}

fn each_round<T>(
    plan: &Plan,
    mut measure: impl FnMut(usize) -> Result<T, BenchError>,
) -> Result<Vec<T>, BenchError> {
    (0..plan.rounds.max(1)).map(&mut measure).collect()
}

fn row(what: &str, in_flight: Option<usize>, samples: &[Sample]) -> Row {
    Row {
        what: what.to_owned(),
        in_flight,
        per_second: median(samples.iter().map(Sample::per_second)),
        p50_us: median(samples.iter().map(|sample| sample.p50_us)),
        p99_us: median(samples.iter().map(|sample| sample.p99_us)),
        ratio: None,
        ratio_to: None,
    }
}

fn push_pair(
    rows: &mut Vec<Row>,
    [what, counterpart]: [&str; 2],
    in_flight: usize,
    pairs: &[(Sample, Sample)],
) {
    let (ours, theirs): (Vec<Sample>, Vec<Sample>) = pairs.iter().cloned().unzip();
    let ratio = median(
        pairs
            .iter()
            .map(|(ours, theirs)| ours.per_second / theirs.per_second),
    );
    rows.push(Row {
        ratio: Some(ratio),
        ratio_to: Some(counterpart.to_owned()),
        ..row(what, Some(in_flight), &ours)
    });
    rows.push(row(counterpart, Some(in_flight), &theirs));
}

fn median<T: PartialOrd + Copy>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_by(|one, other| one.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal));
    values[values.len() / 2]
}

/// Something that takes jobs, with its threads; stopped when dropped.
struct Target {
    addr: SocketAddr,
    /// The operations listener, where there is one.
    ops: Option<SocketAddr>,
    telemetry: Telemetry,
    witness: Arc<Witness>,
    stop: CancellationToken,
    serving: Option<tokio::task::JoinHandle<()>>,
    runtimes: Vec<Runtime>,
    _dir: tempfile::TempDir,
}

impl Target {
    /// The host as `up` runs it.
    fn host(plan: &Plan) -> Result<Self, BenchError> {
        let dir = fresh_dir(plan)?;
        let witness = Arc::new(Witness::default());
        let options = Options {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            ops_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            servicebus_listen: None,
            ops_token: None,
            state_dir: dir.path().to_owned(),
            compiled_dir: plan.compiled_dir.clone(),
        };
        let told = witness.clone();
        let (requests, jobs) = (runtime("requests")?, runtime("jobs")?);
        let exporting = TracesConfig {
            application_insights: plan.config.host.application_insights.clone(),
            role: plan.config.name.clone(),
            sampled: 1.0,
            ..TracesConfig::default()
        };
        let traces = requests.block_on(async { Traces::start(&exporting) });
        let traces = traces.map_err(|error| BenchError::Refused(error.to_string()))?;
        let telemetry = Telemetry::observed(traces, move |ended| {
            if matches!(ended.consequence, Consequence::Completed { .. }) {
                told.completed(ended.job);
            }
        });
        let building = Host::build(plan.config.clone(), options, telemetry.clone());
        let host = requests.block_on(building)?;
        let (addr, ops) = (host.application_address(), host.operations_address()?);
        let addr = addr.ok_or_else(|| BenchError::Refused("it listens nowhere".to_owned()))?;
        let stop = CancellationToken::new();
        let running = host.run(jobs.handle().clone(), stop.clone().cancelled_owned());
        let serving = requests.spawn(async move {
            // A host that ended early shows as refused connections.
            let _ = running.await;
        });
        Ok(Self {
            addr,
            ops: Some(ops),
            telemetry,
            witness,
            stop,
            serving: Some(serving),
            runtimes: vec![requests, jobs],
            _dir: dir,
        })
    }

    /// Native code that answers 202, over the embedded queue.
    fn native_accept(plan: &Plan) -> Result<Self, BenchError> {
        Self::native(plan, |dir, _| native::over_queue(dir))
    }

    /// Native code that answers 202, over a plain file, with a no-op for a worker.
    fn native_file(plan: &Plan) -> Result<Self, BenchError> {
        Self::native(plan, native::over_file)
    }

    fn native(
        plan: &Plan,
        keeper: impl FnOnce(&std::path::Path, Arc<Witness>) -> Result<native::Keeper, BenchError>,
    ) -> Result<Self, BenchError> {
        let dir = fresh_dir(plan)?;
        let witness = Arc::new(Witness::default());
        let keeper = keeper(dir.path(), witness.clone())?;
        let requests = runtime("requests")?;
        let stop = CancellationToken::new();
        let (addr, serving) = requests.block_on(native::serve(keeper, stop.clone()))?;
        Ok(Self {
            addr,
            ops: None,
            telemetry: Telemetry::default(),
            witness,
            stop,
            serving: Some(serving),
            runtimes: vec![requests],
            _dir: dir,
        })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.stop.cancel();
        if let (Some(serving), Some(requests)) = (self.serving.take(), self.runtimes.first()) {
            // Connections that the load left open end with the runtime.
            let ended = async { tokio::time::timeout(STOP_MAX, serving).await };
            let _ = requests.block_on(ended);
            requests.block_on(self.telemetry.close());
        }
        for runtime in self.runtimes.drain(..) {
            runtime.shutdown_timeout(STOP_MAX);
        }
    }
}

/// How long a target may take to stop.
const STOP_MAX: Duration = Duration::from_secs(5);

fn fresh_dir(plan: &Plan) -> std::io::Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(&plan.dir)
}

fn runtime(name: &str) -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .thread_name(name)
        .enable_all()
        .build()
}

/// Runs `step` again and again for `duration`, one at a time.
async fn repeat(
    duration: Duration,
    mut step: impl AsyncFnMut() -> Result<(), BenchError>,
) -> Result<Sample, BenchError> {
    let mut histogram = latencies();
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < duration {
        let step_began = Instant::now();
        step().await?;
        histogram.saturating_record(micros(step_began.elapsed()));
        count += 1;
    }
    Ok(Sample::new(count, began.elapsed(), &histogram))
}
