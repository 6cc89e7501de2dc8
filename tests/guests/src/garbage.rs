//! Returns answers that no host should trust. `{"kind": "..."}` is one of
//! `long-reason`, `long-content-type` (10 MB each), `bad-utf8` (a reason that is
//! not text) and `bad-length` (a result said to go on beyond the guest's memory).
#![cfg(target_family = "wasm")]

use std::mem::ManuallyDrop;

use guests::types::{DeadLetter, Failure, Job, Output, Retry};
use guests::{Attempt, Processor, done, text};

const LONG_BYTES: usize = 10_000_000;

#[expect(unsafe_code, reason = "the sin of this guest")]
fn not_text() -> String {
    // SAFETY: none. The host reads the bytes; this guest never does.
    unsafe { String::from_utf8_unchecked(vec![0xff, 0xfe, 0xc0]) }
}

#[expect(unsafe_code, reason = "the sin of this guest")]
fn beyond_memory() -> Vec<u8> {
    let mut bytes = ManuallyDrop::new(Vec::with_capacity(1));
    let length = isize::MAX as usize;
    // SAFETY: none. The host is to notice the length; this guest never reads.
    unsafe { Vec::from_raw_parts(bytes.as_mut_ptr(), length, length) }
}

struct Garbage;

impl Processor for Garbage {
    async fn process(job: Job) -> Attempt {
        match text(&job, "kind")?.as_str() {
            "long-reason" => Err(Failure::DeadLetter(DeadLetter {
                reason: "r".repeat(LONG_BYTES),
                description: "d".repeat(LONG_BYTES),
            })),
            "long-content-type" => Ok(Output {
                body: Vec::new(),
                content_type: "t".repeat(LONG_BYTES),
            }),
            "bad-utf8" => Err(Failure::Retry(Retry {
                reason: not_text(),
                delay_ms: Some(u64::MAX),
            })),
            "bad-length" => done(beyond_memory()),
            other => done(format!("no such kind: {other}")),
        }
    }
}

guests::worker::export!(Garbage);
