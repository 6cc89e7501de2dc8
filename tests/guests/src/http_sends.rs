//! An HTTP handler that sends as many jobs as its query says in one call, and
//! answers with what became of each, as JSON: the second has no id, the third
//! names a queue that is not there.
#![cfg(target_family = "wasm")]

use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::types::{ErrorCode, Fields, Request, Response};
use spin_sdk::wasip3::{wit_bindgen, wit_future, wit_stream};

use bindings::orchestrator::pipeline::queue::{self, SendError};
use bindings::orchestrator::pipeline::types::Message;

mod bindings {
    spin_sdk::wit_bindgen::generate!({
        path: "../../wit",
        world: "ingest",
        runtime_path: "::spin_sdk::wit_bindgen::rt",
        generate_all,
    });
}

fn message(place: usize) -> Message {
    Message {
        id: match place {
            1 => String::new(),
            place => format!("many{place}"),
        },
        job_type: "many".to_owned(),
        payload: place.to_string().into_bytes(),
        content_type: "application/json".to_owned(),
        properties: Vec::new(),
        delay_ms: None,
        queue: (place == 2).then(|| "nowhere".to_owned()),
        traceparent: None,
    }
}

struct HttpSends;

impl Guest for HttpSends {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_default();
        let count = path
            .split_once('?')
            .and_then(|(_, query)| query.parse().ok());
        let messages = (0..count.unwrap_or(0)).map(message).collect();
        let ends: Vec<String> = queue::send_many(messages)
            .await
            .into_iter()
            .map(|answer| match answer {
                Ok(receipt) => receipt.id,
                Err(SendError::Invalid(_)) => "invalid".to_owned(),
                Err(SendError::Full) => "full".to_owned(),
                Err(SendError::Unavailable(why)) => why,
            })
            .collect();
        let (mut body, body_reader) = wit_stream::new();
        let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
        let (response, _sent) = Response::new(Fields::new(), Some(body_reader), trailers_reader);
        wit_bindgen::spawn(async move {
            body.write_all(serde_json::json!(ends).to_string().into_bytes())
                .await;
            drop(body);
            let _ = trailers.write(Ok(None)).await;
        });
        Ok(response)
    }
}

spin_sdk::wasip3::http::service::export!(HttpSends);
