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

/// The interfaces that guests built for Spin read their variables through.
pub mod variables {
    wasmtime::component::bindgen!({
        inline: "
            package orchestrator:variables;

            world reader {
                import fermyon:spin/variables@2.0.0;
                import spin:variables/variables@3.0.0;
                import wasi:config/store@0.2.0-draft-2024-09-27;
            }

            package fermyon:spin@2.0.0 {
                interface variables {
                    variant error {
                        invalid-name(string),
                        undefined(string),
                        provider(string),
                        other(string),
                    }
                    get: func(name: string) -> result<string, error>;
                }
            }

            package spin:variables@3.0.0 {
                interface variables {
                    variant error {
                        invalid-name(string),
                        undefined(string),
                        provider(string),
                        other(string),
                    }
                    get: async func(name: string) -> result<string, error>;
                }
            }

            package wasi:config@0.2.0-draft-2024-09-27 {
                interface store {
                    variant error { upstream(string), io(string) }
                    get: func(key: string) -> result<option<string>, error>;
                    get-all: func() -> result<list<tuple<string, string>>, error>;
                }
            }
        ",
        imports: { default: trappable },
    });
}

pub use ingest::orchestrator::pipeline::{queue, telemetry, types};
