//! Does its job at once: the result is the job itself, as JSON, its payload as
//! the text that it is.
#![cfg(target_family = "wasm")]

use serde_json::{Map, Value, json};

use guests::types::Job;
use guests::{Attempt, Processor, done_json};

struct TellsJob;

impl Processor for TellsJob {
    async fn process(job: Job) -> Attempt {
        let properties: Map<String, Value> = job
            .properties
            .into_iter()
            .map(|property| (property.name, json!(property.value)))
            .collect();
        done_json(&json!({
            "id": job.id,
            "jobType": job.job_type,
            "payload": String::from_utf8_lossy(&job.payload),
            "contentType": job.content_type,
            "properties": properties,
            "queue": job.queue,
            "attempt": job.attempt,
            "traceparent": job.traceparent,
        }))
    }
}

guests::worker::export!(TellsJob);
