//! Prints 50 MB of lines, then does its job. The payload is not read; the
//! result is the number of lines.
#![cfg(target_family = "wasm")]

use std::io::Write;

use guests::types::Job;
use guests::{Attempt, Processor, done};

/// One line, its end included.
const LINE_BYTES: usize = 100;
/// 50 MB of them.
const LINES: usize = 500_000;

struct FloodsStdout;

impl Processor for FloodsStdout {
    async fn process(_job: Job) -> Attempt {
        let mut stdout = std::io::stdout().lock();
        let line = format!("{}\n", "x".repeat(LINE_BYTES - 1));
        for _ in 0..LINES {
            // A host that has heard enough may close the stream.
            if stdout.write_all(line.as_bytes()).is_err() {
                break;
            }
        }
        done(LINES.to_string())
    }
}

guests::worker::export!(FloodsStdout);
