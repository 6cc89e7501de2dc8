//! Whether the application runs under `spin up` as well.

use std::process::Command;

use super::{Finding, ok, warn};
use crate::cli::CliError;
use crate::cli::spin::{Installed, installed};
use crate::config::{Config, DependencyConfig};

/// Imports that Spin 4 offers to components, or how they begin. The last one
/// has types alone, which nobody has to offer.
const OFFERED: [&str; 12] = [
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:config/store@0.2.0-draft-2024-09-27",
    "wasi:filesystem/",
    "wasi:http/",
    "wasi:io/",
    "wasi:keyvalue/",
    "wasi:random/",
    "wasi:sockets/",
    "spin:",
    "fermyon:spin/",
    "orchestrator:pipeline/types@",
];

/// The first release with WASI 0.3.0.
const SPIN_MIN: (u32, u32) = (4, 1);

/// Whether Spin is here, and would start this program. Neither is needed for `up`.
pub(super) fn here() -> Result<Vec<Finding>, CliError> {
    let asked = Command::new("spin").arg("--version").output();
    let Some(asked) = asked.ok().filter(|asked| asked.status.success()) else {
        return Ok(vec![ok("spin", "not here, and not needed for `up`")]);
    };
    let version = String::from_utf8_lossy(&asked.stdout).trim().to_owned();
    let is_old = release(&version).is_some_and(|release| release < SPIN_MIN);
    let spin = match is_old {
        true => warn(
            "spin",
            format!("{version}, which does not have WASI 0.3.0"),
            "use Spin 4.1, or a build of what becomes it",
        ),
        false => ok("spin", version),
    };
    let mend = "`orchestrator spin install`";
    let plugin = match installed()? {
        Installed::This => ok("spin plugin", "this program"),
        Installed::Nothing => warn(
            "spin plugin",
            "not installed: `spin up` cannot run the queues",
            mend,
        ),
        Installed::Other(other) => warn(
            "spin plugin",
            format!("another build, of version {other}"),
            mend,
        ),
    };
    Ok(vec![spin, plugin])
}

/// Major and minor of what `spin --version` prints.
fn release(version: &str) -> Option<(u32, u32)> {
    let number = version.strip_prefix("spin ")?;
    let mut parts = number.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

/// What Spin would refuse of a manifest that this host takes.
pub(super) fn manifest(config: &Config) -> Vec<Finding> {
    let ids = config.components.keys();
    ids.filter(|id| !is_kebab(id))
        .map(|id| {
            warn(
                format!("component {id}"),
                "Spin takes only names of letters, digits and single `-`, each word beginning with a letter",
                "rename it in the manifest to use it under `spin up`",
            )
        })
        .collect()
}

/// What an HTTP component imports that only this host offers, and no dependency.
pub(super) fn imports(
    id: &str,
    dependencies: &[DependencyConfig],
    imports: &[String],
) -> Option<Finding> {
    let is_offered = |import: &str| OFFERED.iter().any(|offered| import.starts_with(offered));
    let is_depended_on = |import: &str| {
        let mut names = dependencies.iter().map(|dependency| &dependency.name);
        names.any(|name| name.matches(import))
    };
    let missing: Vec<String> = imports
        .iter()
        .filter(|import| !is_offered(import) && !is_depended_on(import))
        .map(|import| format!("`{import}`"))
        .collect();
    if missing.is_empty() {
        return None;
    }
    Some(warn(
        format!("component {id}"),
        format!(
            "Spin does not offer {}, which it imports",
            missing.join(", ")
        ),
        format!("for `spin up`, name a component that does in `[component.{id}.dependencies]`"),
    ))
}

fn is_kebab(id: &str) -> bool {
    id.split('-').all(|word| {
        let is_of = |case: fn(&char) -> bool| word.chars().all(|c| case(&c) || c.is_ascii_digit());
        word.starts_with(|first: char| first.is_ascii_alphabetic())
            && (is_of(char::is_ascii_lowercase) || is_of(char::is_ascii_uppercase))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_of_spin_is_read() {
        assert_eq!(
            release("spin 4.1.0-pre0 (94a8fc8a 2026-08-21)"),
            Some((4, 1))
        );
        assert_eq!(release("spin 4.0.2"), Some((4, 0)));
        assert_eq!(release("something else"), None);
    }

    #[test]
    fn names_that_spin_refuses_are_told_apart() {
        for name in ["worker", "a-worker2", "HTTP-in"] {
            assert!(is_kebab(name), "{name}");
        }
        for name in ["", "a_worker", "a--b", "2nd", "aWorker", "a-"] {
            assert!(!is_kebab(name), "{name}");
        }
    }

    #[test]
    fn imports_that_only_this_host_has_are_named() {
        let given = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let both = given(&["wasi:http/types@0.3.0", "spin:variables/variables@3.0.0"]);
        assert!(imports("a", &[], &both).is_none());
        let ours = given(&["wasi:io/poll@0.2.6", "orchestrator:pipeline/queue@0.1.0"]);
        let found = imports("a", &[], &ours).unwrap();
        assert!(
            found.told.contains("`orchestrator:pipeline/queue@0.1.0`"),
            "{found:?}"
        );
        assert!(!found.told.contains("wasi:io"), "{found:?}");
        let depended_on = DependencyConfig {
            name: "orchestrator:pipeline/queue".parse().unwrap(),
            source: "queue.wasm".into(),
            export: None,
            inherits: Default::default(),
        };
        assert!(imports("a", &[depended_on], &ours).is_none());
    }
}
