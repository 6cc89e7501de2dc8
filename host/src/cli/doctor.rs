//! `doctor`: looks at everything that `up` needs, and says how to mend what is wrong.

mod spin;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use orchestrator_engine::compose::{DependencyName, Fate, Kind};
use orchestrator_engine::http::HttpComponent;
use orchestrator_engine::{Outbox, Runtime};
use orchestrator_servicebus::client::{self as servicebus, Look};
use serde::Serialize;

use super::{
    CliError, DoctorArgs, Output, build, client, compiled_dir, environment, failed, print,
    print_json, state_dir,
};
use crate::components::TrustedKeys;
use crate::components::dependencies::fates;
use crate::config::{Config, QueueTrigger};
use crate::host::{self, HostError};

/// How long a host that may be running gets to answer.
const RUNNING_HOST_MAX: Duration = Duration::from_secs(2);

/// What one check found.
#[derive(Debug, Serialize)]
struct Finding {
    check: String,
    verdict: Verdict,
    told: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Works, or is not needed now.
    Warn,
    /// `up` would not work.
    Fail,
}

fn ok(check: impl Into<String>, told: impl Into<String>) -> Finding {
    finding(Verdict::Ok, check, told, None)
}

fn warn(check: impl Into<String>, told: impl Into<String>, mend: impl Into<String>) -> Finding {
    finding(Verdict::Warn, check, told, Some(mend.into()))
}

fn fail(check: impl Into<String>, told: impl Into<String>, mend: impl Into<String>) -> Finding {
    finding(Verdict::Fail, check, told, Some(mend.into()))
}

fn finding(
    verdict: Verdict,
    check: impl Into<String>,
    told: impl Into<String>,
    mend: Option<String>,
) -> Finding {
    Finding {
        check: check.into(),
        verdict,
        told: told.into(),
        mend,
    }
}

pub(super) fn run(args: &DoctorArgs) -> Result<(), CliError> {
    let mut findings = toolchain();
    match args.manifest.read() {
        Ok(config) => {
            findings.push(ok("manifest", summary(&config)));
            findings.extend(spin::manifest(&config));
            let state_dir = state_dir(args.state_dir.clone(), &config);
            findings.extend(disk(&state_dir, config.host.free_disk_bytes_min));
            let compiled_dir = compiled_dir(environment("ORCHESTRATOR_CACHE_DIR"), &state_dir);
            findings.extend(components(&config, &compiled_dir, &state_dir)?);
            findings.extend(service_bus(&config)?);
        }
        Err(error) => findings.push(fail(
            "manifest",
            error.to_string(),
            "correct it, or name another with `-f`",
        )),
    }
    findings.extend(listeners(args)?);
    findings.extend(spin::here()?);
    let failures = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Fail)
        .count();
    match args.output {
        Output::Json => print_json(&findings)?,
        Output::Text => print(&text(&findings))?,
    }
    match failures {
        0 => Ok(()),
        1 => Err(failed("one check failed: see above")),
        n => Err(failed(format!("{n} checks failed: see above"))),
    }
}

fn text(findings: &[Finding]) -> String {
    let width = findings
        .iter()
        .map(|finding| finding.check.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for Finding {
        check,
        verdict,
        told,
        mend,
    } in findings
    {
        let verdict = match verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        text += &format!("{verdict}  {check:<width$}  {told}\n");
        if let Some(mend) = mend {
            text += &format!("      {:width$}  → {mend}\n", "");
        }
    }
    text
}

fn summary(config: &Config) -> String {
    let queues: Vec<&str> = config
        .queues
        .iter()
        .map(|queue| queue.queue.name.as_str())
        .collect();
    let components: Vec<&str> = config.components.keys().map(String::as_str).collect();
    format!(
        "{}: components {}; queues {}",
        config.path.display(),
        components.join(", "),
        queues.join(", ")
    )
}

/// The namespace that keeps the queues, if one does.
fn service_bus(config: &Config) -> Result<Vec<Finding>, CliError> {
    let Some(connection) = &config.host.service_bus else {
        return Ok(Vec::new());
    };
    let names: Vec<&str> = config
        .queues
        .iter()
        .map(|trigger| trigger.queue.name.as_str())
        .collect();
    let origin = connection.endpoint.origin();
    let runtime = tokio::runtime::Runtime::new().map_err(failed)?;
    let looks = runtime.block_on(servicebus::look(connection, &names));
    let looks = match looks {
        Ok(looks) => looks,
        Err(error) => {
            return Ok(vec![fail(
                "service bus",
                format!("{origin}: {error}"),
                "check `Endpoint`, the key and the network; jobs are answered 503 until it is back",
            )]);
        }
    };
    let finding = |(name, look): (&&str, Look)| {
        let check = format!("queue {name}");
        match look {
            Look::Found {
                active,
                detects_duplicates: true,
            } => ok(check, format!("at {origin}, with {active} messages")),
            Look::Found { .. } => warn(
                check,
                format!(
                    "at {origin} does not detect duplicates: a job that is sent twice runs twice"
                ),
                "create it anew with duplicate detection, which cannot be switched on later",
            ),
            Look::Missing => fail(
                check,
                format!("{origin} has no queue of this name"),
                "create it, with duplicate detection, or correct `queue` in the manifest",
            ),
            Look::NotAllowed(why) => warn(
                check,
                format!("{origin} does not say whether it is there: {why}"),
                "nothing, if the key has only the rights Send and Listen; else check it",
            ),
        }
    };
    Ok(names.iter().zip(looks).map(finding).collect())
}

/// Needed to build components, not to run them.
fn toolchain() -> Vec<Finding> {
    let rustc = Command::new("rustc").arg("--version").output();
    let Some(version) = rustc.ok().filter(|output| output.status.success()) else {
        return vec![warn(
            "toolchain",
            "no `rustc` here: components can be run, not built",
            "install rustup, https://rustup.rs",
        )];
    };
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    let target = match build::is_target_installed() {
        Some(true) => ok("target", build::TARGET),
        Some(false) => warn(
            "target",
            format!(
                "{} is not installed: components can be run, not built",
                build::TARGET
            ),
            format!(
                "`rustup target add {}`; `up --build` does so by itself",
                build::TARGET
            ),
        ),
        None => warn(
            "target",
            format!(
                "without rustup it is not known whether {} is there",
                build::TARGET
            ),
            "`orchestrator build` will tell",
        ),
    };
    vec![ok("toolchain", version), target]
}

fn disk(state_dir: &Path, free_bytes_min: u64) -> Vec<Finding> {
    let shown = state_dir.display();
    let written = std::fs::create_dir_all(state_dir)
        .and_then(|()| tempfile::NamedTempFile::new_in(state_dir))
        .and_then(|file| file.as_file().sync_all());
    if let Err(error) = written {
        return vec![fail(
            "state directory",
            format!("{shown} cannot be written: {error}"),
            "correct its permissions, or choose another `--state-dir`",
        )];
    }
    let mut findings = vec![ok("state directory", format!("{shown} can be written"))];
    if let Ok(stat) = rustix::fs::statvfs(state_dir) {
        let free = bytesize::ByteSize(stat.f_bavail * stat.f_frsize);
        let min = bytesize::ByteSize(free_bytes_min);
        findings.push(if free < min {
            fail(
                "free space",
                format!("{free} free, fewer than the {min} kept in reserve: jobs would be refused"),
                "free some, choose another `--state-dir`, or lower `free_disk_min`",
            )
        } else {
            ok("free space", format!("{free} free, {min} kept in reserve"))
        });
    }
    findings
}

/// Reads, compiles, checks and starts every component as `up` would.
fn components(
    config: &Config,
    compiled_dir: &Path,
    state_dir: &Path,
) -> Result<Vec<Finding>, CliError> {
    let keys = TrustedKeys::read(state_dir).map_err(failed)?;
    let runtime = tokio::runtime::Runtime::new().map_err(failed)?;
    runtime.block_on(async {
        let engine = match Runtime::new(&host::runtime_config_of(config, compiled_dir)) {
            Ok(engine) => engine,
            Err(error) => {
                let mend = "lower `concurrency`, `instances_max` or `memory_limit`";
                return Ok(vec![fail("engine", error.to_string(), mend)]);
            }
        };
        let mut findings = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        for trigger in &config.queues {
            if seen.insert(&trigger.component) {
                let id = &trigger.component;
                let loaded = worker(config, trigger, &engine, &keys).await;
                findings.push(component(id, "a worker", loaded));
                findings.extend(dependencies(config, id, Kind::Worker).await);
            }
        }
        for id in config.router.components() {
            let loaded = http_component(config, id, &engine, &keys).await;
            let missing = loaded.as_ref().ok();
            let missing = missing.and_then(|loaded| {
                let dependencies = &config.components[id].dependencies;
                spin::imports(id, dependencies, loaded.imports())
            });
            let loaded = loaded.map(|loaded| loaded.digest().to_owned());
            findings.push(component(id, "an HTTP component", loaded));
            findings.extend(missing);
            findings.extend(dependencies(config, id, Kind::Http).await);
        }
        Ok(findings)
    })
}

async fn worker(
    config: &Config,
    trigger: &QueueTrigger,
    engine: &Runtime,
    keys: &TrustedKeys,
) -> Result<String, HostError> {
    let bytes = host::read(&trigger.component, &config.components[&trigger.component]).await?;
    let worker = host::worker_of(config, trigger, engine, keys, bytes).await?;
    Ok(worker.digest().to_owned())
}

async fn http_component(
    config: &Config,
    id: &str,
    engine: &Runtime,
    keys: &TrustedKeys,
) -> Result<Arc<HttpComponent>, HostError> {
    let bytes = host::read(id, &config.components[id]).await?;
    // It is started, not called: nothing is sent.
    let outbox = Outbox::new(async |_| Vec::new());
    let logs = orchestrator_engine::guest_log::LogSink::new(|_| ());
    host::http_component_of(config, id, engine, keys, bytes, outbox, logs).await
}

/// What becomes of each dependency; what is wrong with one is told with its
/// component.
async fn dependencies(config: &Config, id: &str, kind: Kind) -> Vec<Finding> {
    let component = &config.components[id];
    if component.dependencies.is_empty() {
        return Vec::new();
    }
    let Ok(bytes) = host::read(id, component).await else {
        return Vec::new();
    };
    let fates = fates(component, kind, bytes.into()).await;
    let fates = fates.unwrap_or_default();
    let told = |(name, fate): (DependencyName, Fate)| {
        let told = match fate {
            Fate::Composed => "composed into the component",
            Fate::Native => "not used: this host offers the interface by itself",
        };
        ok(format!("dependency of {id}"), format!("`{name}`, {told}"))
    };
    fates.into_iter().map(told).collect()
}

fn component(id: &str, kind: &str, loaded: Result<String, HostError>) -> Finding {
    let check = format!("component {id}");
    match loaded {
        Ok(digest) => ok(
            check,
            format!("{kind}, sha256:{}", digest.get(..12).unwrap_or(&digest)),
        ),
        Err(error) => fail(
            check,
            error.to_string(),
            "`orchestrator build`, then see what the sentence asks for",
        ),
    }
}

fn listeners(args: &DoctorArgs) -> Result<Vec<Finding>, CliError> {
    let url = format!("http://{}", args.ops_listen);
    let running = client::ask_running(&url, RUNNING_HOST_MAX)?;
    let mut findings = Vec::new();
    if running {
        findings.push(ok("running host", format!("one answers at {url}")));
    }
    for (name, flag, addr) in [
        ("application listener", "--listen", args.listen),
        ("operations listener", "--ops-listen", args.ops_listen),
    ] {
        findings.push(listener(name, flag, addr, running));
    }
    if !args.ops_listen.ip().is_loopback() && environment("ORCHESTRATOR_OPS_TOKEN").is_none() {
        findings.push(fail(
            "operations token",
            format!("{} is not loopback, and there is no token", args.ops_listen),
            "set ORCHESTRATOR_OPS_TOKEN",
        ));
    }
    Ok(findings)
}

fn listener(name: &str, flag: &str, addr: SocketAddr, running: bool) -> Finding {
    match TcpListener::bind(addr) {
        Ok(_) => ok(name, format!("{addr} is free")),
        Err(error) if running => warn(
            name,
            format!("{addr}: {error}; a host is running already"),
            format!("stop it before `up`, or choose another address with `{flag}`"),
        ),
        Err(error) => fail(
            name,
            format!("{addr}: {error}"),
            format!("choose another address with `{flag}`"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_aligned_and_say_how_to_mend() {
        let findings = [ok("manifest", "fine"), fail("disk", "full", "free some")];
        assert_eq!(
            text(&findings),
            "ok    manifest  fine\nFAIL  disk      full\n                → free some\n"
        );
    }

    #[test]
    fn an_address_in_use_is_told_with_its_flag() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        let finding = listener("application listener", "--listen", addr, false);
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.mend.unwrap().contains("--listen"));
    }

    #[test]
    fn a_directory_that_cannot_be_written_and_a_full_disk_fail() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let verdicts = |findings: Vec<Finding>| -> Vec<Verdict> {
            findings.iter().map(|finding| finding.verdict).collect()
        };
        assert_eq!(
            verdicts(disk(&dir.path().join("file/x"), 0)),
            [Verdict::Fail]
        );
        assert_eq!(verdicts(disk(dir.path(), 0)), [Verdict::Ok, Verdict::Ok]);
        assert_eq!(
            verdicts(disk(dir.path(), u64::MAX)),
            [Verdict::Ok, Verdict::Fail]
        );
    }
}
