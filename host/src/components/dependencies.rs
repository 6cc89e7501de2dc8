//! A component's dependencies, read and composed into it as often as a version
//! of it is loaded.
//!
//! The version stays that of the component's own file: its digest does not
//! change with a dependency, and a changed dependency comes in with the next
//! version or the next start.

use std::sync::Arc;

use orchestrator_engine::compose::{
    self, ComposeError, Dependency, DependencyName, Fate, Kind, Source,
};
use orchestrator_engine::loader::LoadError;

use super::TrustedKeys;
use super::signature;
use crate::config::{ComponentConfig, DependencyConfig};

/// The bytes to load for a component whose own file has these.
pub async fn composed(
    component: &ComponentConfig,
    kind: Kind,
    keys: &TrustedKeys,
    bytes: Vec<u8>,
) -> Result<Source, LoadError> {
    if component.dependencies.is_empty() {
        return Ok(bytes.into());
    }
    let (component, keys) = (component.clone(), keys.clone());
    blocking(move || {
        let mut source = Source::from(bytes);
        let mut dependencies = Vec::new();
        for (dependency, fate) in judged(&component, kind, &source.bytes)? {
            if fate == Fate::Composed {
                dependencies.push(read(dependency, &keys)?);
            }
        }
        if !dependencies.is_empty() {
            let granted = component.grants().capabilities();
            source.bytes = compose::compose(&source.bytes, kind, &dependencies, &granted)?;
        }
        Ok(source)
    })
    .await
}

/// What becomes of each dependency of a component with these bytes.
pub async fn fates(
    component: &ComponentConfig,
    kind: Kind,
    bytes: Arc<[u8]>,
) -> Result<Vec<(DependencyName, Fate)>, LoadError> {
    let component = component.clone();
    blocking(move || {
        let judged = judged(&component, kind, &bytes)?;
        Ok(judged
            .into_iter()
            .map(|(dependency, fate)| (dependency.name.clone(), fate))
            .collect())
    })
    .await
}

fn judged<'a>(
    component: &'a ComponentConfig,
    kind: Kind,
    bytes: &[u8],
) -> Result<Vec<(&'a DependencyConfig, Fate)>, ComposeError> {
    let names: Vec<_> = component.dependencies.iter().map(|one| &one.name).collect();
    let fates = compose::fates(bytes, kind, &names)?;
    Ok(component.dependencies.iter().zip(fates).collect())
}

fn read(dependency: &DependencyConfig, keys: &TrustedKeys) -> Result<Dependency, ComposeError> {
    let path = &dependency.source;
    let unreadable = |why: String| ComposeError::Unreadable {
        name: dependency.name.to_string(),
        path: path.display().to_string(),
        why,
    };
    let bytes = std::fs::read(path)
        .map_err(|error| unreadable(format!("it cannot be read: {error}; build it first")))?;
    // It runs as part of the component, so it is trusted as the component is.
    keys.check(&bytes, signature::beside(path).as_deref())
        .map_err(unreadable)?;
    Ok(Dependency {
        name: dependency.name.clone(),
        bytes,
        export: dependency.export.clone(),
        inherits: dependency.inherits.clone(),
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ComposeError> + Send + 'static,
) -> Result<T, LoadError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| LoadError::Host(error.to_string()))?;
    Ok(done?)
}
