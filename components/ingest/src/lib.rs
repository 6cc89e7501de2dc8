//! `IngestJob`: takes a job over HTTP, hands it to the queue, and answers
//! `202 Accepted` once the queue has it for good.
//!
//! Everything that decides is pure and runs natively under test:
//!
//! - [`head`] judges method and headers,
//! - [`json`] takes JSON apart without building it up in memory,
//! - [`request`] turns a body into a job, or into the list of all its faults,
//! - [`faults`], [`problem`] and [`answer`] shape what goes back.
//!
//! `handler` alone touches WASI, and is compiled for WebAssembly only.

pub mod answer;
pub mod faults;
pub mod head;
pub mod json;
pub mod problem;
pub mod request;

#[cfg(target_family = "wasm")]
mod handler;
