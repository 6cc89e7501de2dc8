//! Does its job at once, in a plain export: the result is the payload, whatever
//! it is.
#![cfg(target_family = "wasm")]

use guests::types::{Job, Output};
use guests::{Attempt, ProcessorSync};

struct SyncEcho;

impl ProcessorSync for SyncEcho {
    fn process(job: Job) -> Attempt {
        Ok(Output {
            body: job.payload,
            content_type: job.content_type,
        })
    }
}

guests::worker_sync::export!(SyncEcho);
