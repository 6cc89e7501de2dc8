//! The two ways from a request to a worker, held to the same cases: ingest on a
//! host that offers the queue, and the same ingest composed with the queue as a
//! component, which sends over the wire of Service Bus.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use orchestrator_engine::compose::{Capability, Dependency, Kind, compose};
use orchestrator_servicebus::atom::{self, QueueDescription};
use orchestrator_servicebus::sas;
use orchestrator_servicebus::secret::Secret;

use crate::rig::{Rig, Way, component, manifest};

pub const KEY_NAME: &str = "RootManageSharedAccessKey";
pub const KEY: &str = "SAS_KEY_VALUE";

/// What the sample's manifest lets the queue component inherit.
const INHERITED: [Capability; 2] = [Capability::AllowedOutboundHosts, Capability::Variables];

/// A component composed with the queue component, written down once. For a host
/// that offers the queue this leaves it alone, so it is composed as for one that
/// does not.
pub fn composed(name: &str) -> String {
    static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("composed");
        std::fs::create_dir_all(&dir).unwrap();
        dir
    });
    let own = std::fs::read(component(name)).unwrap();
    let queue = Dependency {
        name: "orchestrator:pipeline/queue@0.1.0".parse().unwrap(),
        bytes: std::fs::read(component("servicebus_queue")).unwrap(),
        export: None,
        inherits: INHERITED.into(),
    };
    let granted = BTreeSet::from(INHERITED);
    let bytes = compose(&own, Kind::Worker, &[queue], &granted).unwrap();
    let path = DIR.join(format!("{name}.wasm"));
    // Tests that run beside this one may read it: it is there whole or not.
    let file = tempfile::NamedTempFile::new_in(&*DIR).unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file.persist(&path).unwrap();
    path.display().to_string()
}

/// A process that keeps the queue `jobs` and does no work.
pub async fn bus(description: &QueueDescription) -> Rig {
    let way = Way {
        arguments: vec!["--quiet"],
        serves_bus: true,
        ..Way::default()
    };
    let bus = Rig::up_in(
        "spin_manifest_version = 2\n[application]\nname = \"bus\"\n",
        way,
    );
    let created = management(&bus, reqwest::Method::PUT)
        .body(atom::description_entry(description))
        .send()
        .await
        .unwrap();
    assert_eq!(created.status(), 201, "{}", created.text().await.unwrap());
    bus
}

/// A request about its queue itself.
pub fn management(bus: &Rig, method: reqwest::Method) -> reqwest::RequestBuilder {
    let token = sas::sign(bus.bus(), KEY_NAME, &Secret::new(KEY), u64::MAX / 2);
    let url = format!("{}/jobs", bus.bus());
    bus.client()
        .request(method, url)
        .header("authorization", token)
}

/// The manifest of a host that has the composed component `name` at `route`, no
/// queue, and these variables. It may call `allowed`.
pub fn front(name: &str, route: &str, allowed: &str, variables: &[(&str, &str)]) -> String {
    let variables: Vec<String> = variables
        .iter()
        .map(|(name, value)| format!("{name} = \"{value}\""))
        .collect();
    format!(
        "spin_manifest_version = 2\n[application]\nname = \"front\"\n[[trigger.http]]\nroute = \"{route}\"\ncomponent = \"front\"\n[component.front]\nsource = \"{}\"\nallowed_outbound_hosts = [\"{allowed}\"]\nvariables = {{ {} }}\n",
        composed(name),
        variables.join(", ")
    )
}

/// The usual one: ingest, on the development listener at this address.
pub fn ingest_front(address: &str) -> String {
    let variables = [
        ("servicebus_connection_string", ""),
        ("servicebus_endpoint", address),
        ("servicebus_queue", "jobs"),
    ];
    front("ingest", "/api/IngestJob", address, &variables)
}

/// One way: where requests go in, and where jobs are done.
pub struct Ends {
    pub name: &'static str,
    pub front: Rig,
    /// The host with the worker, where it is another one.
    worker: Option<Rig>,
    pub bus: Option<Rig>,
}

impl Ends {
    /// One host that offers the queue.
    pub fn native(worker: &str, keys: &str) -> Self {
        Self {
            name: "native",
            front: Rig::up(&manifest(&[("jobs", worker, keys)])),
            worker: None,
            bus: None,
        }
    }

    /// A host with the composed ingest, one that keeps the queue, and one that
    /// does the jobs.
    pub async fn composed(worker: &str, keys: &str) -> Self {
        let description = QueueDescription {
            requires_duplicate_detection: Some(true),
            ..QueueDescription::default()
        };
        let bus = bus(&description).await;
        Self {
            name: "composed",
            front: Rig::up(&ingest_front(bus.bus())),
            worker: Some(worker_of(&bus, worker, keys)),
            bus: Some(bus),
        }
    }

    /// Both, one after the other.
    pub async fn both(worker: &str, keys: &str) -> [Self; 2] {
        [
            Self::native(worker, keys),
            Self::composed(worker, keys).await,
        ]
    }

    /// The host that does the jobs.
    pub fn worker(&self) -> &Rig {
        self.worker.as_ref().unwrap_or(&self.front)
    }
}

/// A host that does the jobs of this bus.
pub fn worker_of(bus: &Rig, worker: &str, keys: &str) -> Rig {
    let address = bus.bus();
    let way = Way {
        arguments: vec!["--quiet"],
        environment: vec![(
            "SERVICEBUS_CONNECTION_STRING",
            format!("Endpoint={address};SharedAccessKeyName={KEY_NAME};SharedAccessKey={KEY}"),
        )],
        ..Way::default()
    };
    Rig::up_in(&manifest(&[("jobs", worker, keys)]), way)
}
