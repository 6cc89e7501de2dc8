//! The component's export and imports: WASI on one side, plain values on the
//! other.

use std::pin::pin;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::{Either, join, select};
use futures_util::stream::{self, StreamExt};
use orchestrator_queue::Message;
use orchestrator_servicebus::connection_string::Scheme;
use orchestrator_servicebus::refusal::ApiError;
use orchestrator_servicebus::sending::{Item, SendRequest};
use orchestrator_servicebus::wire::WireMessage;
use spin_sdk::variables;
use spin_sdk::wasip3::clocks::monotonic_clock;
use spin_sdk::wasip3::http::client;
use spin_sdk::wasip3::http::types::{
    self as http, ErrorCode, Fields, Method, Request, RequestOptions, Response,
};
use spin_sdk::wasip3::random::insecure::get_insecure_random_u64;
use spin_sdk::wasip3::{wit_future, wit_stream};
use spin_sdk::wit_bindgen::StreamResult;

use crate::batches::{self, Ready};
use crate::limits;
use crate::settings::{self, Settings};
use crate::tries::{self, DEADLINE, Failure, TRY_MAX, Tries};

use bindings::exports::orchestrator::pipeline::queue::{Guest, Receipt, SendError};
use bindings::orchestrator::pipeline::types;

/// Requests of one call on their way at the same time: enough to hide a round
/// trip behind the next.
const REQUESTS_IN_FLIGHT_MAX: usize = 4;
/// Largest answer read, in bytes: a refusal's text is far shorter.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// What is read at once of an answer, in bytes.
const ANSWER_BYTES_FIRST: usize = 4 * 1024;

mod bindings {
    spin_sdk::wit_bindgen::generate!({
        path: "../../wit",
        world: "queue-client",
        runtime_path: "::spin_sdk::wit_bindgen::rt",
        generate_all,
    });
}

struct ServiceBusQueue;

mod export {
    #![expect(unsafe_code, reason = "generated glue crosses the component boundary")]
    use super::{ServiceBusQueue, bindings};
    bindings::export!(ServiceBusQueue with_types_in bindings);
}

type Answer = Result<Receipt, SendError>;

impl Guest for ServiceBusQueue {
    async fn send(message: types::Message) -> Answer {
        let mut answers = send_all(vec![message]).await;
        answers.pop().unwrap_or_else(|| Err(unanswered()))
    }

    async fn send_many(messages: Vec<types::Message>) -> Vec<Answer> {
        if let Err(why) = limits::check_count(messages.len()) {
            let refused = |_| Err(SendError::Invalid(why.clone()));
            return messages.iter().map(refused).collect();
        }
        send_all(messages).await
    }
}

fn unanswered() -> SendError {
    SendError::Unavailable("the queue gave no answer".to_owned())
}

/// One message's place, id, and whether it named its queue itself.
struct Sender {
    id: String,
    is_named: bool,
}

async fn send_all(messages: Vec<types::Message>) -> Vec<Answer> {
    let deadline = Instant::now() + DEADLINE;
    let settings = match settings().await {
        Ok(settings) => settings,
        Err(why) => {
            let unset = |_| Err(SendError::Unavailable(why.clone()));
            return messages.iter().map(unset).collect();
        }
    };
    let mut answers: Vec<Option<Answer>> = messages.iter().map(|_| None).collect();
    let mut senders = Vec::with_capacity(messages.len());
    let mut ready = Vec::with_capacity(messages.len());
    for (place, message) in messages.into_iter().enumerate() {
        senders.push(Sender {
            id: message.id.clone(),
            is_named: message.queue.is_some(),
        });
        match prepare(settings, message) {
            Ok((queue, item)) => ready.push(Ready { place, queue, item }),
            Err(why) => answers[place] = Some(Err(SendError::Invalid(why))),
        }
    }
    let sent: Vec<Vec<(Ready, Result<(), Failure>)>> = stream::iter(batches::batches(ready))
        .map(|batch| send_batch(settings, batch, deadline))
        .buffer_unordered(REQUESTS_IN_FLIGHT_MAX)
        .collect()
        .await;
    for (ready, sent) in sent.into_iter().flatten() {
        let sender = &senders[ready.place];
        answers[ready.place] = Some(match sent {
            Ok(()) => Ok(Receipt {
                id: sender.id.clone(),
                // REST does not say.
                duplicate: false,
            }),
            Err(failure) => Err(told(failure.told(&ready.queue, sender.is_named))),
        });
    }
    answers
        .into_iter()
        .map(|answer| answer.unwrap_or_else(|| Err(unanswered())))
        .collect()
}

/// The settings, read once: variables stay as they are while an instance lives.
async fn settings() -> Result<&'static Settings, String> {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    if let Some(settings) = SETTINGS.get() {
        return Ok(settings);
    }
    let connection = variable(settings::CONNECTION_STRING).await?;
    let endpoint = variable(settings::ENDPOINT).await?;
    let queue = variable(settings::QUEUE).await?;
    let read = Settings::read(connection.as_deref(), endpoint.as_deref(), queue.as_deref())
        .map_err(|error| error.to_string())?;
    // Another call may have been first; it read the same.
    Ok(SETTINGS.get_or_init(|| read))
}

async fn variable(name: &str) -> Result<Option<String>, String> {
    match variables::get(name).await {
        Ok(value) => Ok(Some(value)),
        Err(variables::Error::Undefined(_)) => Ok(None),
        Err(error) => Err(format!(
            "variable `{name}` cannot be read: {error}; is `variables` in `inherit_configuration` of the dependency that sends?"
        )),
    }
}

/// A message as it goes out, and to where.
fn prepare(settings: &Settings, message: types::Message) -> Result<(String, Item), String> {
    let queue = message.queue.or_else(|| settings.queue.clone());
    let queue = queue.ok_or_else(|| {
        format!(
            "no queue to send to: name one, or set the variable `{}`",
            settings::QUEUE
        )
    })?;
    let message = Message {
        id: message.id,
        job_type: message.job_type,
        payload: message.payload.into(),
        content_type: message.content_type,
        properties: message
            .properties
            .into_iter()
            .map(|property| (property.name, property.value))
            .collect(),
        traceparent: message.traceparent,
        delay: Duration::from_millis(message.delay_ms.unwrap_or(0)),
        time_to_live: None,
        envelope: bytes::Bytes::new(),
    };
    limits::check(&message)?;
    let wire = WireMessage::from_message(message, SystemTime::now());
    Ok((queue, wire.into()))
}

fn told(error: orchestrator_queue::SendError) -> SendError {
    match error {
        orchestrator_queue::SendError::Invalid(why) => SendError::Invalid(why),
        orchestrator_queue::SendError::Full { .. } => SendError::Full,
        orchestrator_queue::SendError::Unavailable(why) => SendError::Unavailable(why),
    }
}

/// Sends what belongs together; one bad message spoils it, and then each is
/// sent alone, to be told apart.
async fn send_batch(
    settings: &Settings,
    batch: Vec<Ready>,
    deadline: Instant,
) -> Vec<(Ready, Result<(), Failure>)> {
    let sent = request(settings, &batches::request(&batch), deadline).await;
    let is_spoiled = sent.as_ref().is_err_and(Failure::spoils_batch);
    let mut ends = Vec::with_capacity(batch.len());
    let is_alone = batch.len() == 1;
    for ready in batch {
        let sent = if is_spoiled && !is_alone {
            let alone = batches::request(std::slice::from_ref(&ready));
            request(settings, &alone, deadline).await
        } else {
            sent.clone()
        };
        ends.push((ready, sent));
    }
    ends
}

/// One request, repeated as long as that may help. A message whose answer got
/// lost is sent again under the same id.
async fn request(
    settings: &Settings,
    request: &SendRequest,
    deadline: Instant,
) -> Result<(), Failure> {
    let mut tries = Tries::default();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let failure = match within(left.min(TRY_MAX), exchange(settings, request)).await {
            Some(Ok(())) => return Ok(()),
            Some(Err(failure)) => failure,
            None => Failure::Service(ApiError::Unreachable("no answer in time".to_owned())),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        match tries.next(&failure, left, get_insecure_random_u64()) {
            Some(pause) => monotonic_clock::wait_for(nanos(pause)).await,
            None => return Err(failure),
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What the future gives, if it does in time; it is dropped otherwise.
async fn within<T>(time: Duration, future: impl Future<Output = T>) -> Option<T> {
    match select(pin!(future), pin!(monotonic_clock::wait_for(nanos(time)))).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}

/// One request and its answer; any status but success is a failure.
async fn exchange(settings: &Settings, request: &SendRequest) -> Result<(), Failure> {
    let origin = settings.endpoint.origin();
    let (body, body_reader) = wit_stream::new();
    let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
    let (outgoing, _sent) = Request::new(
        headers(settings, request)?,
        Some(body_reader),
        trailers_reader,
        Some(options()),
    );
    address(settings, request, &outgoing)?;
    let write = async {
        let mut body = body;
        // A service that answers before it has read all wants no more of it.
        body.write_all(request.body.to_vec()).await;
        drop(body);
        let _ = trailers.write(Ok(None)).await;
    };
    let (answer, ()) = join(client::send(outgoing), write).await;
    let answer = answer.map_err(|error| failure(&origin, error))?;
    let status = answer.get_status_code();
    if (200..300).contains(&status) {
        return Ok(());
    }
    let retry_after = answer.get_headers().get("retry-after").into_iter().next();
    let retry_after = retry_after.and_then(|value| String::from_utf8(value).ok());
    let body = read_body(answer).await;
    Err(Failure::Service(ApiError::of(
        status,
        retry_after.as_deref(),
        &body,
    )))
}

fn headers(settings: &Settings, request: &SendRequest) -> Result<Fields, Failure> {
    let authorization = settings.authorization(SystemTime::now());
    let own = [
        ("authorization", authorization.expose()),
        // Without it the body would go out in chunks.
        ("content-length", &request.body.len().to_string()),
    ];
    let message = request.headers.iter();
    let headers: Vec<_> = message
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .chain(own)
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
        .collect();
    Fields::from_list(&headers).map_err(|error| {
        Failure::Unwritable(format!(
            "a property of the message cannot be a header: {error}"
        ))
    })
}

/// Limits inside the host, which ends a request that hangs where no timer here
/// can; a host without them is right as well.
fn options() -> RequestOptions {
    let options = RequestOptions::new();
    let limit = Some(nanos(TRY_MAX));
    let _ = options.set_connect_timeout(limit);
    let _ = options.set_first_byte_timeout(limit);
    let _ = options.set_between_bytes_timeout(limit);
    options
}

fn address(settings: &Settings, request: &SendRequest, outgoing: &Request) -> Result<(), Failure> {
    let scheme = match settings.endpoint.scheme {
        Scheme::Http => http::Scheme::Http,
        Scheme::Https => http::Scheme::Https,
    };
    let path = format!("/{}", request.path);
    outgoing
        .set_method(&Method::Post)
        .and_then(|()| outgoing.set_scheme(Some(&scheme)))
        .and_then(|()| outgoing.set_authority(Some(&settings.endpoint.authority)))
        .and_then(|()| outgoing.set_path_with_query(Some(&path)))
        .map_err(|()| {
            let origin = settings.endpoint.origin();
            Failure::Unwritable(format!("`{origin}{path}` is no address"))
        })
}

fn failure(origin: &str, error: ErrorCode) -> Failure {
    match error {
        ErrorCode::HttpRequestDenied => Failure::Forbidden(tries::forbidden(origin)),
        // So Spin answers for what a dependency did not inherit.
        ErrorCode::InternalError(Some(why)) if why.contains("not permitted") => {
            Failure::Forbidden(tries::forbidden(origin))
        }
        error => Failure::Service(ApiError::Unreachable(format!("{origin}: {error}"))),
    }
}

async fn read_body(answer: Response) -> Vec<u8> {
    let (_consumed, consumed_reader) = wit_future::new(|| Ok(()));
    let (mut stream, _trailers) = Response::consume_body(answer, consumed_reader);
    let mut body = Vec::with_capacity(ANSWER_BYTES_FIRST);
    while body.len() < ANSWER_BYTES_MAX {
        if body.len() == body.capacity() {
            body.reserve(body.len());
        }
        let status;
        (status, body) = stream.read(body).await;
        if !matches!(status, StreamResult::Complete(_)) {
            break;
        }
    }
    body
}
