//! The generated bindings and nothing else.

/// The world of an ingest component: what it imports.
pub mod ingest {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "ingest",
        imports: { default: trappable },
    });
}

/// The world of a worker with an async export.
pub mod worker {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "worker",
        imports: { default: trappable },
        exports: { default: async },
        with: {
            "orchestrator:pipeline/telemetry": super::ingest::orchestrator::pipeline::telemetry,
            "orchestrator:pipeline/types": super::ingest::orchestrator::pipeline::types,
        },
    });
}

/// The world of a worker with a plain export.
pub mod worker_sync {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "worker-sync",
        imports: { default: trappable },
        exports: { default: async },
        with: {
            "orchestrator:pipeline/telemetry": super::ingest::orchestrator::pipeline::telemetry,
            "orchestrator:pipeline/types": super::ingest::orchestrator::pipeline::types,
        },
    });
}

pub use ingest::orchestrator::pipeline::{queue, telemetry, types};
