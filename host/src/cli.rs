//! The command line.

mod bench;
mod build;
mod chaos;
mod client;
mod doctor;
mod parent;
mod spin;
mod stops;
mod swap;
mod trigger;
mod up;
mod variables;

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{Config, ConfigError};
use crate::telemetry::LogFormat;
use variables::Variables;

/// Runs queue-triggered WebAssembly components: durable and retried.
#[derive(Debug, Parser)]
#[command(name = "orchestrator", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the application of a `spin.toml`.
    Up(UpArgs),
    /// Run the build command of each component.
    Build(ManifestArgs),
    /// Show components and queues of a running host.
    Status(OpsArgs),
    /// Show recent jobs of a running host, or one job whole.
    Jobs {
        /// The job to show.
        id: Option<String>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Look at, bring back or throw away dead letters.
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Replace a component in the running host, while its jobs run.
    Swap(SwapArgs),
    /// Go back: from a canary, to the version before, or to the one named.
    Rollback {
        /// The component.
        component: String,
        /// Digest of the version, or how it begins [default: the one before].
        digest: Option<String>,
        /// Why, for the record.
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Accept a canary before it is judged.
    Promote {
        /// The component.
        component: String,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Inject faults, or run the application under them and judge it.
    #[command(subcommand)]
    Chaos(ChaosCommand),
    /// Measure throughput and latency of this machine with an application.
    Bench(BenchArgs),
    /// Check toolchain, manifest, components, disk and addresses, and say how to mend what is wrong.
    Doctor(DoctorArgs),
    /// Make this program Spin's trigger for queues.
    #[command(subcommand)]
    Spin(spin::SpinCommand),
    /// Run the queues of an application that `spin up` has started.
    #[command(hide = true)]
    TriggerServicebus(trigger::TriggerArgs),
}

#[derive(Debug, Subcommand)]
enum DeadCommand {
    /// List the dead letters of a queue.
    List(DeadArgs),
    /// Show one dead letter whole: why it is dead, its attempts, their logs.
    Show {
        /// The job.
        id: String,
        #[command(flatten)]
        dead: DeadArgs,
    },
    /// Make dead letters ready again.
    Redrive(SelectArgs),
    /// Throw dead letters away.
    Purge(SelectArgs),
}

#[derive(Debug, Args)]
struct DeadArgs {
    /// The queue.
    #[arg(long, default_value = "jobs")]
    queue: String,
    #[command(flatten)]
    ops: OpsArgs,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["id", "all"]))]
struct SelectArgs {
    /// The job; or `--all`.
    id: Option<String>,
    /// Every dead letter of the queue.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    dead: DeadArgs,
}

#[derive(Debug, Subcommand)]
enum ChaosCommand {
    /// Show the faults of each queue of a running host.
    Show(OpsArgs),
    /// Switch faults on for a while.
    Set(ChaosArgs),
    /// Go back to the manifest's faults.
    Off {
        /// The queue.
        #[arg(long, default_value = "jobs")]
        queue: String,
        #[command(flatten)]
        ops: OpsArgs,
    },
    /// Run the application under seeded faults and kills, and say whether every promise held.
    Run(ChaosRunArgs),
}

#[derive(Debug, Args)]
struct ChaosArgs {
    /// The queue.
    #[arg(long, default_value = "jobs")]
    queue: String,
    /// For how long.
    #[arg(long = "for", default_value = "5m")]
    time: humantime::Duration,
    /// Share of attempts that fail as `Simulated Crash`, from 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    failure_rate: f64,
    /// Share of attempts whose answer is lost in a trap.
    #[arg(long, default_value_t = 0.0)]
    trap_rate: f64,
    /// Share of attempts that start up to 100 ms late.
    #[arg(long, default_value_t = 0.0)]
    latency_rate: f64,
    /// Share of attempts that lose their lock in the middle.
    #[arg(long, default_value_t = 0.0)]
    lock_loss_rate: f64,
    /// Share of attempts that settle too late, beside another delivery.
    #[arg(long, default_value_t = 0.0)]
    late_settle_rate: f64,
    /// Share of sends, receives, renewals and settlements that fail.
    #[arg(long, default_value_t = 0.0)]
    broker_down_rate: f64,
    /// Share of them that are turned away, in bursts, as by a throttling broker.
    #[arg(long, default_value_t = 0.0)]
    broker_throttle_rate: f64,
    /// Share of them that take up to 200 ms longer.
    #[arg(long, default_value_t = 0.0)]
    broker_slow_rate: f64,
    /// Picks which those are.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    ops: OpsArgs,
}

#[derive(Debug, Args)]
struct ChaosRunArgs {
    #[command(flatten)]
    manifest: ManifestArgs,
    /// Picks faults, and the moments of kills.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Jobs to send [default: 500, or as many as fit into `--duration`].
    #[arg(long, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    jobs: Option<usize>,
    /// How long to send jobs.
    #[arg(long, value_parser = humantime::parse_duration)]
    duration: Option<std::time::Duration>,
    /// How often the host is killed and started again.
    #[arg(long, default_value_t = 3, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(0..=1_000))]
    kills: usize,
    /// Each job's payload, as JSON [default: one for the sample worker].
    #[arg(long)]
    payload: Option<String>,
    /// What each completed job must answer, as JSON [default: not compared].
    #[arg(long)]
    expect: Option<String>,
    /// How long jobs may take to come to rest once nothing is injected any more.
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    patience: std::time::Duration,
    /// How the verdict is printed.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Args)]
struct SwapArgs {
    /// The component, as the manifest names it.
    component: String,
    /// The WebAssembly file; a signature beside it (`.minisig`) goes with it.
    file: PathBuf,
    /// First give it this share of the jobs, until the host has judged it;
    /// `0%` for none where the manifest says otherwise.
    #[arg(long, value_name = "PERCENT")]
    canary: Option<String>,
    /// Do not wait for the judgement on a canary.
    #[arg(long, requires = "canary")]
    detach: bool,
    /// Why, for the record.
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    ops: OpsArgs,
}

#[derive(Debug, Args)]
struct ManifestArgs {
    /// The manifest, or a directory with a `spin.toml`.
    #[arg(short = 'f', long = "from", default_value = "spin.toml")]
    from: PathBuf,
    /// A variable's value, as `name=value`, or as `name=@file` for the file's
    /// text, or as `@file` for a TOML or JSON file of many. Repeat for more.
    #[arg(long = "variable", value_name = "NAME=VALUE|@FILE", value_parser = variables::read)]
    variables: Vec<Variables>,
}

impl ManifestArgs {
    fn read(&self) -> Result<Config, ConfigError> {
        let variables: Vec<_> = self
            .variables
            .iter()
            .flat_map(|given| given.0.clone())
            .collect();
        Config::read(&self.from, &variables, &environment)
    }
}

#[derive(Debug, Args)]
struct BenchArgs {
    #[command(flatten)]
    manifest: ManifestArgs,
    /// Build the components first.
    #[arg(long)]
    build: bool,
    /// A directory on the disk to measure [default: the state directory]; what is written there is removed.
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// How long each figure is measured in each round.
    #[arg(long, default_value = "2s")]
    duration: humantime::Duration,
    /// How often each figure is measured; the table has medians.
    #[arg(long, default_value_t = 3, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=100))]
    rounds: usize,
    /// Each job's payload, as JSON [default: an object of 1,024 bytes].
    #[arg(long)]
    payload: Option<String>,
    /// How figures are printed.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Args)]
struct DoctorArgs {
    #[command(flatten)]
    manifest: ManifestArgs,
    /// Address that the application listener would use.
    #[arg(long, default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// Address that the operations listener would use.
    #[arg(long, default_value = "127.0.0.1:3001")]
    ops_listen: SocketAddr,
    /// Where everything durable lies [default: `.spin/orchestrator` beside the manifest].
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// How findings are printed.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Args)]
struct UpArgs {
    #[command(flatten)]
    manifest: ManifestArgs,
    /// Build the components first.
    #[arg(long)]
    build: bool,
    /// Address of the application listener.
    #[arg(long, default_value = "127.0.0.1:3000")]
    listen: SocketAddr,
    /// Address of the operations listener.
    #[arg(long, default_value = "127.0.0.1:3001")]
    ops_listen: SocketAddr,
    /// Serve the embedded queue as Azure Service Bus REST at this address, on loopback.
    #[arg(long, value_name = "ADDR")]
    servicebus_listen: Option<SocketAddr>,
    /// Keep the queues here, whatever connection string is given.
    #[arg(long)]
    embedded_queue: bool,
    /// For `chaos run`: keeps the page of every job, and injects only what that asks for.
    #[arg(long, hide = true, requires = "embedded_queue")]
    judged: bool,
    /// Where everything durable lies [default: `.spin/orchestrator` beside the manifest].
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// Leave out all log lines but warnings and errors.
    #[arg(short, long)]
    quiet: bool,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

#[derive(Debug, Args)]
struct OpsArgs {
    /// The running host's operations listener.
    #[arg(
        long,
        env = "ORCHESTRATOR_OPS",
        default_value = "http://127.0.0.1:3001"
    )]
    ops: String,
    /// How data is printed.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For a person.
    #[default]
    Text,
    /// As the host answers it.
    Json,
}

/// Exit status for bad usage or a bad manifest, as in `sysexits.h`.
pub const EXIT_USAGE: u8 = 64;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Bad usage, or a bad manifest.
    #[error("{0}")]
    Usage(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl CliError {
    /// The exit status.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::Failed(_) => 1,
        }
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Failed(error.to_string())
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Prints what was asked for. A reader that has gone away (`| head`) is no error.
fn print(text: &str) -> Result<(), CliError> {
    use std::io::{ErrorKind, Write};
    let mut stdout = std::io::stdout();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(failed(error)),
        _ => Ok(()),
    }
}

/// The same, as JSON for programs.
fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(failed)?;
    print(&format!("{text}\n"))
}

/// Where everything durable lies, unless the command line says otherwise.
fn state_dir(given: Option<PathBuf>, config: &Config) -> PathBuf {
    given.unwrap_or_else(|| config.dir.join(".spin/orchestrator"))
}

/// Where compiled code lies.
fn compiled_dir(given: Option<String>, state_dir: &Path) -> PathBuf {
    given.map_or_else(|| state_dir.join("compiled"), Into::into)
}

impl Cli {
    /// Reads a command line. A program that is called by the name of Spin's
    /// trigger is that trigger.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut arguments: Vec<OsString> = arguments.into_iter().collect();
        let name = arguments
            .first()
            .and_then(|program| Path::new(program).file_name());
        if name == Some(OsStr::new(trigger::NAME)) {
            arguments.splice(..1, ["orchestrator".into(), trigger::NAME.into()]);
        }
        Self::try_parse_from(arguments)
    }

    /// Does what the command says.
    pub fn run(self) -> Result<(), CliError> {
        match self.command {
            Command::Up(args) => up::run(args),
            Command::Build(args) => build::run(&args.read()?),
            Command::Bench(args) => bench::run(args),
            Command::Doctor(args) => doctor::run(&args),
            Command::Spin(command) => spin::run(&command),
            Command::TriggerServicebus(args) => trigger::run(args),
            Command::Swap(args) => client::block_on(swap::swap(&args)),
            Command::Rollback {
                component,
                digest,
                reason,
                ops,
            } => client::block_on(swap::roll_back(
                &component,
                digest.as_deref(),
                reason.as_deref(),
                &ops,
            )),
            Command::Promote { component, ops } => {
                client::block_on(swap::promote(&component, &ops))
            }
            Command::Chaos(ChaosCommand::Show(ops)) => client::block_on(chaos::show(&ops)),
            Command::Chaos(ChaosCommand::Set(args)) => client::block_on(chaos::set(&args)),
            Command::Chaos(ChaosCommand::Off { queue, ops }) => {
                client::block_on(chaos::off(&queue, &ops))
            }
            Command::Chaos(ChaosCommand::Run(args)) => client::block_on(chaos::run(&args)),
            Command::Status(ops) => client::block_on(client::status(&ops)),
            Command::Jobs { id, ops } => client::block_on(client::jobs(id.as_deref(), &ops)),
            Command::Dead(DeadCommand::List(args)) => {
                client::block_on(client::dead(&args.queue, &args.ops))
            }
            Command::Dead(DeadCommand::Show { id, dead }) => {
                client::block_on(client::dead_letter(&id, &dead.queue, &dead.ops))
            }
            Command::Dead(DeadCommand::Redrive(args)) => client::block_on(client::act(
                "redrive",
                &args.dead.queue,
                args.id.as_deref(),
                &args.dead.ops,
            )),
            Command::Dead(DeadCommand::Purge(args)) => client::block_on(client::act(
                "purge",
                &args.dead.queue,
                args.id.as_deref(),
                &args.dead.ops,
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
