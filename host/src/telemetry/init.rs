//! Where log lines go.

use clap::ValueEnum;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Lines that wait for a slow console; more are dropped, so that a blocked
/// terminal or a full pipe never holds up a job.
const LINES_WAITING_MAX: usize = 16_384;
/// Replaces the default levels, in the syntax of `tracing_subscriber::EnvFilter`.
const FILTER_VARIABLE: &str = "ORCHESTRATOR_LOG";

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For a person.
    #[default]
    Text,
    /// One JSON object per line, for a log collector.
    Json,
}

/// Writes out waiting lines when dropped.
pub struct LogGuard {
    _worker: WorkerGuard,
}

/// Starts writing log lines to stderr. `quiet` leaves warnings and errors only.
pub fn start_logging(format: LogFormat, quiet: bool) -> LogGuard {
    let (writer, worker) = NonBlockingBuilder::default()
        .buffered_lines_limit(LINES_WAITING_MAX)
        .lossy(true)
        .finish(std::io::stderr());
    let default = if quiet {
        LevelFilter::WARN
    } else {
        LevelFilter::INFO
    };
    let filter = EnvFilter::builder()
        .with_env_var(FILTER_VARIABLE)
        .with_default_directive(default.into())
        .from_env_lossy();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_target(false);
    // A subscriber can already be set in a test process; its lines do as well.
    let _ = match format {
        LogFormat::Text => {
            use std::io::IsTerminal;
            lines
                .with_ansi(std::io::stderr().is_terminal())
                .compact()
                .try_init()
        }
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .try_init(),
    };
    LogGuard { _worker: worker }
}
