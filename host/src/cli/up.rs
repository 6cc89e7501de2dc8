//! `up`: read, build, announce, run until told to stop.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{CliError, UpArgs, environment, failed};
use crate::config::Config;
use crate::host::{Host, Options};
use crate::telemetry::{Telemetry, start_logging};

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
    let host = Host::build(config, options, Telemetry::default())
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
            ended = &mut running => return ended.map_err(failed),
            () = signals.next() => {
                if stop.is_cancelled() {
                    return Err(CliError::Failed("stopped at once by a second signal".to_owned()));
                }
                stop.cancel();
            }
        }
    }
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
