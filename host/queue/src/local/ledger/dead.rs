//! Dead letters: burying, bringing back, throwing away.

use super::locks::Head;
use super::settle::kept;
use super::{Ledger, id_record};
use crate::local::records::{
    DeadRecord, DueRecord, MessageRecord, Place, Position, Table, attempt_key, decode, encode,
    sequence_key, sequence_of,
};
use crate::local::store::{Rows, Staged, StoreError};
use crate::{Millis, Selection};

impl Ledger {
    /// Moves a message from the `Due` index to the dead letters. Its body and
    /// history stay where they are.
    #[expect(
        clippy::too_many_arguments,
        reason = "the facts of one dead letter; a struct would have one user"
    )]
    pub(super) fn bury<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        now: Millis,
        position: Position,
        due: DueRecord,
        head: &Head,
        reason: String,
        description: String,
    ) {
        let DueRecord {
            deliveries,
            recorded,
            ..
        } = due;
        let dead = DeadRecord {
            reason,
            description,
            died_at: now,
            deliveries,
            recorded,
        };
        self.unstage_due(view, position);
        view.put(
            Table::Dead,
            sequence_key(self.number, position.sequence),
            encode(&dead),
        );
        self.counters.dead += 1;
        let id = id_record(position.sequence, head.enqueued_at, now, Place::Dead);
        self.stage_id(view, &head.id, &id);
    }

    /// Drops a waiting message, its history included.
    pub(super) fn drop_waiting<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        now: Millis,
        position: Position,
        due: DueRecord,
        head: &Head,
    ) -> Result<(), StoreError> {
        self.unstage_due(view, position);
        view.remove(
            Table::Messages,
            sequence_key(self.number, position.sequence),
        );
        for index in kept(due.recorded) {
            view.remove(
                Table::Attempts,
                attempt_key(self.number, position.sequence, index),
            );
        }
        self.counters.bytes = self.counters.bytes.saturating_sub(head.size);
        self.forget_id(view, now, position.sequence, &head.id, head.enqueued_at)
    }

    /// Makes dead letters ready again, with fresh attempts and their history
    /// kept. At most `limit`; says how many.
    pub fn redrive<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        now: Millis,
        selection: &Selection,
        limit: usize,
    ) -> Result<u64, StoreError> {
        let selected = self.selected(view, selection, limit)?;
        for (sequence, dead) in &selected {
            let record = self.message(view, *sequence)?;
            view.remove(Table::Dead, sequence_key(self.number, *sequence));
            self.counters.dead = self.counters.dead.saturating_sub(1);
            let due = DueRecord {
                deliveries: 0,
                recorded: dead.recorded,
                retrying: false,
            };
            self.stage_due(
                view,
                Position {
                    at: now,
                    sequence: *sequence,
                },
                due,
            );
            self.stage_id(
                view,
                &record.id,
                &id_record(*sequence, record.enqueued_at, now, Place::Due),
            );
            // Its time to live begins anew, or it would expire on the spot.
            let revived = MessageRecord {
                due_at: now,
                ..record
            };
            view.put(
                Table::Messages,
                sequence_key(self.number, *sequence),
                encode(&revived),
            );
        }
        Ok(selected.len() as u64)
    }

    /// Throws dead letters away. At most `limit`; says how many.
    pub fn purge<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        now: Millis,
        selection: &Selection,
        limit: usize,
    ) -> Result<u64, StoreError> {
        let selected = self.selected(view, selection, limit)?;
        for (sequence, dead) in &selected {
            let record = self.message(view, *sequence)?;
            view.remove(Table::Dead, sequence_key(self.number, *sequence));
            view.remove(Table::Messages, sequence_key(self.number, *sequence));
            for index in kept(dead.recorded) {
                view.remove(Table::Attempts, attempt_key(self.number, *sequence, index));
            }
            self.counters.dead = self.counters.dead.saturating_sub(1);
            self.counters.bytes = self.counters.bytes.saturating_sub(record.size());
            self.counters_changed = true;
            self.forget_id(view, now, *sequence, &record.id, record.enqueued_at)?;
        }
        Ok(selected.len() as u64)
    }

    fn selected<R: Rows>(
        &self,
        view: &Staged<'_, R>,
        selection: &Selection,
        limit: usize,
    ) -> Result<Vec<(u64, DeadRecord)>, StoreError> {
        match selection {
            Selection::Sequence(sequence) => {
                let dead = view.get(Table::Dead, &sequence_key(self.number, *sequence))?;
                dead.map(|bytes| Ok((*sequence, decode(&bytes)?)))
                    .into_iter()
                    .collect()
            }
            Selection::One(id) => {
                let Some(record) = self
                    .id_record(view, id)?
                    .filter(|record| record.place == Place::Dead)
                else {
                    return Ok(Vec::new());
                };
                let dead = view.get(Table::Dead, &sequence_key(self.number, record.sequence))?;
                dead.map(|bytes| Ok((record.sequence, decode(&bytes)?)))
                    .into_iter()
                    .collect()
            }
            Selection::All => {
                let (from, to) = (
                    sequence_key(self.number, 0),
                    sequence_key(self.number, u64::MAX),
                );
                let rows = view.scan(Table::Dead, &from, &to, limit)?;
                rows.iter()
                    .map(|(key, value)| Ok((sequence_of(key)?, decode(value)?)))
                    .collect()
            }
        }
    }

    fn message<R: Rows>(
        &self,
        view: &Staged<'_, R>,
        sequence: u64,
    ) -> Result<MessageRecord, StoreError> {
        let bytes = view.get(Table::Messages, &sequence_key(self.number, sequence))?;
        decode(&bytes.ok_or_else(|| StoreError::damaged("a dead letter has no body"))?)
    }
}
