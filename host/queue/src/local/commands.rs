//! What handles ask of the writer thread. Each carries where its answer goes;
//! an answer that is dropped instead of sent means that the store failed.

use tokio::sync::oneshot;

use super::ledger::{LockKey, LockLost};
use crate::{
    Attempt, Delivery, Message, Millis, Receipt, RenewError, Selection, SendError, Settlement,
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
    Close {
        answer: oneshot::Sender<()>,
    },
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
