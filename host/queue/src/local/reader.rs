//! Looking at jobs without changing them.

use std::collections::HashSet;

use super::ledger::kept;
use super::records::{
    DeadRecord, DueRecord, FinishedRecord, IdRecord, MessageRecord, Place, Position, QueueNumber,
    Table, attempt_key, decode, id_key, position_key, position_of, sequence_key, sequence_of,
};
use super::store::{Rows, StoreError};
use crate::{Attempt, DeadLetter, DeadMessage, Job, JobState, Millis};

/// Rows that a listing looks at, at most, to find jobs in the state asked for.
const ROWS_LOOKED_AT_MAX: usize = 10_000;

/// One moment of a queue.
pub(crate) struct Reader<'a> {
    pub view: &'a super::disk::DiskView<'a>,
    pub number: QueueNumber,
    pub locked: HashSet<u64>,
    pub oldest_from: Position,
    /// By the writer's clock; the writer itself may be behind by a batch.
    pub now: Millis,
}

impl Reader<'_> {
    pub fn oldest_due_at(&self) -> Result<Option<Millis>, StoreError> {
        let from = position_key(self.number, self.oldest_from);
        let to = position_key(self.number, Position::end_of(Millis::MAX));
        let rows = self.view.scan(Table::Due, &from, &to, 1)?;
        rows.first()
            .map(|(key, _)| Ok(position_of(key)?.at))
            .transpose()
    }

    pub fn job(&self, id: &str) -> Result<Option<Job>, StoreError> {
        let Some(bytes) = self.view.get(Table::Ids, &id_key(self.number, id))? else {
            return Ok(None);
        };
        let known: IdRecord = decode(&bytes)?;
        let position = Position {
            at: known.at,
            sequence: known.sequence,
        };
        match known.place {
            Place::Due => self.waiting(position),
            Place::Dead => self.dead_letter(known.sequence),
            Place::Finished => {
                let bytes = self
                    .view
                    .get(Table::Finished, &position_key(self.number, position))?;
                bytes.map(|bytes| finished(position, &bytes)).transpose()
            }
        }
    }

    pub fn jobs(&self, limit: usize, state: Option<JobState>) -> Result<Vec<Job>, StoreError> {
        let mut jobs = Vec::new();
        if state.is_none_or(|state| state == JobState::Completed) {
            let (from, to) = self.positions();
            for (key, value) in self.view.scan_back(Table::Finished, &from, &to, limit)? {
                jobs.push(finished(position_of(&key)?, &value)?);
            }
        }
        if state != Some(JobState::Completed) {
            jobs.extend(self.unfinished(limit, state)?);
        }
        jobs.sort_by_key(|job| std::cmp::Reverse((job.enqueued_at, job.sequence)));
        jobs.truncate(limit);
        for attempt in jobs.iter_mut().flat_map(|job| &mut job.attempts) {
            attempt.logs.clear();
        }
        Ok(jobs)
    }

    fn unfinished(&self, limit: usize, state: Option<JobState>) -> Result<Vec<Job>, StoreError> {
        let (from, to) = self.sequences(0);
        let table = if state == Some(JobState::Dead) {
            Table::Dead
        } else {
            Table::Messages
        };
        let looked_at = if state.is_none() {
            limit
        } else {
            ROWS_LOOKED_AT_MAX
        };
        let mut jobs = Vec::new();
        for (key, _) in self.view.scan_back(table, &from, &to, looked_at)? {
            if jobs.len() == limit {
                break;
            }
            let job = self.by_sequence(sequence_of(&key)?)?;
            jobs.extend(job.filter(|job| state.is_none_or(|state| job.state == state)));
        }
        Ok(jobs)
    }

    pub fn dead(&self, after: Option<u64>, limit: usize) -> Result<Vec<Job>, StoreError> {
        let (from, to) = self.sequences(after.map_or(0, |after| after.saturating_add(1)));
        let rows = self.view.scan(Table::Dead, &from, &to, limit)?;
        let jobs = rows
            .iter()
            .map(|(key, _)| self.dead_letter(sequence_of(key)?));
        Ok(jobs
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .flatten()
            .collect())
    }

    /// Dead letters with their messages, beginning after sequence `after`.
    pub fn dead_messages(
        &self,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<DeadMessage>, StoreError> {
        let (from, to) = self.sequences(after.map_or(0, |after| after.saturating_add(1)));
        let mut messages = Vec::new();
        for (key, value) in self.view.scan(Table::Dead, &from, &to, limit)? {
            let sequence = sequence_of(&key)?;
            let dead: DeadRecord = decode(&value)?;
            let Some(record) = self.message(sequence)? else {
                continue;
            };
            messages.push(DeadMessage {
                sequence,
                enqueued_at: record.enqueued_at,
                message: record.into_message(),
                delivery_count: dead.deliveries,
                dead_letter: DeadLetter {
                    reason: dead.reason,
                    description: dead.description,
                },
            });
        }
        Ok(messages)
    }

    fn by_sequence(&self, sequence: u64) -> Result<Option<Job>, StoreError> {
        if let Some(dead) = self.dead_letter(sequence)? {
            return Ok(Some(dead));
        }
        let Some(message) = self.message(sequence)? else {
            return Ok(None);
        };
        let Some(bytes) = self
            .view
            .get(Table::Ids, &id_key(self.number, &message.id))?
        else {
            return Ok(None);
        };
        let known: IdRecord = decode(&bytes)?;
        if known.sequence != sequence || known.place != Place::Due {
            return Ok(None);
        }
        self.waiting(Position {
            at: known.at,
            sequence,
        })
    }

    fn waiting(&self, position: Position) -> Result<Option<Job>, StoreError> {
        let Some(message) = self.message(position.sequence)? else {
            return Ok(None);
        };
        let due = match self
            .view
            .get(Table::Due, &position_key(self.number, position))?
        {
            Some(bytes) => DueRecord::decode(&bytes)?,
            None => return Ok(None),
        };
        let is_held_back = position.at > message.enqueued_at && position.at > self.now;
        let state = if self.locked.contains(&position.sequence) {
            JobState::Running
        } else if due.retrying && is_held_back {
            JobState::Retrying
        } else if is_held_back {
            JobState::Scheduled
        } else {
            JobState::Queued
        };
        let attempts = self.attempts(position.sequence, due.recorded)?;
        Ok(Some(Job {
            state,
            due_at: Some(position.at),
            ..job(message, position.sequence, due.deliveries, attempts)
        }))
    }

    fn dead_letter(&self, sequence: u64) -> Result<Option<Job>, StoreError> {
        let (Some(bytes), Some(message)) = (
            self.view
                .get(Table::Dead, &sequence_key(self.number, sequence))?,
            self.message(sequence)?,
        ) else {
            return Ok(None);
        };
        let dead: DeadRecord = decode(&bytes)?;
        let attempts = self.attempts(sequence, dead.recorded)?;
        Ok(Some(Job {
            state: JobState::Dead,
            finished_at: Some(dead.died_at),
            dead_letter: Some(DeadLetter {
                reason: dead.reason,
                description: dead.description,
            }),
            ..job(message, sequence, dead.deliveries, attempts)
        }))
    }

    fn message(&self, sequence: u64) -> Result<Option<MessageRecord>, StoreError> {
        let bytes = self
            .view
            .get(Table::Messages, &sequence_key(self.number, sequence))?;
        bytes.map(|bytes| decode(&bytes)).transpose()
    }

    fn attempts(&self, sequence: u64, recorded: u32) -> Result<Vec<Attempt>, StoreError> {
        kept(recorded)
            .filter_map(|index| {
                self.view
                    .get(Table::Attempts, &attempt_key(self.number, sequence, index))
                    .transpose()
            })
            .map(|bytes| decode(&bytes?))
            .collect()
    }

    fn positions(&self) -> (Vec<u8>, Vec<u8>) {
        let end = position_key(self.number, Position::end_of(Millis::MAX));
        (position_key(self.number, Position::default()), end)
    }

    fn sequences(&self, from: u64) -> (Vec<u8>, Vec<u8>) {
        (
            sequence_key(self.number, from),
            sequence_key(self.number, u64::MAX),
        )
    }
}

fn job(message: MessageRecord, sequence: u64, delivery_count: u32, attempts: Vec<Attempt>) -> Job {
    Job {
        id: message.id,
        sequence,
        job_type: message.job_type,
        state: JobState::Queued,
        enqueued_at: message.enqueued_at,
        due_at: None,
        finished_at: None,
        delivery_count,
        attempts,
        output: None,
        dead_letter: None,
        traceparent: message.traceparent,
    }
}

fn finished(position: Position, bytes: &[u8]) -> Result<Job, StoreError> {
    let record: FinishedRecord = decode(bytes)?;
    Ok(Job {
        id: record.id,
        sequence: position.sequence,
        job_type: record.job_type,
        state: JobState::Completed,
        enqueued_at: record.enqueued_at,
        due_at: None,
        finished_at: Some(position.at),
        delivery_count: record.deliveries,
        attempts: record.attempts,
        output: Some(record.output),
        dead_letter: None,
        traceparent: record.traceparent,
    })
}
