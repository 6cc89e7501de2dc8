//! A store in memory that forgets, fails and dawdles when it is told to.
//!
//! | | what is left of it |
//! | --- | --- |
//! | killed process | everything that was committed |
//! | lost power | everything that was synced, and the oldest of the rest |
//! | failed commit | the batch whole or not at all: who asked cannot know |
//! | failed fsync | as after lost power |

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::disk::OpenFailure;
use super::memory::Memory;
use super::store::{StoreError, Writes};

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
    now: Arc<Memory>,
    synced: Arc<Memory>,
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
                Arc::make_mut(&mut survived).commit(writes);
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
            Arc::make_mut(&mut state.now).commit(writes.clone());
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

    pub(super) fn snapshot(&self) -> Arc<Memory> {
        self.state().now.clone()
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
