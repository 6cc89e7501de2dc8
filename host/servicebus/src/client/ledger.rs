//! What this host has seen of its jobs: on disk, bounded.
//!
//! Two uses. A job that this host finished, and that Service Bus delivers again
//! because the deletion got lost, is deleted without being run again. And the
//! pages of jobs: with several hosts no host knows every job, so a page tells
//! what this one last saw.
//!
//! Written before the deletion it speaks of, and handed to the operating system,
//! not fsync'd: a killed process forgets nothing; after a power failure a
//! redelivery may run once more, as at-least-once allows.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};
use orchestrator_queue::{Attempt, DeadLetter, Job, JobState, Millis, Output, Retention};
use serde::{Deserialize, Serialize};

/// Blocks kept in memory.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// Recent writes kept in memory, for each of two tables.
const MEMTABLE_BYTES: u64 = 4 * 1024 * 1024;
/// Journal on disk.
const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Old records that one write removes at most.
const FORGOTTEN_AT_ONCE: usize = 16;

/// What is kept of one job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    pub job: String,
    pub queue: String,
    pub job_type: String,
    pub state: Option<JobState>,
    pub enqueued_at: Millis,
    pub due_at: Option<Millis>,
    pub finished_at: Option<Millis>,
    pub deliveries: u32,
    pub attempts: Vec<Attempt>,
    pub output: Option<Output>,
    pub dead_letter: Option<DeadLetter>,
    pub traceparent: Option<String>,
    /// Sequence numbers of messages that are done with: completed, or replaced
    /// by a copy. Should one come again, it is deleted unrun.
    pub done_with: Vec<u64>,
    /// Number of this record, by which old ones are forgotten.
    number: u64,
}

/// Messages of one job that are remembered as done with.
const DONE_WITH_MAX: usize = 64;

impl Record {
    /// Remembers that this message must not run again.
    pub fn be_done_with(&mut self, sequence: u64) {
        if !self.done_with.contains(&sequence) {
            if self.done_with.len() == DONE_WITH_MAX {
                self.done_with.remove(0);
            }
            self.done_with.push(sequence);
        }
    }

    /// As a job's page shows it.
    pub fn into_job(self) -> Job {
        Job {
            id: self.job,
            sequence: self.number,
            job_type: self.job_type,
            state: self.state.unwrap_or(JobState::Queued),
            enqueued_at: self.enqueued_at,
            due_at: self.due_at,
            finished_at: self.finished_at,
            delivery_count: self.deliveries,
            attempts: self.attempts,
            output: self.output,
            dead_letter: self.dead_letter,
            traceparent: self.traceparent,
        }
    }
}

/// The ledger cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ledger of Service Bus jobs in {dir} {what}")]
pub struct LedgerError {
    dir: String,
    what: String,
    /// Whether another process has it.
    pub(crate) is_taken: bool,
}

pub struct Ledger {
    dir: PathBuf,
    database: Database,
    /// Queue and job id → record.
    jobs: Keyspace,
    /// Number → key in `jobs`.
    order: Keyspace,
    retention: Retention,
    /// One change of a record at a time.
    state: Mutex<State>,
}

struct State {
    next: u64,
    oldest: u64,
}

impl Ledger {
    pub fn open(state_dir: &Path, retention: Retention) -> Result<Self, LedgerError> {
        let dir = state_dir.join("servicebus");
        let failed = |error: fjall::Error| LedgerError {
            dir: dir.display().to_string(),
            is_taken: matches!(error, fjall::Error::Locked),
            what: match error {
                fjall::Error::Locked => {
                    "is in use by another process: choose another `--state-dir`".to_owned()
                }
                error => format!("cannot be opened: {error:?}"),
            },
        };
        std::fs::create_dir_all(&dir).map_err(|error| LedgerError {
            dir: dir.display().to_string(),
            what: format!("cannot be created: {error}"),
            is_taken: false,
        })?;
        let database = Database::builder(&dir)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .worker_threads(1)
            .open()
            .map_err(failed)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let jobs = database.keyspace("jobs", options).map_err(failed)?;
        let order = database.keyspace("order", options).map_err(failed)?;
        let view = database.snapshot();
        let number = |row: Option<fjall::Guard>| {
            row.and_then(|row| row.into_inner().ok())
                .and_then(|(key, _)| key.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)))
        };
        let oldest = number(view.iter(&order).next());
        let newest = number(view.iter(&order).next_back());
        drop(view);
        let state = Mutex::new(State {
            next: newest.map_or(0, |newest| newest + 1),
            oldest: oldest.unwrap_or(0),
        });
        Ok(Self {
            dir,
            database,
            jobs,
            order,
            retention,
            state,
        })
    }

    /// What is known of a job.
    pub fn get(&self, queue: &str, job: &str) -> Result<Option<Record>, LedgerError> {
        self.read(&key(queue, job))
    }

    fn read(&self, key: &[u8]) -> Result<Option<Record>, LedgerError> {
        match self.jobs.get(key) {
            Ok(Some(bytes)) => rmp_serde::from_slice(&bytes)
                .map(Some)
                .map_err(|error| self.failed(&error)),
            Ok(None) => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Changes what is known of a job; a record is made when there is none.
    pub fn change(
        &self,
        queue: &str,
        job: &str,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), LedgerError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key(queue, job);
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        let mut record = match self.read(&key)? {
            Some(record) => record,
            None => {
                let number = state.next;
                state.next += 1;
                batch.insert(&self.order, number.to_be_bytes(), key.clone());
                self.forget(&mut state, &mut batch)?;
                Record {
                    job: job.to_owned(),
                    queue: queue.to_owned(),
                    number,
                    ..Record::default()
                }
            }
        };
        change(&mut record);
        let bytes = rmp_serde::to_vec_named(&record).map_err(|error| self.failed(&error))?;
        batch.insert(&self.jobs, key, bytes);
        batch.commit().map_err(|error| self.failed(&error))
    }

    /// Forgets the oldest records beyond the bound.
    fn forget(
        &self,
        state: &mut State,
        batch: &mut fjall::OwnedWriteBatch,
    ) -> Result<(), LedgerError> {
        for _ in 0..FORGOTTEN_AT_ONCE {
            if state.next - state.oldest <= self.retention.count {
                break;
            }
            let number = state.oldest.to_be_bytes();
            state.oldest += 1;
            if let Some(key) = self
                .order
                .get(number)
                .map_err(|error| self.failed(&error))?
            {
                batch.remove(&self.order, number);
                batch.remove(&self.jobs, key);
            }
        }
        Ok(())
    }

    /// The jobs of a queue that this host heard of last, newest first.
    pub fn recent(
        &self,
        queue: &str,
        limit: usize,
        state: Option<JobState>,
    ) -> Result<Vec<Record>, LedgerError> {
        let view = self.database.snapshot();
        let mut found = Vec::new();
        for row in view.iter(&self.order).rev() {
            if found.len() == limit {
                break;
            }
            let (_, key) = row.into_inner().map_err(|error| self.failed(&error))?;
            let Some(record) = self.read(&key)? else {
                continue;
            };
            if record.queue == queue && state.is_none_or(|state| record.state == Some(state)) {
                found.push(record);
            }
        }
        Ok(found)
    }

    fn failed(&self, error: &dyn std::fmt::Debug) -> LedgerError {
        LedgerError {
            dir: self.dir.display().to_string(),
            what: format!("cannot be used: {error:?}"),
            is_taken: false,
        }
    }
}

fn key(queue: &str, job: &str) -> Vec<u8> {
    // No queue's name has a zero byte.
    [queue.as_bytes(), &[0], job.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(dir: &Path, count: u64) -> Ledger {
        let retention = Retention {
            age: std::time::Duration::from_secs(3600),
            count,
            bytes: 1 << 20,
        };
        Ledger::open(dir, retention).unwrap()
    }

    #[test]
    fn what_is_known_of_a_job_survives_a_restart_within_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = ledger(dir.path(), 3);
        for n in 0..5 {
            let name = format!("j{n}");
            jobs.change("q", &name, |record| record.deliveries = n)
                .unwrap();
        }
        jobs.change("q", "j4", |record| record.state = Some(JobState::Completed))
            .unwrap();
        drop(jobs);
        let jobs = ledger(dir.path(), 3);
        assert_eq!(jobs.get("q", "j1").unwrap(), None);
        let last = jobs.get("q", "j4").unwrap().unwrap();
        assert_eq!(
            (last.deliveries, last.state),
            (4, Some(JobState::Completed))
        );
        assert_eq!(jobs.get("other", "j4").unwrap(), None);
        let ids = |state| -> Vec<String> {
            let found = jobs.recent("q", 10, state).unwrap();
            found.into_iter().map(|record| record.job).collect()
        };
        assert_eq!(ids(None), ["j4", "j3", "j2"]);
        assert_eq!(ids(Some(JobState::Completed)), ["j4"]);
    }
}
