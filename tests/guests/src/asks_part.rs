//! A worker that has a part of it tell something (see `part`), and returns that
//! as JSON. The payload is not read.
#![cfg(target_family = "wasm")]

use serde_json::json;

use guests::types::Job;
use guests::{Attempt, Processor, done_json};

mod bindings {
    wit_bindgen::generate!({
        inline: "
            package test:parts@1.0.0;
            interface teller { tell: async func() -> list<string>; }
            world whole { import teller; }
        ",
    });
}

struct AsksPart;

impl Processor for AsksPart {
    async fn process(_job: Job) -> Attempt {
        done_json(&json!(bindings::test::parts::teller::tell().await))
    }
}

guests::worker::export!(AsksPart);
