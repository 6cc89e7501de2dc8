//! `ProcessJob`: the sample worker.
//!
//! Its heavy lifting is simulated: it waits for as long as the payload's
//! `workMs` says. Its result is real: the SHA-256 and the length of the
//! payload's canonical form, so that whoever sent the job can check it.
//!
//! [`job`] decides and runs natively under test; `processor` alone touches the
//! host, and is compiled for WebAssembly only.

pub mod job;

#[cfg(target_family = "wasm")]
mod processor;
