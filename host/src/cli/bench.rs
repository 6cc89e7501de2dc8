//! `bench`: measures, then prints a table or JSON.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use super::{
    BenchArgs, CliError, Output, compiled_dir, environment, failed, print, print_json, state_dir,
};
use crate::bench::{Plan, Report, Row, run as measure};
use crate::config::Config;
use crate::telemetry::{LogFormat, start_logging};

const DEFAULT_PAYLOAD_BYTES: usize = 1_024;

pub(super) fn run(args: BenchArgs) -> Result<(), CliError> {
    let mut config = args.manifest.read()?;
    // What is measured is this machine, and a namespace is no place for its load.
    config.host.service_bus = None;
    if args.build {
        super::build::run(&config)?;
    }
    let payload = args.payload.clone().unwrap_or_else(default_payload);
    if let Err(error) = serde_json::from_str::<serde_json::Value>(&payload) {
        return Err(CliError::Usage(format!("`--payload` is not JSON: {error}")));
    }
    let _lines = start_logging(LogFormat::Text, true);
    let plan = plan(config, &args, payload);
    let progress = Progress::new();
    let report = measure(&plan, &|next| progress.show(next)).map_err(failed)?;
    progress.end();
    match args.output {
        Output::Json => print_json(&report),
        Output::Text => print(&text(&report)),
    }
}

/// A job of usual size: 1,024 bytes of JSON.
fn default_payload() -> String {
    let frame = serde_json::json!({ "text": "" }).to_string().len();
    serde_json::json!({ "text": "x".repeat(DEFAULT_PAYLOAD_BYTES - frame) }).to_string()
}

fn plan(config: Config, args: &BenchArgs, payload: String) -> Plan {
    let state_dir: PathBuf = state_dir(args.state_dir.clone(), &config);
    Plan {
        compiled_dir: compiled_dir(environment("ORCHESTRATOR_CACHE_DIR"), &state_dir),
        dir: state_dir,
        config,
        payload,
        duration: args.duration.into(),
        rounds: args.rounds,
    }
}

/// One line that changes, on a terminal only.
struct Progress {
    is_shown: bool,
}

impl Progress {
    fn new() -> Self {
        Self {
            is_shown: std::io::stderr().is_terminal(),
        }
    }

    fn show(&self, next: &str) {
        if self.is_shown {
            eprint!("\r\x1b[Kmeasuring: {next}");
            // What cannot be shown is not needed.
            let _ = std::io::stderr().flush();
        }
    }

    fn end(&self) {
        if self.is_shown {
            eprint!("\r\x1b[K");
        }
    }
}

fn text(report: &Report) -> String {
    let rows: Vec<serde_json::Value> = report.rows.iter().map(shown).collect();
    let columns = ["what", "in flight", "per second", "p50", "p99", "ratio"];
    format!(
        "{} cores, {}-byte payload, {} s × {} rounds (medians), disk of {}\n\n{}",
        report.cores,
        report.payload_bytes,
        report.seconds,
        report.rounds,
        report.dir,
        super::client::table(&rows.into(), &columns)
    )
}

fn shown(row: &Row) -> serde_json::Value {
    let ratio = row
        .ratio
        .zip(row.ratio_to.as_ref())
        .map(|(ratio, to)| format!("{ratio:.2} of {to}"));
    serde_json::json!({
        "what": row.what,
        "in flight": row.in_flight,
        "per second": format!("{:.0}", row.per_second),
        "p50": duration(row.p50_us),
        "p99": duration(row.p99_us),
        "ratio": ratio,
    })
}

fn duration(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        #[expect(
            clippy::cast_precision_loss,
            reason = "durations of a bench are far below 2^52"
        )]
        _ => format!("{:.1} ms", micros as f64 / 1_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_payload_is_json_of_its_size() {
        let payload = default_payload();
        assert_eq!(payload.len(), DEFAULT_PAYLOAD_BYTES);
        assert!(serde_json::from_str::<serde_json::Value>(&payload).is_ok());
    }

    #[test]
    fn a_row_shows_its_figures_and_what_it_is_compared_with() {
        let row = Row {
            what: "POST → 202".to_owned(),
            in_flight: Some(64),
            per_second: 10_000.4,
            p50_us: 950,
            p99_us: 12_340,
            ratio: Some(0.333),
            ratio_to: Some("native".to_owned()),
        };
        assert_eq!(
            shown(&row),
            serde_json::json!({
                "what": "POST → 202", "in flight": 64, "per second": "10000",
                "p50": "950 µs", "p99": "12.3 ms", "ratio": "0.33 of native",
            })
        );
    }
}
