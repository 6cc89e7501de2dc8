//! A queue, whichever engine keeps it: the embedded one or Azure Service Bus.

use orchestrator_queue::{
    Attempt, Delivery, Job, JobState, Lock, Message, Millis, QueueStats, Receipt, RenewError,
    Selection, SendError, SettleError, Settlement, Unavailable, local,
};
use orchestrator_servicebus::client;

/// A handle to one queue. Clones are handles to the same one.
#[derive(Clone)]
pub enum Queue {
    /// Kept by this process.
    Embedded(local::Queue),
    /// Kept by Service Bus, or by a host that speaks its wire.
    ServiceBus(client::Queue),
}

impl From<local::Queue> for Queue {
    fn from(queue: local::Queue) -> Self {
        Self::Embedded(queue)
    }
}

impl From<client::Queue> for Queue {
    fn from(queue: client::Queue) -> Self {
        Self::ServiceBus(queue)
    }
}

impl Queue {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Embedded(queue) => queue.name(),
            Self::ServiceBus(queue) => queue.name(),
        }
    }

    /// Name of the engine: `embedded` or `servicebus`.
    pub fn engine(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded",
            Self::ServiceBus(_) => "servicebus",
        }
    }

    /// Who keeps it, as telemetry names it: the namespace's host, or `embedded`.
    pub fn broker(&self) -> &str {
        match self {
            Self::Embedded(_) => "embedded",
            Self::ServiceBus(queue) => queue.host(),
        }
    }

    /// Bytes it may hold; none where that is not this host's to say.
    pub fn bytes_max(&self) -> Option<u64> {
        match self {
            Self::Embedded(queue) => Some(queue.config().max_bytes),
            Self::ServiceBus(_) => None,
        }
    }

    /// Accepts several messages, each with its own fate, in order. Durable
    /// when accepted.
    pub async fn send_many(&self, messages: Vec<Message>) -> Vec<Result<Receipt, SendError>> {
        match self {
            Self::Embedded(queue) => queue.send_many(messages).await,
            Self::ServiceBus(queue) => queue.send_many(messages).await,
        }
    }

    /// Locks up to `max` messages, waiting until there is at least one. Cancel safe.
    pub async fn receive(&self, max: usize) -> Result<Vec<Delivery>, Unavailable> {
        match self {
            Self::Embedded(queue) => queue.receive(max).await,
            Self::ServiceBus(queue) => queue.receive(max).await,
        }
    }

    /// What is still on its way to this host once receiving is over.
    pub async fn drain(&self) -> Vec<Delivery> {
        match self {
            // A receive that is dropped gives back what it took.
            Self::Embedded(_) => Vec::new(),
            Self::ServiceBus(queue) => queue.drain().await,
        }
    }

    /// Prolongs a lock by its length from now; says until when.
    pub async fn renew(&self, lock: &Lock) -> Result<Millis, RenewError> {
        match self {
            Self::Embedded(queue) => queue.renew(lock).await,
            Self::ServiceBus(queue) => queue.renew(lock).await,
        }
    }

    /// Ends a delivery; durable when this returns `Ok`.
    pub async fn settle(
        &self,
        lock: Lock,
        settlement: Settlement,
        attempt: Option<Attempt>,
    ) -> Result<(), SettleError> {
        match self {
            Self::Embedded(queue) => queue.settle(lock, settlement, attempt).await,
            Self::ServiceBus(queue) => queue.settle(lock, settlement, attempt).await,
        }
    }

    /// Makes dead letters ready again; says how many.
    pub async fn redrive(&self, selection: Selection) -> Result<u64, Unavailable> {
        match self {
            Self::Embedded(queue) => queue.redrive(selection).await,
            Self::ServiceBus(queue) => queue.redrive(selection).await,
        }
    }

    /// Throws dead letters away; says how many.
    pub async fn purge(&self, selection: Selection) -> Result<u64, Unavailable> {
        match self {
            Self::Embedded(queue) => queue.purge(selection).await,
            Self::ServiceBus(queue) => queue.purge(selection).await,
        }
    }

    /// What it holds now; none where this host may not ask.
    pub async fn stats(&self) -> Option<QueueStats> {
        match self {
            Self::Embedded(queue) => Some(queue.stats().await),
            Self::ServiceBus(queue) => queue.stats().await,
        }
    }

    /// What is known here of a job.
    pub async fn job(&self, id: &str) -> Result<Option<Job>, Unavailable> {
        match self {
            Self::Embedded(queue) => queue.job(id).await,
            Self::ServiceBus(queue) => queue.job(id).await,
        }
    }

    /// The most recent jobs known here, newest first, without their logs.
    pub async fn jobs(
        &self,
        limit: usize,
        state: Option<JobState>,
    ) -> Result<Vec<Job>, Unavailable> {
        match self {
            Self::Embedded(queue) => queue.jobs(limit, state).await,
            Self::ServiceBus(queue) => queue.jobs(limit, state).await,
        }
    }

    /// Dead letters known here, beginning after sequence `after`.
    pub async fn dead(&self, after: Option<u64>, limit: usize) -> Result<Vec<Job>, Unavailable> {
        match self {
            Self::Embedded(queue) => queue.dead(after, limit).await,
            Self::ServiceBus(queue) => queue.dead(after, limit).await,
        }
    }
}
