//! Gives the job up: `{"reason": "...", "description": "..."}`.
#![cfg(target_family = "wasm")]

use guests::types::{DeadLetter, Failure, Job};
use guests::{Attempt, Processor, text};

struct Rejects;

impl Processor for Rejects {
    async fn process(job: Job) -> Attempt {
        Err(Failure::DeadLetter(DeadLetter {
            reason: text(&job, "reason")?,
            description: text(&job, "description")?,
        }))
    }
}

guests::worker::export!(Rejects);
