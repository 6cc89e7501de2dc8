//! Returns how many attempts its memory has seen, this one included: `1`
//! wherever each attempt has an instance of its own. The payload is not read.
#![cfg(target_family = "wasm")]

use std::sync::atomic::{AtomicU32, Ordering};

use guests::types::Job;
use guests::{Attempt, Processor, done};

static ATTEMPTS: AtomicU32 = AtomicU32::new(0);

struct CountsMemory;

impl Processor for CountsMemory {
    async fn process(_job: Job) -> Attempt {
        let attempts = ATTEMPTS.fetch_add(1, Ordering::Relaxed) + 1;
        done(attempts.to_string())
    }
}

guests::worker::export!(CountsMemory);
