//! The component's export: one attempt at one job.

use wasip3::clocks::monotonic_clock;

use crate::job;

use bindings::exports::orchestrator::pipeline::processor::Guest;
use bindings::orchestrator::pipeline::telemetry::{self, Level};
use bindings::orchestrator::pipeline::types::{DeadLetter, Failure, Job, Output};

mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "worker",
        generate_all,
    });
}

const NANOS_PER_MILLI: u64 = 1_000_000;

struct ProcessJob;

mod export {
    #![expect(unsafe_code, reason = "generated glue crosses the component boundary")]
    use super::{ProcessJob, bindings};
    bindings::export!(ProcessJob with_types_in bindings);
}

impl Guest for ProcessJob {
    async fn process(job: Job) -> Result<Output, Failure> {
        let work = job::prepare(&job.payload).map_err(|refusal| {
            telemetry::log(Level::Warn, &refusal.to_string());
            Failure::DeadLetter(DeadLetter {
                reason: job::INVALID_PAYLOAD.to_owned(),
                description: refusal.to_string(),
            })
        })?;
        let line = format!(
            "working {} ms on `{}`, attempt {} of {}",
            work.work_ms, job.job_type, job.attempt, job.attempts_max
        );
        telemetry::log(Level::Info, &line);
        if work.work_ms > 0 {
            // Awaited, not slept: the host's thread is free meanwhile.
            monotonic_clock::wait_for(work.work_ms * NANOS_PER_MILLI).await;
        }
        Ok(Output {
            body: work.result,
            content_type: "application/json".to_owned(),
        })
    }
}
