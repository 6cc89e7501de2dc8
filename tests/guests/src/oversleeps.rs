//! Waits for an hour on a WASI 0.3 clock. The payload is not read.
#![cfg(target_family = "wasm")]

use spin_sdk::wasip3::clocks::monotonic_clock;

use guests::types::Job;
use guests::{Attempt, Processor, done};

/// In nanoseconds.
const HOUR_NS: u64 = 3_600_000_000_000;

struct Oversleeps;

impl Processor for Oversleeps {
    async fn process(_job: Job) -> Attempt {
        monotonic_clock::wait_for(HOUR_NS).await;
        done("awake")
    }
}

guests::worker::export!(Oversleeps);
