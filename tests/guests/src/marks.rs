//! Marks its results with the build that made them: the mark as it was read
//! before and after waiting (`{"ms": 20}`), so that an attempt that saw two
//! builds would show it. Tests make builds by writing over the mark's last
//! sixteen characters; a build whose mark begins with one of these words does
//! as it says: `trap`, `fail`, `dead`, `slow`. A job with `"poison": 1` fails
//! on every build.
#![cfg(target_family = "wasm")]

use std::hint::black_box;

use spin_sdk::wasip3::clocks::monotonic_clock;

use guests::types::{DeadLetter, Failure, Job, Retry};
use guests::{Attempt, Processor, done, number};

/// In nanoseconds.
const MILLI_NS: u64 = 1_000_000;
/// What a slow build adds, in milliseconds.
const SLOW_MS: u64 = 40;
static MARK: &str = "MARK:0000000000000000";

struct Marks;

fn mark() -> &'static str {
    &black_box(MARK)[5..]
}

fn retry(reason: &str) -> Failure {
    Failure::Retry(Retry {
        reason: reason.to_owned(),
        delay_ms: None,
    })
}

impl Processor for Marks {
    async fn process(job: Job) -> Attempt {
        let before = mark();
        let slow = if before.starts_with("slow") {
            SLOW_MS
        } else {
            0
        };
        monotonic_clock::wait_for((number(&job, "ms")? + slow) * MILLI_NS).await;
        if number(&job, "poison").is_ok() {
            return Err(retry("poison"));
        }
        match &before[..4] {
            "trap" => panic!("as the mark says"),
            "fail" => return Err(retry("as the mark says")),
            "dead" => {
                return Err(Failure::DeadLetter(DeadLetter {
                    reason: "Mark".to_owned(),
                    description: "as the mark says".to_owned(),
                }));
            }
            _ => {}
        }
        done(format!("\"{before} {}\"", mark()))
    }
}

guests::worker::export!(Marks);
