//! The application as Spin has locked it, written anew as a manifest.
//!
//! Spin reads `spin.toml` by itself and hands its triggers JSON. Of that only
//! the queues, their workers and what those need is this host's; the rest may
//! say what it likes. What is left is written as TOML, part by part, so that
//! it is checked by the code that checks a manifest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;

use super::ConfigError;

/// The trigger's name in manifests.
const TRIGGER: &str = "servicebus";
/// Versions of the format that are known.
const VERSION_MAX: u64 = 1;
/// Parts of the lock that may not be passed over, and are not.
const UNDERSTOOD: [&str; 2] = ["host_requirements", "component_host_requirements"];
/// A host's feature that an application can do without.
const OPTIONAL: &str = "optional";

/// A manifest made of a lock.
pub(super) struct Made {
    /// The manifest that Spin read, for a person to correct.
    pub file: String,
    /// The text that is checked.
    pub text: String,
    /// Where its parts begin, and what they are called.
    pub parts: Vec<(usize, String)>,
}

#[derive(Deserialize)]
struct Lock {
    spin_lock_version: u64,
    #[serde(default)]
    must_understand: Vec<String>,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    host_requirements: Map<String, Value>,
    #[serde(default)]
    variables: BTreeMap<String, Variable>,
    triggers: Vec<Trigger>,
    /// Read one by one: those of other triggers are none of this host's.
    components: Vec<Value>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    origin: Option<String>,
    #[serde(default)]
    triggers: Map<String, Value>,
}

#[derive(Deserialize)]
struct Variable {
    default: Option<String>,
    #[serde(default)]
    secret: bool,
}

#[derive(Deserialize)]
struct Trigger {
    #[serde(default)]
    id: String,
    trigger_type: String,
    #[serde(default)]
    trigger_config: Value,
}

#[derive(Deserialize)]
struct Component {
    id: String,
    #[serde(default)]
    metadata: Map<String, Value>,
    source: Source,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    files: Vec<Value>,
    #[serde(default)]
    config: BTreeMap<String, String>,
    #[serde(default)]
    dependencies: BTreeMap<String, Dependency>,
    #[serde(default)]
    trigger_dependencies: Map<String, Value>,
    #[serde(default)]
    host_requirements: Map<String, Value>,
}

#[derive(Deserialize)]
struct Source {
    source: Option<String>,
}

#[derive(Deserialize)]
struct Dependency {
    source: Source,
    export: Option<String>,
    inherit: Option<Inherit>,
}

/// What of its parent's a dependency may use.
#[derive(Deserialize)]
enum Inherit {
    All,
    Some(Vec<String>),
}

/// The path that a `file:` URL names.
pub(crate) fn file_path(url: &str) -> Option<PathBuf> {
    let url = Url::parse(url).ok()?;
    (url.scheme() == "file").then(|| url.to_file_path().ok())?
}

/// Reads a lock file.
pub(super) fn read(path: &Path) -> Result<Made, ConfigError> {
    let shown = path.display();
    let unreadable = |error: &dyn std::fmt::Display| {
        ConfigError(format!(
            "the application that Spin has locked in {shown} cannot be read: {error}"
        ))
    };
    let json = std::fs::read(path).map_err(|error| unreadable(&error))?;
    let lock: Lock = serde_json::from_slice(&json).map_err(|error| unreadable(&error))?;
    let origin = lock.metadata.origin.as_deref();
    let file = origin.map_or_else(
        || shown.to_string(),
        |url| file_path(url).map_or_else(|| url.to_owned(), |path| path.display().to_string()),
    );
    let mut making = Making {
        made: Made {
            file,
            text: String::new(),
            parts: Vec::new(),
        },
    };
    making.all(lock)?;
    Ok(making.made)
}

struct Making {
    made: Made,
}

impl Making {
    fn refuse(&self, what: impl std::fmt::Display) -> ConfigError {
        ConfigError(format!("{}: {what}", self.made.file))
    }

    /// Adds a part of the manifest; `what` is its name for people.
    fn part(&mut self, what: String, table: Value) -> Result<(), ConfigError> {
        let wrong =
            |error: &dyn std::fmt::Display| self.refuse(format!("{what} cannot be read: {error}"));
        let table = toml::Table::try_from(without_nulls(table)).map_err(|error| wrong(&error))?;
        let text = toml::to_string(&table).map_err(|error| wrong(&error))?;
        self.made.parts.push((self.made.text.len(), what));
        self.made.text += &text;
        Ok(())
    }

    fn all(&mut self, lock: Lock) -> Result<(), ConfigError> {
        if lock.spin_lock_version > VERSION_MAX {
            return Err(self.refuse(format!(
                "Spin has locked it in format {}, and this trigger knows up to {VERSION_MAX}: use a newer one",
                lock.spin_lock_version
            )));
        }
        let mut heeded = lock.must_understand.iter();
        if let Some(part) = heeded.find(|part| !UNDERSTOOD.contains(&part.as_str())) {
            return Err(self.refuse(format!(
                "Spin asks its triggers to heed `{part}`, which this one does not know: use a newer one"
            )));
        }
        self.offered("the application", &lock.host_requirements)?;
        let mut application = Map::new();
        application.insert("name".to_owned(), lock.metadata.name.into());
        self.part(
            "the application".to_owned(),
            serde_json::json!({ "spin_manifest_version": 2, "application": application }),
        )?;
        if let Some(settings) = lock.metadata.triggers.get(TRIGGER) {
            self.part(
                format!("`[application.trigger.{TRIGGER}]`"),
                serde_json::json!({ "application": { "trigger": { TRIGGER: settings } } }),
            )?;
        }
        for (name, variable) in lock.variables {
            let required = variable.default.is_none();
            let table = serde_json::json!({
                "default": variable.default, "required": required, "secret": variable.secret
            });
            self.part(
                format!("variable `{name}`"),
                serde_json::json!({ "variables": { name: table } }),
            )?;
        }
        let mut used = Vec::new();
        for trigger in lock.triggers {
            if trigger.trigger_type != TRIGGER {
                continue;
            }
            if let Some(component) = trigger.trigger_config["component"].as_str() {
                used.push(component.to_owned());
            }
            self.part(
                format!("trigger `{}`", trigger.id),
                serde_json::json!({ "trigger": { TRIGGER: [trigger.trigger_config] } }),
            )?;
        }
        for component in lock.components {
            let Some(id) = component["id"].as_str().map(str::to_owned) else {
                continue;
            };
            if used.contains(&id) {
                let component = Component::deserialize(component).map_err(|error| {
                    self.refuse(format!("component `{id}` cannot be read: {error}"))
                })?;
                self.component(component)?;
            }
        }
        Ok(())
    }

    fn component(&mut self, component: Component) -> Result<(), ConfigError> {
        let name = format!("component `{}`", component.id);
        self.offered(&name, &component.host_requirements)?;
        let metadata = &component.metadata;
        for (key, is_used) in [
            ("files", !component.files.is_empty()),
            ("key_value_stores", has_some(metadata, "key_value_stores")),
            ("sqlite_databases", has_some(metadata, "databases")),
            ("ai_models", has_some(metadata, "ai_models")),
            ("dependencies", !component.trigger_dependencies.is_empty()),
        ] {
            // Those of the component itself are another matter.
            let (whose, offered) = match key {
                "dependencies" => (format!("the trigger of {name}"), "triggers"),
                _ => (name.clone(), "workers"),
            };
            if is_used {
                return Err(self.refuse(format!(
                    "{whose} has `{key}`, which this host does not offer to {offered}: leave it out"
                )));
            }
        }
        let source = self.path(&name, &component.source)?;
        let mut dependencies = Map::new();
        for (import, dependency) in &component.dependencies {
            let whose = format!("{name}: dependency `{import}`");
            dependencies.insert(
                import.clone(),
                serde_json::json!({
                    "path": self.path(&whose, &dependency.source)?,
                    "export": dependency.export,
                    "inherit_configuration": match &dependency.inherit {
                        None => Value::Null,
                        Some(Inherit::All) => true.into(),
                        Some(Inherit::Some(what)) => what.clone().into(),
                    },
                }),
            );
        }
        let mut table = Map::new();
        table.insert("source".to_owned(), source.into());
        table.insert("environment".to_owned(), serde_json::json!(component.env));
        table.insert("variables".to_owned(), serde_json::json!(component.config));
        let hosts = metadata.get("allowed_outbound_hosts").cloned();
        table.insert(
            "allowed_outbound_hosts".to_owned(),
            hosts.unwrap_or_default(),
        );
        if !dependencies.is_empty() {
            table.insert("dependencies".to_owned(), dependencies.into());
        }
        self.part(
            name,
            serde_json::json!({ "component": { component.id: table } }),
        )
    }

    /// This host has none of the features that an application can ask for.
    fn offered(&self, who: &str, required: &Map<String, Value>) -> Result<(), ConfigError> {
        let mut required = required.iter();
        match required.find(|(_, how)| how.as_str() != Some(OPTIONAL)) {
            None => Ok(()),
            Some((feature, _)) => Err(self.refuse(format!(
                "{who} needs `{feature}` of its host, which this trigger does not offer"
            ))),
        }
    }

    fn path(&self, whose: &str, source: &Source) -> Result<String, ConfigError> {
        let path = source.source.as_deref().and_then(file_path);
        path.and_then(|path| path.into_os_string().into_string().ok())
            .ok_or_else(|| self.refuse(format!("{whose} has no file as its source")))
    }
}

fn has_some(metadata: &Map<String, Value>, key: &str) -> bool {
    metadata
        .get(key)
        .is_some_and(|value| value.as_array().is_none_or(|values| !values.is_empty()))
}

/// TOML has no null; what is null is not given.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(table) => table
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(values) => values.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn made(lock: &Value) -> Result<Made, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spin.lock");
        std::fs::write(&path, lock.to_string()).unwrap();
        read(&path)
    }

    fn with_dependencies(dependencies: &Value) -> Value {
        json!({
            "spin_lock_version": 0,
            "metadata": { "name": "a", "origin": "file:///an%20app/spin.toml" },
            "triggers": [{
                "id": "t", "trigger_type": "servicebus",
                "trigger_config": { "component": "w", "queue": "q", "retry": { "factor": 2.0 } },
            }],
            "components": [{
                "id": "w",
                "source": { "content_type": "application/wasm", "source": "file:///a%20b/w.wasm" },
                "dependencies": dependencies,
            }],
        })
    }

    #[test]
    fn dependencies_are_written_as_a_manifest_writes_them() {
        let source =
            json!({ "content_type": "application/wasm", "source": "file:///d%20e/lib.wasm" });
        let made = made(&with_dependencies(&json!({
            "a:b/c@1.0.0": { "source": source, "export": null, "inherit": { "Some": ["variables"] } },
            "a:b/d": { "source": source, "export": "x:y/z", "inherit": "All" },
            "e": { "source": source },
        })))
        .unwrap();
        let text: toml::Table = toml::from_str(&made.text).unwrap();
        let component = &text["component"]["w"];
        assert_eq!(component["source"].as_str(), Some("/a b/w.wasm"));
        let expected: toml::Table = toml::from_str(
            "\"a:b/c@1.0.0\" = { path = \"/d e/lib.wasm\", inherit_configuration = [\"variables\"] }
            \"a:b/d\" = { path = \"/d e/lib.wasm\", export = \"x:y/z\", inherit_configuration = true }
            e = { path = \"/d e/lib.wasm\" }",
        )
        .unwrap();
        assert_eq!(component["dependencies"].as_table(), Some(&expected));
    }

    #[test]
    fn a_dependency_without_a_file_is_refused_by_its_name() {
        let source = json!({ "content_type": "application/wasm", "digest": "sha256:0" });
        let lock = with_dependencies(&json!({ "a:b/c": { "source": source } }));
        let error = made(&lock).err().unwrap().to_string();
        assert_eq!(
            error,
            "/an app/spin.toml: component `w`: dependency `a:b/c` has no file as its source"
        );
    }

    #[test]
    fn a_lock_that_is_none_is_told_with_its_path() {
        for text in ["", "{", "[]", "{}", "{\"triggers\": 1}"] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let error = read(file.path()).err().unwrap().to_string();
            assert!(
                error.contains(&file.path().display().to_string()),
                "{error}"
            );
        }
    }

    #[test]
    fn only_files_have_paths() {
        assert_eq!(
            file_path("file:///a%20b/%C3%A9"),
            Some(PathBuf::from("/a b/é"))
        );
        for url in ["/a", "http://a/b", "file://elsewhere/a", ""] {
            assert_eq!(file_path(url), None, "{url}");
        }
    }
}
