//! `up`: read, build, announce, run until told to stop.

use std::time::{Duration, Instant};

use orchestrator_queue::Retention;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use super::stops::Stops;
use super::{CliError, UpArgs, environment, failed};
use crate::config::Config;
use crate::dispatch::chaos::Chaos;
use crate::host::{Host, HostError, Options};
use crate::telemetry::events::HandOverAwaited;
use crate::telemetry::{Telemetry, Traces, TracesConfig, start_logging};

/// Time that threads get to end once everything is stopped.
const THREADS_END_MAX: Duration = Duration::from_millis(500);
/// Between two attempts to get what an earlier run still holds.
const TAKE_AGAIN: Duration = Duration::from_millis(100);

pub(super) fn run(args: UpArgs) -> Result<(), CliError> {
    let mut config = args.manifest.read()?;
    if args.embedded_queue {
        config.host.service_bus = None;
    }
    if args.judged {
        for trigger in &mut config.queues {
            trigger.queue.retention = Retention {
                age: Duration::MAX,
                count: u64::MAX,
                bytes: u64::MAX,
            };
            trigger.dispatch.chaos = Chaos::default();
        }
    }
    if args.build {
        super::build::run(&config)?;
    }
    let _lines = start_logging(args.log_format, args.quiet);
    let state_dir = super::state_dir(args.state_dir, &config);
    let options = Options {
        listen: Some(args.listen),
        ops_listen: args.ops_listen,
        servicebus_listen: args.servicebus_listen,
        ops_token: ops_token(),
        compiled_dir: super::compiled_dir(environment("ORCHESTRATOR_CACHE_DIR"), &state_dir),
        state_dir,
    };
    run_host(config, options, Duration::ZERO, Stops::by_signals)
}

/// The token that operations need, if one is set.
pub(super) fn ops_token() -> Option<String> {
    environment("ORCHESTRATOR_OPS_TOKEN").filter(|token| !token.is_empty())
}

/// Runs a host until it is told to stop. What another process holds is waited
/// for as long as `hand_over_max`.
pub(super) fn run_host(
    config: Config,
    options: Options,
    hand_over_max: Duration,
    stops: impl FnOnce() -> std::io::Result<Stops>,
) -> Result<(), CliError> {
    let requests = runtime("requests")?;
    let jobs = runtime("jobs")?;
    let serving = async {
        let stops = stops().map_err(failed)?;
        serve(config, options, hand_over_max, stops, jobs.handle().clone()).await
    };
    let result = requests.block_on(serving);
    jobs.shutdown_timeout(THREADS_END_MAX);
    requests.shutdown_timeout(THREADS_END_MAX);
    result
}

fn runtime(name: &str) -> Result<Runtime, CliError> {
    Builder::new_multi_thread()
        .thread_name(name)
        .enable_all()
        .build()
        .map_err(failed)
}

async fn serve(
    config: Config,
    options: Options,
    hand_over_max: Duration,
    mut stops: Stops,
    jobs: tokio::runtime::Handle,
) -> Result<(), CliError> {
    let traces = Traces::start(&traces_config(&config)?).map_err(failed)?;
    let telemetry = Telemetry::exporting(traces);
    let host = tokio::select! {
        built = build(&config, &options, &telemetry, hand_over_max) => built.map_err(failed)?,
        // Nothing has been taken yet that could be lost.
        () = stops.next() => return Ok(()),
    };
    let mut listening = String::new();
    if let Some(application) = host.application_address() {
        listening += &format!("application: http://{application}\n");
    }
    let operations = host.operations_address().map_err(failed)?;
    listening += &format!("operations:  http://{operations}\n");
    if let Some(servicebus) = host.servicebus_address() {
        listening += &format!("servicebus:  http://{servicebus}\n");
    }
    if let Err(error) = super::print(&listening) {
        // No reason not to run.
        tracing::warn!(%error, "the addresses could not be printed");
    }
    let stop = CancellationToken::new();
    let running = host.run(jobs, stop.clone().cancelled_owned());
    let mut running = std::pin::pin!(running);
    loop {
        tokio::select! {
            ended = &mut running => {
                telemetry.close().await;
                return ended.map_err(failed);
            }
            () = stops.next() => {
                if stop.is_cancelled() {
                    return Err(CliError::Failed("stopped at once by a second signal".to_owned()));
                }
                stop.cancel();
            }
        }
    }
}

/// Builds the host, as soon as an earlier run has let go of its store.
async fn build(
    config: &Config,
    options: &Options,
    telemetry: &Telemetry,
    hand_over_max: Duration,
) -> Result<Host, HostError> {
    let began = Instant::now();
    let mut is_told = false;
    loop {
        match Host::build(config.clone(), options.clone(), telemetry.clone()).await {
            Err(error) if error.is_taken() && began.elapsed() < hand_over_max => {
                if !is_told {
                    HandOverAwaited {
                        why: &error.to_string(),
                        at_most: hand_over_max,
                    }
                    .emit();
                    is_told = true;
                }
                tokio::time::sleep(TAKE_AGAIN).await;
            }
            built => return built,
        }
    }
}

/// What leaves the host: to Application Insights by its connection string, to
/// an OTLP collector by the standard variables.
fn traces_config(config: &Config) -> Result<TracesConfig, CliError> {
    let given = |name: &str| environment(name).filter(|text| !text.is_empty());
    let is_off = given("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let sampler = given("OTEL_TRACES_SAMPLER").unwrap_or_default();
    let argument = given("OTEL_TRACES_SAMPLER_ARG");
    let sampled = match sampler.trim_start_matches("parentbased_") {
        "" | "always_on" => 1.0,
        "always_off" => 0.0,
        "traceidratio" => argument
            .as_deref()
            .map_or(Ok(1.0), str::parse)
            .ok()
            .filter(|ratio| (0.0..=1.0).contains(ratio))
            .ok_or_else(|| {
                CliError::Usage("OTEL_TRACES_SAMPLER_ARG is not a share from 0 to 1".to_owned())
            })?,
        other => {
            return Err(CliError::Usage(format!(
                "OTEL_TRACES_SAMPLER is `{other}`; `always_on`, `always_off` and `traceidratio` are known"
            )));
        }
    };
    let otlp = ["", "_TRACES", "_METRICS", "_LOGS"]
        .iter()
        .any(|signal| given(&format!("OTEL_EXPORTER_OTLP{signal}_ENDPOINT")).is_some());
    Ok(TracesConfig {
        application_insights: config.host.application_insights.clone().filter(|_| !is_off),
        otlp: otlp && !is_off,
        role: config.name.clone(),
        sampled,
    })
}
