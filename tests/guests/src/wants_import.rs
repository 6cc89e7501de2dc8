//! A worker that also imports `test:missing/thing`, which no host offers. The
//! payload is not read.
#![cfg(target_family = "wasm")]

use guests::types::Job;
use guests::{Attempt, Processor, done};

mod bindings {
    wit_bindgen::generate!({
        inline: "
            package test:missing;
            interface thing { answer: func() -> u32; }
            world wishful { import thing; }
        ",
    });
}

struct WantsImport;

impl Processor for WantsImport {
    async fn process(_job: Job) -> Attempt {
        done(bindings::test::missing::thing::answer().to_string())
    }
}

guests::worker::export!(WantsImport);
