//! Asks for another attempt until it is the one that the payload names:
//! `{"attempt": 3}` fails twice, then returns `3`.
#![cfg(target_family = "wasm")]

use guests::types::{Failure, Job, Retry};
use guests::{Attempt, Processor, done, number};

struct FailsUntil;

impl Processor for FailsUntil {
    async fn process(job: Job) -> Attempt {
        let good = number(&job, "attempt")?;
        if u64::from(job.attempt) < good {
            return Err(Failure::Retry(Retry {
                reason: format!("attempt {} of {good} needed", job.attempt),
                delay_ms: None,
            }));
        }
        done(job.attempt.to_string())
    }
}

guests::worker::export!(FailsUntil);
