//! The interface `queue` over Service Bus REST: what an ingest component is
//! composed with where its host has no queue, as under stock Spin.
//!
//! It sends what this project's own host sends, by the same code
//! (`orchestrator-servicebus`), and keeps the same promise: `ok` means that the
//! service answered `201`. It differs in two things. REST does not say whether
//! an id was known already, so `duplicate` is always false (such a message is
//! still one). And what is not known here stays away: a message without
//! `traceparent` is sent without one.
//!
//! Its settings are variables of the component that it is composed into:
//!
//! | variable | meaning |
//! | --- | --- |
//! | `servicebus_connection_string` | with `SharedAccessKeyName` and `SharedAccessKey`, or `SharedAccessSignature`; empty: the development listener |
//! | `servicebus_endpoint` | where that listens; `http://127.0.0.1:5300` without it |
//! | `servicebus_queue` | where a message goes that names no queue; `EntityPath` of the connection string without it |
//!
//! Everything that decides is pure and runs natively under test:
//!
//! - [`settings`] reads the variables,
//! - [`limits`] holds messages to the contract,
//! - [`batches`] puts messages together,
//! - [`tries`] says whether and when to try again, and what is told in the end.
//!
//! `component` alone touches WASI, and is compiled for WebAssembly only.

pub mod batches;
pub mod limits;
pub mod settings;
pub mod tries;

#[cfg(target_family = "wasm")]
mod component;
