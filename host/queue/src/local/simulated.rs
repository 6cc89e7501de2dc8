//! A store in memory that forgets, fails and dawdles when it is told to.
//!
//! | | what is left of it |
//! | --- | --- |
//! | killed process | everything that was committed |
//! | lost power | everything that was synced, and the oldest of the rest |
//! | failed commit | the batch whole or not at all: who asked cannot know |
//! | failed fsync | as after lost power |

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::disk::OpenFailure;
use super::records::Table;
use super::store::{Row, Rows, StoreError, Writes};

type Tables = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// What a disk is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Open the store.
    Open,
    /// Write a batch.
    Commit,
    /// Make it durable.
    Sync,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing happened.
    Without,
    /// It happened all the same.
    With,
}

/// How a host ends without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Its process is killed.
    Kill,
    /// The machine loses power. Of the batches that were not synced, the
    /// oldest so many are on the disk.
    PowerLoss {
        /// How many, at most.
        kept: usize,
    },
}

/// Decides the fate of each operation.
type Faults = Box<dyn FnMut(Operation) -> Option<Fault> + Send>;
/// Decides how long the writer waits before its next batch.
type Pauses = Box<dyn FnMut() -> Duration + Send>;

/// A disk. Clones are the same one.
#[derive(Clone)]
pub struct SimulatedDisk(Arc<Mutex<State>>);

struct State {
    now: Arc<Tables>,
    synced: Arc<Tables>,
    unsynced: Vec<Writes>,
    faults: Faults,
    pauses: Pauses,
}

impl Default for SimulatedDisk {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            now: Arc::default(),
            synced: Arc::default(),
            unsynced: Vec::new(),
            faults: Box::new(|_| None),
            pauses: Box::new(|| Duration::ZERO),
        })))
    }
}

impl SimulatedDisk {
    /// From now on, `faults` decides what fails.
    pub fn set_faults(&self, faults: impl FnMut(Operation) -> Option<Fault> + Send + 'static) {
        self.state().faults = Box::new(faults);
    }

    /// From now on, `pauses` decides how long each batch waits.
    pub fn set_pauses(&self, pauses: impl FnMut() -> Duration + Send + 'static) {
        self.state().pauses = Box::new(pauses);
    }

    /// The host ends. What it had opened must not be used any more.
    pub fn crash(&self, crash: Crash) {
        let mut state = self.state();
        if let Crash::PowerLoss { kept } = crash {
            let oldest: Vec<Writes> = state.unsynced.drain(..).take(kept).collect();
            let mut survived = state.synced.clone();
            for writes in oldest {
                apply(&mut survived, writes);
            }
            state.now = survived.clone();
            state.synced = survived;
        }
    }

    pub(super) fn open(&self) -> Result<Self, OpenFailure> {
        let fault = (self.state().faults)(Operation::Open);
        match fault {
            Some(_) => Err(OpenFailure::Other("simulated: cannot be opened".to_owned())),
            None => Ok(self.clone()),
        }
    }

    pub(super) fn commit(&self, writes: Writes) -> Result<(), StoreError> {
        let mut state = self.state();
        let fault = (state.faults)(Operation::Commit);
        if fault != Some(Fault::Without) {
            apply(&mut state.now, writes.clone());
            state.unsynced.push(writes);
        }
        match fault {
            None => Ok(()),
            Some(_) => Err(StoreError("simulated: no space left on device".to_owned())),
        }
    }

    pub(super) fn sync(&self) -> Result<(), StoreError> {
        let mut state = self.state();
        let fault = (state.faults)(Operation::Sync);
        if fault != Some(Fault::Without) {
            state.synced = state.now.clone();
            state.unsynced.clear();
        }
        match fault {
            None => Ok(()),
            Some(_) => Err(StoreError("simulated: input/output error".to_owned())),
        }
    }

    pub(super) fn snapshot(&self) -> Image {
        Image(self.state().now.clone())
    }

    pub(super) async fn pause(&self) {
        let pause = (self.state().pauses)();
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn apply(tables: &mut Arc<Tables>, writes: Writes) {
    let tables = Arc::make_mut(tables);
    for (key, value) in writes {
        match value {
            Some(value) => tables.insert(key, value),
            None => tables.remove(&key),
        };
    }
}

/// One moment of a simulated disk.
pub(crate) struct Image(Arc<Tables>);

impl Image {
    fn rows(&self, table: Table, from: &[u8], to: &[u8]) -> impl DoubleEndedIterator<Item = Row> {
        let range = (table, from.to_vec())..(table, to.to_vec().max(from.to_vec()));
        self.0
            .range(range)
            .map(|((_, key), value)| (key.clone(), value.clone()))
    }
}

impl Rows for Image {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        Ok(self.rows(table, from, to).take(limit).collect())
    }

    fn scan_back(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        Ok(self.rows(table, from, to).rev().take(limit).collect())
    }
}
