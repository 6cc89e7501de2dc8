//! A guest's `queue.send`, handed to whoever keeps the queues.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// What a guest asks to send.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboxMessage {
    /// The job's id.
    pub id: String,
    /// The job's type.
    pub job_type: String,
    /// The job's data.
    pub payload: Vec<u8>,
    /// Media type of the data.
    pub content_type: String,
    /// Custom properties.
    pub properties: Vec<(String, String)>,
    /// Milliseconds before it is due.
    pub delay_ms: u64,
    /// The queue, or none for the application's default queue.
    pub queue: Option<String>,
    /// Trace context.
    pub traceparent: Option<String>,
}

/// The queue has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxReceipt {
    /// Id of the accepted message.
    pub id: String,
    /// True if it was there already.
    pub duplicate: bool,
}

/// The queue does not have it; the cases are those of the WIT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboxError {
    /// The message itself is wrong.
    Invalid(String),
    /// No room.
    Full,
    /// Cannot write now.
    Unavailable(String),
}

type Sending = Pin<Box<dyn Future<Output = Vec<Result<OutboxReceipt, OutboxError>>> + Send>>;

/// Takes the messages that guests send and answers each once it is durable.
///
/// The closure is boxed because this crate must not know the queues, and a
/// type parameter here would compile every component's glue anew in the host.
#[derive(Clone)]
pub struct Outbox(Arc<dyn Fn(Vec<OutboxMessage>) -> Sending + Send + Sync>);

impl Outbox {
    /// An outbox that hands messages to `send`, which answers each in order.
    pub fn new<F, Fut>(send: F) -> Self
    where
        F: Fn(Vec<OutboxMessage>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<Result<OutboxReceipt, OutboxError>>> + Send + 'static,
    {
        Self(Arc::new(move |messages| Box::pin(send(messages))))
    }

    pub(crate) fn send(&self, messages: Vec<OutboxMessage>) -> Sending {
        (self.0)(messages)
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outbox")
    }
}
