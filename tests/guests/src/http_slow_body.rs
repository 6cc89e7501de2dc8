//! An HTTP handler that answers 200 at once, sends `begin`, and lets the rest of
//! the body, `end`, wait for an hour.
#![cfg(target_family = "wasm")]

use spin_sdk::wasip3::clocks::monotonic_clock;
use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::types::{ErrorCode, Fields, Request, Response};
use spin_sdk::wasip3::{wit_bindgen, wit_future, wit_stream};

/// In nanoseconds.
const HOUR_NS: u64 = 3_600_000_000_000;

struct HttpSlowBody;

impl Guest for HttpSlowBody {
    async fn handle(_request: Request) -> Result<Response, ErrorCode> {
        let (mut body, body_reader) = wit_stream::new();
        let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
        let (response, _sent) = Response::new(Fields::new(), Some(body_reader), trailers_reader);
        wit_bindgen::spawn(async move {
            body.write_all(b"begin".to_vec()).await;
            monotonic_clock::wait_for(HOUR_NS).await;
            body.write_all(b"end".to_vec()).await;
            drop(body);
            let _ = trailers.write(Ok(None)).await;
        });
        Ok(response)
    }
}

spin_sdk::wasip3::http::service::export!(HttpSlowBody);
