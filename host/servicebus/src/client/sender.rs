//! Sending: what waits at the same time goes out as one batch.
//!
//! When a request is free, what waits is sent at once, alone or not; while all
//! are busy, more comes together. Nothing waits for company.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use orchestrator_queue::{Message, SendError};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::api::Api;
use crate::refusal::ApiError;
use crate::sending::{self, Item, SendRequest};
use crate::wire::WireMessage;

/// Batches on their way at one time: enough to hide a round trip behind the next.
const BATCHES_IN_FLIGHT_MAX: usize = 4;
/// Messages that may wait to be sent; beyond that their senders wait.
const WAITING_MAX: usize = 4_096;
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
            item: message.into(),
            sent,
        };
        let stopped = || SendError::Unavailable("the host is stopping".to_owned());
        self.0.send(waiting).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
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
        while let Ok(next) = waiting.try_recv() {
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
    let items = batch.iter().map(|waiting| &waiting.item);
    batch[0].queue == next.queue && sending::fits(items, &next.item)
}

/// Sends what belongs together and tells each sender its fate.
async fn send(api: &Api, batch: Vec<Waiting>) {
    let deadline = Instant::now() + SEND_DEADLINE;
    let sent = request(api, &batch, deadline).await;
    // One bad message spoils its batch: then each is sent alone, to be told apart.
    let is_spoiled = sent.as_ref().is_err_and(ApiError::spoils_batch);
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
    let sent = sent.map_err(|error| error.of_send(&waiting.queue));
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
        let Some(pause) = error.pause(wait) else {
            return Err(error);
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
    let items = batch.iter().map(|waiting| &waiting.item);
    api.send(SendRequest::new(&first.queue, items)).await
}
