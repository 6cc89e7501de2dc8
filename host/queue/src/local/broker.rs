//! Handles: the broker that owns the store, and its queues.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::clock::Clock;
use super::commands::{Command, QueueIndex, Waiting, keys};
use super::disk::{Disk, OpenFailure, Place};
use super::ledger::{Ledger, LockKey};
use super::reader::Reader;
use super::records::{
    CREATED, CREATED_END, FORMAT_VERSION, META_FORMAT, QueueNumber, Table, decode, queue_number_key,
};
use super::store::{Rows, Staged, StoreError};
use super::writer::{FreeDisk, Published, Shared, Writer, published};
use crate::{
    Attempt, DeadMessage, Delivery, Job, JobState, Lock, Message, Millis, QueueConfig, QueueStats,
    Receipt, RenewError, Selection, SendError, SettleError, Settlement, Unavailable,
};

/// Commands that may wait for the writer; beyond that their callers wait.
const COMMANDS_WAITING_MAX: usize = 4_096;

/// Where and what to open.
#[derive(Clone, Debug)]
pub struct BrokerOptions {
    /// The store's directory; created when missing. One process at a time.
    pub dir: PathBuf,
    /// The queues. One that is left out keeps its messages until it is back.
    pub queues: Vec<QueueConfig>,
    /// Free space of the disk, in bytes, below which no message is accepted.
    pub free_disk_bytes_min: u64,
}

/// Whether the store can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Ready,
    /// Not now; it is tried again and again.
    Degraded {
        /// Why.
        reason: String,
    },
    /// Never again in this process.
    Poisoned {
        /// Why, and what to do.
        reason: String,
    },
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "the store in {0} is in use by another process: stop that one, or choose another `--state-dir`"
    )]
    Locked(PathBuf),
    /// Written by a version that this one does not know.
    #[error(
        "the store in {dir} has format {found}; this version reads format {FORMAT_VERSION}: run the version that wrote it, or choose another `--state-dir`"
    )]
    Format {
        /// Its directory.
        dir: PathBuf,
        /// Its format.
        found: String,
    },
    /// Anything else.
    #[error("the store in {dir} cannot be opened: {reason}")]
    Failed {
        /// Its directory.
        dir: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What was found when opening.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// How long opening took.
    pub took: Duration,
    /// Messages that wait, over all queues, due or not.
    pub waiting: u64,
    /// Dead letters, over all queues.
    pub dead: u64,
}

/// Why a queue was not created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// There is one of this name.
    #[error("there is a queue `{0}` already")]
    Exists(String),
    /// The store has no number left for another queue.
    #[error("the store holds as many queues as it can: delete one")]
    TooMany,
    /// The store cannot write; a retry may help.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Looks after the queues of an open store: all of them, those that were
/// created while it was open included. Clones share it.
#[derive(Clone)]
pub struct Queues {
    open: Arc<RwLock<Vec<Queue>>>,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    clock: Clock,
}

/// An open store with its queues.
pub struct Broker {
    queues: Vec<Queue>,
    all: Queues,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    running: Running,
}

/// What the writer runs on.
enum Running {
    /// A thread of its own: its runtime must wait for disks.
    Thread(JoinHandle<()>),
    /// The caller's runtime, whose clock is the simulation's.
    #[cfg(feature = "simulation")]
    Task,
}

/// One queue. Clones are handles to the same one.
#[derive(Clone)]
pub struct Queue(Arc<Handle>);

struct Handle {
    index: QueueIndex,
    number: QueueNumber,
    config: QueueConfig,
    /// Its settings are kept by the store: it can be changed and deleted.
    is_created: bool,
    published: Arc<Mutex<Published>>,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    clock: Clock,
}

impl Broker {
    /// Opens or creates a store and starts its writer. Blocks while the store
    /// replays what it wrote last.
    pub fn open(options: BrokerOptions, clock: Clock) -> Result<(Self, Recovery), OpenError> {
        std::fs::create_dir_all(&options.dir).map_err(|error| OpenError::Failed {
            dir: options.dir.clone(),
            reason: error.to_string(),
        })?;
        Self::open_at(Place::Dir(options.dir.clone()), options, clock)
    }

    /// The same on a simulated disk; the writer is a task of the runtime that
    /// this is called on, and ends with it.
    #[cfg(feature = "simulation")]
    pub fn simulated(
        disk: super::SimulatedDisk,
        queues: Vec<QueueConfig>,
        clock: Clock,
    ) -> Result<(Self, Recovery), OpenError> {
        let options = BrokerOptions {
            dir: PathBuf::from("memory"),
            queues,
            free_disk_bytes_min: 0,
        };
        Self::open_at(Place::Simulated(disk), options, clock)
    }

    fn open_at(
        place: Place,
        options: BrokerOptions,
        clock: Clock,
    ) -> Result<(Self, Recovery), OpenError> {
        let began = Instant::now();
        let failed = |reason: String| OpenError::Failed {
            dir: options.dir.clone(),
            reason,
        };
        let disk = place.open().map_err(|failure| match failure {
            OpenFailure::Locked => OpenError::Locked(options.dir.clone()),
            OpenFailure::Other(reason) => failed(reason),
        })?;
        check_format(&disk, &options.dir)?;
        let created = created_queues(&disk, &options.queues).map_err(|error| failed(error.0))?;
        let configs = [options.queues.as_slice(), &created].concat();
        let ledgers =
            open_ledgers(&disk, &configs, clock.now()).map_err(|error| failed(error.0))?;
        let recovery = Recovery {
            took: began.elapsed(),
            waiting: ledgers.iter().map(Ledger::waiting).sum(),
            dead: ledgers.iter().map(|ledger| ledger.stats().dead).sum(),
        };
        let broker = Self::start(place, options, clock, disk, ledgers)?;
        Ok((broker, recovery))
    }

    fn start(
        place: Place,
        options: BrokerOptions,
        clock: Clock,
        disk: Disk,
        ledgers: Vec<Ledger>,
    ) -> Result<Self, OpenError> {
        let published: Vec<_> = ledgers.iter().map(Published::of).collect();
        let shared = Arc::new(Shared {
            health: watch::Sender::new(Health::Ready),
            disk: RwLock::new(Some(disk.clone())),
            syncs: AtomicU64::new(0),
        });
        let (commands, receiver) = mpsc::channel(COMMANDS_WAITING_MAX);
        let from_manifest = options.queues.len();
        let open: Vec<Queue> = ledgers
            .iter()
            .zip(&published)
            .enumerate()
            .map(|(index, (ledger, published))| {
                Queue(Arc::new(Handle {
                    index,
                    number: ledger.number(),
                    config: ledger.config().clone(),
                    is_created: index >= from_manifest,
                    published: published.clone(),
                    shared: shared.clone(),
                    commands: commands.clone(),
                    clock: clock.clone(),
                }))
            })
            .collect();
        let queues = open[..from_manifest].to_vec();
        let all = Queues {
            open: Arc::new(RwLock::new(open)),
            shared: shared.clone(),
            commands: commands.clone(),
            clock: clock.clone(),
        };
        let writer = Writer {
            place,
            free_disk_bytes_min: options.free_disk_bytes_min,
            disk: Some(disk),
            waiting: ledgers.iter().map(|_| Default::default()).collect(),
            ledgers,
            published,
            deleted: Default::default(),
            shared: shared.clone(),
            clock,
            free_disk: FreeDisk::default(),
        };
        let running = run(writer, receiver).map_err(|error| OpenError::Failed {
            dir: options.dir,
            reason: error.to_string(),
        })?;
        Ok(Self {
            queues,
            all,
            shared,
            commands,
            running,
        })
    }

    /// The queues, in the order of the options.
    pub fn queues(&self) -> &[Queue] {
        &self.queues
    }

    /// The queue of this name.
    pub fn queue(&self, name: &str) -> Option<Queue> {
        self.queues
            .iter()
            .find(|queue| queue.name() == name)
            .cloned()
    }

    /// All queues, to look after.
    pub fn all(&self) -> Queues {
        self.all.clone()
    }

    /// Whether the store can be written, now and whenever that changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    /// How often the store was synced since it was opened.
    pub fn syncs(&self) -> u64 {
        self.shared.syncs.load(Ordering::Relaxed)
    }

    /// Finishes what waits, then closes the store and frees its directory.
    /// Handles that are left answer that the store is closed.
    pub async fn close(self) {
        let (answer, closed) = oneshot::channel();
        if self.commands.send(Command::Close { answer }).await.is_ok() {
            // An error means that the writer has ended already.
            let _ = closed.await;
        }
        match self.running {
            Running::Thread(thread) => {
                let joined = tokio::task::spawn_blocking(move || thread.join()).await;
                debug_assert!(matches!(joined, Ok(Ok(()))), "the writer panicked");
            }
            #[cfg(feature = "simulation")]
            Running::Task => {}
        }
    }
}

impl Queues {
    /// Every queue that is open now.
    pub fn list(&self) -> Vec<Queue> {
        self.open
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// The queue of this name, whatever its case: so Service Bus compares them.
    pub fn find(&self, name: &str) -> Option<Queue> {
        self.list()
            .into_iter()
            .find(|queue| queue.name().eq_ignore_ascii_case(name))
    }

    /// Creates a queue; durable when this returns `Ok`.
    pub async fn create(&self, config: QueueConfig) -> Result<Queue, CreateError> {
        if self.find(&config.name).is_some() {
            return Err(CreateError::Exists(config.name));
        }
        let kept = config.clone();
        let opened = self
            .ask(|answer| Command::Create { config, answer })
            .await??;
        let queue = Queue(Arc::new(Handle {
            index: opened.index,
            number: opened.number,
            config: kept,
            is_created: true,
            published: opened.published,
            shared: self.shared.clone(),
            commands: self.commands.clone(),
            clock: self.clock.clone(),
        }));
        self.change(|open| open.push(queue.clone()));
        Ok(queue)
    }

    /// Gives a created queue other settings under its name. None: a queue of
    /// the manifest, whose settings stand there, or one that is gone.
    pub async fn configure(&self, config: QueueConfig) -> Result<Option<Queue>, Unavailable> {
        let Some(queue) = self.find(&config.name).filter(|queue| queue.0.is_created) else {
            return Ok(None);
        };
        let (index, kept) = (queue.0.index, config.clone());
        self.ask(|answer| Command::Configure {
            queue: index,
            config,
            answer,
        })
        .await?;
        let changed = Queue(Arc::new(Handle {
            config: kept,
            number: queue.0.number,
            is_created: true,
            index,
            published: queue.0.published.clone(),
            shared: self.shared.clone(),
            commands: self.commands.clone(),
            clock: self.clock.clone(),
        }));
        self.change(|open| {
            open.retain(|other| other.0.index != index);
            open.push(changed.clone());
        });
        Ok(Some(changed))
    }

    /// Deletes a created queue with everything in it; false for a queue of the
    /// manifest, or one that is gone. A crash meanwhile can leave a part of it.
    pub async fn delete(&self, name: &str) -> Result<bool, Unavailable> {
        let Some(queue) = self.find(name).filter(|queue| queue.0.is_created) else {
            return Ok(false);
        };
        let index = queue.0.index;
        self.change(|open| open.retain(|other| other.0.index != index));
        while self
            .ask(|answer| Command::Delete {
                queue: index,
                answer,
            })
            .await?
            > 0
        {}
        Ok(true)
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Queue>)) {
        change(
            &mut self
                .open
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Unavailable> {
        ask(&self.commands, &self.shared, command).await
    }
}

/// Starts the writer on what its store asks for.
fn run(writer: Writer, commands: mpsc::Receiver<Command>) -> std::io::Result<Running> {
    #[cfg(feature = "simulation")]
    if matches!(writer.place, Place::Simulated(_)) {
        tokio::spawn(writer.run(commands));
        return Ok(Running::Task);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    std::thread::Builder::new()
        .name("queue-writer".to_owned())
        .spawn(move || runtime.block_on(writer.run(commands)))
        .map(Running::Thread)
}

async fn ask<T>(
    commands: &mpsc::Sender<Command>,
    shared: &Shared,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T, Unavailable> {
    let unavailable = || Unavailable(shared.trouble());
    let (answer, receiver) = oneshot::channel();
    commands
        .send(command(answer))
        .await
        .map_err(|_| unavailable())?;
    receiver.await.map_err(|_| unavailable())
}

/// The settings of queues that were created while an earlier host ran, but
/// those that a manifest now has.
fn created_queues(disk: &Disk, configs: &[QueueConfig]) -> Result<Vec<QueueConfig>, StoreError> {
    let view = disk.snapshot();
    let rows = view.scan(Table::Meta, CREATED, CREATED_END, usize::MAX)?;
    let mut created = Vec::new();
    for (_, value) in rows {
        let config: QueueConfig = decode(&value)?;
        if configs.iter().all(|other| other.name != config.name) {
            created.push(config);
        }
    }
    Ok(created)
}

/// The number of a queue, staged when it is new; none when no number is left.
pub(crate) fn queue_number<R: Rows>(
    staged: &mut Staged<'_, R>,
    name: &str,
) -> Result<Option<QueueNumber>, StoreError> {
    let key = queue_number_key(name);
    if let Some(value) = staged.get(Table::Meta, &key)? {
        return match number(&value) {
            Some(number) => Ok(Some(number)),
            None => Err(StoreError::damaged("a queue's number is too short")),
        };
    }
    let known = staged.scan(Table::Meta, b"queue/", b"queue0", usize::MAX)?;
    let taken: BTreeSet<QueueNumber> = known
        .iter()
        .filter_map(|(_, value)| number(value))
        .collect();
    let free = (0..QueueNumber::MAX).find(|number| !taken.contains(number));
    if let Some(free) = free {
        staged.put(Table::Meta, key, free.to_be_bytes().to_vec());
    }
    Ok(free)
}

fn check_format(disk: &Disk, dir: &std::path::Path) -> Result<(), OpenError> {
    let failed = |error: StoreError| OpenError::Failed {
        dir: dir.to_owned(),
        reason: error.0,
    };
    let view = disk.snapshot();
    let mut staged = Staged::new(&view);
    match staged.get(Table::Meta, META_FORMAT).map_err(failed)? {
        Some(found) if found == FORMAT_VERSION.to_be_bytes() => Ok(()),
        Some(found) => {
            let found = found.first_chunk().map_or_else(
                || format!("{found:?}"),
                |n| u32::from_be_bytes(*n).to_string(),
            );
            Err(OpenError::Format {
                dir: dir.to_owned(),
                found,
            })
        }
        None => {
            staged.put(
                Table::Meta,
                META_FORMAT.to_vec(),
                FORMAT_VERSION.to_be_bytes().to_vec(),
            );
            disk.commit(staged.into_writes())
                .and_then(|()| disk.sync())
                .map_err(failed)
        }
    }
}

/// Gives every queue its number, once and for all, and opens its ledger.
fn open_ledgers(
    disk: &Disk,
    configs: &[QueueConfig],
    now: Millis,
) -> Result<Vec<Ledger>, StoreError> {
    let view = disk.snapshot();
    let mut staged = Staged::new(&view);
    let mut ledgers = Vec::with_capacity(configs.len());
    for config in configs {
        let number = queue_number(&mut staged, &config.name)?
            .ok_or_else(|| StoreError::damaged("no number is left for another queue"))?;
        ledgers.push(Ledger::open(number, config.clone(), &mut staged, now)?);
    }
    disk.commit(staged.into_writes())?;
    disk.sync()?;
    Ok(ledgers)
}

fn number(value: &[u8]) -> Option<QueueNumber> {
    value
        .first_chunk()
        .map(|bytes| QueueNumber::from_be_bytes(*bytes))
}

impl Queue {
    /// Its name in the manifest.
    pub fn name(&self) -> &str {
        &self.0.config.name
    }

    /// Its settings.
    pub fn config(&self) -> &QueueConfig {
        &self.0.config
    }

    /// The time that its locks and delays go by.
    pub fn now(&self) -> Millis {
        self.0.clock.now()
    }

    /// Accepts a message; durable when this returns `Ok`.
    pub async fn send(&self, message: Message) -> Result<Receipt, SendError> {
        let mut sent = self.send_many(vec![message]).await;
        sent.pop()
            .unwrap_or_else(|| Err(SendError::Unavailable(self.0.shared.trouble())))
    }

    /// Accepts several messages, each with its own fate, in order.
    pub async fn send_many(&self, messages: Vec<Message>) -> Vec<Result<Receipt, SendError>> {
        let count = messages.len();
        let sent = self
            .ask(|answer| Command::Send {
                queue: self.0.index,
                messages,
                answer,
            })
            .await;
        sent.unwrap_or_else(|Unavailable(reason)| vec![Err(SendError::Unavailable(reason)); count])
    }

    /// Locks up to `max` messages, waiting until there is at least one.
    /// Cancel safe: what was locked for a dropped call is given back uncounted.
    pub async fn receive(&self, max: usize) -> Result<Vec<Delivery>, Unavailable> {
        let (answer, receiver) = oneshot::channel();
        let command = Command::Receive {
            queue: self.0.index,
            waiting: Waiting { max, answer },
        };
        let mut pending = Pending {
            receiver,
            queue: self,
        };
        self.0
            .commands
            .send(command)
            .await
            .map_err(|_| self.unavailable())?;
        (&mut pending.receiver)
            .await
            .map_err(|_| self.unavailable())
    }

    /// Prolongs a lock by its length from now; says until when.
    pub async fn renew(&self, lock: &Lock) -> Result<Millis, RenewError> {
        let key = lock_key(lock);
        let renewed = self
            .ask(|answer| Command::Renew {
                queue: self.0.index,
                key,
                answer,
            })
            .await;
        renewed.unwrap_or_else(|Unavailable(reason)| Err(RenewError::Unavailable(reason)))
    }

    /// Ends a delivery; durable when this returns `Ok`. `attempt` is added to
    /// the job's history.
    pub async fn settle(
        &self,
        lock: Lock,
        settlement: Settlement,
        attempt: Option<Attempt>,
    ) -> Result<(), SettleError> {
        let (queue, key) = (self.0.index, lock_key(&lock));
        match self
            .ask(|answer| Command::Settle {
                queue,
                key,
                settlement,
                attempt,
                answer,
            })
            .await
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(SettleError::LockLost),
            Err(Unavailable(reason)) => Err(SettleError::Unavailable { reason, lock }),
        }
    }

    /// Makes dead letters ready again; says how many.
    pub async fn redrive(&self, selection: Selection) -> Result<u64, Unavailable> {
        self.repeat(selection, |queue, selection, answer| Command::Redrive {
            queue,
            selection,
            answer,
        })
        .await
    }

    /// Throws dead letters away; says how many.
    pub async fn purge(&self, selection: Selection) -> Result<u64, Unavailable> {
        self.repeat(selection, |queue, selection, answer| Command::Purge {
            queue,
            selection,
            answer,
        })
        .await
    }

    /// Does a bounded step until all that was dead at the start is done:
    /// messages that die meanwhile are not chased.
    async fn repeat(
        &self,
        selection: Selection,
        step: impl Fn(QueueIndex, Selection, oneshot::Sender<u64>) -> Command,
    ) -> Result<u64, Unavailable> {
        let dead = published(&self.0.published).stats.dead;
        let mut done = 0;
        loop {
            let count = self
                .ask(|answer| step(self.0.index, selection.clone(), answer))
                .await?;
            done += count;
            if count == 0 || done >= dead || !matches!(selection, Selection::All) {
                return Ok(done);
            }
        }
    }

    /// What it holds now.
    pub async fn stats(&self) -> QueueStats {
        let mut stats = published(&self.0.published).stats;
        stats.oldest_due_at = self
            .read(|reader| reader.oldest_due_at())
            .await
            .unwrap_or_default();
        stats
    }

    /// All that is known of a job; none if it was never accepted or is forgotten.
    pub async fn job(&self, id: &str) -> Result<Option<Job>, Unavailable> {
        let id = id.to_owned();
        self.read(move |reader| reader.job(&id)).await
    }

    /// The most recent jobs, newest first, without their logs.
    pub async fn jobs(
        &self,
        limit: usize,
        state: Option<JobState>,
    ) -> Result<Vec<Job>, Unavailable> {
        self.read(move |reader| reader.jobs(limit, state)).await
    }

    /// Dead letters in order of acceptance, beginning after sequence `after`.
    pub async fn dead(&self, after: Option<u64>, limit: usize) -> Result<Vec<Job>, Unavailable> {
        self.read(move |reader| reader.dead(after, limit)).await
    }

    /// Dead letters with their messages, in order of acceptance, beginning
    /// after sequence `after`.
    pub async fn dead_messages(
        &self,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<DeadMessage>, Unavailable> {
        self.read(move |reader| reader.dead_messages(after, limit))
            .await
    }

    /// Reads on a blocking thread: the disk must not hold up a runtime's.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Unavailable> {
        let handle = self.0.clone();
        let read = move || handle.read(read);
        #[cfg(feature = "simulation")]
        if matches!(self.0.shared.disk(), Some(Disk::Simulated(_))) {
            return read();
        }
        tokio::task::spawn_blocking(read)
            .await
            .unwrap_or_else(|error| Err(Unavailable(error.to_string())))
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Unavailable> {
        ask(&self.0.commands, &self.0.shared, command).await
    }

    fn unavailable(&self) -> Unavailable {
        Unavailable(self.0.shared.trouble())
    }
}

impl Handle {
    fn read<T>(
        &self,
        read: impl FnOnce(&Reader<'_>) -> Result<T, StoreError>,
    ) -> Result<T, Unavailable> {
        let Some(disk) = self.shared.disk() else {
            return Err(Unavailable(self.shared.trouble()));
        };
        let view = disk.snapshot();
        let (locked, oldest_from) = {
            let published = published(&self.published);
            (published.locked.clone(), published.oldest_from)
        };
        let reader = Reader {
            view: &view,
            number: self.number,
            locked,
            oldest_from,
            now: self.clock.now(),
        };
        read(&reader).map_err(|error| Unavailable(error.0))
    }
}

fn lock_key(lock: &Lock) -> LockKey {
    LockKey {
        sequence: lock.sequence,
        token: lock.token,
    }
}

/// A receive in progress. Dropped with deliveries in its channel, it gives
/// them back.
struct Pending<'a> {
    receiver: oneshot::Receiver<Vec<Delivery>>,
    queue: &'a Queue,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.receiver.close();
        if let Ok(deliveries) = self.receiver.try_recv() {
            let command = Command::Undelivered {
                queue: self.queue.0.index,
                keys: keys(&deliveries),
            };
            // With no room for it the locks run out by themselves.
            let _ = self.queue.0.commands.try_send(command);
        }
    }
}
