//! Handing messages out under a lock, and renewing it.

use std::sync::Arc;

use super::locks::{Head, Lease, LockKey};
use super::{Ledger, Tokens};
use crate::local::clock::millis;
use crate::local::records::{
    DueRecord, MessageRecord, Position, Table, decode, position_key, position_of, sequence_key,
};
use crate::local::store::{Row, Rows, Staged, StoreError};
use crate::{Delivery, Lock, Millis, REASON_MAX_DELIVERY_COUNT, REASON_TTL_EXPIRED, RenewError};

/// Rows looked at beyond those asked for, per read of the index: room for
/// locked ones that the cursor was moved back over.
const ROWS_EXTRA: usize = 16;
/// Messages that one receive moves to the dead letters on its way; the next
/// one goes on.
const DEAD_LETTERED_MAX: usize = 1_000;

impl Ledger {
    /// Locks up to `max` ready messages, oldest due first. A message that
    /// waited longer than its time to live, or was delivered as often as it may
    /// be, goes to the dead letters instead.
    pub fn receive<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        now: Millis,
        max: usize,
        tokens: Tokens<'_>,
    ) -> Result<Vec<Delivery>, StoreError> {
        let mut deliveries = Vec::new();
        let mut dead_lettered = 0;
        while deliveries.len() < max && self.ready() > 0 && dead_lettered < DEAD_LETTERED_MAX {
            let rows = self.rows_from_cursor(view, max - deliveries.len() + ROWS_EXTRA)?;
            if rows.is_empty() {
                break;
            }
            for (key, value) in rows {
                if deliveries.len() == max {
                    break;
                }
                let position = position_of(&key)?;
                self.cursor = position;
                if self.locks.contains(position.sequence) {
                    continue;
                }
                match self.deliver(view, now, position, DueRecord::decode(&value)?, tokens)? {
                    Some(delivery) => deliveries.push(delivery),
                    None => dead_lettered += 1,
                }
            }
        }
        Ok(deliveries)
    }

    fn rows_from_cursor<R: Rows>(
        &self,
        view: &Staged<'_, R>,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        let from = position_key(self.number, self.cursor.after());
        let to = position_key(self.number, self.counters.horizon.after());
        view.scan(Table::Due, &from, &to, limit)
    }

    /// Locks one message, or moves it to the dead letters.
    fn deliver<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        now: Millis,
        position: Position,
        mut due: DueRecord,
        tokens: Tokens<'_>,
    ) -> Result<Option<Delivery>, StoreError> {
        let bytes = view
            .get(
                Table::Messages,
                &sequence_key(self.number, position.sequence),
            )?
            .ok_or_else(|| StoreError::damaged("a waiting message has no body"))?;
        let record: MessageRecord = decode(&bytes)?;
        let head = Arc::new(Head {
            id: record.id.clone(),
            job_type: record.job_type.clone(),
            enqueued_at: record.enqueued_at,
            traceparent: record.traceparent.clone(),
            size: record.size(),
        });
        if let Some((reason, description)) = self.overdue(&record, due, now) {
            if reason == REASON_TTL_EXPIRED && !self.config.dead_letter_expired {
                self.drop_waiting(view, now, position, due, &head)?;
                return Ok(None);
            }
            self.bury(
                view,
                now,
                position,
                due,
                &head,
                reason.to_owned(),
                description,
            );
            return Ok(None);
        }
        due.deliveries += 1;
        view.put(
            Table::Due,
            position_key(self.number, position),
            due.encode(),
        );
        let key = LockKey {
            sequence: position.sequence,
            token: tokens(),
        };
        let locked_until = now + millis(self.config.lock_duration);
        self.locks.insert(
            key,
            Lease {
                position,
                expires_at: locked_until,
                due,
                head,
            },
        );
        let enqueued_at = record.enqueued_at;
        Ok(Some(Delivery {
            message: record.into_message(),
            lock: Lock {
                sequence: key.sequence,
                token: key.token,
                locked_until,
                duration: self.config.lock_duration,
            },
            delivery_count: due.deliveries,
            enqueued_at,
        }))
    }

    /// Why a message may not be delivered any more, if it may not.
    fn overdue(
        &self,
        record: &MessageRecord,
        due: DueRecord,
        now: Millis,
    ) -> Option<(&'static str, String)> {
        let own = record.time_to_live_ms;
        let lifetime = own.or_else(|| self.config.time_to_live.map(millis));
        if let Some(lifetime) = lifetime
            && record.due_at.saturating_add(lifetime) <= now
        {
            return Some((
                REASON_TTL_EXPIRED,
                format!("it waited longer than its time to live of {lifetime} ms"),
            ));
        }
        if due.deliveries >= self.config.max_delivery_count {
            let description = format!(
                "it was delivered {} times and never settled: its host crashed, or lost its lock, each time",
                due.deliveries
            );
            return Some((REASON_MAX_DELIVERY_COUNT, description));
        }
        None
    }

    /// Prolongs a lock by its whole length from now.
    pub fn renew(&mut self, now: Millis, key: LockKey) -> Result<Millis, RenewError> {
        let Some(lease) = self.locks.get(key).cloned() else {
            self.locks_lost += 1;
            return Err(RenewError::LockLost);
        };
        let expires_at = now + millis(self.config.lock_duration);
        self.locks.insert(
            key,
            Lease {
                expires_at,
                ..lease
            },
        );
        Ok(expires_at)
    }
}
