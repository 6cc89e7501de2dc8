//! The command line.

mod build;
mod client;
mod up;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::telemetry::LogFormat;

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
}

#[derive(Debug, Subcommand)]
enum DeadCommand {
    /// List the dead letters of a queue.
    List(DeadArgs),
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
struct SelectArgs {
    /// The job; or `--all`.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    id: Option<String>,
    /// Every dead letter of the queue.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    dead: DeadArgs,
}

#[derive(Debug, Args)]
struct ManifestArgs {
    /// The manifest, or a directory with a `spin.toml`.
    #[arg(short = 'f', long = "from", default_value = "spin.toml")]
    from: PathBuf,
    /// A variable's value, as `name=value`. Repeat for more.
    #[arg(long = "variable", value_name = "NAME=VALUE", value_parser = variable)]
    variables: Vec<(String, String)>,
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

impl From<crate::config::ConfigError> for CliError {
    fn from(error: crate::config::ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Failed(error.to_string())
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as `name=value`")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Cli {
    /// Does what the command says.
    pub fn run(self) -> Result<(), CliError> {
        match self.command {
            Command::Up(args) => up::run(args),
            Command::Build(args) => {
                let config =
                    crate::config::Config::read(&args.from, &args.variables, &environment)?;
                build::run(&config)
            }
            Command::Status(ops) => client::block_on(client::status(&ops)),
            Command::Jobs { id, ops } => client::block_on(client::jobs(id.as_deref(), &ops)),
            Command::Dead(DeadCommand::List(args)) => {
                client::block_on(client::dead(&args.queue, &args.ops))
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
