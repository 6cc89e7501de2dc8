//! Turns `spin.toml` and the environment into checked sections.
//!
//! The manifest is read strictly: an unknown key, a wrong type or a value out
//! of bounds is an error that names file, line and key. This is the only
//! module that reads the environment's variables for the application.

mod dependencies;
mod lock;
mod manifest;
mod route;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orchestrator_appinsights::connection_string as application_insights;
use orchestrator_engine::compose::{Capability, DependencyName};
use orchestrator_engine::http::HttpLimits;
use orchestrator_engine::outbound::AllowedHosts;
use orchestrator_engine::worker::Grants;
use orchestrator_queue::QueueConfig;
use orchestrator_servicebus::connection_string::ConnectionString;

use crate::dispatch::DispatchConfig;
pub(crate) use lock::file_path;
pub use route::{Routed, Router};

/// A whole application, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The manifest.
    pub path: PathBuf,
    /// The directory of the manifest: relative paths start here.
    pub dir: PathBuf,
    /// Routes and the components that serve them.
    pub router: Router,
    /// Queues, in the manifest's order.
    pub queues: Vec<QueueTrigger>,
    /// Every component that a trigger names.
    pub components: BTreeMap<String, ComponentConfig>,
    /// The application's name.
    pub name: String,
    /// Settings of the whole host.
    pub host: HostSettings,
}

/// One `[[trigger.servicebus]]`.
#[derive(Clone, Debug)]
pub struct QueueTrigger {
    /// The queue itself.
    pub queue: QueueConfig,
    /// The component that does its jobs.
    pub component: String,
    /// How they are run.
    pub dispatch: DispatchConfig,
    /// Share of the jobs that a new version of the component gets at first;
    /// none: all at once.
    pub canary: Option<f64>,
}

/// One `[component.NAME]`.
#[derive(Clone, Debug)]
pub struct ComponentConfig {
    /// The WebAssembly file.
    pub source: PathBuf,
    /// Hosts it may call.
    pub allowed_hosts: AllowedHosts,
    /// Its variables, resolved.
    pub variables: Vec<(String, String)>,
    /// Its environment.
    pub environment: Vec<(String, String)>,
    /// How it is built, if it says.
    pub build: Option<Build>,
    /// Components that it is composed with where this host does not offer
    /// what they do.
    pub dependencies: Vec<DependencyConfig>,
}

impl ComponentConfig {
    /// What it may see.
    pub(crate) fn grants(&self) -> Grants {
        Grants::new(
            self.variables.clone(),
            self.environment.clone(),
            self.allowed_hosts.clone(),
        )
    }
}

/// One entry of `[component.NAME.dependencies]`.
#[derive(Clone, Debug)]
pub struct DependencyConfig {
    /// The imports that it is for.
    pub name: DependencyName,
    /// Its WebAssembly file.
    pub source: PathBuf,
    /// The export to take; none: the one that is named as the import is.
    pub export: Option<String>,
    /// What it may use of what its parent is granted.
    pub inherits: BTreeSet<Capability>,
}

/// `[component.NAME.build]`.
#[derive(Clone, Debug)]
pub struct Build {
    /// For the shell.
    pub command: String,
    /// Where it runs.
    pub dir: PathBuf,
}

/// `[application.trigger.servicebus]`.
#[derive(Clone, Debug)]
pub struct HostSettings {
    /// The Service Bus namespace that keeps the queues; none: they are kept here.
    pub service_bus: Option<ConnectionString>,
    /// True if the environment named it, and not the manifest.
    pub is_service_bus_from_environment: bool,
    /// The Application Insights resource that telemetry goes to, if any.
    pub application_insights: Option<application_insights::ConnectionString>,
    /// Where a message goes that names no queue; the first queue without it.
    pub default_queue: Option<String>,
    /// Where the embedded queue is served as Service Bus when this host is a
    /// trigger of Spin; `up` asks its command line.
    pub servicebus_listen: Option<SocketAddr>,
    /// How long requests and jobs may take to finish when the host stops.
    pub shutdown_timeout: Duration,
    /// Free disk space kept in reserve, in bytes.
    pub free_disk_bytes_min: u64,
    /// Instances of the HTTP components.
    pub http: HttpLimits,
}

/// What is wrong with a manifest: a sentence with file and line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub(crate) String);

impl Config {
    /// Reads the manifest at `path` (a file, or a directory with a
    /// `spin.toml`). `variables` are given on the command line, `environment`
    /// looks up an environment variable.
    pub fn read(
        path: &Path,
        variables: &[(String, String)],
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let path = if path.is_dir() {
            path.join("spin.toml")
        } else {
            path.to_owned()
        };
        let text = std::fs::read_to_string(&path).map_err(|error| {
            ConfigError(format!(
                "the manifest {} cannot be read: {error}; name another with `-f`",
                path.display()
            ))
        })?;
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        let file = path.display().to_string();
        manifest::check(
            manifest::Source::written(&file, &text),
            &dir,
            variables,
            environment,
        )
    }

    /// Reads what Spin has made of an application, its lock file: only the
    /// queues, their workers and what those need. `dir` is the application's.
    pub fn read_locked(
        lock: &Path,
        dir: &Path,
        variables: &[(String, String)],
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let made = lock::read(lock)?;
        manifest::check(
            manifest::Source::made(&made.file, &made.text, &made.parts),
            dir,
            variables,
            environment,
        )
    }
}
