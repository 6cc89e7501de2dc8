//! Never ends and never yields. The payload is not read.
#![cfg(target_family = "wasm")]

use std::hint::black_box;

use guests::types::Job;
use guests::{Attempt, Processor};

struct Spins;

impl Processor for Spins {
    async fn process(_job: Job) -> Attempt {
        let mut turns: u64 = 0;
        loop {
            turns = black_box(turns.wrapping_add(1));
        }
    }
}

guests::worker::export!(Spins);
