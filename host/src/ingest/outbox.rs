//! What a guest sends becomes a durable message, or an error that says why not.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use orchestrator_engine::{Outbox, OutboxError, OutboxMessage, OutboxReceipt};
use orchestrator_queue::{Message, Receipt, SendError};

use crate::queue::Queue;
use crate::telemetry::Telemetry;
use crate::telemetry::events::{JobSent, SendAnswer};
use crate::telemetry::traces::OpenSpan;

type Answer = Result<OutboxReceipt, OutboxError>;
/// A queue and the messages for it, each with its place among the answers.
type Batch<'a> = (&'a Queue, Vec<(usize, Message)>);

/// The queues that guests may send to.
struct Queues {
    telemetry: Telemetry,
    default: Option<Queue>,
    by_name: HashMap<String, Queue>,
}

/// An outbox over these queues; a message that names none goes to `default`.
pub fn outbox(queues: &[Queue], default: Option<&str>, telemetry: Telemetry) -> Outbox {
    let by_name: HashMap<String, Queue> = queues
        .iter()
        .map(|queue| (queue.name().to_owned(), queue.clone()))
        .collect();
    let default = match default {
        Some(name) => by_name.get(name).cloned(),
        None => queues.first().cloned(),
    };
    let queues = Arc::new(Queues {
        telemetry,
        default,
        by_name,
    });
    Outbox::new(move |messages| {
        let queues = queues.clone();
        async move { send(&queues, messages).await }
    })
}

/// Sends each message to its queue, those for one queue together, and puts the
/// answers back in order.
async fn send(queues: &Queues, messages: Vec<OutboxMessage>) -> Vec<Answer> {
    let mut answers: Vec<Option<Answer>> = messages.iter().map(|_| None).collect();
    let mut by_queue: HashMap<&str, Batch<'_>> = HashMap::new();
    for (place, message) in messages.into_iter().enumerate() {
        match queues.find(message.queue.as_deref()) {
            Ok(queue) => {
                let (_, batch) = by_queue
                    .entry(queue.name())
                    .or_insert_with(|| (queue, Vec::new()));
                batch.push((place, queued(message)));
            }
            Err(refusal) => answers[place] = Some(Err(refusal)),
        }
    }
    for (queue, batch) in by_queue.into_values() {
        let (places, mut messages): (Vec<usize>, Vec<Message>) = batch.into_iter().unzip();
        let spans = queues.spans(queue, &mut messages);
        let ids: Vec<String> = messages.iter().map(|message| message.id.clone()).collect();
        let sent = queue.send_many(messages).await;
        for (mut span, sent) in spans.into_iter().zip(&sent) {
            if sent.is_err() {
                span.fail();
            }
            span.end();
        }
        for ((place, id), sent) in places.into_iter().zip(ids).zip(sent) {
            JobSent {
                queue: queue.name(),
                answer: told(&sent),
            }
            .emit(&queues.telemetry);
            answers[place] = Some(answer(id, sent));
        }
    }
    let unanswered = || {
        Err(OutboxError::Unavailable(
            "the queue gave no answer".to_owned(),
        ))
    };
    answers
        .into_iter()
        .map(|answer| answer.unwrap_or_else(unanswered))
        .collect()
}

impl Queues {
    /// The producer's span of each message, whose context goes with it: every
    /// attempt at the job becomes its child.
    fn spans(&self, queue: &Queue, messages: &mut [Message]) -> Vec<OpenSpan> {
        let Some(traces) = self.telemetry.traces() else {
            return Vec::new();
        };
        let mut spans = Vec::with_capacity(messages.len());
        for message in messages {
            let attributes = vec![
                KeyValue::new("messaging.system", "servicebus"),
                KeyValue::new("messaging.destination.name", queue.name().to_owned()),
                KeyValue::new("server.address", queue.broker().to_owned()),
                KeyValue::new("MessageId", message.id.clone()),
            ];
            let parent = message.traceparent.as_deref();
            let span = traces.begin("Message", SpanKind::Producer, parent, attributes);
            message.traceparent = Some(span.traceparent());
            spans.push(span);
        }
        spans
    }

    fn find(&self, name: Option<&str>) -> Result<&Queue, OutboxError> {
        let found = match name {
            Some(name) => self.by_name.get(name),
            None => self.default.as_ref(),
        };
        found.ok_or_else(|| {
            OutboxError::Invalid(match name {
                Some(name) => format!(
                    "no queue `{name}`: the manifest has no `[[trigger.servicebus]]` for it"
                ),
                None => {
                    "no queue to send to: the manifest has no `[[trigger.servicebus]]`".to_owned()
                }
            })
        })
    }
}

fn queued(message: OutboxMessage) -> Message {
    Message {
        id: message.id,
        job_type: message.job_type,
        payload: message.payload.into(),
        content_type: message.content_type,
        properties: message.properties,
        traceparent: message.traceparent,
        delay: Duration::from_millis(message.delay_ms),
        time_to_live: None,
        envelope: Bytes::new(),
    }
}

fn told(sent: &Result<Receipt, SendError>) -> SendAnswer {
    match sent {
        Ok(receipt) if receipt.duplicate => SendAnswer::Duplicate,
        Ok(_) => SendAnswer::Accepted,
        Err(SendError::Invalid(_)) => SendAnswer::Invalid,
        Err(SendError::Full { .. }) => SendAnswer::Full,
        Err(SendError::Unavailable(_)) => SendAnswer::Unavailable,
    }
}

fn answer(id: String, sent: Result<Receipt, SendError>) -> Answer {
    match sent {
        Ok(receipt) => Ok(OutboxReceipt {
            id,
            duplicate: receipt.duplicate,
        }),
        Err(SendError::Invalid(why)) => Err(OutboxError::Invalid(why)),
        Err(SendError::Full { .. }) => Err(OutboxError::Full),
        Err(SendError::Unavailable(why)) => Err(OutboxError::Unavailable(why)),
    }
}
