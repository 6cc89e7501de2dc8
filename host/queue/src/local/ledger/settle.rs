//! Ending deliveries. Everything a settlement changes is in one batch.

use super::locks::{Lease, LockKey};
use super::{Ledger, id_record};
use crate::local::clock::millis;
use crate::local::records::{
    DueRecord, FinishedRecord, Place, Position, Table, attempt_key, decode, encode, sequence_key,
};
use crate::local::store::{Rows, Staged, StoreError};
use crate::planted::{self, Planted};
use crate::{ATTEMPTS_KEPT_MAX, Attempt, Millis, Output, Settlement};

/// The lock does not hold: nothing was staged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LockLost;

impl Ledger {
    pub fn settle<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        now: Millis,
        key: LockKey,
        settlement: Settlement,
        attempt: Option<Attempt>,
    ) -> Result<Result<(), LockLost>, StoreError> {
        let key = if planted::is(Planted::AcceptStaleSettlement)
            && let Some(holder) = self.locks.holder(key.sequence)
        {
            holder
        } else {
            key
        };
        let Some(lease) = self.locks.take(key) else {
            self.locks_lost += 1;
            return Ok(Err(LockLost));
        };
        match settlement {
            Settlement::Complete { output } => self.complete(view, now, lease, output, attempt)?,
            Settlement::Retry { delay } => {
                self.retry(view, now.saturating_add(millis(delay)), lease, attempt)
            }
            Settlement::DeadLetter {
                reason,
                description,
            } => {
                let due = self.stage_attempt(view, key.sequence, lease.due, attempt);
                self.bury(
                    view,
                    now,
                    lease.position,
                    due,
                    &lease.head,
                    reason,
                    description,
                );
            }
            Settlement::Abandon => self.abandon(view, key.sequence, lease, attempt),
            Settlement::Release => self.release(view, lease),
        }
        Ok(Ok(()))
    }

    /// Takes back deliveries that reached no one.
    pub fn release_undelivered<R: Rows>(&mut self, view: &mut Staged<'_, R>, key: LockKey) {
        if let Some(lease) = self.locks.take(key) {
            self.release(view, lease);
        }
    }

    fn complete<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        now: Millis,
        lease: Lease,
        output: Output,
        attempt: Option<Attempt>,
    ) -> Result<(), StoreError> {
        let sequence = lease.position.sequence;
        let mut attempts = self.attempts(view, sequence, lease.due.recorded)?;
        for index in kept(lease.due.recorded) {
            view.remove(Table::Attempts, attempt_key(self.number, sequence, index));
        }
        attempts.extend(attempt);
        self.unstage_due(view, lease.position);
        view.remove(Table::Messages, sequence_key(self.number, sequence));
        self.counters.bytes = self.counters.bytes.saturating_sub(lease.head.size);
        let record = FinishedRecord {
            id: lease.head.id.clone(),
            job_type: lease.head.job_type.clone(),
            enqueued_at: lease.head.enqueued_at,
            deliveries: lease.due.deliveries,
            traceparent: lease.head.traceparent.clone(),
            attempts,
            output,
        };
        self.stage_finished(view, Position { at: now, sequence }, &record);
        self.stage_id(
            view,
            &record.id,
            &id_record(sequence, record.enqueued_at, now, Place::Finished),
        );
        Ok(())
    }

    fn retry<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        due_at: Millis,
        lease: Lease,
        attempt: Option<Attempt>,
    ) {
        let sequence = lease.position.sequence;
        let due = self.stage_attempt(view, sequence, lease.due, attempt);
        self.unstage_due(view, lease.position);
        self.stage_due(
            view,
            Position {
                at: due_at,
                sequence,
            },
            DueRecord {
                retrying: true,
                ..due
            },
        );
        let id = id_record(sequence, lease.head.enqueued_at, due_at, Place::Due);
        self.stage_id(view, &lease.head.id, &id);
    }

    /// Ready at once in its old place; the delivery counts.
    fn abandon<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        sequence: u64,
        lease: Lease,
        attempt: Option<Attempt>,
    ) {
        let due = self.stage_attempt(view, sequence, lease.due, attempt);
        self.unstage_due(view, lease.position);
        self.stage_due(view, lease.position, due);
    }

    /// As if the delivery had never been.
    fn release<R: Rows>(&mut self, view: &mut Staged<'_, R>, lease: Lease) {
        let uncounted = u32::from(!planted::is(Planted::CountReleased));
        let due = DueRecord {
            deliveries: lease.due.deliveries.saturating_sub(uncounted),
            ..lease.due
        };
        self.unstage_due(view, lease.position);
        self.stage_due(view, lease.position, due);
    }

    /// Adds an attempt to the history of an unfinished job; the oldest beyond
    /// the bound is dropped.
    fn stage_attempt<R: Rows>(
        &self,
        view: &mut Staged<'_, R>,
        sequence: u64,
        due: DueRecord,
        attempt: Option<Attempt>,
    ) -> DueRecord {
        let Some(attempt) = attempt else {
            return due;
        };
        let index = due.recorded;
        view.put(
            Table::Attempts,
            attempt_key(self.number, sequence, index),
            encode(&attempt),
        );
        if let Some(oldest) = index.checked_sub(ATTEMPTS_KEPT_MAX as u32) {
            view.remove(Table::Attempts, attempt_key(self.number, sequence, oldest));
        }
        DueRecord {
            recorded: index + 1,
            ..due
        }
    }

    fn attempts<R: Rows>(
        &self,
        view: &Staged<'_, R>,
        sequence: u64,
        recorded: u32,
    ) -> Result<Vec<Attempt>, StoreError> {
        kept(recorded)
            .filter_map(|index| {
                view.get(Table::Attempts, &attempt_key(self.number, sequence, index))
                    .transpose()
            })
            .map(|bytes| decode(&bytes?))
            .collect()
    }
}

/// Indices of the attempts that are still kept, when `recorded` ever were.
pub(crate) fn kept(recorded: u32) -> std::ops::Range<u32> {
    recorded.saturating_sub(ATTEMPTS_KEPT_MAX as u32)..recorded
}
