//! Waits as long as the payload says, on a WASI 0.3 clock, then returns the
//! payload: `{"ms": 250}`.
#![cfg(target_family = "wasm")]

use spin_sdk::wasip3::clocks::monotonic_clock;

use guests::types::{Job, Output};
use guests::{Attempt, Processor, number};

/// In nanoseconds.
const MILLI_NS: u64 = 1_000_000;

struct Sleeps;

impl Processor for Sleeps {
    async fn process(job: Job) -> Attempt {
        monotonic_clock::wait_for(number(&job, "ms")? * MILLI_NS).await;
        Ok(Output {
            body: job.payload,
            content_type: job.content_type,
        })
    }
}

guests::worker::export!(Sleeps);
