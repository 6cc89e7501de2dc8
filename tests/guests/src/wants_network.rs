//! Fetches a URL: `{"url": "http://..."}`. Returns `{"status": 200}`, or
//! `{"error": "..."}` with the WASI error code.
#![cfg(target_family = "wasm")]

use serde_json::json;

use guests::types::Job;
use guests::{Attempt, Processor, done_json, text};

struct WantsNetwork;

impl Processor for WantsNetwork {
    async fn process(job: Job) -> Attempt {
        let url = text(&job, "url")?;
        match spin_sdk::http::get(url).await {
            Ok(response) => done_json(&json!({"status": response.status().as_u16()})),
            Err(error) => done_json(&json!({"error": format!("{error:?}")})),
        }
    }
}

guests::worker::export!(WantsNetwork);
