//! Sending: what waits at the same time goes out as one batch.
//!
//! When a request is free, what waits is sent at once, alone or not; while all
//! are busy, more comes together. Nothing waits for company.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use orchestrator_queue::{Message, SendError};
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::api::{Api, ApiError};
use super::protocol::CONTENT_TYPE;
use crate::properties::PropertyValue;
use crate::wire::WireMessage;

/// Batches on their way at one time: enough to hide a round trip behind the next.
const BATCHES_IN_FLIGHT_MAX: usize = 4;
/// Messages that may wait to be sent; beyond that their senders wait.
const WAITING_MAX: usize = 4_096;
/// Messages of one batch.
const BATCH_MESSAGES_MAX: usize = 256;
/// Bytes of one batch: the service's limit on its small tiers, less room for
/// what it counts beside the body.
const BATCH_BYTES_MAX: usize = 240 * 1024;
/// How long a send may take with all its retries: less than a client waits.
const SEND_DEADLINE: Duration = Duration::from_secs(10);
/// First and longest wait between two tries.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// One message that waits to be sent.
struct Waiting {
    queue: Arc<str>,
    item: Item,
    sent: oneshot::Sender<Result<(), SendError>>,
}

/// A message in the form that it is sent in.
enum Item {
    /// Text: an element of a batch.
    Text(String),
    /// Other bytes: a request of its own.
    Bytes(Box<WireMessage>),
}

/// Sends messages of one namespace. Clones share it.
#[derive(Clone)]
pub struct Sender(mpsc::Sender<Waiting>);

impl Sender {
    /// Starts sending; ends with its last handle.
    pub fn start(api: Arc<Api>) -> Self {
        let (sender, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(run(api, waiting));
        Self(sender)
    }

    /// Sends a queue's message.
    pub async fn send_message(&self, queue: &Arc<str>, message: Message) -> Result<(), SendError> {
        self.send(queue, WireMessage::from_message(message, SystemTime::now()))
            .await
    }

    /// Sends a message; accepted by the service when this returns `Ok`.
    pub async fn send(&self, queue: &Arc<str>, message: WireMessage) -> Result<(), SendError> {
        let (sent, answer) = oneshot::channel();
        let waiting = Waiting {
            queue: queue.clone(),
            item: item(message),
            sent,
        };
        let stopped = || SendError::Unavailable("the host is stopping".to_owned());
        self.0.send(waiting).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

fn item(message: WireMessage) -> Item {
    let Ok(body) = std::str::from_utf8(&message.body) else {
        return Item::Bytes(Box::new(message));
    };
    let mut properties: Map<String, Value> = message
        .custom
        .iter()
        .map(|(name, value)| (name.clone(), value.to_json()))
        .collect();
    let mut broker: Value =
        serde_json::from_str(&message.broker.to_header()).unwrap_or_else(|_| json!({}));
    if let Some(content_type) = &message.content_type {
        // The batch form is not known to carry it: as a broker property for
        // who knows that one, and as a custom one for every other.
        broker["ContentType"] = Value::String(content_type.clone());
        let value = PropertyValue::String(content_type.clone());
        properties.insert(CONTENT_TYPE.to_owned(), value.to_json());
    }
    Item::Text(
        json!({ "Body": body, "BrokerProperties": broker, "UserProperties": properties })
            .to_string(),
    )
}

async fn run(api: Arc<Api>, mut waiting: mpsc::Receiver<Waiting>) {
    let requests = Arc::new(Semaphore::new(BATCHES_IN_FLIGHT_MAX));
    let mut left: Option<Waiting> = None;
    loop {
        // A request first, then what has gathered meanwhile.
        let Ok(request) = requests.clone().acquire_owned().await else {
            return;
        };
        let first = match left.take() {
            Some(first) => first,
            None => match waiting.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let mut batch = vec![first];
        while batch.len() < BATCH_MESSAGES_MAX
            && let Ok(next) = waiting.try_recv()
        {
            if !fits(&batch, &next) {
                left = Some(next);
                break;
            }
            batch.push(next);
        }
        let api = api.clone();
        tokio::spawn(async move {
            send(&api, batch).await;
            drop(request);
        });
    }
}

fn fits(batch: &[Waiting], next: &Waiting) -> bool {
    let bytes = |waiting: &Waiting| match &waiting.item {
        Item::Text(text) => Some(text.len() + 1),
        Item::Bytes(_) => None,
    };
    let total: Option<usize> = batch.iter().chain([next]).map(bytes).sum();
    total.is_some_and(|total| total <= BATCH_BYTES_MAX) && batch[0].queue == next.queue
}

/// Sends what belongs together and tells each sender its fate.
async fn send(api: &Api, batch: Vec<Waiting>) {
    let deadline = Instant::now() + SEND_DEADLINE;
    let sent = request(api, &batch, deadline).await;
    // One bad message spoils its batch: then each is sent alone, to be told apart.
    let is_spoiled = matches!(sent, Err(ApiError::Refused { .. } | ApiError::Quota { .. }));
    if is_spoiled && batch.len() > 1 {
        for one in batch {
            let sent = request(api, std::slice::from_ref(&one), deadline).await;
            tell(one, sent);
        }
        return;
    }
    for one in batch {
        tell(one, sent.clone());
    }
}

fn tell(waiting: Waiting, sent: Result<(), ApiError>) {
    let queue = &waiting.queue;
    let sent = sent.map_err(|error| match error {
        ApiError::Refused { .. } => SendError::Invalid(error.to_string()),
        ApiError::Quota { .. } => SendError::Full {
            queue: queue.to_string(),
            held_bytes: 0,
            limit_bytes: 0,
        },
        other => SendError::Unavailable(other.to_string()),
    });
    // Who waited may have gone; the message is sent all the same.
    let _ = waiting.sent.send(sent);
}

/// One request, repeated as long as that may help. A message whose answer got
/// lost is sent again under the same id.
async fn request(api: &Api, batch: &[Waiting], deadline: Instant) -> Result<(), ApiError> {
    let mut wait = RETRY_MIN;
    loop {
        let error = match once(api, batch).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let pause = match &error {
            ApiError::Unreachable(_) => wait,
            ApiError::Busy { retry_after, .. } => retry_after.unwrap_or(wait),
            _ => return Err(error),
        };
        let pause = pause.mul_f64(1.0 + rand::random::<f64>() / 4.0);
        if Instant::now() + pause >= deadline {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

async fn once(api: &Api, batch: &[Waiting]) -> Result<(), ApiError> {
    let Some(first) = batch.first() else {
        return Ok(());
    };
    if let Item::Bytes(message) = &first.item {
        return api.send(&first.queue, (**message).clone()).await;
    }
    let texts: Vec<&str> = batch
        .iter()
        .filter_map(|waiting| match &waiting.item {
            Item::Text(text) => Some(text.as_str()),
            Item::Bytes(_) => None,
        })
        .collect();
    let items = Bytes::from(format!("[{}]", texts.join(",")));
    api.send_batch(&first.queue, items).await
}
