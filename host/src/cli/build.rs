//! `build`: each component's own command, in the shell, once each.

use std::process::Command;

use super::{CliError, failed};
use crate::config::Config;

pub(super) const TARGET: &str = "wasm32-wasip2";

pub(super) fn run(config: &Config) -> Result<(), CliError> {
    let mut done = Vec::new();
    for (name, component) in &config.components {
        let Some(build) = &component.build else {
            continue;
        };
        if done.contains(&(&build.command, &build.dir)) {
            continue;
        }
        if build.command.contains(TARGET) {
            ensure_target()?;
        }
        eprintln!("building `{name}`: {}", build.command);
        let status = Command::new("sh")
            .args(["-c", &build.command])
            .current_dir(&build.dir)
            .status()
            .map_err(|error| failed(format!("the build of `{name}` cannot be started: {error}")))?;
        if !status.success() {
            return Err(failed(format!(
                "the build of `{name}` failed ({status}): `{}`",
                build.command
            )));
        }
        done.push((&build.command, &build.dir));
    }
    Ok(())
}

/// Installs the target for components where rustup does not do so by itself.
fn ensure_target() -> Result<(), CliError> {
    // Without rustup the toolchain came from elsewhere; cargo will tell.
    if is_target_installed() != Some(false) {
        return Ok(());
    }
    eprintln!("the target {TARGET} is missing: running `rustup target add {TARGET}`");
    match Command::new("rustup")
        .args(["target", "add", TARGET])
        .status()
    {
        Ok(status) if status.success() => Ok(()),
        _ => Err(failed(format!(
            "the target {TARGET} could not be installed: run `rustup target add {TARGET}`"
        ))),
    }
}

/// Whether rustup has the target; none without rustup.
pub(super) fn is_target_installed() -> Option<bool> {
    let listed = Command::new("rustup")
        .args(["target", "list", "--installed"])
        .output()
        .ok()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    Some(listed.lines().any(|line| line == TARGET))
}
