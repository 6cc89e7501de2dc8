//! Wasmtime and nothing else.
//!
//! This crate loads, checks and runs components. It has never heard of queues
//! or settlements: a worker run ends in an [`Outcome`], and what a guest sends
//! goes through the [`Outbox`] that the host hands in. Others say deadline and
//! memory limit; only here is anything called store, linker or epoch.
//!
//! It is a crate of its own because the glue in it (generated bindings, the
//! HTTP handler) is expensive to compile and seldom changes.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`runtime`] | the engine, its instance pool and the ticker that interrupts guests |
//! | [`loader`] | bytes → digest → compiled code → checked, pre-linked component |
//! | [`worker`] | one attempt: a fresh instance, its limits, one [`Outcome`] |
//! | [`http`] | an HTTP component: reused instances, one response per request |
//! | [`guest_log`] | what a guest prints, logs and measures, bounded |
//! | [`compose`] | a component and its dependencies made into one |
//! | [`outbound`] | which hosts a guest may call |

mod bindings;
mod compiled;
pub mod compose;
mod cpu_time;
pub mod guest_log;
pub mod http;
mod limits;
pub mod loader;
pub mod outbound;
mod outbox;
pub mod runtime;
mod state;
mod variables;
pub mod worker;

pub use outbox::{Outbox, OutboxError, OutboxMessage, OutboxReceipt};
pub use runtime::{Runtime, RuntimeConfig};
pub use worker::{Outcome, WorkerComponent};
