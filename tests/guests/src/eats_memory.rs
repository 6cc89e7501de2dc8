//! Takes memory, and writes to it, until there is no more. The payload is not
//! read.
#![cfg(target_family = "wasm")]

use std::hint::black_box;

use guests::types::Job;
use guests::{Attempt, Processor};

/// Taken at one time, in bytes.
const BITE_BYTES: usize = 1024 * 1024;

struct EatsMemory;

impl Processor for EatsMemory {
    async fn process(_job: Job) -> Attempt {
        let mut eaten = Vec::new();
        loop {
            eaten.push(black_box(vec![1_u8; BITE_BYTES]));
        }
    }
}

guests::worker::export!(EatsMemory);
