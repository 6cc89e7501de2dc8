//! The component's exports and imports: WASI on one side, plain values on the
//! other.

use spin_sdk::wasip3::clocks::system_clock;
use spin_sdk::wasip3::exports::http::handler::Guest;
use spin_sdk::wasip3::http::types::{ErrorCode, Fields, Method, Request, Response};
use spin_sdk::wasip3::random::random;
use spin_sdk::wasip3::{wit_bindgen, wit_future, wit_stream};
use spin_sdk::wit_bindgen::StreamResult;

use crate::answer::Answer;
use crate::faults::Faults;
use crate::head::Head;
use crate::problem::Problem;
use crate::request::{BODY_BYTES_MAX, JobRequest, new_job_id};

use bindings::orchestrator::pipeline::queue::{self, SendError};
use bindings::orchestrator::pipeline::types::{Message, Property};

/// Room made for a body of unknown length, in bytes: most jobs fit at once.
const BODY_BYTES_FIRST: usize = 8 * 1024;
/// Random bytes in a UUIDv7.
const ID_RANDOM_BYTES: usize = 10;

mod bindings {
    spin_sdk::wit_bindgen::generate!({
        path: "../../wit",
        world: "ingest",
        runtime_path: "::spin_sdk::wit_bindgen::rt",
        generate_all,
    });
}

// `spin_sdk::http_service` would first turn the request into `http` types, and
// answer 500 by itself where that fails; this handler reads the raw ones.
struct Ingest;

spin_sdk::wasip3::http::service::export!(Ingest);

impl Guest for Ingest {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query();
        let answer = match ingest(request).await {
            Ok(job_id) => Answer::accepted(&job_id),
            Err(problem) => problem.answer(path.as_deref().and_then(|path| path.split('?').next())),
        };
        respond(answer)
    }
}

/// Sends the job that `request` carries, and returns its id.
async fn ingest(request: Request) -> Result<String, Problem> {
    let is_post = matches!(request.get_method(), Method::Post);
    let head = Head::read(is_post, &request.get_headers().copy_all())?;
    let body = read_body(request, head.content_length).await?;
    let job = JobRequest::parse(&body).map_err(Problem::Invalid)?;
    let message = Message {
        id: match job.job_id {
            Some(id) => id.into_owned(),
            None => fresh_job_id(),
        },
        job_type: job.job_type.into_owned(),
        payload: job.payload.as_bytes().to_vec(),
        content_type: "application/json".to_owned(),
        properties: job
            .properties
            .into_iter()
            .map(|(name, value)| Property { name, value })
            .collect(),
        delay_ms: (job.delay_ms > 0).then_some(job.delay_ms),
        queue: None,
        traceparent: head.traceparent,
    };
    let job_id = message.id.clone();
    match queue::send(message).await {
        Ok(_receipt) => Ok(job_id),
        Err(SendError::Invalid(reason)) => Err(Problem::Invalid(Faults::of_body(format_args!(
            "the queue refused the job: {reason}"
        )))),
        Err(SendError::Full) => Err(Problem::QueueFull),
        Err(SendError::Unavailable(reason)) => Err(Problem::QueueUnavailable { job_id, reason }),
    }
}

/// Reads the body once, into one buffer, and no further than its limit.
///
/// A body that its client broke off ends early here; being the beginning of a
/// JSON object, it is then refused as malformed.
async fn read_body(request: Request, content_length: Option<usize>) -> Result<Vec<u8>, Problem> {
    let (_consumed, consumed_reader) = wit_future::new(|| Ok(()));
    let (mut stream, _trailers) = Request::consume_body(request, consumed_reader);
    let expected = content_length.unwrap_or(BODY_BYTES_MAX + 1);
    let mut body = Vec::with_capacity(content_length.unwrap_or(BODY_BYTES_FIRST));
    while body.len() < expected {
        if body.len() == body.capacity() {
            body.reserve(body.len());
        }
        let status;
        (status, body) = stream.read(body).await;
        if !matches!(status, StreamResult::Complete(_)) {
            break;
        }
    }
    if body.len() > BODY_BYTES_MAX {
        return Err(Problem::TooLarge);
    }
    Ok(body)
}

fn fresh_job_id() -> String {
    let now = system_clock::now();
    let seconds = u64::try_from(now.seconds).unwrap_or(0);
    let now_ms = seconds * 1_000 + u64::from(now.nanoseconds / 1_000_000);
    let mut bytes = [0; ID_RANDOM_BYTES];
    let random = random::get_random_bytes(ID_RANDOM_BYTES as u64);
    bytes.copy_from_slice(&random);
    new_job_id(now_ms, &bytes)
}

fn respond(answer: Answer) -> Result<Response, ErrorCode> {
    let headers: Vec<_> = answer
        .headers
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into_bytes()))
        .collect();
    let headers = Fields::from_list(&headers)
        .map_err(|error| ErrorCode::InternalError(Some(error.to_string())))?;
    let (mut body, body_reader) = wit_stream::new();
    let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
    let (response, _sent) = Response::new(headers, Some(body_reader), trailers_reader);
    response
        .set_status_code(answer.status)
        .map_err(|()| ErrorCode::InternalError(Some("the status is out of range".to_owned())))?;
    // Whoever reads the body does so after this handler has returned. A client
    // that went away reads no more of it: nothing is left to do then.
    wit_bindgen::spawn(async move {
        body.write_all(answer.body).await;
        drop(body);
        let _ = trailers.write(Ok(None)).await;
    });
    Ok(response)
}
