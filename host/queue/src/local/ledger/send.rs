//! Accepting messages.

use super::{Ledger, id_record};
use crate::local::clock::millis;
use crate::local::records::{
    DueRecord, IdRecord, MessageRecord, Place, Position, Table, encode, sequence_key,
};
use crate::local::store::{Rows, Staged, StoreError};
use crate::planted::{self, Planted};
use crate::{Message, Millis, Receipt, SendError};

impl Ledger {
    /// Accepts a message, or says why not; nothing is staged then.
    pub fn send<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        now: Millis,
        message: Message,
    ) -> Result<Result<Receipt, SendError>, StoreError> {
        if let Err(why) = message.check() {
            return Ok(Err(SendError::Invalid(why)));
        }
        if let Some(known) = self.id_record(view, &message.id)?
            && self.is_duplicate(&known, now)
        {
            return Ok(Ok(Receipt {
                sequence: known.sequence,
                duplicate: true,
            }));
        }
        let due_at = now + millis(message.delay);
        let id = message.id.clone();
        let record = MessageRecord::new(message, now, due_at);
        let size = record.size();
        if self.counters.bytes + size > self.config.max_bytes {
            return Ok(Err(SendError::Full {
                queue: self.config.name.clone(),
                held_bytes: self.counters.bytes,
                limit_bytes: self.config.max_bytes,
            }));
        }
        let sequence = self.counters.next_sequence;
        self.counters.next_sequence += 1;
        self.counters.bytes += size;
        view.put(
            Table::Messages,
            sequence_key(self.number, sequence),
            encode(&record),
        );
        self.stage_id(view, &id, &id_record(sequence, now, due_at, Place::Due));
        self.stage_due(
            view,
            Position {
                at: due_at,
                sequence,
            },
            DueRecord::default(),
        );
        Ok(Ok(Receipt {
            sequence,
            duplicate: false,
        }))
    }

    /// Inside the window every id is; past it, one whose job is not over yet:
    /// the id names the job.
    fn is_duplicate(&self, known: &IdRecord, now: Millis) -> bool {
        if planted::is(Planted::ForgetDuplicates) {
            return false;
        }
        let window = millis(self.config.duplicate_window);
        window > 0 && (known.accepted_at.saturating_add(window) > now || known.place == Place::Due)
    }
}
