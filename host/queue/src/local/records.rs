//! What lies on disk: keys, and the records behind them.
//!
//! | table | key | record |
//! | --- | --- | --- |
//! | `Messages` | queue, sequence | the message, written once |
//! | `Due` | queue, due time, sequence | counts of one waiting message |
//! | `Ids` | queue, message id | where the message is |
//! | `Attempts` | queue, sequence, index | one ended attempt of an unfinished job |
//! | `Dead` | queue, sequence | why a message is dead |
//! | `Finished` | queue, finish time, sequence | a completed job, whole |
//! | `Remembered` | queue, forget time, sequence | id of a forgotten job still inside its duplicate window |
//! | `Meta` | name | format version, queue numbers, counters, settings of created queues |
//!
//! Numbers in keys are big-endian, so that keys sort as the numbers do. Due
//! times order everything that waits: immediate, scheduled and retrying
//! messages alike. Records are MessagePack maps: fields can be added.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::store::StoreError;
use crate::{Attempt, Message, Millis, Output};

/// Version of all of this. Another version is refused when opening.
pub(crate) const FORMAT_VERSION: u32 = 1;
pub(crate) const META_FORMAT: &[u8] = b"format";

/// One ordered map of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    Messages,
    Due,
    Ids,
    Attempts,
    Dead,
    Finished,
    Remembered,
    Meta,
}

impl Table {
    pub const ALL: [Self; 8] = [
        Self::Messages,
        Self::Due,
        Self::Ids,
        Self::Attempts,
        Self::Dead,
        Self::Finished,
        Self::Remembered,
        Self::Meta,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Due => "due",
            Self::Ids => "ids",
            Self::Attempts => "attempts",
            Self::Dead => "dead",
            Self::Finished => "finished",
            Self::Remembered => "remembered",
            Self::Meta => "meta",
        }
    }
}

/// The number that stands for a queue's name in keys.
pub(crate) type QueueNumber = u16;

/// A place in an index ordered by time.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub(crate) struct Position {
    pub at: Millis,
    pub sequence: u64,
}

impl Position {
    pub const fn end_of(at: Millis) -> Self {
        Self {
            at,
            sequence: u64::MAX,
        }
    }

    /// The place just before this one.
    pub fn before(self) -> Self {
        match self.sequence.checked_sub(1) {
            Some(sequence) => Self {
                at: self.at,
                sequence,
            },
            None => Self {
                at: self.at.saturating_sub(1),
                sequence: u64::MAX,
            },
        }
    }

    /// The place just after this one.
    pub fn after(self) -> Self {
        match self.sequence.checked_add(1) {
            Some(sequence) => Self {
                at: self.at,
                sequence,
            },
            None => Self {
                at: self.at.saturating_add(1),
                sequence: 0,
            },
        }
    }
}

pub(crate) fn position_key(queue: QueueNumber, position: Position) -> Vec<u8> {
    let mut key = Vec::with_capacity(18);
    key.extend_from_slice(&queue.to_be_bytes());
    key.extend_from_slice(&position.at.to_be_bytes());
    key.extend_from_slice(&position.sequence.to_be_bytes());
    key
}

pub(crate) fn position_of(key: &[u8]) -> Result<Position, StoreError> {
    Ok(Position {
        at: number(key, 2)?,
        sequence: number(key, 10)?,
    })
}

pub(crate) fn sequence_key(queue: QueueNumber, sequence: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(10);
    key.extend_from_slice(&queue.to_be_bytes());
    key.extend_from_slice(&sequence.to_be_bytes());
    key
}

pub(crate) fn sequence_of(key: &[u8]) -> Result<u64, StoreError> {
    number(key, 2)
}

pub(crate) fn attempt_key(queue: QueueNumber, sequence: u64, index: u32) -> Vec<u8> {
    let mut key = sequence_key(queue, sequence);
    key.extend_from_slice(&index.to_be_bytes());
    key
}

pub(crate) fn id_key(queue: QueueNumber, id: &str) -> Vec<u8> {
    let mut key = queue.to_be_bytes().to_vec();
    key.extend_from_slice(id.as_bytes());
    key
}

pub(crate) fn counters_key(queue: QueueNumber) -> Vec<u8> {
    [b"counters/".as_slice(), &queue.to_be_bytes()].concat()
}

pub(crate) fn queue_number_key(name: &str) -> Vec<u8> {
    [b"queue/", name.as_bytes()].concat()
}

/// Where the settings of a queue lie that was created while the host ran.
pub(crate) fn created_key(name: &str) -> Vec<u8> {
    [CREATED, name.as_bytes()].concat()
}

/// What every [`created_key`] begins with, and what follows the last of them.
pub(crate) const CREATED: &[u8] = b"created/";
pub(crate) const CREATED_END: &[u8] = b"created0";

fn number(key: &[u8], at: usize) -> Result<u64, StoreError> {
    let bytes = key.get(at..at + 8).and_then(|bytes| bytes.first_chunk());
    bytes
        .map(|bytes| u64::from_be_bytes(*bytes))
        .ok_or_else(|| StoreError::damaged("a key is too short"))
}

/// A message as it is kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct MessageRecord {
    pub id: String,
    pub job_type: String,
    pub content_type: String,
    pub properties: Vec<(String, String)>,
    pub traceparent: Option<String>,
    pub enqueued_at: Millis,
    /// When it is first due: its time to live counts from here.
    pub due_at: Millis,
    pub time_to_live_ms: Option<u64>,
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub envelope: Vec<u8>,
}

/// Bytes of a message beside its texts and payload: keys and counts, about.
const MESSAGE_OVERHEAD_BYTES: u64 = 128;

impl MessageRecord {
    pub fn new(message: Message, now: Millis, due_at: Millis) -> Self {
        Self {
            id: message.id,
            job_type: message.job_type,
            content_type: message.content_type,
            properties: message.properties,
            traceparent: message.traceparent,
            enqueued_at: now,
            due_at,
            time_to_live_ms: message.time_to_live.map(super::clock::millis),
            payload: message.payload.into(),
            envelope: message.envelope.into(),
        }
    }

    /// What it counts for in the queue's size bound.
    pub fn size(&self) -> u64 {
        let properties: usize = self
            .properties
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        let texts = self.id.len() + self.job_type.len() + self.content_type.len();
        (properties + texts + self.payload.len() + self.envelope.len()) as u64
            + MESSAGE_OVERHEAD_BYTES
    }

    pub fn into_message(self) -> Message {
        Message {
            id: self.id,
            job_type: self.job_type,
            payload: self.payload.into(),
            content_type: self.content_type,
            properties: self.properties,
            traceparent: self.traceparent,
            delay: std::time::Duration::ZERO,
            time_to_live: self.time_to_live_ms.map(std::time::Duration::from_millis),
            envelope: self.envelope.into(),
        }
    }
}

/// The counts of a waiting message. Written with every delivery, so encoded by
/// hand: eleven bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DueRecord {
    /// Deliveries counted since it was accepted or redriven.
    pub deliveries: u32,
    /// Attempts ever recorded, redriven lives included.
    pub recorded: u32,
    /// Waits because an attempt failed, not because its sender said so.
    pub retrying: bool,
}

impl DueRecord {
    pub fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(9);
        bytes.extend_from_slice(&self.deliveries.to_be_bytes());
        bytes.extend_from_slice(&self.recorded.to_be_bytes());
        bytes.push(u8::from(self.retrying));
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let [d0, d1, d2, d3, r0, r1, r2, r3, retrying, ..] = *bytes else {
            return Err(StoreError::damaged("a due record is too short"));
        };
        Ok(Self {
            deliveries: u32::from_be_bytes([d0, d1, d2, d3]),
            recorded: u32::from_be_bytes([r0, r1, r2, r3]),
            retrying: retrying != 0,
        })
    }
}

/// Where the newest message of an id is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct IdRecord {
    pub sequence: u64,
    pub accepted_at: Millis,
    /// Time part of its place in `Due` while it waits, in `Finished` once completed.
    pub at: Millis,
    pub place: Place,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Place {
    #[default]
    Due,
    Dead,
    Finished,
}

/// Why and when a message died. The message itself stays in `Messages`, its
/// history in `Attempts`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct DeadRecord {
    pub reason: String,
    pub description: String,
    pub died_at: Millis,
    pub deliveries: u32,
    pub recorded: u32,
}

/// A completed job.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct FinishedRecord {
    pub id: String,
    pub job_type: String,
    pub enqueued_at: Millis,
    pub deliveries: u32,
    pub traceparent: Option<String>,
    pub attempts: Vec<Attempt>,
    pub output: Output,
}

/// What a ledger must know without looking at every row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Counters {
    pub next_sequence: u64,
    /// Rows in `Due`.
    pub waiting: u64,
    /// Rows in `Due` beyond the horizon.
    pub scheduled: u64,
    /// Everything up to here is due.
    pub horizon: Position,
    pub dead: u64,
    pub bytes: u64,
    pub finished: u64,
    pub finished_bytes: u64,
}

pub(crate) fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(record).expect("records hold nothing that MessagePack cannot")
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    rmp_serde::from_slice(bytes)
        .map_err(|error| StoreError::damaged(&format!("a record cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_their_positions_do() {
        let mut positions = vec![
            Position {
                at: 1,
                sequence: 256,
            },
            Position { at: 1, sequence: 2 },
            Position {
                at: 256,
                sequence: 0,
            },
            Position {
                at: 2,
                sequence: u64::MAX,
            },
        ];
        positions.sort();
        let mut keys: Vec<_> = positions
            .iter()
            .map(|position| position_key(3, *position))
            .collect();
        keys.sort();
        let decoded: Vec<_> = keys
            .iter()
            .map(|key| position_of(key).expect("a key"))
            .collect();
        assert_eq!(decoded, positions);
    }

    #[test]
    fn before_and_after_are_neighbours() {
        let place = Position { at: 5, sequence: 0 };
        assert!(place.before() < place && place < place.after());
        assert_eq!(Position::end_of(5).after(), Position { at: 6, sequence: 0 });
    }

    #[test]
    fn a_record_with_fields_of_a_later_version_can_be_read() {
        #[derive(Serialize)]
        struct Later {
            sequence: u64,
            something_new: &'static str,
        }
        let record: IdRecord = decode(&encode(&Later {
            sequence: 7,
            something_new: "x",
        }))
        .expect("readable");
        assert_eq!(
            record,
            IdRecord {
                sequence: 7,
                ..IdRecord::default()
            }
        );
    }
}
