//! Does its job at once: the result is the payload, whatever it is. Says one
//! line on stdout, one on stderr, one in the log, and measures `EchoBytes`.
#![cfg(target_family = "wasm")]

use guests::telemetry::Level;
use guests::types::{Job, Output};
use guests::{Attempt, Processor, telemetry};

struct Echo;

impl Processor for Echo {
    async fn process(job: Job) -> Attempt {
        println!("{} on stdout", job.id);
        eprintln!("{} on stderr", job.id);
        telemetry::log(Level::Info, &format!("{} in the log", job.id));
        telemetry::log_metric("EchoBytes", job.payload.len() as f64);
        Ok(Output {
            body: job.payload,
            content_type: job.content_type,
        })
    }
}

guests::worker::export!(Echo);
