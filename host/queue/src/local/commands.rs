//! What handles ask of the writer thread. Each carries where its answer goes;
//! an answer that is dropped instead of sent means that the store failed.

use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use super::broker::CreateError;
use super::ledger::{LockKey, LockLost};
use super::records::QueueNumber;
use super::writer::Published;
use crate::{
    Attempt, Delivery, Message, Millis, QueueConfig, Receipt, RenewError, Selection, SendError,
    Settlement,
};

/// A queue, by its place among the broker's.
pub(crate) type QueueIndex = usize;

pub(crate) enum Command {
    Send {
        queue: QueueIndex,
        messages: Vec<Message>,
        answer: oneshot::Sender<Vec<Result<Receipt, SendError>>>,
    },
    Receive {
        queue: QueueIndex,
        waiting: Waiting,
    },
    /// Deliveries that reached no one.
    Undelivered {
        queue: QueueIndex,
        keys: Vec<LockKey>,
    },
    Renew {
        queue: QueueIndex,
        key: LockKey,
        answer: oneshot::Sender<Result<Millis, RenewError>>,
    },
    Settle {
        queue: QueueIndex,
        key: LockKey,
        settlement: Settlement,
        attempt: Option<Attempt>,
        answer: oneshot::Sender<Result<(), LockLost>>,
    },
    Redrive {
        queue: QueueIndex,
        selection: Selection,
        answer: oneshot::Sender<u64>,
    },
    Purge {
        queue: QueueIndex,
        selection: Selection,
        answer: oneshot::Sender<u64>,
    },
    /// Opens a queue that is new to this process; its settings are kept.
    Create {
        config: QueueConfig,
        answer: oneshot::Sender<Result<Opened, CreateError>>,
    },
    /// Gives a created queue other settings.
    Configure {
        queue: QueueIndex,
        config: QueueConfig,
        answer: oneshot::Sender<()>,
    },
    /// Removes a bounded part of a queue, and at the end the queue itself.
    /// Answers how much is known to have been removed; zero when it is gone.
    Delete {
        queue: QueueIndex,
        answer: oneshot::Sender<u64>,
    },
    Close {
        answer: oneshot::Sender<()>,
    },
}

/// A queue that was opened while the store was.
pub(crate) struct Opened {
    pub index: QueueIndex,
    pub number: QueueNumber,
    pub published: Arc<Mutex<Published>>,
}

/// A receive that waits for messages.
pub(crate) struct Waiting {
    pub max: usize,
    pub answer: oneshot::Sender<Vec<Delivery>>,
}

/// An answer that is ready, to be sent once its batch is durable.
pub(crate) enum Answer {
    Sent(
        oneshot::Sender<Vec<Result<Receipt, SendError>>>,
        Vec<Result<Receipt, SendError>>,
    ),
    Received(QueueIndex, oneshot::Sender<Vec<Delivery>>, Vec<Delivery>),
    Renewed(
        oneshot::Sender<Result<Millis, RenewError>>,
        Result<Millis, RenewError>,
    ),
    Settled(oneshot::Sender<Result<(), LockLost>>, Result<(), LockLost>),
    Counted(oneshot::Sender<u64>, u64),
    Created(
        oneshot::Sender<Result<Opened, CreateError>>,
        Result<Opened, CreateError>,
    ),
    Configured(oneshot::Sender<()>),
}

impl Answer {
    /// Sends it. Deliveries whose receiver is gone come back.
    pub fn send(self) -> Option<(QueueIndex, Vec<LockKey>)> {
        // Except for deliveries, an answer that no one waits for any more has
        // done its work: the effect is durable.
        match self {
            Self::Sent(answer, sent) => drop(answer.send(sent)),
            Self::Renewed(answer, renewed) => drop(answer.send(renewed)),
            Self::Settled(answer, settled) => drop(answer.send(settled)),
            Self::Counted(answer, count) => drop(answer.send(count)),
            Self::Created(answer, created) => drop(answer.send(created)),
            Self::Configured(answer) => drop(answer.send(())),
            Self::Received(queue, answer, deliveries) => {
                return answer
                    .send(deliveries)
                    .err()
                    .map(|deliveries| (queue, keys(&deliveries)));
            }
        }
        None
    }
}

pub(crate) fn keys(deliveries: &[Delivery]) -> Vec<LockKey> {
    deliveries
        .iter()
        .map(|delivery| LockKey {
            sequence: delivery.lock.sequence,
            token: delivery.lock.token,
        })
        .collect()
}
