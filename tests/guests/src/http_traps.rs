//! An HTTP handler that panics, with the path as its last words.
#![cfg(target_family = "wasm")]

use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::types::{ErrorCode, Request, Response};

struct HttpTraps;

impl Guest for HttpTraps {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        panic!("{:?}", request.get_path_with_query());
    }
}

spin_sdk::wasip3::http::service::export!(HttpTraps);
