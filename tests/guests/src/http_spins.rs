//! An HTTP handler that never ends and never yields.
#![cfg(target_family = "wasm")]

use std::hint::black_box;

use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::types::{ErrorCode, Request, Response};

struct HttpSpins;

impl Guest for HttpSpins {
    async fn handle(_request: Request) -> Result<Response, ErrorCode> {
        let mut turns: u64 = 0;
        loop {
            turns = black_box(turns.wrapping_add(1));
        }
    }
}

spin_sdk::wasip3::http::service::export!(HttpSpins);
