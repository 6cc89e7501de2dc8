//! Brings versions in: one at a time, beside the running ones, whole or not at all.
//!
//! One task does all changes, so that none meets another half done, and goes
//! on when whoever asked has gone. A newer candidate of a component takes the
//! place of one that waits; going back, accepting and judging come first.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use orchestrator_engine::WorkerComponent;
use orchestrator_engine::http::HttpComponent;
use orchestrator_engine::loader::{self, LoadError, LoadTimes};
use serde::Serialize;
use tokio::sync::{Notify, oneshot};

use super::slot::{Canary, Loaded, Slot};
use super::store::{Entry, Fate, Record, StoreError, VersionStore};
use super::verdict::Judgement;
use super::{TrustedKeys, Version};
use crate::clock::now_ms;
use crate::telemetry::Telemetry;
use crate::telemetry::events::{ComponentChanged, ComponentStep, ComponentTimes};

/// Orders that may wait besides candidates: each is done in milliseconds.
const ORDERS_MAX: usize = 64;

/// How a version came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Its file changed.
    File,
    /// It was sent.
    Upload,
}

impl Origin {
    fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Upload => "upload",
        }
    }
}

/// A version that wants to come in.
pub struct Candidate {
    /// The component's bytes.
    pub bytes: Vec<u8>,
    /// How it came.
    pub origin: Origin,
    /// Who brings it, or its file.
    pub by: String,
    /// Why, in their words.
    pub reason: Option<String>,
    /// Its signature.
    pub signature: Option<String>,
    /// Its share of the jobs at first; zero: all at once; none: as the
    /// manifest says.
    pub canary: Option<f64>,
    /// How long reading it took.
    pub read: Duration,
}

/// What a change came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The component.
    pub component: String,
    /// `promoted`, `canary`, `rolled-back` or `unchanged`.
    pub outcome: &'static str,
    /// The version that it is about, as `sha256:…`.
    pub digest: String,
    /// The version that ran before, or still does beside a canary.
    pub previous: String,
    /// Number of the version.
    pub generation: u64,
    /// Why, in one sentence.
    pub why: String,
}

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwapError {
    /// No such component. The caller's fault.
    #[error("no component `{0}`; `/v1/components` lists them")]
    Unknown(String),
    /// The candidate is not fit to run. Its maker's fault; a retry cannot help.
    #[error("refused: {0}")]
    Refused(String),
    /// There is nothing to go back to, or nothing to accept.
    #[error("{0}")]
    Nothing(String),
    /// A newer candidate came before this one's turn.
    #[error("a newer candidate for `{0}` took this one's place")]
    Superseded(String),
    /// The host's trouble; a retry may help.
    #[error("nothing was changed: {0}")]
    Unavailable(String),
}

impl From<StoreError> for SwapError {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

type Answer = Result<Change, SwapError>;
type Reply = oneshot::Sender<Answer>;

enum Order {
    GoBack {
        digest: Option<String>,
        by: String,
        reason: Option<String>,
    },
    Accept {
        by: String,
    },
    Judged {
        digest: String,
        judgement: Judgement,
    },
}

/// Why no component could be made of some bytes, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// The bytes' own fault: a retry cannot help.
    Candidate(String),
    /// The host's trouble: a retry may help.
    Host(String),
}

impl Unfit {
    fn into_text(self) -> String {
        match self {
            Self::Candidate(why) | Self::Host(why) => why,
        }
    }
}

impl From<LoadError> for Unfit {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Host(_) => Self::Host(error.to_string()),
            error => Self::Candidate(error.to_string()),
        }
    }
}

impl From<Unfit> for SwapError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Candidate(why) => Self::Refused(why),
            Unfit::Host(why) => Self::Unavailable(why),
        }
    }
}

/// Makes a component of these bytes.
pub type Load<T> = Box<dyn Fn(Vec<u8>) -> BoxFuture<'static, Result<Arc<T>, Unfit>> + Send + Sync>;

/// What can be run under a digest.
pub trait Component: Send + Sync + 'static {
    /// SHA-256 of its bytes, in hexadecimal.
    fn digest(&self) -> &str;
    /// How long compiling and checking took.
    fn times(&self) -> LoadTimes;
}

impl Component for WorkerComponent {
    fn digest(&self) -> &str {
        Self::digest(self)
    }

    fn times(&self) -> LoadTimes {
        Self::times(self)
    }
}

impl Component for HttpComponent {
    fn digest(&self) -> &str {
        Self::digest(self)
    }

    fn times(&self) -> LoadTimes {
        Self::times(self)
    }
}

/// One component's place, and how versions for it are made.
pub struct Place<T> {
    /// Where versions are put.
    pub slot: Arc<Slot<T>>,
    /// How one is made.
    pub load: Load<T>,
    /// `http` or `worker`.
    pub kind: &'static str,
    /// Share of jobs that new versions get at first; none: all at once.
    pub canary: Option<f64>,
}

/// The same, whatever its component's type.
trait AnyPlace: Send + Sync {
    fn id(&self) -> &str;
    fn kind(&self) -> &'static str;
    fn default_share(&self) -> Option<f64>;
    fn seen(&self) -> Seen;
    fn load(&self, bytes: Vec<u8>) -> BoxFuture<'_, Result<Box<dyn Ready>, Unfit>>;
    /// Ends a canary, with its candidate in place or not.
    fn end_canary(&self, promote: bool);
}

/// A version that is checked: putting it in place cannot fail.
trait Ready: Send {
    fn times(&self) -> LoadTimes;
    fn publish(self: Box<Self>, version: Version);
    fn begin(self: Box<Self>, version: Version, share: f64, judged: Judged);
}

type Judged = Box<dyn Fn(Judgement) + Send + Sync>;

/// What runs in a place.
pub struct Seen {
    /// The component's name.
    pub id: String,
    /// `http` or `worker`.
    pub kind: &'static str,
    /// The current version.
    pub current: Version,
    /// Its candidate, if there is one.
    pub canary: Option<SeenCanary>,
    /// Versions that were replaced and still have something to end.
    pub draining: usize,
}

/// A canary under way.
pub struct SeenCanary {
    /// The candidate.
    pub version: Version,
    /// Its share of the jobs.
    pub share: f64,
    /// Jobs it has had.
    pub jobs: u64,
    /// What it has shown, in a sentence.
    pub told: String,
}

impl<T: Component> AnyPlace for Place<T> {
    fn id(&self) -> &str {
        self.slot.id()
    }

    fn kind(&self) -> &'static str {
        self.kind
    }

    fn default_share(&self) -> Option<f64> {
        self.canary
    }

    fn seen(&self) -> Seen {
        let state = self.slot.state();
        Seen {
            id: self.slot.id().to_owned(),
            kind: self.kind,
            current: state.current.version.clone(),
            canary: state.canary.as_ref().map(|canary| {
                let tally = canary.tally();
                SeenCanary {
                    version: canary.candidate.version.clone(),
                    share: canary.share,
                    jobs: tally.candidate_jobs(),
                    told: tally.to_string(),
                }
            }),
            draining: self.slot.draining(),
        }
    }

    fn load(&self, bytes: Vec<u8>) -> BoxFuture<'_, Result<Box<dyn Ready>, Unfit>> {
        Box::pin(async move {
            let component = (self.load)(bytes).await?;
            let slot = self.slot.clone();
            Ok(Box::new(Checked { slot, component }) as Box<dyn Ready>)
        })
    }

    fn end_canary(&self, promote: bool) {
        let state = self.slot.state();
        let Some(canary) = &state.canary else {
            return;
        };
        canary.close();
        if promote {
            self.slot.publish(canary.candidate.clone());
        } else {
            self.slot.end_canary();
        }
    }
}

struct Checked<T> {
    slot: Arc<Slot<T>>,
    component: Arc<T>,
}

impl<T: Component> Ready for Checked<T> {
    fn times(&self) -> LoadTimes {
        self.component.times()
    }

    fn publish(self: Box<Self>, version: Version) {
        let component = self.component;
        self.slot.publish(Arc::new(Loaded { component, version }));
    }

    fn begin(self: Box<Self>, version: Version, share: f64, judged: Judged) {
        let (component, since) = (self.component, version.since);
        let candidate = Arc::new(Loaded { component, version });
        self.slot
            .begin(Arc::new(Canary::new(candidate, share, since, judged)));
    }
}

/// The version that a host starts a component with.
pub struct First<T> {
    /// It, and what is known of it.
    pub loaded: Loaded<T>,
    /// The component's record, to be handed to the [`Swapper`].
    pub record: Record,
    /// Digest of the manifest's file; none if it cannot be read.
    pub in_file: Option<String>,
}

/// Finds the version to start with: the one that was promoted last, unless the
/// manifest's file has changed since; the other one should it not load. Says
/// in a warning what could not be done, and fails only if neither can run.
pub async fn first<T: Component>(
    store: &VersionStore,
    keys: &TrustedKeys,
    id: &str,
    path: &Path,
    in_file: Result<Vec<u8>, String>,
    load: &Load<T>,
) -> Result<First<T>, String> {
    // Not to be replaced by an empty one: it says what was promoted.
    let mut record = store.record(id).map_err(|error| error.to_string())?;
    let found = in_file.as_ref().ok().map(|bytes| loader::digest(bytes));
    for entry in &mut record.versions {
        if entry.fate == Fate::Canary {
            entry.fate = Fate::RolledBack;
            entry.told = Some("the host stopped before the canary was judged".to_owned());
        }
    }
    let is_file_new = found.is_some() && found != record.seen_in_file;
    let promoted = record.current.clone();
    let (mut loaded, mut trouble) = (None, None);
    if let Some(digest) = promoted.filter(|_| !is_file_new) {
        match kept(store, keys, &record, &digest, load).await {
            Ok(version) => loaded = Some(version),
            Err(why) => {
                trouble = Some(format!(
                    "the version {} that ran last: {why}",
                    super::short(&digest)
                ))
            }
        }
    }
    if loaded.is_none() {
        let from_file = async {
            let bytes = in_file?;
            let signature = super::signature::beside(path);
            keys.check(&bytes, signature.as_deref())?;
            let component = load(bytes.clone()).await.map_err(Unfit::into_text)?;
            Ok::<_, String>((bytes, signature, component))
        };
        match from_file.await {
            Ok((bytes, signature, component)) => {
                let entry = Entry {
                    digest: component.digest().to_owned(),
                    bytes: bytes.len() as u64,
                    generation: record.next_generation,
                    origin: Origin::File.as_str().to_owned(),
                    by: path.display().to_string(),
                    reason: Some("found when the host started".to_owned()),
                    at: now_ms(),
                    fate: Fate::Promoted,
                    told: None,
                    signature,
                    is_kept: true,
                };
                record.next_generation += 1;
                record.current = Some(entry.digest.clone());
                if let Err(error) = store.keep_bytes(&entry.digest, &bytes) {
                    tracing::warn!(component = id, %error, "this version cannot be gone back to");
                }
                let version = version_of(&entry);
                record.put(entry);
                loaded = Some(Loaded { component, version });
            }
            Err(why) => {
                let why = format!("its file {}: {why}", path.display());
                // The file is newer and bad: what ran before still can.
                let before = match record.current.clone().filter(|_| is_file_new) {
                    Some(digest) => kept(store, keys, &record, &digest, load).await.ok(),
                    None => None,
                };
                let Some(before) = before else {
                    return Err(match trouble {
                        Some(trouble) => format!("{why}; {trouble}"),
                        None => why,
                    });
                };
                loaded = Some(before);
                trouble = Some(why);
            }
        }
    }
    if let Some(trouble) = trouble {
        tracing::warn!(component = id, trouble, "started with another version");
    }
    if found.is_some() {
        record.seen_in_file.clone_from(&found);
    }
    if let Err(error) = store.keep(id, &record) {
        tracing::warn!(component = id, %error, "which version runs is not remembered");
    }
    loaded.map_or_else(
        || Err("there is no version to run".to_owned()),
        |loaded| {
            Ok(First {
                loaded,
                record,
                in_file: found,
            })
        },
    )
}

/// A version whose bytes are kept.
async fn kept<T: Component>(
    store: &VersionStore,
    keys: &TrustedKeys,
    record: &Record,
    digest: &str,
    load: &Load<T>,
) -> Result<Loaded<T>, String> {
    let entry = record
        .find(digest)
        .ok_or_else(|| "nothing is known of it".to_owned())?;
    let bytes = whole(store, digest)?;
    keys.check(&bytes, entry.signature.as_deref())?;
    let component = load(bytes).await.map_err(Unfit::into_text)?;
    let version = version_of(entry);
    Ok(Loaded { component, version })
}

/// The bytes of a version, which must be those of its digest.
fn whole(store: &VersionStore, digest: &str) -> Result<Vec<u8>, String> {
    let bytes = store.bytes(digest).map_err(|error| error.to_string())?;
    if loader::digest(&bytes) == digest {
        Ok(bytes)
    } else {
        Err("its kept bytes have been altered".to_owned())
    }
}

fn version_of(entry: &Entry) -> Version {
    Version {
        generation: entry.generation,
        digest: entry.digest.clone(),
        since: now_ms(),
        source: entry.by.clone(),
        bytes: entry.bytes,
    }
}

/// Changes versions. Clones share one task.
#[derive(Clone)]
pub struct Swapper(Arc<Inner>);

struct Inner {
    places: Vec<Box<dyn AnyPlace>>,
    store: VersionStore,
    keys: TrustedKeys,
    telemetry: Telemetry,
    records: Mutex<BTreeMap<String, Record>>,
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    /// No more is taken: the host is stopping.
    is_closed: bool,
    /// Files that were superseded while they waited, by their digest: they
    /// have been seen all the same.
    seen_in_file: BTreeMap<usize, String>,
    orders: VecDeque<(usize, Order, Option<Reply>)>,
    candidates: BTreeMap<usize, (Candidate, Reply)>,
}

/// Puts a [`Swapper`] together.
pub struct Builder {
    places: Vec<Box<dyn AnyPlace>>,
    records: BTreeMap<String, Record>,
}

impl Builder {
    /// One with nothing to change.
    pub fn new() -> Self {
        Self {
            places: Vec::new(),
            records: BTreeMap::new(),
        }
    }

    /// Adds a component.
    pub fn add<T: Component>(&mut self, place: Place<T>, record: Record) {
        self.records.insert(place.slot.id().to_owned(), record);
        self.places.push(Box::new(place));
    }

    /// The swapper, and the task that must run for it to do anything.
    pub fn build(
        self,
        store: VersionStore,
        keys: TrustedKeys,
        telemetry: Telemetry,
    ) -> (Swapper, impl Future<Output = ()>) {
        store.forget_others();
        let inner = Arc::new(Inner {
            places: self.places,
            store,
            keys,
            telemetry,
            records: Mutex::new(self.records),
            waiting: Mutex::default(),
            wake: Notify::new(),
        });
        let working = inner.clone();
        (Swapper(inner), async move { working.work().await })
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Swapper {
    /// Offers a candidate. It is dealt with even if nobody waits for the answer.
    pub fn swap(&self, id: &str, candidate: Candidate) -> oneshot::Receiver<Answer> {
        let (reply, answer) = oneshot::channel();
        let Some(place) = self.0.place(id) else {
            let _ = reply.send(Err(SwapError::Unknown(id.to_owned())));
            return answer;
        };
        let mut waiting = lock(&self.0.waiting);
        if waiting.is_closed {
            let _ = reply.send(Err(stopping()));
            return answer;
        }
        if let Some((before, reply)) = waiting.candidates.insert(place, (candidate, reply)) {
            if before.origin == Origin::File {
                let digest = loader::digest(&before.bytes);
                waiting.seen_in_file.insert(place, digest);
            }
            let _ = reply.send(Err(SwapError::Superseded(id.to_owned())));
        }
        drop(waiting);
        self.0.wake.notify_one();
        answer
    }

    /// Goes back: from a canary to the current version, else to the version
    /// that ran before, or to the one with this digest.
    pub fn roll_back(
        &self,
        id: &str,
        digest: Option<String>,
        by: String,
        reason: Option<String>,
    ) -> oneshot::Receiver<Answer> {
        self.0.order(id, Order::GoBack { digest, by, reason })
    }

    /// Accepts a canary before it is judged.
    pub fn promote(&self, id: &str, by: String) -> oneshot::Receiver<Answer> {
        self.0.order(id, Order::Accept { by })
    }

    /// Takes no more, and lets go of those that wait for an answer.
    pub fn close(&self) {
        let mut waiting = lock(&self.0.waiting);
        waiting.is_closed = true;
        // Their callers are answered that the host is stopping.
        waiting.orders.clear();
        waiting.candidates.clear();
    }

    /// Tells that a file is not even looked at.
    pub(super) fn refuse_file(&self, id: &str, why: &str) {
        self.0.tell(id, ComponentStep::Refused, "", why, None);
    }

    /// What runs in every place.
    pub fn all(&self) -> Vec<Seen> {
        self.0.places.iter().map(|place| place.seen()).collect()
    }

    /// What runs in one place, and what is remembered of its versions.
    pub fn one(&self, id: &str) -> Option<(Seen, Record)> {
        let place = self.0.place(id)?;
        // In this order: the record says why what was seen is as it is.
        let seen = self.0.places[place].seen();
        let record = lock(&self.0.records).get(id).cloned().unwrap_or_default();
        Some((seen, record))
    }
}

impl Inner {
    fn place(&self, id: &str) -> Option<usize> {
        self.places.iter().position(|place| place.id() == id)
    }

    fn order(&self, id: &str, order: Order) -> oneshot::Receiver<Answer> {
        let (reply, answer) = oneshot::channel();
        let Some(place) = self.place(id) else {
            let _ = reply.send(Err(SwapError::Unknown(id.to_owned())));
            return answer;
        };
        let mut waiting = lock(&self.waiting);
        if waiting.is_closed {
            let _ = reply.send(Err(stopping()));
            return answer;
        }
        if waiting.orders.len() >= ORDERS_MAX {
            let busy = format!("{ORDERS_MAX} other changes wait; repeat it later");
            let _ = reply.send(Err(SwapError::Unavailable(busy)));
            return answer;
        }
        waiting.orders.push_back((place, order, Some(reply)));
        drop(waiting);
        self.wake.notify_one();
        answer
    }

    /// Does one change after the other, for ever.
    async fn work(self: Arc<Self>) {
        loop {
            let order = lock(&self.waiting).orders.pop_front();
            if let Some((place, order, reply)) = order {
                let answer = self.do_order(place, order).await;
                if let Some(reply) = reply {
                    let _ = reply.send(answer);
                }
                continue;
            }
            let candidate = lock(&self.waiting).candidates.pop_first();
            if let Some((place, (candidate, reply))) = candidate {
                let (digest, by) = (loader::digest(&candidate.bytes), candidate.by.clone());
                let answer = self.bring_in(place, digest.clone(), candidate).await;
                if let Err(error @ SwapError::Unavailable(_)) = &answer {
                    let why = format!("{by}: {error}");
                    let id = self.places[place].id();
                    self.tell(id, ComponentStep::Refused, &digest, &why, None);
                }
                // Whoever asked may have gone; the change stands.
                let _ = reply.send(answer);
                continue;
            }
            self.wake.notified().await;
        }
    }

    fn record(&self, id: &str) -> Record {
        lock(&self.records).get(id).cloned().unwrap_or_default()
    }

    /// Writes a record down, and then goes by it.
    async fn keep(&self, id: &str, record: Record) -> Result<(), SwapError> {
        let (store, name) = (self.store.clone(), id.to_owned());
        let writing = record.clone();
        blocking(move || store.keep(&name, &writing)).await?;
        lock(&self.records).insert(id.to_owned(), record);
        Ok(())
    }

    async fn bring_in(
        self: &Arc<Self>,
        number: usize,
        digest: String,
        candidate: Candidate,
    ) -> Answer {
        let place = &self.places[number];
        let (id, size) = (place.id(), candidate.bytes.len());
        let mut record = self.record(id);
        let superseded = lock(&self.waiting).seen_in_file.remove(&number);
        match candidate.origin {
            Origin::File => record.seen_in_file = Some(digest.clone()),
            Origin::Upload if superseded.is_some() => record.seen_in_file = superseded,
            Origin::Upload => {}
        }
        let seen = place.seen();
        let share = match candidate.canary {
            Some(share) => Some(share).filter(|share| *share > 0.0),
            None => place.default_share(),
        };
        let is_current = seen.current.digest == digest;
        let is_canary =
            (seen.canary.as_ref()).is_some_and(|canary| canary.version.digest == digest);
        if is_current || is_canary {
            // Nothing to load; what was seen in the file may be new.
            self.keep(id, record).await?;
            if is_canary && share.is_none() {
                let why = format!("accepted by {}", candidate.by);
                return self.end_canary(place.as_ref(), true, why).await;
            }
            if is_current && seen.canary.is_some() {
                let why = format!("{} brought the current version again", candidate.by);
                return self.end_canary(place.as_ref(), false, why).await;
            }
            let generation = match &seen.canary {
                Some(canary) => canary.version.generation,
                None => seen.current.generation,
            };
            let (outcome, why) = match is_canary {
                true => ("canary", "it is being tried already"),
                false => ("unchanged", "it runs already"),
            };
            return Ok(Change {
                component: id.to_owned(),
                outcome,
                digest: format!("sha256:{digest}"),
                previous: format!("sha256:{}", seen.current.digest),
                generation,
                why: why.to_owned(),
            });
        }
        self.tell(id, ComponentStep::Candidate, &digest, &candidate.by, None);
        let mut entry = Entry {
            digest: digest.clone(),
            bytes: size as u64,
            generation: record.next_generation,
            origin: candidate.origin.as_str().to_owned(),
            by: candidate.by.clone(),
            reason: candidate.reason.clone(),
            at: now_ms(),
            fate: Fate::Refused,
            told: None,
            signature: candidate.signature.clone(),
            is_kept: false,
        };
        let ready = match self.check(place.as_ref(), &candidate, share).await {
            Ok(ready) => ready,
            Err(Unfit::Host(why)) => return Err(SwapError::Unavailable(why)),
            Err(Unfit::Candidate(why)) => {
                entry.told = Some(why.clone());
                // A version that ran once is not forgotten because it was
                // refused now.
                if record.find(&digest).is_none_or(|known| !known.is_kept) {
                    record.put(entry);
                }
                if let Err(error) = self.keep(id, record).await {
                    tracing::warn!(component = id, %error, "the refusal is not remembered");
                }
                self.tell(id, ComponentStep::Refused, &digest, &why, None);
                return Err(SwapError::Refused(why));
            }
        };
        let times = ready.times();
        let began = Instant::now();
        let (store, bytes, name) = (self.store.clone(), candidate.bytes, digest.clone());
        blocking(move || store.keep_bytes(&name, &bytes)).await?;
        let now = now_ms();
        if let Some(canary) = &seen.canary {
            let told = "a newer candidate came".to_owned();
            record.set_fate(&canary.version.digest, Fate::RolledBack, Some(told), now);
        }
        (entry.is_kept, entry.fate) = match share {
            Some(_) => (true, Fate::Canary),
            None => (true, Fate::Promoted),
        };
        record.next_generation += 1;
        let version = version_of(&entry);
        if share.is_none() {
            record.current = Some(digest.clone());
        }
        record.put(entry);
        // Written before it is published: whoever sees the new version sees
        // one that a restart comes back to.
        self.keep(id, record).await?;
        let generation = version.generation;
        match share {
            Some(share) => {
                if seen.canary.is_some() {
                    place.end_canary(false);
                }
                ready.begin(version, share, self.judged(number, &digest));
            }
            None => ready.publish(version),
        }
        let store = self.store.clone();
        // Waited for: the next version's bytes must not be among those found.
        let _ = tokio::task::spawn_blocking(move || store.forget_others()).await;
        let times = ComponentTimes {
            read: candidate.read,
            compile: times.compile,
            check: times.check,
            publish: began.elapsed(),
        };
        let (outcome, step, why) = match share {
            Some(share) => (
                "canary",
                ComponentStep::CanaryBegan,
                format!("it does {}% of the jobs until it is judged", share * 100.0),
            ),
            None => (
                "promoted",
                ComponentStep::Promoted,
                candidate.reason.unwrap_or_else(|| candidate.by.clone()),
            ),
        };
        self.tell(id, step, &digest, &why, Some(times));
        Ok(Change {
            component: id.to_owned(),
            outcome,
            digest: format!("sha256:{digest}"),
            previous: format!("sha256:{}", seen.current.digest),
            generation,
            why,
        })
    }

    async fn check(
        &self,
        place: &dyn AnyPlace,
        candidate: &Candidate,
        share: Option<f64>,
    ) -> Result<Box<dyn Ready>, Unfit> {
        if share.is_some() && place.kind() != "worker" {
            return Err(Unfit::Candidate(
                "a canary is for workers: a job that fails on it is run again on the current version, and a request cannot be; leave `--canary` out"
                    .to_owned(),
            ));
        }
        self.keys
            .check(&candidate.bytes, candidate.signature.as_deref())
            .map_err(Unfit::Candidate)?;
        place.load(candidate.bytes.clone()).await
    }

    /// What a canary calls when it is judged: from any thread, at any moment.
    fn judged(self: &Arc<Self>, place: usize, digest: &str) -> Judged {
        let (inner, digest): (Weak<Self>, _) = (Arc::downgrade(self), digest.to_owned());
        Box::new(move |judgement| {
            let Some(inner) = inner.upgrade() else {
                return;
            };
            let digest = digest.clone();
            let order = Order::Judged { digest, judgement };
            lock(&inner.waiting).orders.push_back((place, order, None));
            inner.wake.notify_one();
        })
    }

    async fn do_order(&self, number: usize, order: Order) -> Answer {
        let place = self.places[number].as_ref();
        let seen = place.seen();
        match order {
            Order::Judged { digest, judgement } => match seen.canary {
                Some(canary) if canary.version.digest == digest => match judgement {
                    Judgement::Promote(why) => self.end_canary(place, true, why).await,
                    Judgement::RollBack(why) => self.end_canary(place, false, why).await,
                    Judgement::Undecided => Err(SwapError::Nothing("not judged".to_owned())),
                },
                // Somebody was faster.
                _ => Err(SwapError::Nothing("the canary is over".to_owned())),
            },
            Order::Accept { by } if seen.canary.is_some() => {
                self.end_canary(place, true, format!("accepted by {by}"))
                    .await
            }
            Order::Accept { .. } => Err(SwapError::Nothing(format!(
                "`{}` has no canary to accept",
                place.id()
            ))),
            Order::GoBack {
                digest: None, by, ..
            } if seen.canary.is_some() => {
                self.end_canary(place, false, format!("taken back by {by}"))
                    .await
            }
            Order::GoBack { digest, by, reason } => {
                self.go_back(place, &seen, digest, by, reason).await
            }
        }
    }

    async fn end_canary(&self, place: &dyn AnyPlace, promote: bool, why: String) -> Answer {
        let (id, seen, now) = (place.id(), place.seen(), now_ms());
        let Some(canary) = seen.canary else {
            return Err(SwapError::Nothing("the canary is over".to_owned()));
        };
        let (digest, current) = (canary.version.digest, seen.current.digest);
        let mut record = self.record(id);
        let (fate, step, outcome) = match promote {
            true => (Fate::Promoted, ComponentStep::Promoted, "promoted"),
            false => (Fate::RolledBack, ComponentStep::RolledBack, "rolled-back"),
        };
        record.set_fate(&digest, fate, Some(why.clone()), now);
        if promote {
            record.current = Some(digest.clone());
            if let Err(error) = self.keep(id, record).await {
                let mut record = self.record(id);
                let told = Some(error.to_string());
                record.set_fate(&digest, Fate::RolledBack, told, now);
                lock(&self.records).insert(id.to_owned(), record);
                // Undecided again would be worse: nobody would judge it once more.
                place.end_canary(false);
                self.tell(
                    id,
                    ComponentStep::RolledBack,
                    &digest,
                    &error.to_string(),
                    None,
                );
                return Err(error);
            }
            place.end_canary(true);
        } else {
            // Whoever sees that it is over sees why.
            lock(&self.records).insert(id.to_owned(), record.clone());
            place.end_canary(false);
            // A restart goes back to the current version in any case.
            if let Err(error) = self.keep(id, record).await {
                tracing::warn!(component = id, %error, "the rollback is not remembered");
            }
        }
        self.tell(id, step, &digest, &why, None);
        Ok(Change {
            component: id.to_owned(),
            outcome,
            digest: format!("sha256:{digest}"),
            previous: format!("sha256:{current}"),
            generation: canary.version.generation,
            why,
        })
    }

    async fn go_back(
        &self,
        place: &dyn AnyPlace,
        seen: &Seen,
        digest: Option<String>,
        by: String,
        reason: Option<String>,
    ) -> Answer {
        let id = place.id();
        let mut record = self.record(id);
        let wanted = match &digest {
            Some(digest) => record.find(digest).filter(|entry| entry.is_kept),
            None => record.previous(),
        };
        let Some(wanted) = wanted.cloned() else {
            return Err(SwapError::Nothing(match digest {
                Some(digest) => format!(
                    "no kept version of `{id}` is `{digest}`; `orchestrator status` and `/v1/components/{id}` list them"
                ),
                None => format!("`{id}` has no earlier version to go back to"),
            }));
        };
        let current = seen.current.digest.clone();
        if wanted.digest == current {
            return Err(SwapError::Nothing(format!("`{id}` runs that version now")));
        }
        let (store, name) = (self.store.clone(), wanted.digest.clone());
        let bytes = tokio::task::spawn_blocking(move || whole(&store, &name))
            .await
            .map_err(|error| SwapError::Unavailable(error.to_string()))?
            .map_err(SwapError::Unavailable)?;
        self.keys
            .check(&bytes, wanted.signature.as_deref())
            .map_err(SwapError::Refused)?;
        let ready = place.load(bytes).await?;
        let (times, began, now) = (ready.times(), Instant::now(), now_ms());
        let why = match reason {
            Some(reason) => format!("{by}: {reason}"),
            None => format!("taken back by {by}"),
        };
        if let Some(canary) = &seen.canary {
            let told = Some(why.clone());
            record.set_fate(&canary.version.digest, Fate::RolledBack, told, now);
        }
        record.set_fate(&current, Fate::RolledBack, Some(why.clone()), now);
        record.current = Some(wanted.digest.clone());
        let entry = Entry {
            generation: record.next_generation,
            origin: "rollback".to_owned(),
            by,
            at: now,
            fate: Fate::Promoted,
            told: Some(why.clone()),
            ..wanted
        };
        record.next_generation += 1;
        let version = version_of(&entry);
        let (digest, generation) = (entry.digest.clone(), entry.generation);
        record.put(entry);
        self.keep(id, record).await?;
        ready.publish(version);
        let times = ComponentTimes {
            read: Duration::ZERO,
            compile: times.compile,
            check: times.check,
            publish: began.elapsed(),
        };
        self.tell(id, ComponentStep::RolledBack, &current, &why, None);
        self.tell(id, ComponentStep::Promoted, &digest, &why, Some(times));
        Ok(Change {
            component: id.to_owned(),
            outcome: "rolled-back",
            digest: format!("sha256:{digest}"),
            previous: format!("sha256:{current}"),
            generation,
            why,
        })
    }

    fn tell(
        &self,
        component: &str,
        step: ComponentStep,
        digest: &str,
        why: &str,
        times: Option<ComponentTimes>,
    ) {
        ComponentChanged {
            component,
            step,
            digest,
            why,
            times,
        }
        .emit(&self.telemetry);
    }
}

fn stopping() -> SwapError {
    SwapError::Unavailable("the host is stopping".to_owned())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, SwapError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(SwapError::Unavailable(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    /// A component that is nothing but its bytes.
    struct Bytes(String);

    impl Component for Bytes {
        fn digest(&self) -> &str {
            &self.0
        }

        fn times(&self) -> LoadTimes {
            LoadTimes::default()
        }
    }

    /// A swapper of one component whose loading waits for a permit.
    struct Bench {
        swapper: Swapper,
        slot: Arc<Slot<Bytes>>,
        permits: Arc<Semaphore>,
        loads: Arc<AtomicUsize>,
        dir: tempfile::TempDir,
    }

    fn bench(canary: Option<f64>) -> Bench {
        let dir = tempfile::tempdir().expect("a directory");
        let (permits, loads) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let first = Loaded {
            component: Arc::new(Bytes(loader::digest(b"first"))),
            version: Version {
                digest: loader::digest(b"first"),
                ..Version::default()
            },
        };
        let slot = Arc::new(Slot::new("worker", first));
        let (gate, count) = (permits.clone(), loads.clone());
        let load: Load<Bytes> = Box::new(move |bytes| {
            let (gate, count) = (gate.clone(), count.clone());
            Box::pin(async move {
                count.fetch_add(1, Ordering::Relaxed);
                gate.acquire().await.expect("it stays open").forget();
                match bytes.as_slice() {
                    b"bad" => Err(Unfit::Candidate("it is bad".to_owned())),
                    b"short" => Err(Unfit::Host("no memory".to_owned())),
                    bytes => Ok(Arc::new(Bytes(loader::digest(bytes)))),
                }
            })
        });
        let place = Place {
            slot: slot.clone(),
            load,
            kind: "worker",
            canary,
        };
        let mut builder = Builder::new();
        builder.add(place, Record::default());
        let store = VersionStore::new(dir.path());
        let keys = TrustedKeys::read(dir.path()).expect("there are none");
        let (swapper, working) = builder.build(store, keys, Telemetry::default());
        tokio::spawn(working);
        Bench {
            swapper,
            slot,
            permits,
            loads,
            dir,
        }
    }

    fn candidate(bytes: &[u8]) -> Candidate {
        Candidate {
            bytes: bytes.to_vec(),
            origin: Origin::Upload,
            by: "test".to_owned(),
            reason: None,
            signature: None,
            canary: None,
            read: Duration::ZERO,
        }
    }

    impl Bench {
        async fn until_loading(&self, loads: usize) {
            while self.loads.load(Ordering::Relaxed) < loads {
                tokio::task::yield_now().await;
            }
        }

        fn runs(&self, bytes: &[u8]) -> bool {
            self.slot.current().version.digest == loader::digest(bytes)
        }
    }

    #[tokio::test]
    async fn a_newer_candidate_takes_the_place_of_one_that_waits() {
        let bench = bench(None);
        let first = bench.swapper.swap("worker", candidate(b"1"));
        bench.until_loading(1).await;
        let second = bench.swapper.swap("worker", candidate(b"2"));
        let third = bench.swapper.swap("worker", candidate(b"3"));
        let superseded = Err(SwapError::Superseded("worker".to_owned()));
        assert_eq!(second.await.expect("answered").map(|_| ()), superseded);
        bench.permits.add_permits(2);
        assert!(first.await.expect("answered").is_ok());
        assert!(third.await.expect("answered").is_ok());
        assert!(bench.runs(b"3"));
        assert_eq!(bench.loads.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_swap_goes_on_when_its_caller_has_gone() {
        let bench = bench(None);
        drop(bench.swapper.swap("worker", candidate(b"1")));
        bench.until_loading(1).await;
        assert!(bench.runs(b"first"));
        bench.permits.add_permits(1);
        while !bench.runs(b"1") {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn nothing_is_published_that_is_not_written_down() {
        let bench = bench(None);
        bench.permits.add_permits(2);
        // No directory can be made where a file is.
        std::fs::write(bench.dir.path().join("components"), "").expect("a disk");
        let answer = bench.swapper.swap("worker", candidate(b"1")).await;
        assert!(
            matches!(answer, Ok(Err(SwapError::Unavailable(_)))),
            "{answer:?}"
        );
        assert!(bench.runs(b"first"));
        std::fs::remove_file(bench.dir.path().join("components")).expect("a disk");
        let answer = bench.swapper.swap("worker", candidate(b"1")).await;
        assert!(matches!(answer, Ok(Ok(_))), "{answer:?}");
        assert!(bench.runs(b"1"));
        let store = VersionStore::new(bench.dir.path());
        let record = store.record("worker").expect("it was kept");
        assert_eq!(record.current, Some(loader::digest(b"1")));
        assert_eq!(store.bytes(&loader::digest(b"1")).expect("kept"), b"1");
    }

    #[tokio::test]
    async fn what_is_refused_is_remembered_and_runs_nowhere() {
        let bench = bench(None);
        bench.permits.add_permits(1);
        let answer = bench.swapper.swap("worker", candidate(b"bad")).await;
        let refused = Err(SwapError::Refused("it is bad".to_owned()));
        assert_eq!(answer.expect("answered").map(|_| ()), refused);
        assert!(bench.runs(b"first"));
        let (_, record) = bench.swapper.one("worker").expect("it is there");
        let known = record.find(&loader::digest(b"bad")).expect("remembered");
        assert_eq!((known.fate, known.is_kept), (Fate::Refused, false));
    }

    #[tokio::test]
    async fn the_hosts_own_trouble_is_not_the_candidates() {
        let bench = bench(None);
        bench.permits.add_permits(1);
        let answer = bench.swapper.swap("worker", candidate(b"short")).await;
        let trouble = Err(SwapError::Unavailable("no memory".to_owned()));
        assert_eq!(answer.expect("answered").map(|_| ()), trouble);
        let (_, record) = bench.swapper.one("worker").expect("it is there");
        assert!(record.versions.is_empty());
    }

    #[tokio::test]
    async fn the_same_bytes_again_accept_a_canary_or_end_it_and_load_nothing() {
        let bench = bench(Some(0.5));
        bench.permits.add_permits(1);
        let swap = async |bytes: &[u8], canary| {
            let candidate = Candidate {
                canary,
                ..candidate(bytes)
            };
            let answer = bench.swapper.swap("worker", candidate).await;
            answer.expect("answered").expect("fit").outcome
        };
        assert_eq!(swap(b"1", None).await, "canary");
        assert_eq!(swap(b"1", Some(0.1)).await, "canary");
        assert_eq!(swap(b"1", Some(0.0)).await, "promoted");
        assert!(bench.runs(b"1"));
        assert_eq!(swap(b"1", None).await, "unchanged");
        bench.permits.add_permits(1);
        assert_eq!(swap(b"2", None).await, "canary");
        assert_eq!(swap(b"1", None).await, "rolled-back");
        assert!(bench.runs(b"1") && bench.slot.state().canary.is_none());
        assert_eq!(bench.loads.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_file_that_was_superseded_has_been_seen() {
        let bench = bench(None);
        let first = bench.swapper.swap("worker", candidate(b"1"));
        bench.until_loading(1).await;
        let file = Candidate {
            origin: Origin::File,
            ..candidate(b"file")
        };
        drop(bench.swapper.swap("worker", file));
        let upload = bench.swapper.swap("worker", candidate(b"2"));
        bench.permits.add_permits(2);
        for answer in [first, upload] {
            assert!(answer.await.expect("answered").is_ok());
        }
        let (_, record) = bench.swapper.one("worker").expect("it is there");
        assert_eq!(record.seen_in_file, Some(loader::digest(b"file")));
        assert_eq!(record.current, Some(loader::digest(b"2")));
    }

    #[tokio::test]
    async fn who_waits_when_the_host_stops_is_answered() {
        let bench = bench(None);
        let running = bench.swapper.swap("worker", candidate(b"1"));
        bench.until_loading(1).await;
        let waiting = bench.swapper.swap("worker", candidate(b"2"));
        bench.swapper.close();
        assert!(waiting.await.is_err(), "let go of");
        let late = bench.swapper.promote("worker", "test".to_owned());
        assert_eq!(late.await.expect("answered"), Err(stopping()));
        drop(running);
    }

    #[tokio::test]
    async fn a_judged_canary_ends_by_itself() {
        use super::super::Went;
        for is_good in [false, true] {
            let bench = bench(Some(0.5));
            bench.permits.add_permits(1);
            let change = bench.swapper.swap("worker", candidate(b"1")).await;
            assert_eq!(change.expect("answered").expect("fit").outcome, "canary");
            assert!(bench.runs(b"first"));
            let canary = bench.slot.state().canary.clone().expect("it began");
            while canary.is_open() {
                let took = Duration::from_millis(1);
                canary.saw("a", Went::CurrentDid(took), false);
                match is_good {
                    true => canary.saw("b", Went::CandidateDid(took), false),
                    false => canary.saw("b", Went::CandidateFailed, false),
                }
            }
            while bench.slot.state().canary.is_some() {
                tokio::task::yield_now().await;
            }
            assert_eq!(bench.runs(b"1"), is_good);
            let (_, record) = bench.swapper.one("worker").expect("it is there");
            let known = record.find(&loader::digest(b"1")).expect("remembered");
            let fate = if is_good {
                Fate::Promoted
            } else {
                Fate::RolledBack
            };
            assert_eq!(known.fate, fate);
            assert!(
                known
                    .told
                    .as_ref()
                    .is_some_and(|told| told.contains("jobs"))
            );
        }
    }
}
