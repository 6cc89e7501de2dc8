//! One queue of Service Bus, with the methods of the embedded one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use orchestrator_queue::local::Clock;
use orchestrator_queue::{
    Attempt, DeadLetter, Delivery, Job, JobState, Lock, Message, Millis, Output, QueueStats,
    Receipt, RenewError, Selection, SendError, SettleError, Settlement, Unavailable,
};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use uuid::Uuid;

use super::api::{Api, Received};
use super::ledger::{Ledger, Record};
use super::protocol::{CopyFor, Lineage, PARKED, copy, without_history};
use super::receiver::{Arrival, Receiver};
use super::sender::Sender;
use crate::atom::{self, QueueDescription};
use crate::refusal::ApiError;
use crate::sending::CONTENT_TYPE;
use crate::wire::WireMessage;

/// A lock is counted as lost this long before the service says so: times on the
/// wire are whole seconds.
const LOCK_MARGIN: Duration = Duration::from_secs(1);
/// Dead letters that one command moves or throws away at most.
const PARKED_AT_ONCE_MAX: usize = 10_000;
/// Deliveries that a parked message may have: they are looked at, not worked off.
const PARKED_DELIVERIES_MAX: u32 = 2_000;
/// How often a step of such a command is tried, and the first wait between.
const TRIES_MAX: u32 = 5;
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// What the service calls the place of its own dead letters.
const DEAD_LETTERS: &str = "$DeadLetterQueue";
/// How long what the service said of a queue's counts is good for.
const STATS_AGE_MAX: Duration = Duration::from_secs(5);

/// How a queue is used.
#[derive(Clone, Debug)]
pub struct QueueOptions {
    /// Its name in the namespace.
    pub name: String,
}

/// One queue. Clones are handles to the same one.
#[derive(Clone)]
pub struct Queue(Arc<Inner>);

struct Inner {
    api: Arc<Api>,
    ledger: Arc<Ledger>,
    name: Arc<str>,
    parked: Arc<str>,
    sender: Sender,
    receiver: Receiver,
    /// What is locked by this host, by token.
    held: Mutex<HashMap<Uuid, Held>>,
    is_parking_ready: OnceCell<()>,
    stats: tokio::sync::Mutex<Option<(Instant, QueueStats)>>,
    clock: Clock,
}

/// A message in this host's hands.
#[derive(Clone)]
struct Held {
    message: WireMessage,
    lineage: Lineage,
    deliveries: u32,
    /// Until when, by this machine's clock, as of the last renewal.
    locked_until: Millis,
    /// The copy is sent: only the deletion is left.
    is_replaced: bool,
    /// A deletion's answer got lost: "no such lock" then means that it worked.
    may_be_gone: bool,
}

impl Queue {
    pub(super) fn new(api: Arc<Api>, ledger: Arc<Ledger>, options: QueueOptions) -> Self {
        let name: Arc<str> = options.name.into();
        let sender = Sender::start(api.clone());
        let receiver = Receiver::new(api.clone(), name.clone());
        Self(Arc::new(Inner {
            parked: format!("{name}{PARKED}").into(),
            api,
            ledger,
            name,
            sender,
            receiver,
            held: Mutex::default(),
            is_parking_ready: OnceCell::new(),
            stats: tokio::sync::Mutex::default(),
            clock: Clock::machine(),
        }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The namespace's host, and its port if it has one.
    pub fn host(&self) -> &str {
        let origin = self.0.api.origin();
        origin.split_once("://").map_or(origin, |(_, host)| host)
    }

    /// The time that its locks go by, as this host counts it.
    pub fn now(&self) -> Millis {
        self.0.clock.now()
    }

    /// Name of the queue that its dead letters go to.
    pub fn parked_name(&self) -> &str {
        &self.0.parked
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Uuid, Held>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts several messages, each with its own fate, in order. Accepted
    /// means that the service answered 201.
    pub async fn send_many(&self, messages: Vec<Message>) -> Vec<Result<Receipt, SendError>> {
        let sends = messages.into_iter().map(|message| self.send(message));
        futures_util::future::join_all(sends).await
    }

    async fn send(&self, message: Message) -> Result<Receipt, SendError> {
        let (id, job_type) = (message.id.clone(), message.job_type.clone());
        let (traceparent, delay) = (message.traceparent.clone(), message.delay);
        self.0.sender.send_message(&self.0.name, message).await?;
        let now = self.now();
        let noted = self.note(&id, |record| {
            // A repeated id is accepted again, and its job goes on as it is.
            if record.state.is_none() {
                record.job_type = job_type;
                record.enqueued_at = now;
                record.traceparent = traceparent;
                record.due_at = Some(now + millis(delay));
                record.state = Some(if delay.is_zero() {
                    JobState::Queued
                } else {
                    JobState::Scheduled
                });
            }
        });
        // The job is accepted, whether or not its page can be kept.
        let _ = noted;
        Ok(Receipt {
            // REST says neither.
            sequence: 0,
            duplicate: false,
        })
    }

    fn note(&self, job: &str, change: impl FnOnce(&mut Record)) -> Result<(), Unavailable> {
        self.0
            .ledger
            .change(&self.0.name, job, change)
            .map_err(|error| Unavailable(error.to_string()))
    }

    /// Locks up to `max` messages, waiting until there is at least one. Cancel
    /// safe: what arrives for a dropped call waits for the next one.
    pub async fn receive(&self, max: usize) -> Result<Vec<Delivery>, Unavailable> {
        loop {
            let arrivals = self
                .0
                .receiver
                .receive(max)
                .await
                .map_err(|error| Unavailable(error.to_string()))?;
            let mut deliveries = Vec::with_capacity(arrivals.len());
            for arrival in arrivals {
                deliveries.extend(self.deliver(arrival).await);
            }
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
        }
    }

    /// Waits for the polls that are under way, and returns what they bring: to
    /// be worked off or given back. Call it once receiving is over.
    pub async fn drain(&self) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        for arrival in self.0.receiver.drain().await {
            deliveries.extend(self.deliver(arrival).await);
        }
        deliveries
    }

    /// What arrived becomes a delivery, unless this host knows that it is done.
    async fn deliver(&self, arrival: Arrival) -> Option<Delivery> {
        let Arrival { received, at } = arrival;
        let Received {
            mut message,
            sequence,
            token,
            lock_left,
            delivery_count,
            enqueued_at,
        } = received;
        if let Some(place) = message
            .custom
            .iter()
            .position(|(name, _)| name.eq_ignore_ascii_case(CONTENT_TYPE))
        {
            let (_, content_type) = message.custom.remove(place);
            message.content_type = Some(content_type.to_text());
        }
        let lineage = Lineage::of(&message, enqueued_at);
        let left = lock_left.saturating_sub(at.elapsed());
        let lock = Lock {
            sequence,
            token,
            locked_until: self.now() + millis(left.saturating_sub(LOCK_MARGIN)),
            duration: lock_left,
        };
        if self.is_done(&lineage, sequence) {
            // Another try comes with the next delivery, should this one fail.
            let _ = self.0.api.complete(&self.0.name, &lock).await;
            return None;
        }
        let attempt = lineage.attempts_before.saturating_add(delivery_count);
        let noted = self.note(&lineage.job, |record| {
            record.state = Some(JobState::Running);
            record.deliveries = attempt;
            record.enqueued_at = lineage.enqueued_at;
            record.due_at = None;
            if record.attempts.is_empty() {
                record.attempts = lineage.history.clone();
            }
            if record.job_type.is_empty() {
                record.job_type = message.broker.label.clone().unwrap_or_default();
            }
        });
        // The job runs, whether or not its page can be kept.
        let _ = noted;
        let delivery = Delivery {
            message: Message {
                id: lineage.job.clone(),
                properties: guest_properties(&message),
                ..message.clone().into_message(SystemTime::now())
            },
            delivery_count: attempt,
            enqueued_at: lineage.enqueued_at,
            lock,
        };
        let held = Held {
            message,
            lineage,
            deliveries: delivery_count,
            locked_until: delivery.lock.locked_until,
            is_replaced: false,
            may_be_gone: false,
        };
        self.held().insert(token, held);
        Some(delivery)
    }

    /// By the number of the message, not by the job's id: the id of a job that
    /// is long over may be sent again.
    fn is_done(&self, lineage: &Lineage, sequence: u64) -> bool {
        let known = self.0.ledger.get(&self.0.name, &lineage.job);
        matches!(known, Ok(Some(record)) if record.done_with.contains(&sequence))
    }

    /// Prolongs a lock by its length from now; says until when.
    pub async fn renew(&self, lock: &Lock) -> Result<Millis, RenewError> {
        // From before the request: the service counts from when it got it.
        let before = self.now();
        match self.0.api.renew(&self.0.name, lock).await {
            Ok(()) => {
                let until = before + millis(lock.duration.saturating_sub(LOCK_MARGIN));
                if let Some(held) = self.held().get_mut(&lock.token) {
                    held.locked_until = until;
                }
                Ok(until)
            }
            Err(ApiError::NotFound { .. }) => {
                self.held().remove(&lock.token);
                Err(RenewError::LockLost)
            }
            Err(error) => Err(RenewError::Unavailable(error.to_string())),
        }
    }

    /// Ends a delivery. `attempt` is added to the job's history.
    pub async fn settle(
        &self,
        lock: Lock,
        settlement: Settlement,
        attempt: Option<Attempt>,
    ) -> Result<(), SettleError> {
        let Some(mut held) = self.held().get(&lock.token).cloned() else {
            return Err(SettleError::LockLost);
        };
        let settled = self.try_settle(&lock, &mut held, settlement, attempt).await;
        match settled {
            Ok(()) => {
                self.held().remove(&lock.token);
                Ok(())
            }
            Err(Failure::LockLost) => {
                self.held().remove(&lock.token);
                Err(SettleError::LockLost)
            }
            Err(Failure::Unavailable(reason)) => {
                let mut all = self.held();
                // A renewal may have come between.
                match all.get(&lock.token).map(|held| held.locked_until) {
                    Some(until) if self.now() < until => {
                        held.locked_until = until;
                        all.insert(lock.token, held);
                    }
                    _ => drop(all.remove(&lock.token)),
                }
                drop(all);
                Err(SettleError::Unavailable { reason, lock })
            }
        }
    }

    async fn try_settle(
        &self,
        lock: &Lock,
        held: &mut Held,
        settlement: Settlement,
        attempt: Option<Attempt>,
    ) -> Result<(), Failure> {
        let job = held.lineage.job.clone();
        // Asked again after a failure, the attempt is in the history already.
        if let Some(attempt) = attempt
            && held.lineage.history.last().map(|last| last.number) != Some(attempt.number)
        {
            held.lineage.history.push(attempt);
        }
        let attempts = held.lineage.history.clone();
        let now = self.now();
        let needs_copy = !matches!(
            settlement,
            Settlement::Complete { .. } | Settlement::Abandon
        );
        if needs_copy && !held.is_replaced && now >= held.locked_until {
            // Someone else may have it: a copy would be a second job.
            return Err(Failure::LockLost);
        }
        match settlement {
            Settlement::Complete { output } => {
                // Before the deletion: should that get lost, the job is known to be done.
                self.note(&job, |record| {
                    record.be_done_with(lock.sequence);
                    completed(record, now, output, attempts);
                })?;
            }
            Settlement::Retry { delay } => {
                self.replace(lock.sequence, held, &CopyFor::Retry(delay), |record| {
                    record.state = Some(JobState::Retrying);
                    record.due_at = Some(now + millis(delay));
                    record.attempts = attempts;
                })
                .await?;
            }
            Settlement::DeadLetter {
                reason,
                description,
            } => {
                self.prepare_parking().await?;
                let letter = DeadLetter {
                    reason,
                    description,
                };
                let copy_for = CopyFor::DeadLetter(letter.clone());
                self.replace(lock.sequence, held, &copy_for, |record| {
                    record.state = Some(JobState::Dead);
                    record.finished_at = Some(now);
                    record.attempts = attempts;
                    record.dead_letter = Some(letter);
                })
                .await?;
            }
            Settlement::Release => {
                self.replace(lock.sequence, held, &CopyFor::GiveBack, |record| {
                    record.state = Some(JobState::Queued);
                    record.deliveries = record.deliveries.saturating_sub(1);
                })
                .await?;
            }
            Settlement::Abandon => {
                return match self.0.api.unlock(&self.0.name, lock).await {
                    Ok(()) => Ok(()),
                    Err(ApiError::NotFound { .. }) => Err(Failure::LockLost),
                    Err(error) => Err(error.into()),
                };
            }
        }
        match self.0.api.complete(&self.0.name, lock).await {
            Ok(()) => Ok(()),
            Err(ApiError::NotFound { .. }) if held.may_be_gone => Ok(()),
            Err(ApiError::NotFound { .. }) => Err(Failure::LockLost),
            Err(error) => {
                held.may_be_gone |= matches!(error, ApiError::Unreachable(_));
                Err(error.into())
            }
        }
    }

    /// Sends the copy, once, and remembers that it took the message's place.
    async fn replace(
        &self,
        sequence: u64,
        held: &mut Held,
        copy_for: &CopyFor,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), Failure> {
        if held.is_replaced {
            return Ok(());
        }
        let copy = copy(
            &held.message,
            &held.lineage,
            sequence,
            held.deliveries,
            copy_for,
            SystemTime::now(),
        );
        let to = match copy_for {
            CopyFor::DeadLetter(_) => &self.0.parked,
            _ => &self.0.name,
        };
        let mut sent = self.0.sender.send(to, copy.clone()).await;
        if let Err(SendError::Invalid(_) | SendError::Full { .. }) = sent {
            // The original was not too large: the copy may be, by its history.
            sent = self.0.sender.send(to, without_history(copy)).await;
        }
        sent.map_err(|error| {
            Failure::Unavailable(format!("the copy could not be sent to `{to}`: {error}"))
        })?;
        held.is_replaced = true;
        // The copy is there. Not remembering it costs a second run at most.
        let _ = self.note(&held.lineage.job, |record| {
            record.be_done_with(sequence);
            change(record);
        });
        Ok(())
    }

    /// Creates the queue for dead letters, if it is not there and we may.
    async fn prepare_parking(&self) -> Result<(), Failure> {
        let parked = &self.0.parked;
        let create = || async {
            let description = QueueDescription {
                requires_duplicate_detection: Some(true),
                max_delivery_count: Some(PARKED_DELIVERIES_MAX),
                ..QueueDescription::default()
            };
            let entry = atom::description_entry(&description);
            match self.0.api.create(parked, entry).await {
                // Without the right to create it, it must have been created.
                Ok(_) | Err(ApiError::Unauthorized { .. } | ApiError::Refused { .. }) => Ok(()),
                Err(error) => Err(Failure::from(error)),
            }
        };
        self.0.is_parking_ready.get_or_try_init(create).await?;
        Ok(())
    }

    /// Brings dead letters back, with fresh attempts; says how many.
    pub async fn redrive(&self, selection: Selection) -> Result<u64, Unavailable> {
        self.each_dead(selection, true).await
    }

    /// Throws dead letters away; says how many.
    pub async fn purge(&self, selection: Selection) -> Result<u64, Unavailable> {
        self.each_dead(selection, false).await
    }

    /// Deals with dead letters where hosts park them and where the service puts
    /// those that ran out of deliveries or of time.
    async fn each_dead(&self, selection: Selection, redrive: bool) -> Result<u64, Unavailable> {
        let mut done = 0;
        let service = format!("{}/{DEAD_LETTERS}", self.0.name);
        let places = [
            (&*self.0.parked, CopyFor::Redrive),
            (&*service, CopyFor::RedriveFromService),
        ];
        for (place, copy_for) in places {
            let copy_for = redrive.then_some(&copy_for);
            done += self.each_dead_in(place, &selection, copy_for).await?;
            if done > 0 && !matches!(selection, Selection::All) {
                break;
            }
        }
        Ok(done)
    }

    /// Locks dead letters one after the other, deals with those that are
    /// meant, and lets the others go at the end.
    async fn each_dead_in(
        &self,
        place: &str,
        selection: &Selection,
        redrive: Option<&CopyFor>,
    ) -> Result<u64, Unavailable> {
        let unavailable = |error: ApiError| Unavailable(error.to_string());
        let api = &self.0.api;
        let (mut done, mut others) = (0, Vec::new());
        for _ in 0..PARKED_AT_ONCE_MAX {
            let received = match persist(|| api.peek_lock(place, Duration::ZERO)).await {
                Ok(Some(received)) => received,
                Ok(None) => break,
                // Nothing was ever parked.
                Err(ApiError::NotFound { .. }) => break,
                Err(error) => return Err(unavailable(error)),
            };
            let lock = Lock {
                sequence: received.sequence,
                token: received.token,
                locked_until: 0,
                duration: received.lock_left,
            };
            let lineage = Lineage::of(&received.message, received.enqueued_at);
            let is_meant = match selection {
                Selection::All => true,
                Selection::One(job) => *job == lineage.job,
                Selection::Sequence(sequence) => *sequence == received.sequence,
            };
            if !is_meant {
                others.push(lock);
                continue;
            }
            if let Some(copy_for) = redrive {
                let (message, now) = (&received.message, SystemTime::now());
                let back = copy(message, &lineage, lock.sequence, 0, copy_for, now);
                let sent = self.0.sender.send(&self.0.name, back).await;
                sent.map_err(|error| Unavailable(error.to_string()))?;
                // Its page goes on from here.
                let _ = self.note(&lineage.job, |record| {
                    record.state = Some(JobState::Queued);
                    record.dead_letter = None;
                    record.finished_at = None;
                });
            }
            match persist(|| api.complete(place, &lock)).await {
                // An answer that got lost, or someone else: it is not there.
                Ok(()) | Err(ApiError::NotFound { .. }) => done += 1,
                Err(error) => return Err(unavailable(error)),
            }
            if !matches!(selection, Selection::All) {
                break;
            }
        }
        for lock in others {
            // One that is not let go comes back when its lock runs out.
            let _ = persist(|| api.unlock(place, &lock)).await;
        }
        Ok(done)
    }

    /// What the service says that it holds; none without the right to manage.
    pub async fn stats(&self) -> Option<QueueStats> {
        let mut stats = self.0.stats.lock().await;
        if let Some((at, stats)) = &*stats
            && at.elapsed() < STATS_AGE_MAX
        {
            return Some(*stats);
        }
        let (_, counts) = self.0.api.counts(&self.0.name).await.ok()?;
        let parked = self.0.api.counts(&self.0.parked).await;
        let locked = self.held().len() as u64;
        let known = QueueStats {
            ready: counts.active.saturating_sub(locked),
            locked,
            scheduled: counts.scheduled,
            dead: parked
                .map_or(0, |(_, counts)| counts.active)
                .saturating_add(counts.dead_letter),
            ..QueueStats::default()
        };
        *stats = Some((Instant::now(), known));
        Some(known)
    }

    /// What this host last saw of a job; none if it neither accepted nor ran it.
    pub async fn job(&self, id: &str) -> Result<Option<Job>, Unavailable> {
        self.look(|ledger, queue| ledger.get(queue, id))
            .map(|record| record.map(Record::into_job))
    }

    /// Jobs that this host heard of last, newest first, without their logs.
    pub async fn jobs(
        &self,
        limit: usize,
        state: Option<JobState>,
    ) -> Result<Vec<Job>, Unavailable> {
        let records = self.look(|ledger, queue| ledger.recent(queue, limit, state))?;
        let mut jobs: Vec<Job> = records.into_iter().map(Record::into_job).collect();
        for attempt in jobs.iter_mut().flat_map(|job| &mut job.attempts) {
            attempt.logs.clear();
        }
        Ok(jobs)
    }

    /// Dead letters that this host parked, newest first; REST has no way to
    /// look at the others without locking them.
    pub async fn dead(&self, after: Option<u64>, limit: usize) -> Result<Vec<Job>, Unavailable> {
        if after.is_some() {
            return Ok(Vec::new());
        }
        let records =
            self.look(|ledger, queue| ledger.recent(queue, limit, Some(JobState::Dead)))?;
        Ok(records.into_iter().map(Record::into_job).collect())
    }

    fn look<T>(
        &self,
        look: impl FnOnce(&Ledger, &str) -> Result<T, super::LedgerError>,
    ) -> Result<T, Unavailable> {
        look(&self.0.ledger, &self.0.name).map_err(|error| Unavailable(error.to_string()))
    }
}

/// Asks again, a few times, when that may help: for commands of people, who
/// would have to.
async fn persist<T, F: Future<Output = Result<T, ApiError>>>(
    mut ask: impl FnMut() -> F,
) -> Result<T, ApiError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match ask().await {
            Err(ApiError::Busy { .. } | ApiError::Unreachable(_)) if tries < TRIES_MAX => {
                tokio::time::sleep(TRY_AGAIN * tries).await;
            }
            answered => return answered,
        }
    }
}

/// Why a settlement did not happen.
enum Failure {
    LockLost,
    Unavailable(String),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<Unavailable> for Failure {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error.0)
    }
}

fn completed(record: &mut Record, now: Millis, output: Output, attempts: Vec<Attempt>) {
    record.state = Some(JobState::Completed);
    record.finished_at = Some(now);
    record.output = Some(output);
    record.attempts = attempts;
}

/// What a guest sees: the sender's own properties.
fn guest_properties(message: &WireMessage) -> Vec<(String, String)> {
    message
        .custom
        .iter()
        .filter(|(name, _)| {
            !name.to_ascii_lowercase().starts_with("orchestrator-")
                && !name.eq_ignore_ascii_case(crate::wire::TRACEPARENT)
                && !name.eq_ignore_ascii_case(crate::wire::DIAGNOSTIC_ID)
        })
        .map(|(name, value)| (name.clone(), value.to_text()))
        .collect()
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4)
}
