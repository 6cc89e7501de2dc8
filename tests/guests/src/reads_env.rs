//! Returns what it can see of the host, as JSON: `{"env": {"NAME": "value"},
//! "args": ["..."], "directories": 0, "greeting": "..."}`, where `directories`
//! counts the directories it was given and `greeting` is its variable of that
//! name, or null. The payload is not read.
#![cfg(target_family = "wasm")]

use std::collections::BTreeMap;

use serde_json::json;
use spin_sdk::wasip3::filesystem::preopens;

use config::wasi::config::store;
use guests::types::Job;
use guests::{Attempt, Processor, done_json};

mod config {
    wit_bindgen::generate!({
        inline: "
            package wasi:config@0.2.0-rc.1;
            interface store {
                variant error { upstream(string), io(string) }
                get: func(key: string) -> result<option<string>, error>;
            }
            world reader { import store; }
        ",
        generate_all,
    });
}

struct ReadsEnv;

impl Processor for ReadsEnv {
    async fn process(_job: Job) -> Attempt {
        let env: BTreeMap<_, _> = std::env::vars().collect();
        let args: Vec<_> = std::env::args().collect();
        let greeting = match store::get("greeting") {
            Ok(value) => json!(value),
            Err(error) => json!(format!("{error:?}")),
        };
        done_json(&json!({
            "env": env,
            "args": args,
            "directories": preopens::get_directories().len(),
            "greeting": greeting,
        }))
    }
}

guests::worker::export!(ReadsEnv);
