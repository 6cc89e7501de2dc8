//! Spin's trigger `servicebus`: started by `spin up` with the application that
//! it has locked, it runs the queues and their workers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, CommandFactory, Parser};
use orchestrator_servicebus::connection_string::Auth;

use super::parent::Parent;
use super::stops::Stops;
use super::variables::{self, Variables};
use super::{CliError, environment, failed, print, up};
use crate::config::{self, Config};
use crate::host::Options;
use crate::telemetry::events::{FlagIgnored, SplitApplication};
use crate::telemetry::{LogFormat, start_logging};

/// The name that Spin calls the program by.
pub const NAME: &str = "trigger-servicebus";

/// Where the embedded queue is served unless flag or manifest say otherwise:
/// the port of the emulator's management endpoint, so that its connection
/// strings fit.
const SERVICEBUS_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5300);

/// How much longer than it may take to drain an earlier run gets to end: what
/// is given back at the end and closing the store take some seconds.
const HAND_OVER_SPARE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(next_help_heading = "Service Bus trigger options")]
pub(super) struct TriggerArgs {
    /// Address of the operations listener.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3001")]
    ops_listen: SocketAddr,
    /// Serve the embedded queue as Azure Service Bus REST at this address, on
    /// loopback [default: `servicebus_listen` in the manifest, else 127.0.0.1:5300].
    #[arg(long, value_name = "ADDR")]
    servicebus_listen: Option<SocketAddr>,
    /// Everything durable lies in `orchestrator` in this directory [default:
    /// `.spin` beside the manifest].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<OsString>,
    /// A variable's value, as `name=value`, or as `name=@file` for the file's
    /// text, or as `@file` for a TOML or JSON file of many. Repeat for more.
    #[arg(long = "variable", value_name = "NAME=VALUE|@FILE", value_parser = variables::read)]
    variables: Vec<Variables>,
    /// Spin's runtime configuration: `state_dir` is heeded, providers of
    /// variables are refused, the rest has nothing that workers use.
    #[arg(
        long,
        value_name = "FILE",
        env = "RUNTIME_CONFIG_FILE",
        hide_env = true
    )]
    runtime_config_file: Option<OsString>,
    /// Leave out all log lines but warnings and errors, those of workers too.
    #[arg(short, long, aliases = ["sh", "shush"])]
    quiet: bool,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    #[command(flatten)]
    others: OthersArgs,
    #[arg(long, hide = true)]
    help_args_only: bool,
    #[arg(long, hide = true)]
    launch_metadata_only: bool,
}

/// Flags of Spin's own triggers, which come here as well when an application
/// has both.
#[derive(Debug, Args)]
struct OthersArgs {
    /// Without effect on workers: what they write is on stderr and in each job's attempts.
    #[arg(short = 'L', long, value_name = "DIR")]
    log_dir: Option<OsString>,
    /// Without effect on workers, as `--log-dir`.
    #[arg(long)]
    truncate_logs: bool,
    /// Without effect on workers: ORCHESTRATOR_LOG chooses lines.
    #[arg(long, value_name = "COMPONENT")]
    follow: Vec<String>,
    /// Without effect on workers: compiled code is kept in the state directory.
    #[arg(long)]
    disable_cache: bool,
    /// Without effect on workers, as `--disable-cache`.
    #[arg(long, value_name = "FILE")]
    cache: Option<PathBuf>,
    /// Without effect on workers.
    #[arg(long)]
    disable_pooling: bool,
    /// Without effect on workers.
    #[arg(long)]
    debug_info: bool,
    /// Without effect on workers: `memory_limit` in the manifest bounds them.
    #[arg(long, value_name = "BYTES")]
    max_instance_memory: Option<String>,
    /// Without effect on workers: they have no files.
    #[arg(long)]
    allow_transient_write: bool,
    /// Without effect on workers: they have no key-value store.
    #[arg(long, value_name = "KEY=VALUE")]
    key_value: Vec<String>,
    /// Without effect on workers: they have no database.
    #[arg(long, value_name = "STATEMENT")]
    sqlite: Vec<String>,
    /// Without effect on workers.
    #[arg(long)]
    experimental_wasi_otel: bool,
}

/// The flags alone, as a command.
#[derive(Parser)]
#[command(name = NAME, disable_help_flag = true, help_template = "{all-args}")]
struct Alone {
    #[command(flatten)]
    _flags: TriggerArgs,
}

pub(super) fn run(args: TriggerArgs) -> Result<(), CliError> {
    // Before anything that takes time.
    let parent = Parent::now();
    if args.launch_metadata_only {
        eprintln!("{}", metadata());
        return Ok(());
    }
    if args.help_args_only {
        return print(&Alone::command().render_long_help().to_string());
    }
    let application = Application::find()?;
    let runtime_config = match &args.runtime_config_file {
        Some(path) if !path.is_empty() => RuntimeConfig::read(Path::new(path))?,
        _ => RuntimeConfig::default(),
    };
    let given = args.state_dir.map(PathBuf::from);
    let state_dir = application.state_dir(given.or(runtime_config.state_dir))?;
    let given: Vec<_> = args
        .variables
        .into_iter()
        .flat_map(|given| given.0)
        .collect();
    let dotenv = dotenv()?;
    let look_up = |name: &str| environment(name).or_else(|| dotenv.get(name).cloned());
    let config = Config::read_locked(&application.lock, &application.dir, &given, &look_up)?;
    let _lines = start_logging(args.log_format, args.quiet);
    if args.others.log_dir.is_some_and(|dir| !dir.is_empty()) {
        FlagIgnored {
            flag: "--log-dir",
            why: "what workers write is on stderr and in each job's attempts",
        }
        .emit();
    }
    if let Some(bus) = &config.host.service_bus {
        if config.host.is_service_bus_from_environment {
            SplitApplication {
                what: "SERVICEBUS_CONNECTION_STRING reaches the workers alone: components that send do not see it",
                instead: "give the connection string as the variable that `connection_string` in the manifest names",
            }
            .emit();
        } else if matches!(bus.auth, Auth::None) {
            SplitApplication {
                what: "the connection string has no key, and components that send under Spin cannot use Microsoft Entra ID",
                instead: "add `SharedAccessKeyName` and `SharedAccessKey`, or `SharedAccessSignature`",
            }
            .emit();
        }
    }
    if let (Some(flag), Some(manifest)) = (args.servicebus_listen, config.host.servicebus_listen)
        && flag != manifest
    {
        SplitApplication {
            what: "`--servicebus-listen` moves the queue alone: components send to where the manifest says",
            instead: "set the variable that `servicebus_listen` in the manifest names",
        }
        .emit();
    }
    let servicebus_listen = match (args.servicebus_listen, &config.host.service_bus) {
        (given @ Some(_), _) => given,
        (None, Some(_)) => None,
        (None, None) => Some(config.host.servicebus_listen.unwrap_or(SERVICEBUS_LISTEN)),
    };
    let options = Options {
        listen: None,
        ops_listen: args.ops_listen,
        servicebus_listen,
        ops_token: up::ops_token(),
        compiled_dir: super::compiled_dir(environment("ORCHESTRATOR_CACHE_DIR"), &state_dir),
        state_dir,
    };
    let hand_over_max = config.host.shutdown_timeout + HAND_OVER_SPARE;
    up::run_host(config, options, hand_over_max, || Stops::of_child(parent))
}

/// Which flags there are, as Spin asks.
fn metadata() -> serde_json::Value {
    let command = Alone::command();
    let flags: Vec<_> = command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set())
        .map(|argument| {
            let mut flag = serde_json::Map::new();
            if let Some(short) = argument.get_short() {
                flag.insert("short".to_owned(), format!("-{short}").into());
            }
            if let Some(long) = argument.get_long() {
                flag.insert("long".to_owned(), format!("--{long}").into());
            }
            flag
        })
        .collect();
    serde_json::json!({ "all_flags": flags })
}

/// What Spin tells of the application.
struct Application {
    lock: PathBuf,
    dir: PathBuf,
    /// Whether it lies in a directory of its own.
    is_local: bool,
}

impl Application {
    fn find() -> Result<Self, CliError> {
        let usage = |what: String| CliError::Usage(what);
        let url = environment("SPIN_LOCKED_URL").ok_or_else(|| {
            usage(format!(
                "SPIN_LOCKED_URL is not set: `{NAME}` is started by `spin up`; without Spin run `orchestrator up`"
            ))
        })?;
        let lock = config::file_path(&url)
            .ok_or_else(|| usage(format!("SPIN_LOCKED_URL is `{url}`, which names no file")))?;
        // Relative to where `spin up` was typed, and empty if that is it.
        let local = environment("SPIN_LOCAL_APP_DIR");
        let is_local = local.is_some();
        let dir = match local {
            Some(dir) => std::env::current_dir().map_err(failed)?.join(dir),
            None => lock.parent().unwrap_or(Path::new("/")).to_owned(),
        };
        Ok(Self {
            lock,
            dir,
            is_local,
        })
    }

    /// Where everything durable lies: beside what Spin keeps of the application.
    fn state_dir(&self, given: Option<PathBuf>) -> Result<PathBuf, CliError> {
        let spins = match given {
            // An empty path is none, as for Spin.
            Some(dir) if !dir.as_os_str().is_empty() => std::path::absolute(dir).map_err(failed)?,
            None if self.is_local => self.dir.join(".spin"),
            _ => {
                return Err(CliError::Usage(
                    "the application has no directory of its own, so its queues need one: name it with `--state-dir`".to_owned(),
                ));
            }
        };
        Ok(spins.join("orchestrator"))
    }
}

/// What this host heeds of Spin's runtime configuration.
#[derive(Default, serde::Deserialize)]
struct RuntimeConfig {
    state_dir: Option<PathBuf>,
    #[serde(alias = "config_provider")]
    variables_provider: Option<toml::Value>,
}

impl RuntimeConfig {
    fn read(path: &Path) -> Result<Self, CliError> {
        let usage = |what: &dyn std::fmt::Display| {
            CliError::Usage(format!(
                "the runtime configuration {}: {what}",
                path.display()
            ))
        };
        let text = std::fs::read_to_string(path).map_err(|error| usage(&error))?;
        let read: Self = toml::from_str(&text).map_err(|error| usage(&error.message()))?;
        if read.variables_provider.is_some() {
            return Err(usage(
                &"this trigger asks no `variables_provider`: give workers' variables with `--variable` or SPIN_VARIABLE_<NAME>",
            ));
        }
        Ok(read)
    }
}

/// Variables that Spin reads from a file where it was started.
fn dotenv() -> Result<BTreeMap<String, String>, CliError> {
    let Ok(lines) = dotenvy::from_path_iter(".env") else {
        return Ok(BTreeMap::new());
    };
    lines
        .collect::<Result<_, _>>()
        .map_err(|error| CliError::Usage(format!("the file .env cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_told_but_those_that_only_ask() {
        let metadata = metadata();
        let flags = metadata["all_flags"].as_array().unwrap();
        let has = |key: &str, name: &str| flags.iter().any(|flag| flag[key] == name);
        for long in [
            "--ops-listen",
            "--servicebus-listen",
            "--variable",
            "--state-dir",
            "--quiet",
        ] {
            assert!(has("long", long), "{long}: {metadata}");
        }
        assert!(has("short", "-q") && has("short", "-L"), "{metadata}");
        // Spin's HTTP trigger has it, and would share it.
        assert!(
            !has("long", "--listen") && !has("long", "--help-args-only"),
            "{metadata}"
        );
        assert!(!has("long", "--help"), "{metadata}");
    }
}
