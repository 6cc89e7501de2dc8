//! Accepting messages.

use super::{Ledger, id_record};
use crate::local::clock::millis;
use crate::local::records::{
    DueRecord, IdRecord, MessageRecord, Place, Position, Table, encode, sequence_key,
};
use crate::local::store::{Rows, Staged, StoreError};
use crate::planted::{self, Planted};
use crate::{
    DELAY_MAX, ENVELOPE_BYTES_MAX, JOB_TYPE_BYTES_MAX, MESSAGE_ID_CHARS_MAX, Message, Millis,
    PAYLOAD_BYTES_MAX, PROPERTIES_BYTES_MAX, PROPERTIES_MAX, PROPERTY_NAME_BYTES_MAX,
    PROPERTY_VALUE_BYTES_MAX, Receipt, SendError,
};

/// Longest media type, in bytes; real ones are far shorter.
const CONTENT_TYPE_BYTES_MAX: usize = 256;
/// Longest trace context, in bytes: version 00 has 55, later ones may have more.
const TRACEPARENT_BYTES_MAX: usize = 256;

impl Ledger {
    /// Accepts a message, or says why not; nothing is staged then.
    pub fn send<R: Rows>(
        &mut self,
        view: &mut Staged<'_, R>,
        now: Millis,
        message: Message,
    ) -> Result<Result<Receipt, SendError>, StoreError> {
        if let Err(why) = check(&message) {
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

fn check(message: &Message) -> Result<(), String> {
    let id = &message.id;
    let chars = id.chars().count();
    if !(1..=MESSAGE_ID_CHARS_MAX).contains(&chars) {
        return Err(format!(
            "the message id has {chars} characters; 1 to {MESSAGE_ID_CHARS_MAX} are taken"
        ));
    }
    if id.chars().any(char::is_control) {
        return Err("the message id has a control character".to_owned());
    }
    bounded(
        "the job type",
        message.job_type.len(),
        0,
        JOB_TYPE_BYTES_MAX,
    )?;
    bounded("the payload", message.payload.len(), 0, PAYLOAD_BYTES_MAX)?;
    bounded(
        "the envelope",
        message.envelope.len(),
        0,
        ENVELOPE_BYTES_MAX,
    )?;
    bounded(
        "the content type",
        message.content_type.len(),
        0,
        CONTENT_TYPE_BYTES_MAX,
    )?;
    bounded(
        "the trace context",
        message.traceparent.as_ref().map_or(0, String::len),
        0,
        TRACEPARENT_BYTES_MAX,
    )?;
    if message.properties.len() > PROPERTIES_MAX {
        return Err(format!(
            "there are {} properties; at most {PROPERTIES_MAX} are taken",
            message.properties.len()
        ));
    }
    for (name, value) in &message.properties {
        bounded("a property's name", name.len(), 1, PROPERTY_NAME_BYTES_MAX)?;
        bounded(
            &format!("the value of property `{name}`"),
            value.len(),
            0,
            PROPERTY_VALUE_BYTES_MAX,
        )?;
    }
    let all = message.properties.iter();
    bounded(
        "the properties together",
        all.map(|(name, value)| name.len() + value.len()).sum(),
        0,
        PROPERTIES_BYTES_MAX,
    )?;
    if message.delay > DELAY_MAX {
        return Err(format!(
            "the delay is {:?}; at most {DELAY_MAX:?} are taken",
            message.delay
        ));
    }
    Ok(())
}

fn bounded(what: &str, bytes: usize, min: usize, max: usize) -> Result<(), String> {
    if bytes < min {
        return Err(format!("{what} is empty"));
    }
    if bytes > max {
        return Err(format!("{what} has {bytes} bytes; at most {max} are taken"));
    }
    Ok(())
}
