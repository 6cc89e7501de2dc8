//! Calls itself until its stack is spent. The payload is not read.
#![cfg(target_family = "wasm")]

use std::hint::black_box;

use guests::types::Job;
use guests::{Attempt, Processor, done};

#[expect(unconditional_recursion, reason = "the sin of this guest")]
fn descend(level: u32) -> u32 {
    let frame = black_box([level; 64]);
    descend(level.wrapping_add(1)) ^ frame[0]
}

struct DeepRecursion;

impl Processor for DeepRecursion {
    async fn process(job: Job) -> Attempt {
        done(descend(job.attempt).to_string())
    }
}

guests::worker::export!(DeepRecursion);
