//! Completed jobs: kept readable for a bounded age, count and size.

use super::Ledger;
use crate::local::clock::millis;
use crate::local::records::{
    Counters, FinishedRecord, Position, Table, decode, encode, id_key, position_key, position_of,
};
use crate::local::store::{Rows, Staged, StoreError};
use crate::{Millis, QueueConfig};

/// Jobs forgotten in one batch, beyond which the next batch goes on: more
/// than a batch can complete, so that the bounds hold under any load.
const FORGOTTEN_MAX: usize = 4_096;

/// Where forgetting has got to.
#[derive(Default)]
pub(super) struct Keeper {
    /// Everything up to here is forgotten.
    forgotten: Position,
    /// When the oldest kept job finished.
    oldest: Option<Millis>,
    /// When the first remembered id may be forgotten too.
    next_id: Option<Millis>,
}

impl Keeper {
    pub fn next_event(
        &self,
        config: &QueueConfig,
        counters: &Counters,
        now: Millis,
    ) -> Option<Millis> {
        let surplus = exceeds(config, counters).then_some(now);
        let aged = self
            .oldest
            .map(|oldest| oldest.saturating_add(millis(config.retention.age)));
        [surplus, aged, self.next_id].into_iter().flatten().min()
    }
}

fn exceeds(config: &QueueConfig, counters: &Counters) -> bool {
    counters.finished > config.retention.count || counters.finished_bytes > config.retention.bytes
}

impl Ledger {
    pub(super) fn stage_finished<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        position: Position,
        record: &FinishedRecord,
    ) {
        let bytes = encode(record);
        self.counters.finished += 1;
        self.counters.finished_bytes += bytes.len() as u64;
        self.counters_changed = true;
        self.finished.oldest.get_or_insert(position.at);
        view.put(Table::Finished, position_key(self.number, position), bytes);
    }

    pub(super) fn find_oldest_finished<R: Rows>(
        &mut self,
        view: &Staged<'_, R>,
    ) -> Result<(), StoreError> {
        self.finished.oldest = self.first(view, Table::Finished, self.finished.forgotten)?;
        self.finished.next_id = self.first(view, Table::Remembered, Position::default())?;
        Ok(())
    }

    fn first<R: Rows>(
        &self,
        view: &Staged<'_, R>,
        table: Table,
        from: Position,
    ) -> Result<Option<Millis>, StoreError> {
        let from = position_key(self.number, from);
        let to = position_key(self.number, Position::end_of(Millis::MAX));
        let rows = view.scan(table, &from, &to, 1)?;
        rows.first()
            .map(|(key, _)| Ok(position_of(key)?.at))
            .transpose()
    }

    /// Forgets finished jobs that are over a bound, oldest first.
    pub(super) fn forget_finished<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        now: Millis,
    ) -> Result<(), StoreError> {
        if self.finished.next_id.is_some_and(|at| at <= now) {
            self.forget_ids(view, now)?;
        }
        let age = millis(self.config.retention.age);
        let aged = self
            .finished
            .oldest
            .is_some_and(|oldest| oldest.saturating_add(age) <= now);
        if !aged && !exceeds(&self.config, &self.counters) {
            return Ok(());
        }
        let from = position_key(self.number, self.finished.forgotten.after());
        let to = position_key(self.number, Position::end_of(Millis::MAX));
        // Over a bound by few, few are read.
        let surplus = self
            .counters
            .finished
            .saturating_sub(self.config.retention.count);
        let limit = usize::try_from(surplus)
            .unwrap_or(usize::MAX)
            .clamp(64, FORGOTTEN_MAX);
        let rows = view.scan(Table::Finished, &from, &to, limit)?;
        let mut oldest = None;
        for (key, value) in rows {
            let position = position_of(&key)?;
            let is_aged = position.at.saturating_add(age) <= now;
            if !is_aged && !exceeds(&self.config, &self.counters) {
                oldest = Some(position.at);
                break;
            }
            let record: FinishedRecord = decode(&value)?;
            self.counters.finished = self.counters.finished.saturating_sub(1);
            self.counters.finished_bytes = self
                .counters
                .finished_bytes
                .saturating_sub(value.len() as u64);
            self.counters_changed = true;
            self.finished.forgotten = position;
            view.remove(Table::Finished, key);
            self.forget_id(view, now, position.sequence, &record.id, record.enqueued_at)?;
        }
        self.finished.oldest = match oldest {
            Some(oldest) => Some(oldest),
            None => self.first(view, Table::Finished, self.finished.forgotten.after())?,
        };
        Ok(())
    }

    /// Forgets the id of a job that is gone; inside its duplicate window, later.
    pub(super) fn forget_id<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        now: Millis,
        sequence: u64,
        id: &str,
        accepted_at: Millis,
    ) -> Result<(), StoreError> {
        let forget_at = accepted_at.saturating_add(millis(self.config.duplicate_window));
        if forget_at > now {
            let position = Position {
                at: forget_at,
                sequence,
            };
            view.put(
                Table::Remembered,
                position_key(self.number, position),
                id.as_bytes().to_vec(),
            );
            self.finished.next_id = Some(
                self.finished
                    .next_id
                    .map_or(forget_at, |at| at.min(forget_at)),
            );
        } else if self
            .id_record(view, id)?
            .is_some_and(|record| record.sequence == sequence)
        {
            view.remove(Table::Ids, id_key(self.number, id));
        }
        Ok(())
    }

    fn forget_ids<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        now: Millis,
    ) -> Result<(), StoreError> {
        let from = Position {
            at: self.finished.next_id.unwrap_or_default(),
            sequence: 0,
        };
        let to = position_key(self.number, Position::end_of(now));
        let rows = view.scan(
            Table::Remembered,
            &position_key(self.number, from),
            &to,
            FORGOTTEN_MAX,
        )?;
        let mut reached = from;
        for (key, value) in rows {
            reached = position_of(&key)?;
            let id = String::from_utf8_lossy(&value).into_owned();
            if self
                .id_record(view, &id)?
                .is_some_and(|record| record.sequence == reached.sequence)
            {
                view.remove(Table::Ids, id_key(self.number, &id));
            }
            view.remove(Table::Remembered, key);
        }
        self.finished.next_id = self.first(view, Table::Remembered, reached.after())?;
        Ok(())
    }
}
