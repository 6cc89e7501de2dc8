//! Panics, with the payload as its last words.
#![cfg(target_family = "wasm")]

use guests::types::Job;
use guests::{Attempt, Processor};

struct Traps;

impl Processor for Traps {
    async fn process(job: Job) -> Attempt {
        panic!("{}", String::from_utf8_lossy(&job.payload));
    }
}

guests::worker::export!(Traps);
