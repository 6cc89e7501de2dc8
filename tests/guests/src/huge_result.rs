//! Returns a result of as many bytes as the payload says: `{"bytes": 65537}`.
#![cfg(target_family = "wasm")]

use guests::types::Job;
use guests::{Attempt, Processor, done, number};

struct HugeResult;

impl Processor for HugeResult {
    async fn process(job: Job) -> Attempt {
        let bytes = number(&job, "bytes")?;
        done(vec![b'x'; bytes as usize])
    }
}

guests::worker::export!(HugeResult);
