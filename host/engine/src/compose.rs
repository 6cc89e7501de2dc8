//! A component and the components that it depends on, made into one.
//!
//! A dependency is named in the manifest as in Spin's, and matched as Spin
//! does: by package, by interface if one is given, by exact version if one is
//! given. What this host offers by itself is not composed: it stays the host's.
//!
//! Inside one component there is one set of permissions. Spin puts a guard
//! before a dependency that does not inherit all of them. There is no such guard
//! here, so a dependency that could reach something that it does not inherit is
//! refused instead.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use wac_graph::types::{Package, SubtypeChecker};
use wac_graph::{CompositionGraph, EncodeOptions, NodeId, PackageId};

use crate::loader;

/// Bytes to load, under the digest that they are known by.
#[derive(Clone, Debug)]
pub struct Source {
    /// SHA-256 in hexadecimal of the component's own file.
    pub digest: String,
    /// What is loaded: that file, or that file composed with others.
    pub bytes: Vec<u8>,
}

impl From<Vec<u8>> for Source {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            digest: loader::digest(&bytes),
            bytes,
        }
    }
}

/// What a component is for, which says what the host offers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It answers HTTP requests, and may send jobs.
    Http,
    /// It does jobs.
    Worker,
}

/// Which imports a dependency is for: `package`, `package/interface`, either
/// with `@version`, or a plain name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DependencyName {
    text: String,
    parsed: Name,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Plain(String),
    Package {
        package: String,
        interface: Option<String>,
        version: Option<String>,
    },
}

impl FromStr for DependencyName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = parse(text).ok_or_else(|| {
            format!("`{text}` names no import: write it as `package:name/interface@1.0.0`, without version for any, without interface for the whole package")
        })?;
        Ok(Self {
            text: text.to_owned(),
            parsed: name,
        })
    }
}

impl fmt::Display for DependencyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn parse(text: &str) -> Option<Name> {
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic())
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if !text.contains([':', '/', '@']) {
        return is_word(text).then(|| Name::Plain(text.to_owned()));
    }
    let (path, version) = match text.split_once('@') {
        Some((path, version)) => (path, Some(version)),
        None => (text, None),
    };
    let (package, interface) = match path.split_once('/') {
        Some((package, interface)) => (package, Some(interface)),
        None => (path, None),
    };
    let is_package = package.contains(':') && package.split(':').all(is_word);
    let is_known = is_package && interface.is_none_or(is_word) && version != Some("");
    is_known.then(|| Name::Package {
        package: package.to_owned(),
        interface: interface.map(str::to_owned),
        version: version.map(str::to_owned),
    })
}

impl DependencyName {
    /// Whether it is for the import of this name.
    pub fn matches(&self, import: &str) -> bool {
        match (&self.parsed, parse(import)) {
            (Name::Plain(name), Some(Name::Plain(import))) => *name == import,
            (
                Name::Package {
                    package,
                    interface,
                    version,
                },
                Some(Name::Package {
                    package: import_package,
                    interface: import_interface,
                    version: import_version,
                }),
            ) => {
                *package == import_package
                    && (interface.is_none() || *interface == import_interface)
                    && (version.is_none() || *version == import_version)
            }
            _ => false,
        }
    }
}

/// Something that the manifest grants, by the name that `inherit_configuration` has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// Language models; this host has none.
    AiModels,
    /// Hosts to call.
    AllowedOutboundHosts,
    /// Environment variables.
    Environment,
    /// Directories; this host gives none.
    Files,
    /// Key-value stores; this host has none.
    KeyValueStores,
    /// Databases; this host has none.
    SqliteDatabases,
    /// Variables of the component.
    Variables,
}

impl Capability {
    /// Every one.
    pub const ALL: [Self; 7] = [
        Self::AiModels,
        Self::AllowedOutboundHosts,
        Self::Environment,
        Self::Files,
        Self::KeyValueStores,
        Self::SqliteDatabases,
        Self::Variables,
    ];

    /// Its name in a manifest.
    pub fn key(self) -> &'static str {
        match self {
            Self::AiModels => "ai_models",
            Self::AllowedOutboundHosts => "allowed_outbound_hosts",
            Self::Environment => "environment",
            Self::Files => "files",
            Self::KeyValueStores => "key_value_stores",
            Self::SqliteDatabases => "sqlite_databases",
            Self::Variables => "variables",
        }
    }

    /// Beginnings of the names of the interfaces that it is used through.
    fn interfaces(self) -> &'static [&'static str] {
        match self {
            Self::AiModels => &["fermyon:spin/llm"],
            Self::AllowedOutboundHosts => &[
                "wasi:http/client@",
                "wasi:http/handler@",
                "wasi:http/outgoing-handler@",
                "wasi:sockets/",
                "fermyon:spin/http",
            ],
            Self::Environment => &["wasi:cli/environment@"],
            Self::Files => &["wasi:filesystem/preopens@"],
            Self::KeyValueStores => &[
                "wasi:keyvalue/",
                "spin:key-value/",
                "fermyon:spin/key-value",
            ],
            Self::SqliteDatabases => &["spin:sqlite/", "fermyon:spin/sqlite"],
            Self::Variables => &[
                "wasi:config/",
                "spin:variables/",
                "fermyon:spin/variables",
                "fermyon:spin/config",
            ],
        }
    }
}

/// A dependency to compose with.
#[derive(Clone, Debug)]
pub struct Dependency {
    /// Which imports it is for.
    pub name: DependencyName,
    /// The component that offers them.
    pub bytes: Vec<u8>,
    /// The export to take; none: the one that is named as the import is.
    pub export: Option<String>,
    /// What it may use of what its parent is granted.
    pub inherits: BTreeSet<Capability>,
}

/// What becomes of a dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is composed in.
    Composed,
    /// It is not used: this host offers the interface itself.
    Native,
}

/// Why a component and its dependencies do not become one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ComposeError {
    /// The component itself cannot be taken apart.
    #[error("it cannot be composed with its dependencies: {0}")]
    Component(String),
    /// The file of a dependency cannot be read.
    #[error("dependency `{name}` ({path}): {why}")]
    Unreadable {
        /// The dependency.
        name: String,
        /// Its file.
        path: String,
        /// Why.
        why: String,
    },
    /// A dependency is no component.
    #[error("dependency `{name}` is not a valid component: {why}")]
    Invalid {
        /// The dependency.
        name: String,
        /// Why.
        why: String,
    },
    /// Nothing is imported by that name.
    #[error(
        "dependency `{name}` matches no import of the component; it imports {imports}: correct the name, or leave the dependency out"
    )]
    Unmatched {
        /// The dependency.
        name: String,
        /// What is imported.
        imports: String,
    },
    /// Two dependencies are for one import.
    #[error("dependencies `{first}` and `{second}` are both for import `{import}`: keep one")]
    Conflict {
        /// One of them.
        first: String,
        /// The other.
        second: String,
        /// The import.
        import: String,
    },
    /// A dependency does not have what it is for.
    #[error(
        "dependency `{name}` does not export `{export}`; it exports {exports}: name the right one with `export`"
    )]
    MissingExport {
        /// The dependency.
        name: String,
        /// What was looked for.
        export: String,
        /// What there is.
        exports: String,
    },
    /// What a dependency offers has another shape.
    #[error("dependency `{name}` exports `{export}`, which does not fit the import: {why}")]
    Mismatch {
        /// The dependency.
        name: String,
        /// The export.
        export: String,
        /// Why.
        why: String,
    },
    /// A dependency could use what it does not inherit.
    #[error(
        "dependency `{name}` imports `{import}` and does not inherit `{capability}`, which the component has: add `{capability}` to its `inherit_configuration`, or grant the component none"
    )]
    NotInherited {
        /// The dependency.
        name: String,
        /// Through which it could.
        import: String,
        /// What.
        capability: &'static str,
    },
    /// A dependency could send jobs.
    #[error(
        "dependency `{name}` imports `{import}`, so it could send jobs in the name of the component: write `inherit_configuration = true` if it may"
    )]
    SendsJobs {
        /// The dependency.
        name: String,
        /// Through which it could.
        import: String,
    },
}

/// The interface through which jobs are sent, and which no capability is for.
const QUEUE: &str = "orchestrator:pipeline/queue@";

/// What becomes of each of these dependencies of a component.
pub fn fates(
    component: &[u8],
    kind: Kind,
    names: &[&DependencyName],
) -> Result<Vec<Fate>, ComposeError> {
    let mut graph = CompositionGraph::new();
    let package = component_package(&mut graph, component)?;
    let imports = imports(&graph, package);
    let matched = matched(&imports, names)?;
    Ok(names
        .iter()
        .enumerate()
        .map(|(place, _)| {
            let is_composed = matched
                .iter()
                .any(|(import, by)| *by == place && !is_native(kind, import));
            if is_composed {
                Fate::Composed
            } else {
                Fate::Native
            }
        })
        .collect())
}

/// A component composed with its dependencies, each of which is
/// [`Fate::Composed`]. `granted` is what the component may use.
pub fn compose(
    component: &[u8],
    kind: Kind,
    dependencies: &[Dependency],
    granted: &BTreeSet<Capability>,
) -> Result<Vec<u8>, ComposeError> {
    let mut graph = CompositionGraph::new();
    let package = component_package(&mut graph, component)?;
    let imports = imports(&graph, package);
    let names: Vec<_> = dependencies.iter().map(|one| &one.name).collect();
    let matched = matched(&imports, &names)?;
    let parent = graph.instantiate(package);
    let mut instances: BTreeMap<usize, (PackageId, NodeId)> = BTreeMap::new();
    for (import, place) in matched {
        if is_native(kind, &import) {
            continue;
        }
        let dependency = &dependencies[place];
        let (offers, instance) = match instances.get(&place) {
            Some(known) => *known,
            None => {
                let offers = dependency_package(&mut graph, place, dependency, granted)?;
                let instance = graph.instantiate(offers);
                instances.insert(place, (offers, instance));
                (offers, instance)
            }
        };
        let export = dependency.export.as_ref().unwrap_or(&import);
        check_fit(&graph, package, &import, offers, export, dependency)?;
        graph
            .alias_instance_export(instance, export)
            .map_err(|error| error.to_string())
            .and_then(|offered| {
                let set = graph.set_instantiation_argument(parent, &import, offered);
                set.map_err(|error| error.to_string())
            })
            .map_err(|why| ComposeError::Mismatch {
                name: dependency.name.to_string(),
                export: export.clone(),
                why,
            })?;
    }
    finish(&mut graph, package, parent).map_err(ComposeError::Component)
}

/// Exports what the component exports, and writes it all down.
fn finish(
    graph: &mut CompositionGraph,
    package: PackageId,
    parent: NodeId,
) -> Result<Vec<u8>, String> {
    let world = &graph.types()[graph[package].ty()];
    let exports: Vec<String> = world.exports.keys().cloned().collect();
    for export in exports {
        let offered = graph.alias_instance_export(parent, &export);
        let offered = offered.map_err(|error| error.to_string())?;
        graph
            .export(offered, &export)
            .map_err(|error| error.to_string())?;
    }
    graph
        .encode(EncodeOptions::default())
        .map_err(|error| one_line(&error))
}

fn component_package(
    graph: &mut CompositionGraph,
    bytes: &[u8],
) -> Result<PackageId, ComposeError> {
    register(graph, "component", bytes).map_err(ComposeError::Component)
}

fn dependency_package(
    graph: &mut CompositionGraph,
    place: usize,
    dependency: &Dependency,
    granted: &BTreeSet<Capability>,
) -> Result<PackageId, ComposeError> {
    let name = || dependency.name.to_string();
    // The names of packages have to differ, and mean nothing else.
    let package = register(graph, &format!("dependency-{place}"), &dependency.bytes)
        .map_err(|why| ComposeError::Invalid { name: name(), why })?;
    let withheld = granted.difference(&dependency.inherits);
    let imports = imports(graph, package);
    if let Some(import) = imports.iter().find(|import| import.starts_with(QUEUE))
        && dependency.inherits.len() < Capability::ALL.len()
    {
        return Err(ComposeError::SendsJobs {
            name: name(),
            import: import.clone(),
        });
    }
    for capability in withheld {
        let leak = imports.iter().find(|import| {
            let mut interfaces = capability.interfaces().iter();
            interfaces.any(|interface| import.starts_with(interface))
        });
        if let Some(import) = leak {
            return Err(ComposeError::NotInherited {
                name: name(),
                import: import.clone(),
                capability: capability.key(),
            });
        }
    }
    Ok(package)
}

fn register(graph: &mut CompositionGraph, name: &str, bytes: &[u8]) -> Result<PackageId, String> {
    loader::check_preamble(bytes).map_err(|error| error.to_string())?;
    let package = Package::from_bytes(name, None, bytes, graph.types_mut());
    let package = package.map_err(|error| one_line(&error))?;
    graph
        .register_package(package)
        .map_err(|error| error.to_string())
}

fn imports(graph: &CompositionGraph, package: PackageId) -> Vec<String> {
    let world = &graph.types()[graph[package].ty()];
    world.imports.keys().cloned().collect()
}

/// The place of the dependency that each import is matched by, if one does.
fn matched(
    imports: &[String],
    names: &[&DependencyName],
) -> Result<Vec<(String, usize)>, ComposeError> {
    let mut matched: Vec<(String, usize)> = Vec::new();
    for import in imports {
        let mut by = (0..names.len()).filter(|place| names[*place].matches(import));
        let Some(first) = by.next() else {
            continue;
        };
        if let Some(second) = by.next() {
            return Err(ComposeError::Conflict {
                first: names[first].to_string(),
                second: names[second].to_string(),
                import: import.clone(),
            });
        }
        matched.push((import.clone(), first));
    }
    for (place, name) in names.iter().enumerate() {
        if !matched.iter().any(|(_, by)| *by == place) {
            return Err(ComposeError::Unmatched {
                name: name.to_string(),
                imports: loader::list(imports),
            });
        }
    }
    Ok(matched)
}

/// Whether an import of a component of this kind is this host's own to offer.
/// What is WASI's or Spin's is composed in where the manifest says so: such a
/// dependency stands between the component and the host.
fn is_native(kind: Kind, import: &str) -> bool {
    let own = match kind {
        Kind::Http => &["queue", "telemetry", "types"][..],
        Kind::Worker => &["telemetry", "types"],
    };
    import
        .strip_prefix("orchestrator:pipeline/")
        .and_then(|rest| rest.strip_suffix("@0.1.0"))
        .is_some_and(|interface| own.contains(&interface))
}

fn check_fit(
    graph: &CompositionGraph,
    parent: PackageId,
    import: &str,
    offers: PackageId,
    export: &str,
    dependency: &Dependency,
) -> Result<(), ComposeError> {
    let types = graph.types();
    let exports = &types[graph[offers].ty()].exports;
    let Some(offered) = exports.get(export) else {
        let exports: Vec<_> = exports.keys().cloned().collect();
        return Err(ComposeError::MissingExport {
            name: dependency.name.to_string(),
            export: export.to_owned(),
            exports: loader::list(&exports),
        });
    };
    let Some(wanted) = types[graph[parent].ty()].imports.get(import) else {
        return Ok(());
    };
    let mut cache = Default::default();
    SubtypeChecker::new(&mut cache)
        .is_subtype(*offered, types, *wanted, types)
        .map_err(|error| ComposeError::Mismatch {
            name: dependency.name.to_string(),
            export: export.to_owned(),
            why: one_line(&error),
        })
}

/// An error and its causes as one sentence.
fn one_line(error: &impl fmt::Display) -> String {
    format!("{error:#}")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DependencyName {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_matches_by_package_interface_and_exact_version() {
        for (text, import, matches) in [
            ("a:b/c@1.0.0", "a:b/c@1.0.0", true),
            ("a:b/c@1.0.0", "a:b/c@1.0.1", false),
            ("a:b/c@1.0.0", "a:b/c", false),
            ("a:b/c", "a:b/c@1.0.1", true),
            ("a:b/c", "a:b/d@1.0.1", false),
            ("a:b", "a:b/d@1.0.1", true),
            ("a:b@2.0.0", "a:b/d@1.0.1", false),
            ("a:b", "a:bb/d", false),
            ("plain-name", "plain-name", true),
            ("plain-name", "a:plain-name/x", false),
        ] {
            assert_eq!(name(text).matches(import), matches, "{text} {import}");
        }
        for text in ["", "a:", ":b", "a:b/", "a:b@", "1x", "a b", "a/b"] {
            let refusal = text.parse::<DependencyName>().unwrap_err();
            assert!(refusal.contains("write it as"), "{refusal}");
        }
    }

    #[test]
    fn what_the_host_offers_depends_on_the_kind() {
        let queue = "orchestrator:pipeline/queue@0.1.0";
        assert!(is_native(Kind::Http, queue) && !is_native(Kind::Worker, queue));
        assert!(!is_native(Kind::Http, "orchestrator:pipeline/queue@0.2.0"));
        assert!(!is_native(Kind::Worker, "wasi:http/client@0.3.0"));
        assert!(!is_native(Kind::Http, "wasi:http/handler@0.3.0"));
        assert!(!is_native(Kind::Http, "wasi:keyvalue/store@0.2.0"));
    }

    #[test]
    fn imports_and_dependencies_belong_together_one_to_one() {
        let imports = ["a:b/c@1.0.0".to_owned(), "a:b/d@1.0.0".to_owned()];
        let (whole, one, other) = (name("a:b"), name("a:b/c"), name("x:y"));
        let both = matched(&imports, &[&whole]).unwrap();
        assert_eq!(both.len(), 2);
        let conflict = matched(&imports, &[&whole, &one]).unwrap_err().to_string();
        assert!(conflict.contains("`a:b` and `a:b/c`"), "{conflict}");
        let unmatched = matched(&imports, &[&other]).unwrap_err().to_string();
        assert!(
            unmatched.contains("`x:y`") && unmatched.contains("`a:b/d@1.0.0`"),
            "{unmatched}"
        );
    }

    #[test]
    fn what_is_no_component_is_told() {
        let error = fates(b"\0asm\x01\0\0\0", Kind::Http, &[]).unwrap_err();
        assert!(error.to_string().contains("core WebAssembly module"));
    }
}
