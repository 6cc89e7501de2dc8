//! An HTTP handler that waits as many milliseconds as its query says (`?250`; an
//! hour if it says nothing), then answers 200 with an empty body.
#![cfg(target_family = "wasm")]

use spin_sdk::wasip3::clocks::monotonic_clock;
use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::types::{ErrorCode, Fields, Request, Response};
use spin_sdk::wasip3::wit_future;

/// In milliseconds.
const HOUR_MS: u64 = 3_600_000;
/// In nanoseconds.
const MILLI_NS: u64 = 1_000_000;

struct HttpSleeps;

impl Guest for HttpSleeps {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_default();
        let ms = path
            .split_once('?')
            .and_then(|(_, query)| query.parse().ok());
        monotonic_clock::wait_for(ms.unwrap_or(HOUR_MS) * MILLI_NS).await;
        let (_trailers, trailers_reader) = wit_future::new(|| Ok(None));
        let (response, _sent) = Response::new(Fields::new(), None, trailers_reader);
        Ok(response)
    }
}

spin_sdk::wasip3::http::service::export!(HttpSleeps);
