//! Fixture guests: one small component for each way a guest can behave, each
//! an example of this package, so that one command builds them all:
//!
//! `cargo build -p guests --examples --target wasm32-wasip2 --release`
//!
//! This library holds what they share: the bindings, generated once. A guest
//! implements [`Processor`] or [`ProcessorSync`] and exports it. Guests are
//! empty when built for anything but WebAssembly.
#![cfg(target_family = "wasm")]

/// Bindings of the world `worker`.
#[expect(missing_docs, reason = "generated; the WIT holds the documentation")]
pub mod worker {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "worker",
        default_bindings_module: "guests::worker",
        pub_export_macro: true,
        generate_all,
    });
}

/// Bindings of the world `worker-sync`.
#[expect(missing_docs, reason = "generated; the WIT holds the documentation")]
pub mod worker_sync {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "worker-sync",
        default_bindings_module: "guests::worker_sync",
        pub_export_macro: true,
        with: {
            "orchestrator:pipeline/types@0.1.0": crate::types,
            "orchestrator:pipeline/telemetry@0.1.0": crate::telemetry,
        },
    });
}

pub use worker::exports::orchestrator::pipeline::processor::Guest as Processor;
pub use worker::orchestrator::pipeline::{telemetry, types};
pub use worker_sync::exports::orchestrator::pipeline::processor_sync::Guest as ProcessorSync;

use serde_json::Value;
use types::{DeadLetter, Failure, Job, Output};

/// What an attempt ends in.
pub type Attempt = Result<Output, Failure>;

/// Ends an attempt well, with a text as its result.
pub fn done(body: impl Into<Vec<u8>>) -> Attempt {
    Ok(Output {
        body: body.into(),
        content_type: "text/plain".to_owned(),
    })
}

/// Ends an attempt well, with a JSON document as its result.
pub fn done_json(document: &Value) -> Attempt {
    Ok(Output {
        body: document.to_string().into_bytes(),
        content_type: "application/json".to_owned(),
    })
}

/// A member of a payload that is a JSON object.
///
/// A test that sends a guest a payload it can't read has its job dead-lettered
/// as `BadFixturePayload`.
pub fn member(job: &Job, name: &str) -> Result<Value, Failure> {
    let payload: Value = serde_json::from_slice(&job.payload)
        .map_err(|error| bad_payload(format!("the payload is not JSON: {error}")))?;
    Ok(payload.get(name).cloned().unwrap_or(Value::Null))
}

/// A member of a payload that is a whole number.
pub fn number(job: &Job, name: &str) -> Result<u64, Failure> {
    let value = member(job, name)?;
    value
        .as_u64()
        .ok_or_else(|| bad_payload(format!("`{name}` is {value}, not a whole number")))
}

/// A member of a payload that is a string.
pub fn text(job: &Job, name: &str) -> Result<String, Failure> {
    let value = member(job, name)?;
    match value {
        Value::String(text) => Ok(text),
        other => Err(bad_payload(format!("`{name}` is {other}, not a string"))),
    }
}

fn bad_payload(description: String) -> Failure {
    Failure::DeadLetter(DeadLetter {
        reason: "BadFixturePayload".to_owned(),
        description,
    })
}
