//! A queue, whichever engine keeps it: the embedded one or Azure Service Bus.

use std::sync::Arc;

use orchestrator_queue::{
    Attempt, Delivery, Job, JobState, Lock, Message, Millis, Output, QueueStats, Receipt,
    RenewError, Selection, SendError, SettleError, Settlement, Unavailable, local,
};
use orchestrator_servicebus::client;

use crate::dispatch::chaos::{Chaos, Operation, Switch};

/// A handle to one queue. Clones are handles to the same one.
#[derive(Clone)]
pub struct Queue {
    engine: Engine,
    chaos: Arc<Switch>,
}

/// Who keeps it.
#[derive(Clone)]
enum Engine {
    /// Kept by this process.
    Embedded(local::Queue),
    /// Kept by Service Bus, or by a host that speaks its wire.
    ServiceBus(client::Queue),
}

/// The same lock once more: what is settled under either is settled under both.
fn same(lock: &Lock) -> Lock {
    Lock {
        sequence: lock.sequence,
        token: lock.token,
        locked_until: lock.locked_until,
        duration: lock.duration,
    }
}

impl From<local::Queue> for Queue {
    fn from(queue: local::Queue) -> Self {
        Self::of(Engine::Embedded(queue))
    }
}

impl From<client::Queue> for Queue {
    fn from(queue: client::Queue) -> Self {
        Self::of(Engine::ServiceBus(queue))
    }
}

impl Queue {
    fn of(engine: Engine) -> Self {
        let chaos = Arc::new(Switch::new(Chaos::default()));
        Self { engine, chaos }
    }

    /// The same queue, with these faults.
    pub fn with_chaos(self, chaos: Chaos) -> Self {
        let chaos = Arc::new(Switch::new(chaos));
        Self { chaos, ..self }
    }

    /// The faults that are injected here: those of the broker before each
    /// operation, those of attempts by the dispatcher.
    pub fn chaos(&self) -> &Arc<Switch> {
        &self.chaos
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match &self.engine {
            Engine::Embedded(queue) => queue.name(),
            Engine::ServiceBus(queue) => queue.name(),
        }
    }

    /// Name of the engine: `embedded` or `servicebus`.
    pub fn engine(&self) -> &'static str {
        match &self.engine {
            Engine::Embedded(_) => "embedded",
            Engine::ServiceBus(_) => "servicebus",
        }
    }

    /// The time that its locks and delays go by: it goes on evenly, whatever
    /// is done to the machine's clock.
    pub fn now(&self) -> Millis {
        match &self.engine {
            Engine::Embedded(queue) => queue.now(),
            Engine::ServiceBus(queue) => queue.now(),
        }
    }

    /// Who keeps it, as telemetry names it: the namespace's host, or `embedded`.
    pub fn broker(&self) -> &str {
        match &self.engine {
            Engine::Embedded(_) => "embedded",
            Engine::ServiceBus(queue) => queue.host(),
        }
    }

    /// Bytes it may hold; none where that is not this host's to say.
    pub fn bytes_max(&self) -> Option<u64> {
        match &self.engine {
            Engine::Embedded(queue) => Some(queue.config().max_bytes),
            Engine::ServiceBus(_) => None,
        }
    }

    /// Accepts several messages, each with its own fate, in order. Durable
    /// when accepted.
    pub async fn send_many(&self, messages: Vec<Message>) -> Vec<Result<Receipt, SendError>> {
        if let Err(outage) = self.chaos.before(Operation::Send).await {
            let refused = |_| Err(SendError::Unavailable(outage.clone()));
            return messages.iter().map(refused).collect();
        }
        match &self.engine {
            Engine::Embedded(queue) => queue.send_many(messages).await,
            Engine::ServiceBus(queue) => queue.send_many(messages).await,
        }
    }

    /// Locks up to `max` messages, waiting until there is at least one. Cancel safe.
    pub async fn receive(&self, max: usize) -> Result<Vec<Delivery>, Unavailable> {
        self.chaos
            .before(Operation::Receive)
            .await
            .map_err(Unavailable)?;
        match &self.engine {
            Engine::Embedded(queue) => queue.receive(max).await,
            Engine::ServiceBus(queue) => queue.receive(max).await,
        }
    }

    /// What is still on its way to this host once receiving is over.
    pub async fn drain(&self) -> Vec<Delivery> {
        match &self.engine {
            // A receive that is dropped gives back what it took.
            Engine::Embedded(_) => Vec::new(),
            Engine::ServiceBus(queue) => queue.drain().await,
        }
    }

    /// Prolongs a lock by its length from now; says until when.
    pub async fn renew(&self, lock: &Lock) -> Result<Millis, RenewError> {
        let passed = self.chaos.before(Operation::Renew).await;
        passed.map_err(RenewError::Unavailable)?;
        match &self.engine {
            Engine::Embedded(queue) => queue.renew(lock).await,
            Engine::ServiceBus(queue) => queue.renew(lock).await,
        }
    }

    /// Ends a delivery; durable when this returns `Ok`.
    pub async fn settle(
        &self,
        lock: Lock,
        settlement: Settlement,
        attempt: Option<Attempt>,
    ) -> Result<(), SettleError> {
        if let Err(reason) = self.chaos.before(Operation::Settle).await {
            return Err(SettleError::Unavailable { reason, lock });
        }
        match &self.engine {
            Engine::Embedded(queue) => queue.settle(lock, settlement, attempt).await,
            Engine::ServiceBus(queue) => queue.settle(lock, settlement, attempt).await,
        }
    }

    /// Loses a lock on purpose: the job is ready for others at once, and what
    /// is settled under the lock from now on is too late. For chaos only.
    pub async fn lose(&self, lock: &Lock) {
        let (same, abandon) = (same(lock), Settlement::Abandon);
        // One that cannot be lost now is kept: a fault less.
        let _ = match &self.engine {
            Engine::Embedded(queue) => queue.settle(same, abandon, None).await,
            Engine::ServiceBus(queue) => queue.settle(same, abandon, None).await,
        };
    }

    /// Completes a delivery whose job has not run: a planted bug, never called otherwise.
    pub(crate) async fn complete_unrun(&self, lock: &Lock) {
        let output = Output::default();
        let attempt = Attempt {
            outcome: "completed".to_owned(),
            ..Attempt::default()
        };
        let _ = self
            .settle(same(lock), Settlement::Complete { output }, Some(attempt))
            .await;
    }

    /// Makes dead letters ready again; says how many.
    pub async fn redrive(&self, selection: Selection) -> Result<u64, Unavailable> {
        match &self.engine {
            Engine::Embedded(queue) => queue.redrive(selection).await,
            Engine::ServiceBus(queue) => queue.redrive(selection).await,
        }
    }

    /// Throws dead letters away; says how many.
    pub async fn purge(&self, selection: Selection) -> Result<u64, Unavailable> {
        match &self.engine {
            Engine::Embedded(queue) => queue.purge(selection).await,
            Engine::ServiceBus(queue) => queue.purge(selection).await,
        }
    }

    /// What it holds now; none where this host may not ask.
    pub async fn stats(&self) -> Option<QueueStats> {
        match &self.engine {
            Engine::Embedded(queue) => Some(queue.stats().await),
            Engine::ServiceBus(queue) => queue.stats().await,
        }
    }

    /// What is known here of a job.
    pub async fn job(&self, id: &str) -> Result<Option<Job>, Unavailable> {
        match &self.engine {
            Engine::Embedded(queue) => queue.job(id).await,
            Engine::ServiceBus(queue) => queue.job(id).await,
        }
    }

    /// The most recent jobs known here, newest first, without their logs.
    pub async fn jobs(
        &self,
        limit: usize,
        state: Option<JobState>,
    ) -> Result<Vec<Job>, Unavailable> {
        match &self.engine {
            Engine::Embedded(queue) => queue.jobs(limit, state).await,
            Engine::ServiceBus(queue) => queue.jobs(limit, state).await,
        }
    }

    /// Dead letters known here, beginning after sequence `after`.
    pub async fn dead(&self, after: Option<u64>, limit: usize) -> Result<Vec<Job>, Unavailable> {
        match &self.engine {
            Engine::Embedded(queue) => queue.dead(after, limit).await,
            Engine::ServiceBus(queue) => queue.dead(after, limit).await,
        }
    }
}
