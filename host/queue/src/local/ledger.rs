//! The state of one queue: who may be locked, is due, expired, finished, dead.
//!
//! Pure: it reads and stages rows through [`Staged`], takes the time and new
//! lock tokens as arguments, and does no IO of its own. In memory it holds the
//! locks and a few positions, whatever the backlog.
//!
//! Two positions move through the `Due` index, which holds every waiting
//! message in the order it becomes due:
//!
//! ```text
//!   ──────────────●───────────────────●──────────────►  due time
//!    locked, or   cursor   ready      horizon   scheduled
//!    long gone
//! ```
//!
//! - Everything up to the **horizon** is due. It follows the clock.
//! - Everything up to the **cursor** is locked or gone, so that a scan for
//!   ready messages begins there and never crosses what was consumed before.
//!   Whatever becomes ready below it (a lock that ran out, a delivery given
//!   back) moves it down.

mod dead;
mod finished;
mod locks;
#[cfg(test)]
mod model;
mod receive;
mod send;
mod settle;

use uuid::Uuid;

use super::records::{
    Counters, IdRecord, Place, Position, QueueNumber, Table, counters_key, decode, encode, id_key,
    position_key, position_of,
};
use super::store::{Rows, Staged, StoreError};
use crate::planted::{self, Planted};
use crate::{Millis, QueueConfig, QueueStats};
pub(crate) use locks::LockKey;
use locks::Locks;
pub(crate) use settle::{LockLost, kept};

/// Rows that one step of the horizon passes: a burst that comes due at one
/// moment is spread over several batches.
const HORIZON_ROWS_MAX: usize = 10_000;

/// One queue's state.
pub(crate) struct Ledger {
    number: QueueNumber,
    config: QueueConfig,
    counters: Counters,
    counters_changed: bool,
    cursor: Position,
    /// When the first message beyond the horizon is due, if there is one.
    next_due: Option<Millis>,
    locks: Locks,
    finished: finished::Keeper,
    locks_lost: u64,
}

impl Ledger {
    /// The state as the rows tell it. Cheap: only a clock that went back needs
    /// more than a few rows.
    pub fn open<R: Rows>(
        number: QueueNumber,
        config: QueueConfig,
        view: &mut Staged<'_, R>,
        now: Millis,
    ) -> Result<Self, StoreError> {
        let counters = match view.get(Table::Meta, &counters_key(number))? {
            Some(bytes) => decode(&bytes)?,
            None => Counters {
                next_sequence: 1,
                ..Counters::default()
            },
        };
        let mut ledger = Self {
            number,
            config,
            counters,
            counters_changed: false,
            cursor: Position::default(),
            next_due: None,
            locks: Locks::default(),
            finished: finished::Keeper::default(),
            locks_lost: 0,
        };
        if ledger.counters.horizon.at > now {
            ledger.rewind_horizon(view, now)?;
        }
        ledger.find_next_due(view)?;
        ledger.find_oldest_finished(view)?;
        Ok(ledger)
    }

    pub fn config(&self) -> &QueueConfig {
        &self.config
    }

    pub fn number(&self) -> QueueNumber {
        self.number
    }

    /// Brings the state to `now`: locks that ran out, messages that came due,
    /// finished jobs to forget. Every operation is preceded by it.
    pub fn advance<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        now: Millis,
    ) -> Result<(), StoreError> {
        for position in self.locks.expire(now) {
            self.lower_cursor(position);
        }
        self.move_horizon(view, now)?;
        self.forget_finished(view, now)
    }

    /// The next time at which [`advance`](Self::advance) would change something.
    pub fn next_event(&self, now: Millis) -> Option<Millis> {
        let finished = self.finished.next_event(&self.config, &self.counters, now);
        [self.locks.next_expiry(), self.next_due, finished]
            .into_iter()
            .flatten()
            .min()
    }

    /// Stages the counters, if they changed. Once, at the end of a batch.
    pub fn stage_counters<R: Rows>(&mut self, view: &mut Staged<'_, R>) {
        if std::mem::take(&mut self.counters_changed) {
            view.put(
                Table::Meta,
                counters_key(self.number),
                encode(&self.counters),
            );
        }
    }

    pub fn stats(&self) -> QueueStats {
        let locked = self.locks.len();
        QueueStats {
            ready: self.ready(),
            locked,
            scheduled: self.counters.scheduled,
            dead: self.counters.dead,
            bytes: self.counters.bytes,
            oldest_due_at: None,
            locks_lost: self.locks_lost,
        }
    }

    /// Where the oldest message that is ready or locked can first be.
    pub fn oldest_from(&self) -> Position {
        self.locks
            .oldest()
            .map_or(self.cursor, |locked| locked.min(self.cursor))
    }

    /// Messages that could be locked now.
    pub fn ready(&self) -> u64 {
        self.counters
            .waiting
            .saturating_sub(self.counters.scheduled)
            .saturating_sub(self.locks.len())
    }

    pub fn waiting(&self) -> u64 {
        self.counters.waiting
    }

    /// Sequences that were locked or unlocked since this was last asked.
    pub fn take_lock_changes(&mut self) -> Vec<(u64, bool)> {
        self.locks.take_changes()
    }

    /// The changes to locks are final: their batch is written.
    pub fn commit_locks(&mut self) {
        self.locks.commit();
    }

    /// Takes other settings. What is locked keeps the lock that it has.
    pub fn configure(&mut self, config: QueueConfig) {
        self.config = config;
    }

    /// Removes rows of this queue, at most `limit`; says how many. Zero: all are gone.
    pub fn clear<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        limit: usize,
    ) -> Result<u64, StoreError> {
        let mut removed = 0;
        for table in Table::ALL {
            if table == Table::Meta {
                continue;
            }
            let from = self.number.to_be_bytes();
            let to = self.number.saturating_add(1).to_be_bytes();
            for (key, _) in view.scan(table, &from, &to, limit - removed)? {
                view.remove(table, key);
                removed += 1;
            }
        }
        Ok(removed as u64)
    }

    /// After a failed batch: a state read anew from the rows that are there,
    /// with the locks that were held before the batch and whose messages still wait.
    pub fn reopen<R: Rows>(
        &self,
        view: &mut Staged<'_, R>,
        now: Millis,
    ) -> Result<Self, StoreError> {
        let mut fresh = Self::open(self.number, self.config.clone(), view, now)?;
        fresh.locks_lost = self.locks_lost;
        for (key, lease) in self.locks.before_batch() {
            if view
                .get(Table::Due, &position_key(fresh.number, lease.position))?
                .is_some()
            {
                fresh.locks.insert(key, lease);
            }
        }
        fresh.locks.commit();
        Ok(fresh)
    }

    fn lower_cursor(&mut self, position: Position) {
        if planted::is(Planted::ForgetReady) {
            return;
        }
        self.cursor = self.cursor.min(position.before());
    }

    /// Puts a message into the `Due` index.
    fn stage_due<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        position: Position,
        record: super::records::DueRecord,
    ) {
        view.put(
            Table::Due,
            position_key(self.number, position),
            record.encode(),
        );
        self.counters.waiting += 1;
        self.counters_changed = true;
        if position > self.counters.horizon {
            self.counters.scheduled += 1;
            self.next_due = Some(
                self.next_due
                    .map_or(position.at, |due| due.min(position.at)),
            );
        } else {
            self.lower_cursor(position);
        }
    }

    /// Takes a message, which must not be beyond the horizon, out of the `Due` index.
    fn unstage_due<R: Rows>(&mut self, view: &mut Staged<'_, R>, position: Position) {
        view.remove(Table::Due, position_key(self.number, position));
        self.counters.waiting = self.counters.waiting.saturating_sub(1);
        self.counters_changed = true;
    }

    fn stage_id<R: Rows>(&self, view: &mut Staged<'_, R>, id: &str, record: &IdRecord) {
        view.put(Table::Ids, id_key(self.number, id), encode(record));
    }

    fn id_record<R: Rows>(
        &self,
        view: &Staged<'_, R>,
        id: &str,
    ) -> Result<Option<IdRecord>, StoreError> {
        view.get(Table::Ids, &id_key(self.number, id))?
            .map(|bytes| decode(&bytes))
            .transpose()
    }

    fn move_horizon<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        now: Millis,
    ) -> Result<(), StoreError> {
        let reached = Position::end_of(now);
        if self.counters.horizon >= reached {
            return Ok(());
        }
        if self.next_due.is_none_or(|due| due > now) {
            self.counters.horizon = reached;
            return Ok(());
        }
        let rows = self.due_between(view, self.counters.horizon, reached, HORIZON_ROWS_MAX)?;
        self.counters.scheduled = self.counters.scheduled.saturating_sub(rows.len() as u64);
        self.counters.horizon = match rows.last() {
            Some(last) if rows.len() == HORIZON_ROWS_MAX => *last,
            _ => reached,
        };
        self.counters_changed = true;
        self.find_next_due(view)
    }

    fn find_next_due<R: Rows>(&mut self, view: &Staged<'_, R>) -> Result<(), StoreError> {
        self.next_due = if self.counters.scheduled == 0 {
            None
        } else {
            let end = Position::end_of(Millis::MAX);
            self.due_between(view, self.counters.horizon, end, 1)?
                .first()
                .map(|position| position.at)
        };
        Ok(())
    }

    /// The clock went back since the counters were written: what is due now
    /// must be counted anew.
    fn rewind_horizon<R: Rows>(
        &mut self,
        view: &Staged<'_, R>,
        now: Millis,
    ) -> Result<(), StoreError> {
        let mut from = Position::end_of(now);
        self.counters.horizon = from;
        self.counters.scheduled = 0;
        self.counters_changed = true;
        loop {
            let rows =
                self.due_between(view, from, Position::end_of(Millis::MAX), HORIZON_ROWS_MAX)?;
            self.counters.scheduled += rows.len() as u64;
            match rows.last() {
                Some(last) if rows.len() == HORIZON_ROWS_MAX => from = *last,
                _ => return Ok(()),
            }
        }
    }

    /// Positions in the `Due` index after `from` and up to `to`.
    fn due_between<R: Rows>(
        &self,
        view: &Staged<'_, R>,
        from: Position,
        to: Position,
        limit: usize,
    ) -> Result<Vec<Position>, StoreError> {
        let (from, to) = (
            position_key(self.number, from.after()),
            position_key(self.number, to.after()),
        );
        let rows = view.scan(Table::Due, &from, &to, limit)?;
        rows.iter().map(|(key, _)| position_of(key)).collect()
    }
}

/// Makes lock tokens; tests pass one that repeats.
pub(crate) type Tokens<'a> = &'a mut dyn FnMut() -> Uuid;

fn id_record(sequence: u64, accepted_at: Millis, at: Millis, place: Place) -> IdRecord {
    IdRecord {
        sequence,
        accepted_at,
        at,
        place,
    }
}
