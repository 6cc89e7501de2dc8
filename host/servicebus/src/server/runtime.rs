//! Operations on messages.
//!
//! Unlike the service: a batch is not all or nothing (each message has its own
//! fate, and the first refusal is answered; a repetition under the same ids is
//! safe where duplicates are detected), and a scheduled message keeps its
//! sequence number when it becomes due.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use hyper::body::Incoming;
use orchestrator_queue::local::Queue;
use orchestrator_queue::{
    Lock, Message, Output, PAYLOAD_BYTES_MAX, RenewError, SettleError, Settlement,
};
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::answer::{Answer, Refusal};
use super::dead::DeadDelivery;
use super::path::{Entity, Locked, Runtime};
use super::{Call, Server, at_ms, read};
use crate::broker_properties::{BROKER_PROPERTIES_BYTES_MAX, BrokerProperties};
use crate::properties::{Leniency, PROPERTY_TEXT_BYTES_MAX, PropertyValue, is_custom};
use crate::sending::BATCH;
use crate::wire::WireMessage;

/// Name of the header with what the broker knows.
pub const BROKER_PROPERTIES: &str = "brokerproperties";
/// How long a poll waits that does not say, and at most: what clients expect.
const POLL_MAX: Duration = Duration::from_secs(60);
/// How long a poll that wants no wait is given when there is something to have.
const POLL_MIN: Duration = Duration::from_secs(1);
/// Largest batch, in bytes: the service's limit over HTTP on its largest tier.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Messages of one batch: more than fit into its bytes but empty ones.
const BATCH_MESSAGES_MAX: usize = 4_500;
/// All headers of one message, in bytes: the service's limit.
const HEADERS_BYTES_MAX: usize = 64 * 1024;
/// State of every message that can be received.
const ACTIVE: &str = "Active";

/// One item of a batch.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    body: String,
    #[serde(default)]
    broker_properties: serde_json::Value,
    #[serde(default)]
    user_properties: serde_json::Map<String, serde_json::Value>,
}

impl Server {
    pub(super) async fn run(
        &self,
        entity: &Entity,
        operation: Runtime,
        call: &Call,
        body: Incoming,
        stop: &CancellationToken,
    ) -> Result<Answer, Refusal> {
        let queue = self
            .queues
            .find(&entity.queue)
            .ok_or_else(|| Refusal::gone(&entity.queue))?;
        match operation {
            Runtime::Send => send(&queue, call, body).await,
            Runtime::PeekLock if entity.is_dead => {
                let taken = self.take_dead(&queue, call, stop).await?;
                Ok(taken.map_or_else(Answer::no_content, |dead| {
                    let path = format!("{}/$DeadLetterQueue", entity.queue);
                    let location = location(call, &path, dead.dead.sequence, dead.token);
                    dead_message(dead, Some(location), StatusCode::CREATED)
                }))
            }
            Runtime::PeekLock => {
                let taken = take(&queue, call, stop).await?;
                Ok(taken.map_or_else(Answer::no_content, |delivery| {
                    let lock = &delivery.lock;
                    let location = location(call, &entity.queue, lock.sequence, lock.token);
                    let broker = BrokerProperties {
                        lock_token: Some(lock.token),
                        locked_until: Some(at_ms(lock.locked_until)),
                        ..of_delivery(lock.sequence, delivery.delivery_count, delivery.enqueued_at)
                    };
                    message(
                        delivery.message,
                        broker,
                        Some(location),
                        StatusCode::CREATED,
                    )
                }))
            }
            Runtime::ReceiveAndDelete if entity.is_dead => {
                let Some(dead) = self.take_dead(&queue, call, stop).await? else {
                    return Ok(Answer::no_content());
                };
                let number = dead.dead.sequence.to_string();
                match self.dead.complete(&queue, &number, dead.token).await? {
                    Ok(()) => Ok(dead_message(dead, None, StatusCode::OK)),
                    // Someone else had it meanwhile; the client asks again.
                    Err(_) => Ok(Answer::no_content()),
                }
            }
            Runtime::ReceiveAndDelete => {
                let Some(delivery) = take(&queue, call, stop).await? else {
                    return Ok(Answer::no_content());
                };
                let (sequence, count) = (delivery.lock.sequence, delivery.delivery_count);
                settle(&queue, delivery.lock, complete()).await?;
                let broker = of_delivery(sequence, count, delivery.enqueued_at);
                Ok(message(delivery.message, broker, None, StatusCode::OK))
            }
            Runtime::Complete(locked) if entity.is_dead => {
                let token = token(&locked)?;
                let done = self.dead.complete(&queue, &locked.message, token).await?;
                settled(done)
            }
            Runtime::Unlock(locked) if entity.is_dead => {
                settled(self.dead.unlock(&queue, &locked.message, token(&locked)?))
            }
            Runtime::Renew(locked) if entity.is_dead => {
                settled(self.dead.renew(&queue, &locked.message, token(&locked)?))
            }
            Runtime::Complete(locked) => by_lock(&queue, &locked, End::Complete).await,
            Runtime::Unlock(locked) => by_lock(&queue, &locked, End::Abandon).await,
            Runtime::Renew(locked) => by_lock(&queue, &locked, End::Renew).await,
        }
    }

    async fn take_dead(
        &self,
        queue: &Queue,
        call: &Call,
        stop: &CancellationToken,
    ) -> Result<Option<DeadDelivery>, Refusal> {
        let deadline = Instant::now() + poll(call)?;
        let taken = stop.run_until_cancelled(self.dead.receive(queue, deadline));
        Ok(taken.await.transpose()?.flatten())
    }
}

fn settled(done: Result<(), super::dead::LockLost>) -> Result<Answer, Refusal> {
    match done {
        Ok(()) => Ok(Answer::empty(StatusCode::OK)),
        Err(super::dead::LockLost) => Err(Refusal::lock_lost()),
    }
}

async fn send(queue: &Queue, call: &Call, body: Incoming) -> Result<Answer, Refusal> {
    let content_type = call
        .head
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .filter(|text| !text.is_empty());
    let is_batch = content_type.is_some_and(|text| {
        text.split(';')
            .next()
            .is_some_and(|essence| essence.trim().eq_ignore_ascii_case(BATCH))
    });
    let now = SystemTime::now();
    let messages = if is_batch {
        batch(&read(body, BATCH_BYTES_MAX).await?, now)?
    } else {
        let message = WireMessage {
            broker: sent_properties(&call.head.headers)?,
            custom: custom_properties(&call.head.headers)?,
            content_type: content_type.map(str::to_owned),
            body: read(body, PAYLOAD_BYTES_MAX).await?,
        };
        vec![checked(message)?.into_message(now)]
    };
    for sent in queue.send_many(messages).await {
        sent?;
    }
    Ok(Answer::empty(StatusCode::CREATED))
}

fn batch(body: &Bytes, now: SystemTime) -> Result<Vec<Message>, Refusal> {
    let bad = |error: &dyn std::fmt::Display| Refusal::bad_request(format!("the batch: {error}"));
    let items: Vec<Item> = serde_json::from_slice(body).map_err(|error| bad(&error))?;
    if items.len() > BATCH_MESSAGES_MAX {
        return Err(Refusal::quota(format!(
            "A batch may have {BATCH_MESSAGES_MAX} messages; this one has {}.",
            items.len()
        )));
    }
    let message = |item: Item| {
        let broker = match item.broker_properties {
            serde_json::Value::Null => BrokerProperties::default(),
            properties => {
                BrokerProperties::from_value(&properties, false).map_err(|error| bad(&error))?
            }
        };
        let mut custom = Vec::with_capacity(item.user_properties.len());
        for (name, value) in item.user_properties {
            let value = PropertyValue::from_json(&value).ok_or_else(|| {
                bad(&format!(
                    "property `{name}` is neither text, number, boolean nor date"
                ))
            })?;
            custom.push((name, value));
        }
        let message = WireMessage {
            content_type: broker.content_type.clone(),
            broker,
            custom,
            body: item.body.into(),
        };
        Ok(checked(message)?.into_message(now))
    };
    items.into_iter().map(message).collect()
}

/// Refuses what could not be received as it was sent.
fn checked(message: WireMessage) -> Result<WireMessage, Refusal> {
    let broker = &message.broker;
    if let (Some(session), Some(partition)) = (&broker.session_id, &broker.partition_key)
        && session != partition
    {
        return Err(Refusal::bad_request(
            "`SessionId` and `PartitionKey` differ; send one of them, or the same in both",
        ));
    }
    let mut total = bounded(
        "`BrokerProperties`",
        &broker.to_header(),
        BROKER_PROPERTIES_BYTES_MAX,
    )?;
    for (name, value) in &message.custom {
        let what = format!("property `{name}`");
        total += name.len() + bounded(&what, &value.to_header(), PROPERTY_TEXT_BYTES_MAX)?;
    }
    if total > HEADERS_BYTES_MAX {
        return Err(Refusal::bad_request(format!(
            "all properties together have {total} bytes as headers, more than the {HEADERS_BYTES_MAX} allowed; move them into the body"
        )));
    }
    Ok(message)
}

fn bounded(what: &str, header: &str, bytes_max: usize) -> Result<usize, Refusal> {
    let bytes = header.len();
    if bytes <= bytes_max {
        return Ok(bytes);
    }
    Err(Refusal::bad_request(format!(
        "{what} has {bytes} bytes as a header, more than the {bytes_max} allowed; move it into the body"
    )))
}

/// What a sender says to the broker.
fn sent_properties(headers: &HeaderMap) -> Result<BrokerProperties, Refusal> {
    match headers.get(BROKER_PROPERTIES) {
        Some(value) => BrokerProperties::parse_sent(&String::from_utf8_lossy(value.as_bytes()))
            .map_err(|error| Refusal::bad_request(error.to_string())),
        None => Ok(BrokerProperties::default()),
    }
}

/// Every header that is not HTTP's own. Unquoted text is taken as it is, which
/// the service's reference forbids and its examples do.
fn custom_properties(headers: &HeaderMap) -> Result<Vec<(String, PropertyValue)>, Refusal> {
    let bad = |name: &str, why: &dyn std::fmt::Display| {
        Refusal::bad_request(format!("property `{name}`: {why}"))
    };
    let names = headers.keys().map(HeaderName::as_str);
    names
        .filter(|name| is_custom(name))
        .map(|name| {
            let mut values = headers.get_all(name).iter();
            let text = values.next().map(|value| value.as_bytes());
            if values.next().is_some() {
                return Err(bad(name, &"it is given twice"));
            }
            let text = String::from_utf8_lossy(text.unwrap_or_default());
            let value = PropertyValue::parse(&text, Leniency::Lenient)
                .map_err(|error| bad(name, &error))?;
            Ok((name.to_owned(), value))
        })
        .collect()
}

fn poll(call: &Call) -> Result<Duration, Refusal> {
    match call.parameter("timeout") {
        Some(text) => text
            .parse()
            .map(|seconds| Duration::from_secs(seconds).min(POLL_MAX))
            .map_err(|_| Refusal::bad_request("`timeout` is not a number of seconds")),
        None => Ok(POLL_MAX),
    }
}

/// One delivery, or none within the time that the client waits. A client that
/// goes away while it waits takes nothing with it.
async fn take(
    queue: &Queue,
    call: &Call,
    stop: &CancellationToken,
) -> Result<Option<orchestrator_queue::Delivery>, Refusal> {
    let mut wait = poll(call)?;
    if wait.is_zero() {
        if queue.stats().await.ready == 0 {
            return Ok(None);
        }
        wait = POLL_MIN;
    }
    let receive = stop.run_until_cancelled(queue.receive(1));
    match tokio::time::timeout(wait, receive).await {
        Ok(Some(taken)) => Ok(taken?.pop()),
        Ok(None) | Err(_) => Ok(None),
    }
}

fn of_delivery(sequence: u64, count: u32, enqueued_at_ms: u64) -> BrokerProperties {
    BrokerProperties {
        delivery_count: Some(count),
        enqueued_sequence_number: Some(0),
        enqueued_time: Some(at_ms(enqueued_at_ms)),
        sequence_number: Some(sequence),
        state: Some(ACTIVE.to_owned()),
        ..BrokerProperties::default()
    }
}

/// A message as it is received. `known` is what the broker adds.
fn message(
    message: Message,
    known: BrokerProperties,
    location: Option<String>,
    status: StatusCode,
) -> Answer {
    let wire = WireMessage::from_message(message, SystemTime::now());
    let broker = BrokerProperties {
        delivery_count: known.delivery_count,
        enqueued_sequence_number: known.enqueued_sequence_number,
        enqueued_time: known.enqueued_time,
        sequence_number: known.sequence_number,
        state: known.state,
        lock_token: known.lock_token,
        locked_until: known.locked_until,
        // A session's messages are kept together by their partition.
        partition_key: wire
            .broker
            .partition_key
            .clone()
            .or_else(|| wire.broker.session_id.clone()),
        time_to_live_forever: true,
        scheduled_enqueue_time: None,
        ..wire.broker
    };
    let mut headers = HeaderMap::new();
    insert(&mut headers, BROKER_PROPERTIES, &broker.to_header());
    if let Some(location) = location {
        insert(&mut headers, "location", &location);
    }
    if let Some(content_type) = wire.content_type {
        insert(&mut headers, "content-type", &content_type);
    }
    for (name, value) in wire.custom {
        insert(&mut headers, &name, &value.to_header());
    }
    Answer::message(status, headers, wire.body)
}

fn dead_message(dead: DeadDelivery, location: Option<String>, status: StatusCode) -> Answer {
    let DeadDelivery {
        dead,
        token,
        locked_until,
        deliveries,
    } = dead;
    let count = dead.delivery_count + deliveries;
    let mut broker = of_delivery(dead.sequence, count, dead.enqueued_at);
    if location.is_some() {
        broker.lock_token = Some(token);
        broker.locked_until = Some(at_ms(locked_until));
    }
    let mut answer = message(dead.message, broker, location, status);
    for (name, text) in [
        ("deadletterreason", dead.dead_letter.reason),
        ("deadlettererrordescription", dead.dead_letter.description),
    ] {
        answer.add_header(name, &PropertyValue::String(text).to_header());
    }
    answer
}

/// A name or value that HTTP cannot carry is left out: the message is worth more.
fn insert(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
        headers.insert(name, value);
    }
}

fn location(call: &Call, path: &str, sequence: u64, token: Uuid) -> String {
    format!("{}/{path}/messages/{sequence}/{token}", call.base)
}

fn complete() -> Settlement {
    let output = Output::default();
    Settlement::Complete { output }
}

async fn settle(queue: &Queue, lock: Lock, settlement: Settlement) -> Result<(), Refusal> {
    match queue.settle(lock, settlement, None).await {
        Ok(()) => Ok(()),
        Err(SettleError::LockLost) => Err(Refusal::lock_lost()),
        Err(SettleError::Unavailable { reason, .. }) => {
            Err(orchestrator_queue::Unavailable(reason).into())
        }
    }
}

/// What a request does with a lock.
#[derive(Clone, Copy)]
enum End {
    Complete,
    Abandon,
    Renew,
}

async fn by_lock(queue: &Queue, locked: &Locked, end: End) -> Result<Answer, Refusal> {
    let token = token(locked)?;
    // A message id may look like a number, so both are tried; the token decides.
    if let Ok(sequence) = locked.message.parse() {
        match one(queue, sequence, token, end).await {
            Err(refusal) if refusal.is_lock_lost() => {}
            answer => return answer,
        }
    }
    match queue.job(&locked.message).await? {
        Some(job) => one(queue, job.sequence, token, end).await,
        None => Err(Refusal::lock_lost()),
    }
}

async fn one(queue: &Queue, sequence: u64, token: Uuid, end: End) -> Result<Answer, Refusal> {
    let lock = Lock {
        sequence,
        token,
        // The queue knows both; a request says neither.
        locked_until: 0,
        duration: Duration::ZERO,
    };
    match end {
        End::Complete => settle(queue, lock, complete()).await?,
        End::Abandon => settle(queue, lock, Settlement::Abandon).await?,
        End::Renew => match queue.renew(&lock).await {
            Ok(_) => {}
            Err(RenewError::LockLost) => return Err(Refusal::lock_lost()),
            Err(RenewError::Unavailable(reason)) => {
                return Err(orchestrator_queue::Unavailable(reason).into());
            }
        },
    }
    Ok(Answer::empty(StatusCode::OK))
}

fn token(locked: &Locked) -> Result<Uuid, Refusal> {
    // What is no token was never given.
    Uuid::try_parse(&locked.token).map_err(|_| Refusal::lock_lost())
}
