//! The one thread that writes: drain what is waiting, apply it, make it
//! durable with one fsync, answer everyone.

use std::collections::{HashSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::broker::{CreateError, Health, queue_number};
use super::clock::Clock;
use super::commands::{Answer, Command, Opened, QueueIndex, Waiting};
use super::disk::{Disk, Place};
use super::ledger::{Ledger, LockKey};
use super::records::{Position, Table, counters_key, created_key, encode, queue_number_key};
use super::store::{Rows, Staged, StoreError, Writes};
use crate::planted::{self, Planted};
use crate::{Millis, QueueConfig, QueueStats, SendError};

/// Commands that one batch, and so one fsync, may cover. Large enough for a
/// burst of a thousand senders, small enough that none waits for a huge batch.
const COMMANDS_PER_BATCH_MAX: usize = 1_024;
/// Receives that may wait at a queue: each is a consumer's poll.
const RECEIVES_WAITING_MAX: usize = 10_000;
/// Dead letters that one command moves; its handle repeats it until none is left.
const DEAD_LETTERS_PER_BATCH_MAX: usize = 500;
/// Rows that one step of deleting a queue removes; its handle repeats it.
const ROWS_DELETED_PER_BATCH_MAX: usize = 2_000;
/// Wait between two tries to open a store that failed.
const REOPEN_RETRY: Duration = Duration::from_millis(500);
/// How often the free space of the disk is looked up while messages come in.
const FREE_DISK_CHECK_MS: Millis = 500;

/// What handles see of the writer's state.
pub(crate) struct Shared {
    pub health: watch::Sender<Health>,
    /// None while the store is being opened again.
    pub disk: RwLock<Option<Disk>>,
    pub syncs: AtomicU64,
}

/// What readers must know beside the rows.
#[derive(Default)]
pub(crate) struct Published {
    pub stats: QueueStats,
    pub oldest_from: Position,
    pub locked: HashSet<u64>,
}

/// What is published of a queue, to read or to change.
pub(crate) fn published(queue: &Mutex<Published>) -> MutexGuard<'_, Published> {
    queue
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Published {
    pub fn of(ledger: &Ledger) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            stats: ledger.stats(),
            oldest_from: ledger.oldest_from(),
            ..Self::default()
        }))
    }
}

impl Shared {
    pub fn disk(&self) -> Option<Disk> {
        self.disk
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    pub fn set_disk(&self, disk: Option<Disk>) {
        *self
            .disk
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = disk;
    }

    /// Why the store does not answer.
    pub fn trouble(&self) -> String {
        match &*self.health.borrow() {
            Health::Ready => "the store is not open".to_owned(),
            Health::Degraded { reason } | Health::Poisoned { reason } => reason.clone(),
        }
    }
}

pub(crate) struct Writer {
    pub place: Place,
    pub free_disk_bytes_min: u64,
    pub disk: Option<Disk>,
    pub ledgers: Vec<Ledger>,
    pub waiting: Vec<VecDeque<Waiting>>,
    pub published: Vec<Arc<Mutex<Published>>>,
    /// Queues that are deleted, or about to be: their places stay, empty.
    pub deleted: HashSet<QueueIndex>,
    pub shared: Arc<Shared>,
    pub clock: Clock,
    pub free_disk: FreeDisk,
}

/// What is known of the disk's free space.
#[derive(Default)]
pub(crate) struct FreeDisk {
    checked_at: Option<Millis>,
    short: Option<String>,
}

/// A batch on its way: what to answer, and whether it must be durable first.
#[derive(Default)]
struct Batch {
    answers: Vec<Answer>,
    needs_sync: bool,
}

impl Writer {
    /// Runs until every handle is gone or one asks to close.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut undelivered = Vec::new();
        loop {
            let mut batch = std::mem::take(&mut undelivered);
            if batch.is_empty() {
                let wake = self.next_event();
                tokio::select! {
                    biased;
                    taken = commands.recv_many(&mut batch, COMMANDS_PER_BATCH_MAX) => {
                        if taken == 0 {
                            return;
                        }
                    }
                    () = wait(&self.clock, wake) => {}
                }
            }
            #[cfg(feature = "simulation")]
            self.place.pause().await;
            let closing = take_close(&mut batch);
            undelivered = self.batch(batch);
            if let Some(answer) = closing {
                return self.close(answer);
            }
            if matches!(&*self.shared.health.borrow(), Health::Degraded { .. }) {
                match self.refuse_until_retry(&mut commands).await {
                    ControlFlow::Continue(()) => self.reopen(),
                    ControlFlow::Break(None) => return,
                    ControlFlow::Break(Some(answer)) => return self.close(answer),
                }
            }
        }
    }

    /// Waits to try the store again; whoever asks meanwhile is told at once.
    async fn refuse_until_retry(
        &self,
        commands: &mut mpsc::Receiver<Command>,
    ) -> ControlFlow<Option<oneshot::Sender<()>>> {
        let retry = tokio::time::sleep(REOPEN_RETRY);
        let mut retry = std::pin::pin!(retry);
        loop {
            let mut refused = Vec::new();
            tokio::select! {
                biased;
                () = &mut retry => return ControlFlow::Continue(()),
                taken = commands.recv_many(&mut refused, COMMANDS_PER_BATCH_MAX) => {
                    if taken == 0 {
                        return ControlFlow::Break(None);
                    }
                    // The rest is dropped unanswered: each handle says why.
                    if let Some(answer) = take_close(&mut refused) {
                        return ControlFlow::Break(Some(answer));
                    }
                }
            }
        }
    }

    fn close(mut self, answer: oneshot::Sender<()>) {
        self.shared.set_disk(None);
        self.disk = None;
        // Whoever asked may have stopped waiting.
        let _ = answer.send(());
    }

    fn next_event(&self) -> Option<Millis> {
        let now = self.clock.now();
        self.ledgers
            .iter()
            .enumerate()
            .filter(|(index, _)| !self.deleted.contains(index))
            .filter_map(|(_, ledger)| ledger.next_event(now))
            .min()
    }

    /// One batch. Gives back deliveries that reached no one.
    fn batch(&mut self, commands: Vec<Command>) -> Vec<Command> {
        let Some(disk) = self.disk.clone() else {
            // Dropped unanswered: each handle says why.
            self.waiting.iter_mut().for_each(VecDeque::clear);
            return Vec::new();
        };
        let now = self.clock.now();
        // Outlives whatever fails below: a handle whose answer is dropped reads
        // the store's health to say why.
        let mut batch = Batch::default();
        let applied = {
            let view = disk.snapshot();
            let mut staged = Staged::new(&view);
            self.apply(&mut staged, commands, now, &mut batch)
                .map(|()| staged.into_writes())
        };
        match applied.and_then(|writes| self.write(&disk, &batch, writes)) {
            Ok(Durable::Yes) => {
                self.ledgers.iter_mut().for_each(Ledger::commit_locks);
                self.publish();
                batch
                    .answers
                    .into_iter()
                    .filter_map(Answer::send)
                    .map(undelivered)
                    .collect()
            }
            Ok(Durable::SyncFailed(error)) => {
                self.poison(&error);
                Vec::new()
            }
            Err(error) => {
                self.degrade(&error);
                Vec::new()
            }
        }
    }

    fn write(&self, disk: &Disk, batch: &Batch, writes: Writes) -> Result<Durable, StoreError> {
        let nothing_new = writes.is_empty();
        disk.commit(writes)?;
        if !batch.needs_sync || nothing_new || planted::is(Planted::AnswerBeforeDurable) {
            return Ok(Durable::Yes);
        }
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        match disk.sync() {
            Ok(()) => Ok(Durable::Yes),
            Err(error) => Ok(Durable::SyncFailed(error)),
        }
    }

    fn apply<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        commands: Vec<Command>,
        now: Millis,
        batch: &mut Batch,
    ) -> Result<(), StoreError> {
        for (index, ledger) in self.ledgers.iter_mut().enumerate() {
            if !self.deleted.contains(&index) {
                ledger.advance(view, now)?;
            }
        }
        for command in commands {
            // Dropped unanswered if its queue is gone.
            if !self.is_for_deleted(&command) {
                self.apply_one(view, command, now, batch)?;
            }
        }
        for queue in 0..self.ledgers.len() {
            if !self.deleted.contains(&queue) {
                self.serve_waiting(view, queue, now, batch)?;
                self.ledgers[queue].stage_counters(view);
            }
        }
        Ok(())
    }

    fn is_for_deleted(&self, command: &Command) -> bool {
        match command {
            Command::Send { queue, .. }
            | Command::Receive { queue, .. }
            | Command::Undelivered { queue, .. }
            | Command::Renew { queue, .. }
            | Command::Settle { queue, .. }
            | Command::Redrive { queue, .. }
            | Command::Purge { queue, .. }
            | Command::Configure { queue, .. } => self.deleted.contains(queue),
            // Deleting goes on until nothing is left.
            Command::Create { .. } | Command::Delete { .. } | Command::Close { .. } => false,
        }
    }

    fn apply_one<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        command: Command,
        now: Millis,
        batch: &mut Batch,
    ) -> Result<(), StoreError> {
        match command {
            Command::Receive { queue, waiting } => {
                if self.waiting[queue].len() < RECEIVES_WAITING_MAX {
                    self.waiting[queue].push_back(waiting);
                }
                return Ok(());
            }
            Command::Renew { queue, key, answer } => {
                let renewed = self.ledgers[queue].renew(now, key);
                batch.answers.push(Answer::Renewed(answer, renewed));
                return Ok(());
            }
            Command::Undelivered { queue, keys } => {
                for key in keys {
                    self.ledgers[queue].release_undelivered(view, key);
                }
                return Ok(());
            }
            Command::Send {
                queue,
                messages,
                answer,
            } => {
                let mut sent = Vec::with_capacity(messages.len());
                let short = self
                    .free_disk
                    .short(&self.place, self.free_disk_bytes_min, now);
                for message in messages {
                    sent.push(match short {
                        Some(short) => Err(SendError::Unavailable(short.to_owned())),
                        None => self.ledgers[queue].send(view, now, message)?,
                    });
                }
                batch.answers.push(Answer::Sent(answer, sent));
            }
            Command::Settle {
                queue,
                key,
                settlement,
                attempt,
                answer,
            } => {
                let settled = self.ledgers[queue].settle(view, now, key, settlement, attempt)?;
                batch.answers.push(Answer::Settled(answer, settled));
            }
            Command::Redrive {
                queue,
                selection,
                answer,
            } => {
                let count = self.ledgers[queue].redrive(
                    view,
                    now,
                    &selection,
                    DEAD_LETTERS_PER_BATCH_MAX,
                )?;
                batch.answers.push(Answer::Counted(answer, count));
            }
            Command::Purge {
                queue,
                selection,
                answer,
            } => {
                let count =
                    self.ledgers[queue].purge(view, now, &selection, DEAD_LETTERS_PER_BATCH_MAX)?;
                batch.answers.push(Answer::Counted(answer, count));
            }
            Command::Create { config, answer } => {
                let created = self.create(view, config, now)?;
                batch.answers.push(Answer::Created(answer, created));
            }
            Command::Configure {
                queue,
                config,
                answer,
            } => {
                view.put(Table::Meta, created_key(&config.name), encode(&config));
                self.ledgers[queue].configure(config);
                batch.answers.push(Answer::Configured(answer));
            }
            Command::Delete { queue, answer } => {
                let removed = self.delete(view, queue)?;
                batch.answers.push(Answer::Counted(answer, removed));
            }
            Command::Close { .. } => return Ok(()),
        }
        batch.needs_sync = true;
        Ok(())
    }

    fn create<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        config: QueueConfig,
        now: Millis,
    ) -> Result<Result<Opened, CreateError>, StoreError> {
        let exists = self.ledgers.iter().enumerate().any(|(index, ledger)| {
            ledger.config().name == config.name && !self.deleted.contains(&index)
        });
        if exists {
            return Ok(Err(CreateError::Exists(config.name)));
        }
        let Some(number) = queue_number(view, &config.name)? else {
            return Ok(Err(CreateError::TooMany));
        };
        view.put(Table::Meta, created_key(&config.name), encode(&config));
        let ledger = Ledger::open(number, config, view, now)?;
        let published = Published::of(&ledger);
        self.ledgers.push(ledger);
        self.waiting.push(VecDeque::new());
        self.published.push(published.clone());
        Ok(Ok(Opened {
            index: self.ledgers.len() - 1,
            number,
            published,
        }))
    }

    /// A part of a queue, and when nothing is left of it, its name.
    fn delete<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        queue: QueueIndex,
    ) -> Result<u64, StoreError> {
        self.deleted.insert(queue);
        // Dropped unanswered: whoever waits is told that the queue is gone.
        self.waiting[queue].clear();
        let ledger = &mut self.ledgers[queue];
        let removed = ledger.clear(view, ROWS_DELETED_PER_BATCH_MAX)?;
        if removed == 0 {
            let name = ledger.config().name.clone();
            view.remove(Table::Meta, created_key(&name));
            view.remove(Table::Meta, queue_number_key(&name));
            view.remove(Table::Meta, counters_key(ledger.number()));
        }
        Ok(removed)
    }

    fn serve_waiting<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        queue: QueueIndex,
        now: Millis,
        batch: &mut Batch,
    ) -> Result<(), StoreError> {
        while self.ledgers[queue].ready() > 0
            && let Some(Waiting { max, answer }) = self.waiting[queue].pop_front()
        {
            if answer.is_closed() {
                continue;
            }
            let deliveries = self.ledgers[queue].receive(view, now, max, &mut Uuid::new_v4)?;
            if deliveries.is_empty() {
                self.waiting[queue].push_front(Waiting { max, answer });
                return Ok(());
            }
            batch
                .answers
                .push(Answer::Received(queue, answer, deliveries));
        }
        Ok(())
    }

    fn publish(&mut self) {
        for (ledger, published) in self.ledgers.iter_mut().zip(&self.published) {
            let changes = ledger.take_lock_changes();
            let mut published = self::published(published);
            published.stats = ledger.stats();
            published.oldest_from = ledger.oldest_from();
            for (sequence, locked) in changes {
                if locked {
                    published.locked.insert(sequence);
                } else {
                    published.locked.remove(&sequence);
                }
            }
        }
    }

    fn poison(&mut self, error: &StoreError) {
        let reason = format!(
            "fsync of the store in {} failed: {error}; what it wrote since the last fsync cannot be trusted, so restart the host to read what is really on the disk",
            self.place
        );
        self.shared.set_disk(None);
        self.disk = None;
        self.waiting.iter_mut().for_each(VecDeque::clear);
        self.shared.health.send_replace(Health::Poisoned { reason });
    }

    fn degrade(&mut self, error: &StoreError) {
        let reason = format!("the store in {} cannot be written: {error}", self.place);
        self.shared.set_disk(None);
        self.disk = None;
        self.waiting.iter_mut().for_each(VecDeque::clear);
        self.shared.health.send_replace(Health::Degraded { reason });
    }

    /// Opens the store again and proves that it can be written.
    fn reopen(&mut self) {
        let Ok(disk) = self.place.open() else {
            return;
        };
        let probe = Writes::from([((Table::Meta, b"probe".to_vec()), Some(Vec::new()))]);
        if disk.commit(probe).is_err() || disk.sync().is_err() {
            return;
        }
        let now = self.clock.now();
        let reopened: Result<Vec<Ledger>, StoreError> = {
            let view = disk.snapshot();
            let mut staged = Staged::new(&view);
            self.ledgers
                .iter()
                .map(|ledger| ledger.reopen(&mut staged, now))
                .collect()
        };
        let Ok(ledgers) = reopened else {
            return;
        };
        self.ledgers = ledgers;
        // A queue whose creation was in the batch that failed does not exist.
        for (index, ledger) in self.ledgers.iter().enumerate() {
            let number = disk
                .snapshot()
                .get(Table::Meta, &queue_number_key(&ledger.config().name));
            if matches!(number, Ok(None)) {
                self.deleted.insert(index);
            }
        }
        for queue in &self.published {
            published(queue).locked.clear();
        }
        self.publish();
        self.shared.set_disk(Some(disk.clone()));
        self.disk = Some(disk);
        self.shared.health.send_replace(Health::Ready);
    }
}

enum Durable {
    Yes,
    SyncFailed(StoreError),
}

impl FreeDisk {
    /// Why no message may come in, if the disk is nearly full. What is left is
    /// for settling what is already there.
    fn short(&mut self, place: &Place, bytes_min: u64, now: Millis) -> Option<&str> {
        let is_due = self
            .checked_at
            .is_none_or(|at| now.saturating_sub(at) >= FREE_DISK_CHECK_MS);
        if is_due {
            self.checked_at = Some(now);
            let free = place.free_bytes();
            self.short = (free < bytes_min).then(|| {
                format!(
                    "the disk of {place} has {free} bytes free, fewer than the {bytes_min} kept in reserve (`free_disk_min`)"
                )
            });
        }
        self.short.as_deref()
    }
}

fn undelivered((queue, keys): (QueueIndex, Vec<LockKey>)) -> Command {
    Command::Undelivered { queue, keys }
}

fn take_close(batch: &mut Vec<Command>) -> Option<oneshot::Sender<()>> {
    let place = batch
        .iter()
        .position(|command| matches!(command, Command::Close { .. }))?;
    match batch.remove(place) {
        Command::Close { answer } => Some(answer),
        _ => None,
    }
}

async fn wait(clock: &Clock, until: Option<Millis>) {
    match until {
        Some(until) => clock.sleep_until(until).await,
        None => std::future::pending().await,
    }
}
