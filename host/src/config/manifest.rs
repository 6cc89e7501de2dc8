//! The manifest as it is written, and its check.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use orchestrator_engine::http::HttpLimits;
use orchestrator_engine::outbound::AllowedHosts;
use orchestrator_engine::worker::Limits;
use orchestrator_queue::{QueueConfig, Retention};
use serde::Deserialize;
use toml::Spanned;

use super::{
    Build, ComponentConfig, Config, ConfigError, HostSettings, QueueTrigger, Router, dependencies,
};
use crate::dispatch::DispatchConfig;
use crate::dispatch::chaos::{self, Chaos};
use crate::dispatch::policy::RetryPolicy;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    spin_manifest_version: Spanned<i64>,
    application: Application,
    #[serde(default)]
    variables: BTreeMap<String, Variable>,
    #[serde(default)]
    trigger: Triggers,
    #[serde(default)]
    component: BTreeMap<String, Component>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "described to people; the host needs only name and trigger settings"
)]
struct Application {
    name: String,
    version: Option<String>,
    description: Option<String>,
    #[serde(default)]
    authors: Vec<String>,
    #[serde(default)]
    trigger: ApplicationTriggers,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ApplicationTriggers {
    #[serde(default)]
    servicebus: Option<Host>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    connection_string: Option<Spanned<String>>,
    application_insights: Option<Spanned<String>>,
    default_queue: Option<Spanned<String>>,
    servicebus_listen: Option<Spanned<String>>,
    shutdown_timeout: Option<Spanned<String>>,
    request_timeout: Option<Spanned<String>>,
    free_disk_min: Option<Spanned<String>>,
    http_memory_limit: Option<Spanned<String>>,
    instance_requests_max: Option<Spanned<usize>>,
    instance_concurrency_max: Option<Spanned<usize>>,
    instances_max: Option<Spanned<usize>>,
    instance_idle: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    default: Option<String>,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "no value of a variable is ever printed, secret or not"
    )]
    secret: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Triggers {
    #[serde(default)]
    http: Vec<HttpTrigger>,
    #[serde(default)]
    servicebus: Vec<ServiceBusTrigger>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpTrigger {
    route: Spanned<String>,
    component: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceBusTrigger {
    queue: Spanned<String>,
    component: Spanned<String>,
    concurrency: Option<Spanned<usize>>,
    max_attempts: Option<Spanned<u32>>,
    lock_duration: Option<Spanned<String>>,
    timeout: Option<Spanned<String>>,
    memory_limit: Option<Spanned<String>>,
    duplicate_window: Option<Spanned<String>>,
    time_to_live: Option<Spanned<String>>,
    max_size: Option<Spanned<String>>,
    retry: Option<Retry>,
    chaos: Option<ChaosTable>,
    canary: Option<Spanned<String>>,
    finished_jobs: Option<FinishedJobs>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Retry {
    initial: Option<Spanned<String>>,
    factor: Option<Spanned<f64>>,
    max: Option<Spanned<String>>,
    jitter: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChaosTable {
    #[serde(default)]
    failure_rate: Option<Spanned<f64>>,
    trap_rate: Option<Spanned<f64>>,
    latency_rate: Option<Spanned<f64>>,
    latency: Option<Spanned<String>>,
    lock_loss_rate: Option<Spanned<f64>>,
    late_settle_rate: Option<Spanned<f64>>,
    broker_down_rate: Option<Spanned<f64>>,
    broker_throttle_rate: Option<Spanned<f64>>,
    broker_slow_rate: Option<Spanned<f64>>,
    broker_delay: Option<Spanned<String>>,
    #[serde(default)]
    seed: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FinishedJobs {
    age: Option<Spanned<String>>,
    count: Option<Spanned<u64>>,
    size: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the description is for people")]
pub(super) struct Component {
    pub source: String,
    description: Option<String>,
    pub allowed_outbound_hosts: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    pub variables: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    build: Option<BuildTable>,
    #[serde(default)]
    pub dependencies: BTreeMap<Spanned<String>, Spanned<toml::Value>>,
    pub dependencies_inherit_configuration: Option<Spanned<bool>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "`watch` is for tools that build on change")]
struct BuildTable {
    command: String,
    workdir: Option<String>,
    #[serde(default)]
    watch: Vec<String>,
}

/// A manifest's text: where an error is told to be, and what its templates say.
pub(super) struct Source<'a> {
    file: &'a str,
    text: &'a str,
    /// Where parts begin and what they are called, in a text that no person
    /// wrote: its lines would tell nothing.
    parts: &'a [(usize, String)],
    variables: BTreeMap<String, String>,
}

impl<'a> Source<'a> {
    /// A manifest as a person wrote it.
    pub(super) fn written(file: &'a str, text: &'a str) -> Self {
        Self::made(file, text, &[])
    }

    /// A manifest that was made of `file`, part by part.
    pub(super) fn made(file: &'a str, text: &'a str, parts: &'a [(usize, String)]) -> Self {
        let variables = BTreeMap::new();
        Self {
            file,
            text,
            parts,
            variables,
        }
    }

    pub fn error(&self, at: usize, what: impl std::fmt::Display) -> ConfigError {
        let part = self.parts.iter().rev().find(|(begin, _)| *begin <= at);
        if let Some((_, part)) = part {
            return ConfigError(format!("{}: {part}: {what}", self.file));
        }
        let line = self
            .text
            .get(..at)
            .unwrap_or(self.text)
            .matches('\n')
            .count()
            + 1;
        ConfigError(format!("{}:{line}: {what}", self.file))
    }

    /// The text with its variables' values.
    fn filled(&self, template: &Spanned<String>) -> Result<String, ConfigError> {
        fill(template.get_ref(), &self.variables)
            .map_err(|why| self.error(template.span().start, why))
    }

    fn duration(
        &self,
        key: &str,
        value: Option<&Spanned<String>>,
        default: Duration,
        allowed: std::ops::RangeInclusive<Duration>,
    ) -> Result<Duration, ConfigError> {
        let Some(value) = value else {
            return Ok(default);
        };
        let parsed = humantime::parse_duration(&self.filled(value)?).map_err(|_| {
            let what = format!("`{key}` is not a duration: write it as `500ms`, `30s` or `5m`");
            self.error(value.span().start, what)
        })?;
        self.within(key, parsed, value.span().start, allowed)
    }

    fn bytes(
        &self,
        key: &str,
        value: Option<&Spanned<String>>,
        default: u64,
        allowed: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let Some(value) = value else {
            return Ok(default);
        };
        let parsed = self.filled(value)?.parse::<ByteSize>().map_err(|_| {
            let what = format!("`{key}` is not a size: write it as `64MiB` or `1GiB`");
            self.error(value.span().start, what)
        })?;
        self.within(key, parsed.as_u64(), value.span().start, allowed)
    }

    fn number<T: Copy + PartialOrd + std::fmt::Debug>(
        &self,
        key: &str,
        value: Option<&Spanned<T>>,
        default: T,
        allowed: std::ops::RangeInclusive<T>,
    ) -> Result<T, ConfigError> {
        match value {
            Some(value) => self.within(key, *value.get_ref(), value.span().start, allowed),
            None => Ok(default),
        }
    }

    fn within<T: PartialOrd + std::fmt::Debug>(
        &self,
        key: &str,
        value: T,
        at: usize,
        allowed: std::ops::RangeInclusive<T>,
    ) -> Result<T, ConfigError> {
        if allowed.contains(&value) {
            return Ok(value);
        }
        let (min, max) = (allowed.start(), allowed.end());
        Err(self.error(
            at,
            format!("`{key}` is {value:?}; it may be {min:?} to {max:?}"),
        ))
    }
}

const MIB: u64 = 1024 * 1024;
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn check(
    source: Source<'_>,
    dir: &Path,
    given: &[(String, String)],
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, ConfigError> {
    let manifest: Manifest = toml::from_str(source.text).map_err(|error| {
        source.error(error.span().map_or(0, |span| span.start), error.message())
    })?;
    if *manifest.spin_manifest_version.get_ref() != 2 {
        let at = manifest.spin_manifest_version.span().start;
        return Err(source.error(at, "`spin_manifest_version` must be 2"));
    }
    let variables = resolve(&source, &manifest.variables, given, environment)?;
    let source = Source {
        variables,
        ..source
    };
    let mut router = Router::default();
    for trigger in &manifest.trigger.http {
        known(&source, &manifest.component, &trigger.component)?;
        router
            .add(trigger.route.get_ref(), trigger.component.get_ref())
            .map_err(|why| source.error(trigger.route.span().start, why))?;
    }
    let mut queues: Vec<QueueTrigger> = Vec::new();
    for trigger in &manifest.trigger.servicebus {
        known(&source, &manifest.component, &trigger.component)?;
        let at = trigger.queue.span().start;
        let queue = queue(&source, trigger)?;
        if queues
            .iter()
            .any(|other| other.queue.name == queue.queue.name)
        {
            return Err(source.error(
                at,
                format!("queue `{}` has two triggers; give it one", queue.queue.name),
            ));
        }
        queues.push(queue);
    }
    let host = host(
        &source,
        manifest.application.trigger.servicebus.unwrap_or_default(),
        &queues,
        environment,
    )?;
    let mut components = BTreeMap::new();
    for (name, component) in &manifest.component {
        let mut checked = self::component(&source, dir, component)?;
        checked.dependencies =
            dependencies::check(&source, dir, name, component, &manifest.component)?;
        components.insert(name.clone(), checked);
    }
    Ok(Config {
        name: manifest.application.name,
        path: source.file.into(),
        dir: dir.to_owned(),
        router,
        queues,
        components,
        host,
    })
}

fn known(
    source: &Source<'_>,
    components: &BTreeMap<String, Component>,
    name: &Spanned<String>,
) -> Result<(), ConfigError> {
    if components.contains_key(name.get_ref()) {
        return Ok(());
    }
    let what = format!(
        "component `{0}` is not in the manifest: add `[component.{0}]`",
        name.get_ref()
    );
    Err(source.error(name.span().start, what))
}

/// Each variable's value: the command line's, then the environment's, then
/// its default.
fn resolve(
    source: &Source<'_>,
    declared: &BTreeMap<String, Variable>,
    given: &[(String, String)],
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut resolved = BTreeMap::new();
    let mut missing = Vec::new();
    for (name, variable) in declared {
        let on_command_line = given
            .iter()
            .rev()
            .find(|(given, _)| given == name)
            .map(|(_, value)| value.clone());
        let in_environment = || environment(&format!("SPIN_VARIABLE_{}", name.to_uppercase()));
        match on_command_line
            .or_else(in_environment)
            .or_else(|| variable.default.clone())
        {
            Some(value) => {
                resolved.insert(name.clone(), value);
            }
            None if variable.required => missing.push(name.as_str()),
            None => {}
        }
    }
    if missing.is_empty() {
        return Ok(resolved);
    }
    Err(source.error(
        0,
        format!(
            "required variables without a value: {}; set each with `--variable name=value` or SPIN_VARIABLE_<NAME>",
            missing.join(", ")
        ),
    ))
}

fn component(
    source: &Source<'_>,
    dir: &Path,
    component: &Component,
) -> Result<ComponentConfig, ConfigError> {
    let allowed_hosts = match &component.allowed_outbound_hosts {
        Some(hosts) => {
            let wrong = |error: &dyn std::fmt::Display| {
                source.error(
                    hosts.span().start,
                    format!("`allowed_outbound_hosts`: {error}"),
                )
            };
            let filled: Vec<_> = hosts
                .get_ref()
                .iter()
                .map(|host| fill(host, &source.variables).map_err(|why| wrong(&why)))
                .collect::<Result<_, _>>()?;
            AllowedHosts::parse(&filled).map_err(|error| wrong(&error))?
        }
        None => AllowedHosts::default(),
    };
    let mut filled = Vec::new();
    for (name, template) in &component.variables {
        filled.push((name.clone(), source.filled(template)?));
    }
    Ok(ComponentConfig {
        source: dir.join(&component.source),
        allowed_hosts,
        variables: filled,
        environment: component.environment.clone().into_iter().collect(),
        build: component.build.as_ref().map(|build| Build {
            command: build.command.clone(),
            dir: build
                .workdir
                .as_ref()
                .map_or_else(|| dir.to_owned(), |workdir| dir.join(workdir)),
        }),
        dependencies: Vec::new(),
    })
}

/// `{{ name }}` replaced by the variable's value.
fn fill(template: &str, variables: &BTreeMap<String, String>) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, tail)) = rest.split_once("{{") {
        let (name, after) = tail
            .split_once("}}")
            .ok_or_else(|| format!("`{template}` has a `{{{{` without its `}}}}`"))?;
        let name = name.trim();
        let value = variables.get(name).ok_or_else(|| {
            format!("variable `{name}` has no value: declare it in `[variables]` with a default, or set it")
        })?;
        filled.push_str(before);
        filled.push_str(value);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Longest name of a queue, as in Service Bus.
const QUEUE_NAME_BYTES_MAX: usize = 260;

fn queue(source: &Source<'_>, trigger: &ServiceBusTrigger) -> Result<QueueTrigger, ConfigError> {
    let name = source.filled(&trigger.queue)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if name.is_empty() || name.len() > QUEUE_NAME_BYTES_MAX || !name.chars().all(allowed) {
        let what = format!(
            "queue name `{name}` must be 1 to {QUEUE_NAME_BYTES_MAX} letters, digits, `.`, `-`, `_` or `/`"
        );
        return Err(source.error(trigger.queue.span().start, what));
    }
    let attempts_max =
        source.number("max_attempts", trigger.max_attempts.as_ref(), 10, 1..=1_000)?;
    // Longer than a pause of a busy machine, shorter than a person waits for a
    // job whose host died.
    let lock_duration = source.duration(
        "lock_duration",
        trigger.lock_duration.as_ref(),
        30 * SECOND,
        SECOND..=300 * SECOND,
    )?;
    let memory = source.bytes(
        "memory_limit",
        trigger.memory_limit.as_ref(),
        64 * MIB,
        MIB..=4096 * MIB,
    )?;
    let time_to_live = match &trigger.time_to_live {
        Some(value) => {
            Some(source.duration("time_to_live", Some(value), DAY, SECOND..=365 * DAY)?)
        }
        None => None,
    };
    let window = trigger.duplicate_window.as_ref();
    Ok(QueueTrigger {
        queue: QueueConfig {
            name,
            lock_duration,
            max_delivery_count: attempts_max,
            duplicate_window: source.duration(
                "duplicate_window",
                window,
                600 * SECOND,
                Duration::ZERO..=7 * DAY,
            )?,
            time_to_live,
            dead_letter_expired: true,
            max_bytes: source.bytes(
                "max_size",
                trigger.max_size.as_ref(),
                1024 * MIB,
                MIB..=1024 * 1024 * MIB,
            )?,
            retention: retention(source, trigger.finished_jobs.as_ref())?,
        },
        component: trigger.component.get_ref().clone(),
        dispatch: DispatchConfig {
            concurrency: source.number(
                "concurrency",
                trigger.concurrency.as_ref(),
                64,
                1..=4_096,
            )?,
            attempts_max,
            limits: Limits {
                memory_bytes_max: usize::try_from(memory).unwrap_or(usize::MAX),
                deadline: source.duration(
                    "timeout",
                    trigger.timeout.as_ref(),
                    60 * SECOND,
                    Duration::from_millis(1)..=DAY,
                )?,
            },
            retry: retry(source, trigger.retry.as_ref())?,
            chaos: chaos(source, trigger.chaos.as_ref())?,
        },
        canary: canary(source, trigger.canary.as_ref())?,
    })
}

fn retention(source: &Source<'_>, table: Option<&FinishedJobs>) -> Result<Retention, ConfigError> {
    let age = table.and_then(|table| table.age.as_ref());
    let count = table.and_then(|table| table.count.as_ref());
    let size = table.and_then(|table| table.size.as_ref());
    Ok(Retention {
        age: source.duration("finished_jobs.age", age, DAY, SECOND..=365 * DAY)?,
        count: source.number("finished_jobs.count", count, 100_000, 0..=100_000_000)?,
        bytes: source.bytes(
            "finished_jobs.size",
            size,
            256 * MIB,
            MIB..=1024 * 1024 * MIB,
        )?,
    })
}

fn retry(source: &Source<'_>, table: Option<&Retry>) -> Result<RetryPolicy, ConfigError> {
    let initial = table.and_then(|table| table.initial.as_ref());
    let factor = table.and_then(|table| table.factor.as_ref());
    let max = table.and_then(|table| table.max.as_ref());
    Ok(RetryPolicy {
        initial: source.duration("retry.initial", initial, SECOND, Duration::ZERO..=365 * DAY)?,
        factor: source.number("retry.factor", factor, 2.0, 1.0..=100.0)?,
        max: source.duration("retry.max", max, 300 * SECOND, Duration::ZERO..=365 * DAY)?,
        jitter: table.and_then(|table| table.jitter).unwrap_or(true),
    })
}

fn chaos(source: &Source<'_>, table: Option<&ChaosTable>) -> Result<Chaos, ConfigError> {
    let Some(table) = table else {
        return Ok(Chaos::default());
    };
    let rate = |key, rate: &Option<Spanned<f64>>| {
        source.number(&format!("chaos.{key}"), rate.as_ref(), 0.0, 0.0..=1.0)
    };
    let delay = |key, delay: &Option<Spanned<String>>, default: u64| {
        let allowed = Duration::ZERO..=chaos::DELAY_MAX;
        let default = Duration::from_millis(default);
        let delay = source.duration(&format!("chaos.{key}"), delay.as_ref(), default, allowed)?;
        Ok(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX))
    };
    let usual = Chaos::default();
    Ok(Chaos {
        failure_rate: rate("failure_rate", &table.failure_rate)?,
        trap_rate: rate("trap_rate", &table.trap_rate)?,
        latency_rate: rate("latency_rate", &table.latency_rate)?,
        latency_ms: delay("latency", &table.latency, usual.latency_ms)?,
        lock_loss_rate: rate("lock_loss_rate", &table.lock_loss_rate)?,
        late_settle_rate: rate("late_settle_rate", &table.late_settle_rate)?,
        broker_down_rate: rate("broker_down_rate", &table.broker_down_rate)?,
        broker_throttle_rate: rate("broker_throttle_rate", &table.broker_throttle_rate)?,
        broker_slow_rate: rate("broker_slow_rate", &table.broker_slow_rate)?,
        broker_delay_ms: delay("broker_delay", &table.broker_delay, usual.broker_delay_ms)?,
        seed: table.seed,
    })
}

fn canary(source: &Source<'_>, text: Option<&Spanned<String>>) -> Result<Option<f64>, ConfigError> {
    let Some(text) = text else {
        return Ok(None);
    };
    crate::components::share(&source.filled(text)?)
        .map(Some)
        .map_err(|why| source.error(text.span().start, format!("`canary`: {why}")))
}

/// Name of the environment variable that users of Azure have set already.
const SERVICE_BUS_CONNECTION: &str = "SERVICEBUS_CONNECTION_STRING";

/// The same, for telemetry.
const APPLICATION_INSIGHTS_CONNECTION: &str = "APPLICATIONINSIGHTS_CONNECTION_STRING";

/// Where a connection string was found.
#[derive(Clone, Copy)]
enum Named {
    InManifest,
    InEnvironment,
}

/// The manifest's connection string, else the environment's; an empty one is
/// none, in either place.
fn connection<T: FromStr<Err: std::fmt::Display>>(
    source: &Source<'_>,
    (key, given): (&str, Option<&Spanned<String>>),
    name: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<(T, Named)>, ConfigError> {
    if let Some(template) = given {
        let at = template.span().start;
        let text = source.filled(template)?;
        if !text.trim().is_empty() {
            let parsed = text.parse::<T>();
            let parsed = parsed.map_err(|error| source.error(at, format!("`{key}`: {error}")));
            return parsed.map(|parsed| Some((parsed, Named::InManifest)));
        }
    }
    let text = environment(name).unwrap_or_default();
    if text.trim().is_empty() {
        return Ok(None);
    }
    let parsed = text.parse::<T>();
    parsed
        .map(|parsed| Some((parsed, Named::InEnvironment)))
        .map_err(|error| ConfigError(format!("{name}: {error}")))
}

fn host(
    source: &Source<'_>,
    host: Host,
    queues: &[QueueTrigger],
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<HostSettings, ConfigError> {
    let service_bus = connection(
        source,
        ("connection_string", host.connection_string.as_ref()),
        SERVICE_BUS_CONNECTION,
        environment,
    )?;
    let application_insights = connection(
        source,
        ("application_insights", host.application_insights.as_ref()),
        APPLICATION_INSIGHTS_CONNECTION,
        environment,
    )?;
    let default_queue = match &host.default_queue {
        Some(given) => {
            let name = source.filled(given)?;
            if !queues.iter().any(|queue| queue.queue.name == name) {
                let what =
                    format!("`default_queue`: no `[[trigger.servicebus]]` has queue `{name}`");
                return Err(source.error(given.span().start, what));
            }
            Some(name)
        }
        None => None,
    };
    let servicebus_listen = match &host.servicebus_listen {
        Some(given) => {
            let addr = source.filled(given)?.parse().map_err(|_| {
                let what = "`servicebus_listen` is not an address: write it as `127.0.0.1:5300`";
                source.error(given.span().start, what)
            })?;
            Some(addr)
        }
        None => None,
    };
    let memory = source.bytes(
        "http_memory_limit",
        host.http_memory_limit.as_ref(),
        64 * MIB,
        MIB..=4096 * MIB,
    )?;
    let concurrency = source.number(
        "instance_concurrency_max",
        host.instance_concurrency_max.as_ref(),
        16,
        1..=1_000,
    )?;
    Ok(HostSettings {
        is_service_bus_from_environment: matches!(service_bus, Some((_, Named::InEnvironment))),
        service_bus: service_bus.map(|(connection, _)| connection),
        application_insights: application_insights.map(|(connection, _)| connection),
        default_queue,
        servicebus_listen,
        shutdown_timeout: source.duration(
            "shutdown_timeout",
            host.shutdown_timeout.as_ref(),
            30 * SECOND,
            Duration::ZERO..=DAY,
        )?,
        free_disk_bytes_min: source.bytes(
            "free_disk_min",
            host.free_disk_min.as_ref(),
            64 * MIB,
            0..=u64::MAX,
        )?,
        http: HttpLimits {
            // Bounds what a leaking guest can gather before it starts afresh.
            instance_requests_max: source.number(
                "instance_requests_max",
                host.instance_requests_max.as_ref(),
                1_000,
                1..=1_000_000,
            )?,
            instance_concurrency_max: concurrency,
            // Every request in flight can need an instance of its own.
            requests_in_flight_max: source.number(
                "instances_max",
                host.instances_max.as_ref(),
                128,
                1..=4_096,
            )?,
            instance_idle: source.duration(
                "instance_idle",
                host.instance_idle.as_ref(),
                SECOND,
                Duration::ZERO..=DAY,
            )?,
            request_timeout: source.duration(
                "request_timeout",
                host.request_timeout.as_ref(),
                30 * SECOND,
                Duration::from_millis(1)..=DAY,
            )?,
            memory_bytes_max: usize::try_from(memory).unwrap_or(usize::MAX),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "spin_manifest_version = 2\n[application]\nname = \"a\"\n";
    const WORKER: &str = "[component.w]\nsource = \"w.wasm\"\n";

    fn read(text: &str) -> Result<Config, ConfigError> {
        let source = Source::written("spin.toml", text);
        check(source, Path::new("."), &[], &|name| {
            (name == "SPIN_VARIABLE_FROM_ENV").then(|| "env".to_owned())
        })
    }

    fn queue_with(line: &str) -> Result<Config, ConfigError> {
        read(&format!(
            "{HEAD}[[trigger.servicebus]]\nqueue = \"q\"\ncomponent = \"w\"\n{line}\n{WORKER}"
        ))
    }

    #[test]
    fn the_defaults_are_those_of_the_readme() {
        let config = queue_with("").unwrap();
        let queue = &config.queues[0];
        assert_eq!(queue.dispatch.concurrency, 64);
        assert_eq!(queue.queue.max_delivery_count, 10);
        assert_eq!(queue.queue.lock_duration, 30 * SECOND);
        assert_eq!(queue.queue.duplicate_window, 600 * SECOND);
        assert_eq!(queue.dispatch.limits.memory_bytes_max, 64 << 20);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_key() {
        for (line, told) in [
            ("concurency = 4", "spin.toml:7: unknown field `concurency`"),
            (
                "concurrency = 0",
                "spin.toml:7: `concurrency` is 0; it may be 1 to 4096",
            ),
            ("concurrency = \"4\"", "spin.toml:7: invalid type"),
            (
                "lock_duration = \"soon\"",
                "spin.toml:7: `lock_duration` is not a duration",
            ),
            (
                "memory_limit = \"lots\"",
                "spin.toml:7: `memory_limit` is not a size",
            ),
            (
                "chaos = { failure_rate = 2.0 }",
                "spin.toml:7: `chaos.failure_rate` is 2.0; it may be 0.0 to 1.0",
            ),
            (
                "retry = { factor = 0.5 }",
                "spin.toml:7: `retry.factor` is 0.5",
            ),
        ] {
            let error = queue_with(line).unwrap_err().to_string();
            assert!(error.starts_with(told), "{line}: {error}");
        }
    }

    #[test]
    fn a_trigger_for_a_component_that_is_not_there_is_refused() {
        let text = format!("{HEAD}[[trigger.http]]\nroute = \"/x\"\ncomponent = \"nobody\"\n");
        let error = read(&text).unwrap_err().to_string();
        assert_eq!(
            error,
            "spin.toml:6: component `nobody` is not in the manifest: add `[component.nobody]`"
        );
    }

    #[test]
    fn variables_are_filled_in_from_the_environment_and_their_defaults() {
        let text = format!(
            "{HEAD}[variables]\nfrom_env = {{ required = true }}\ngreeting = {{ default = \"hi\" }}\n{WORKER}variables = {{ both = \"{{{{ greeting }}}}-{{{{from_env}}}}\" }}\n"
        );
        let config = read(&text).unwrap();
        assert_eq!(
            config.components["w"].variables,
            [("both".to_owned(), "hi-env".to_owned())]
        );
    }

    #[test]
    fn variables_are_filled_in_wherever_a_text_stands() {
        let text = format!(
            "{HEAD}[application.trigger.servicebus]\nservicebus_listen = \"127.0.0.1:{{{{ port }}}}\"\n[variables]\nport = {{ default = \"5301\" }}\n[[trigger.servicebus]]\nqueue = \"q{{{{port}}}}\"\ncomponent = \"w\"\ntimeout = \"{{{{ port }}}}ms\"\nmemory_limit = \"{{{{ none }}}}\"\n{WORKER}allowed_outbound_hosts = [\"http://127.0.0.1:{{{{ port }}}}\"]\n"
        );
        let error = read(&text).unwrap_err().to_string();
        assert!(
            error.starts_with("spin.toml:12: variable `none`"),
            "{error}"
        );
        let config = read(&text.replace("{{ none }}", "1MiB")).unwrap();
        assert_eq!(config.queues[0].queue.name, "q5301");
        assert_eq!(
            config.queues[0].dispatch.limits.deadline,
            Duration::from_millis(5301)
        );
        assert_eq!(
            config.host.servicebus_listen,
            Some("127.0.0.1:5301".parse().unwrap())
        );
        let called = http::Uri::from_static("http://127.0.0.1:5301/");
        assert!(config.components["w"].allowed_hosts.allows(&called));
    }

    #[test]
    fn an_empty_connection_string_leaves_it_to_the_environment() {
        let text = |value: &str| {
            format!(
                "{HEAD}[application.trigger.servicebus]\nconnection_string = \"{{{{ bus }}}}\"\n[variables]\nbus = {{ default = \"{value}\" }}\n"
            )
        };
        let origin = |text: &str, environment: &str| {
            let source = Source::written("spin.toml", text);
            let read = check(source, Path::new("."), &[], &|name| {
                (name == SERVICE_BUS_CONNECTION).then(|| environment.to_owned())
            });
            let bus = read.unwrap().host.service_bus;
            bus.map(|connection| connection.endpoint.origin())
        };
        let other = "Endpoint=sb://env.example/";
        assert_eq!(origin(&text(""), ""), None);
        assert_eq!(
            origin(&text(""), other).as_deref(),
            Some("https://env.example")
        );
        let given = text("Endpoint=sb://manifest.example/");
        assert_eq!(
            origin(&given, other).as_deref(),
            Some("https://manifest.example")
        );
    }

    #[test]
    fn missing_required_variables_are_all_named() {
        let text =
            format!("{HEAD}[variables]\na = {{ required = true }}\nb = {{ required = true }}\n");
        let error = read(&text).unwrap_err().to_string();
        assert!(
            error.contains("a, b") && error.contains("--variable"),
            "{error}"
        );
    }
}
