//! `[component.NAME.dependencies]`, as Spin writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use orchestrator_engine::compose::{Capability, DependencyName};
use serde::Deserialize;
use toml::Value;

use super::manifest::{Component, Source};
use super::{ConfigError, DependencyConfig};

/// Every form that Spin has; what is fetched from elsewhere is refused below.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dependency {
    path: Option<String>,
    component: Option<String>,
    export: Option<String>,
    inherit_configuration: Option<Value>,
    version: Option<Value>,
    registry: Option<Value>,
    package: Option<Value>,
    url: Option<Value>,
    digest: Option<Value>,
}

impl Dependency {
    fn is_remote(&self) -> bool {
        let remote = [
            &self.version,
            &self.registry,
            &self.package,
            &self.url,
            &self.digest,
        ];
        remote.iter().any(|part| part.is_some())
    }
}

/// The dependencies of the component `id`, checked.
pub(super) fn check(
    source: &Source<'_>,
    dir: &Path,
    id: &str,
    component: &Component,
    components: &BTreeMap<String, Component>,
) -> Result<Vec<DependencyConfig>, ConfigError> {
    let all = component.dependencies_inherit_configuration.as_ref();
    let mut checked = Vec::new();
    for (name, value) in &component.dependencies {
        let at = name.span().start;
        let key = name.get_ref();
        let refuse = |what: String| source.error(at, format!("dependency `{key}` of `{id}`{what}"));
        let name: DependencyName = key
            .parse()
            .map_err(|why| source.error(at, format!("`{id}.dependencies`: {why}")))?;
        let elsewhere = || {
            refuse(" is to be fetched, and this host fetches nothing: build or download it, and name its `path`".to_owned())
        };
        if value.get_ref().is_str() {
            return Err(elsewhere());
        }
        let table: Dependency = value
            .get_ref()
            .clone()
            .try_into()
            .map_err(|error| refuse(format!(": {error}")))?;
        if table.is_remote() {
            return Err(elsewhere());
        }
        let inherits = match (&table.inherit_configuration, all) {
            (None, None) => BTreeSet::new(),
            (None, Some(all)) => everything(*all.get_ref()),
            (Some(value), None) => inherited(value).map_err(|why| refuse(format!(": {why}")))?,
            (Some(_), Some(_)) => {
                return Err(refuse(" has `inherit_configuration`, and the component `dependencies_inherit_configuration`: keep one".to_owned()));
            }
        };
        let file = match (&table.path, &table.component) {
            (Some(path), None) => path,
            (None, Some(other)) => part(other, components).map_err(refuse)?,
            _ => {
                return Err(refuse(
                    " needs one of `path` (a WebAssembly file) and `component` (one of this manifest)"
                        .to_owned(),
                ));
            }
        };
        checked.push(DependencyConfig {
            name,
            source: dir.join(file),
            export: table.export,
            inherits,
        });
    }
    Ok(checked)
}

fn everything(all: bool) -> BTreeSet<Capability> {
    if all {
        Capability::ALL.into()
    } else {
        BTreeSet::new()
    }
}

/// `true`, `false`, or a list of what is inherited.
fn inherited(value: &Value) -> Result<BTreeSet<Capability>, String> {
    let known = || {
        let keys: Vec<_> = Capability::ALL
            .iter()
            .map(|one| format!("`{}`", one.key()))
            .collect();
        keys.join(", ")
    };
    if let Some(all) = value.as_bool() {
        return Ok(everything(all));
    }
    let list = value.as_array().ok_or_else(|| {
        format!(
            "`inherit_configuration` is `true`, `false`, or a list of {}",
            known()
        )
    })?;
    list.iter()
        .map(|entry| {
            let found = Capability::ALL
                .into_iter()
                .find(|one| entry.as_str() == Some(one.key()));
            found.ok_or_else(|| {
                let entry = entry.as_str().unwrap_or("what is no text");
                format!(
                    "`{entry}` in `inherit_configuration` is none of {}",
                    known()
                )
            })
        })
        .collect()
}

/// The file of another component of the manifest that is used as a part.
fn part<'a>(other: &str, components: &'a BTreeMap<String, Component>) -> Result<&'a str, String> {
    let component = components.get(other).ok_or_else(|| {
        format!(
            " names component `{other}`, which is not in the manifest: add `[component.{other}]`"
        )
    })?;
    let is_granted_nothing = component
        .allowed_outbound_hosts
        .as_ref()
        .is_none_or(|hosts| hosts.get_ref().is_empty())
        && component.variables.is_empty()
        && component.environment.is_empty();
    if !is_granted_nothing || !component.dependencies.is_empty() {
        return Err(format!(
            " names component `{other}`, which has permissions or dependencies of its own: a part has those of the whole, so leave them out of `[component.{other}]`"
        ));
    }
    Ok(&component.source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const HEAD: &str = "spin_manifest_version = 2\n[application]\nname = \"a\"\n";

    fn read(component: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("{HEAD}[component.w]\nsource = \"w.wasm\"\n{component}");
        std::fs::write(dir.path().join("spin.toml"), text).unwrap();
        Config::read(dir.path(), &[], &|_| None)
    }

    fn only(component: &str) -> DependencyConfig {
        let config = read(component).unwrap();
        let [dependency] = config.components["w"].dependencies.as_slice() else {
            panic!("{:?}", config.components["w"]);
        };
        dependency.clone()
    }

    fn refusal(component: &str) -> String {
        read(component).unwrap_err().to_string()
    }

    #[test]
    fn a_dependency_is_a_file_or_another_component_and_inherits_what_it_says() {
        let file = only(
            "[component.w.dependencies]\n\"a:b/c@1.0.0\" = { path = \"p.wasm\", export = \"x:y/z\", inherit_configuration = [\"variables\"] }\n",
        );
        assert_eq!(file.name.to_string(), "a:b/c@1.0.0");
        assert!(file.source.ends_with("p.wasm"));
        assert_eq!(file.export.as_deref(), Some("x:y/z"));
        assert_eq!(file.inherits, [Capability::Variables].into());
        let part = only(
            "[component.w.dependencies]\n\"a:b\" = { component = \"p\" }\n[component.p]\nsource = \"p.wasm\"\n",
        );
        assert!(part.source.ends_with("p.wasm"));
        assert!(part.inherits.is_empty());
        let all = only(
            "dependencies_inherit_configuration = true\n[component.w.dependencies]\n\"a:b\" = { path = \"p.wasm\" }\n",
        );
        assert_eq!(all.inherits.len(), Capability::ALL.len());
    }

    #[test]
    fn what_is_wrong_with_a_dependency_is_told_with_its_line() {
        for (value, told) in [
            ("\">=1.0\"", "is to be fetched"),
            (
                "{ url = \"https://x\", digest = \"sha256:0\" }",
                "name its `path`",
            ),
            ("{ version = \"1.0\", registry = \"r\" }", "name its `path`"),
            ("{ pat = \"p.wasm\" }", "unknown field `pat`"),
            ("{ export = \"x:y/z\" }", "needs one of `path`"),
            ("{ component = \"nobody\" }", "add `[component.nobody]`"),
            (
                "{ path = \"p\", inherit_configuration = [\"hosts\"] }",
                "is none of `ai_models`, `allowed_outbound_hosts`",
            ),
            (
                "{ path = \"p\", inherit_configuration = \"all\" }",
                "is `true`, `false`, or a list",
            ),
        ] {
            let error = refusal(&format!("[component.w.dependencies]\n\"a:b\" = {value}\n"));
            assert!(
                error.contains("spin.toml:7: dependency `a:b` of `w`") && error.contains(told),
                "{value}: {error}"
            );
        }
        let error = refusal("[component.w.dependencies]\n\"a:\" = { path = \"p\" }\n");
        assert!(
            error.contains("spin.toml:7") && error.contains("names no import"),
            "{error}"
        );
        let error = refusal(
            "dependencies_inherit_configuration = true\n[component.w.dependencies]\n\"a:b\" = { path = \"p\", inherit_configuration = true }\n",
        );
        assert!(error.contains("keep one"), "{error}");
        let error = refusal(
            "[component.w.dependencies]\n\"a:b\" = { component = \"p\" }\n[component.p]\nsource = \"p.wasm\"\nallowed_outbound_hosts = [\"https://x\"]\n",
        );
        assert!(
            error.contains("permissions or dependencies of its own"),
            "{error}"
        );
    }
}
