//! `up`: read, build, announce, run until told to stop.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{CliError, UpArgs, environment, failed};
use crate::config::Config;
use crate::host::{Host, Options};
use crate::telemetry::{Telemetry, Traces, TracesConfig, start_logging};

/// Time that threads get to end once everything is stopped.
const THREADS_END_MAX: Duration = Duration::from_millis(500);

pub(super) fn run(args: UpArgs) -> Result<(), CliError> {
    let config = args.manifest.read()?;
    if args.build {
        super::build::run(&config)?;
    }
    let _lines = start_logging(args.log_format, args.quiet);
    let state_dir = super::state_dir(args.state_dir, &config);
    let compiled_dir = super::compiled_dir(environment("ORCHESTRATOR_CACHE_DIR"), &state_dir);
    let options = Options {
        listen: args.listen,
        ops_listen: args.ops_listen,
        servicebus_listen: args.servicebus_listen,
        ops_token: environment("ORCHESTRATOR_OPS_TOKEN").filter(|token| !token.is_empty()),
        state_dir,
        compiled_dir,
    };
    let requests = runtime("requests")?;
    let jobs = runtime("jobs")?;
    let result = requests.block_on(serve(config, options, jobs.handle().clone()));
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
    jobs: tokio::runtime::Handle,
) -> Result<(), CliError> {
    let mut signals = Signals::listen().map_err(failed)?;
    let traces = Traces::start(&traces_config(&config)?).map_err(failed)?;
    let telemetry = Telemetry::exporting(traces);
    let host = Host::build(config, options, telemetry.clone())
        .await
        .map_err(failed)?;
    let (application, operations) = host.addresses().map_err(failed)?;
    let mut listening =
        format!("application: http://{application}\noperations:  http://{operations}\n");
    if let Some(servicebus) = host.servicebus_address() {
        listening += &format!("servicebus:  http://{servicebus}\n");
    }
    if let Err(error) = super::print(&listening) {
        // No reason not to run.
        tracing::warn!(%error, "the addresses could not be printed");
    }
    let stop = tokio_util::sync::CancellationToken::new();
    let running = host.run(jobs, stop.clone().cancelled_owned());
    let mut running = std::pin::pin!(running);
    loop {
        tokio::select! {
            ended = &mut running => {
                telemetry.close().await;
                return ended.map_err(failed);
            }
            () = signals.next() => {
                if stop.is_cancelled() {
                    return Err(CliError::Failed("stopped at once by a second signal".to_owned()));
                }
                stop.cancel();
            }
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

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
