//! An HTTP handler that sends its build's mark, waits a moment and sends it
//! again; tests make builds as they do of `marks`.
#![cfg(target_family = "wasm")]

use std::hint::black_box;

use spin_sdk::wasip3::clocks::monotonic_clock;
use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::types::{ErrorCode, Fields, Request, Response};
use spin_sdk::wasip3::{wit_bindgen, wit_future, wit_stream};

/// In nanoseconds.
const MOMENT_NS: u64 = 30_000_000;
static MARK: &str = "MARK:0000000000000000";

fn mark() -> Vec<u8> {
    black_box(MARK).as_bytes()[5..].to_vec()
}

struct HttpMarks;

impl Guest for HttpMarks {
    async fn handle(_request: Request) -> Result<Response, ErrorCode> {
        let (mut body, body_reader) = wit_stream::new();
        let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
        let (response, _sent) = Response::new(Fields::new(), Some(body_reader), trailers_reader);
        wit_bindgen::spawn(async move {
            body.write_all(mark()).await;
            monotonic_clock::wait_for(MOMENT_NS).await;
            body.write_all(mark()).await;
            drop(body);
            let _ = trailers.write(Ok(None)).await;
        });
        Ok(response)
    }
}

spin_sdk::wasip3::http::service::export!(HttpMarks);
