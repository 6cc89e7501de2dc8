//! Asks for another attempt, always: `{"reason": "...", "delayMs": 250}`, where
//! `delayMs` may be left out.
#![cfg(target_family = "wasm")]

use serde_json::Value;

use guests::types::{Failure, Job, Retry};
use guests::{Attempt, Processor, member, number, text};

struct Retries;

impl Processor for Retries {
    async fn process(job: Job) -> Attempt {
        let delay_ms = match member(&job, "delayMs")? {
            Value::Null => None,
            _ => Some(number(&job, "delayMs")?),
        };
        Err(Failure::Retry(Retry {
            reason: text(&job, "reason")?,
            delay_ms,
        }))
    }
}

guests::worker::export!(Retries);
