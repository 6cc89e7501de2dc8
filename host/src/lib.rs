//! Data Orchestrator's host: a durable job pipeline whose logic is WebAssembly.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`config`] | `spin.toml` and the environment → checked sections |
//! | [`host`] | builds every part, runs them, stops them in order |
//! | [`ingest`] | the application listener: POST in, 202 out, job pages |
//! | [`dispatch`] | pulls deliveries, runs them, settles each once |
//! | [`queue`] | a queue, whichever engine keeps it |
//! | [`service_bus_keys`] | who may use the Service Bus listener |
//! | [`ops`] | the operations listener: health, metrics, jobs, dead letters |
//! | [`components`] | which version of each component runs now |
//! | [`telemetry`] | every event a struct: log line and metrics together |
//! | [`bench`] | measures this machine, beside native counterparts |
//! | [`cli`] | the command line |
//!
//! Beside them, as crates of their own: `orchestrator_engine` (all that knows
//! wasmtime), `orchestrator_queue` (all that knows the disk) and
//! `orchestrator_servicebus` (all that knows the wire of Service Bus).

pub mod bench;
pub mod cli;
pub mod clock;
pub mod components;
pub mod config;
pub mod dispatch;
pub mod host;
pub mod ingest;
pub mod ops;
pub mod queue;
pub mod service_bus_keys;
pub mod telemetry;
