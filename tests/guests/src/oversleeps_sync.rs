//! Sleeps for an hour in a plain export, through WASI 0.2. The payload is not
//! read.
#![cfg(target_family = "wasm")]

use std::time::Duration;

use guests::types::Job;
use guests::{Attempt, ProcessorSync, done};

const HOUR: Duration = Duration::from_secs(3_600);

struct OversleepsSync;

impl ProcessorSync for OversleepsSync {
    fn process(_job: Job) -> Attempt {
        std::thread::sleep(HOUR);
        done("awake")
    }
}

guests::worker_sync::export!(OversleepsSync);
