//! The components of this application and the version of each that runs now.

pub mod verdict;

use std::sync::Arc;

use orchestrator_engine::WorkerComponent;
use orchestrator_engine::http::HttpComponent;

use crate::clock::now_ms;

/// Facts about the version of a component.
#[derive(Clone, Debug)]
pub struct Version {
    /// Counts versions since the host started, from 1.
    pub generation: u64,
    /// SHA-256 of the component's bytes, in hexadecimal.
    pub digest: String,
    /// When it was put in place: milliseconds since 1970-01-01 UTC.
    pub since: u64,
    /// Where it was read from.
    pub source: String,
    /// Its size.
    pub bytes: u64,
}

/// A component's place: what its name stands for right now.
pub struct Slot<T> {
    id: String,
    component: Arc<T>,
    version: Version,
}

/// The place of a worker.
pub type WorkerSlot = Slot<WorkerComponent>;
/// The place of an HTTP component.
pub type HttpSlot = Slot<HttpComponent>;

impl<T> Slot<T> {
    /// A place with its first version.
    pub fn new(id: &str, component: Arc<T>, digest: &str, source: &str, bytes: u64) -> Self {
        let version = Version {
            generation: 1,
            digest: digest.to_owned(),
            since: now_ms(),
            source: source.to_owned(),
            bytes,
        };
        Self {
            id: id.to_owned(),
            component,
            version,
        }
    }

    /// The component's name in the manifest.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The component to run now. Hold it for the whole of a job or request.
    pub fn current(&self) -> Arc<T> {
        self.component.clone()
    }

    /// Facts about the version that [`current`](Self::current) returns.
    pub fn version(&self) -> &Version {
        &self.version
    }
}
