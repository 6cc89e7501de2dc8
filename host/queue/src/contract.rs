//! What every keeper of a queue takes and gives: messages, deliveries,
//! settlements, and the errors that say whether a retry helps.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A point in time: milliseconds since 1970-01-01 UTC.
pub type Millis = u64;

/// Longest message id, in characters: what Service Bus allows for its `MessageId`.
pub const MESSAGE_ID_CHARS_MAX: usize = 128;
/// Largest payload of one message, in bytes: what Service Bus takes over HTTP on its largest tier.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// Most custom properties on one message.
pub const PROPERTIES_MAX: usize = 64;
/// Longest name of a custom property, in bytes.
pub const PROPERTY_NAME_BYTES_MAX: usize = 128;
/// Longest value of a custom property, in bytes: what Service Bus allows.
pub const PROPERTY_VALUE_BYTES_MAX: usize = 32 * 1024;
/// All names and values of the custom properties of one message, in bytes: what
/// Service Bus allows for all headers.
pub const PROPERTIES_BYTES_MAX: usize = 64 * 1024;
/// Largest [`Message::envelope`], in bytes: as much as Service Bus allows for all headers.
pub const ENVELOPE_BYTES_MAX: usize = 64 * 1024;
/// Longest job type, in bytes.
pub const JOB_TYPE_BYTES_MAX: usize = 256;
/// Longest media type, in bytes; real ones are far shorter.
pub const CONTENT_TYPE_BYTES_MAX: usize = 256;
/// Longest trace context, in bytes: version 00 has 55, later ones may have more.
pub const TRACEPARENT_BYTES_MAX: usize = 256;
/// Longest delay before a message is due: a year, so that arithmetic on times cannot overflow.
pub const DELAY_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A message on its way into a queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Identity and duplicate-detection key: 1 to [`MESSAGE_ID_CHARS_MAX`]
    /// characters, none of them a control character.
    pub id: String,
    /// What kind of job it carries.
    pub job_type: String,
    /// The data, opaque to the queue.
    pub payload: Bytes,
    /// Media type of the payload.
    pub content_type: String,
    /// Custom properties, in the sender's order.
    pub properties: Vec<(String, String)>,
    /// W3C trace context, if the sender had one.
    pub traceparent: Option<String>,
    /// How long to hold it back before it is due. At most [`DELAY_MAX`].
    pub delay: Duration,
    /// How long it may wait, counted from when it is due, before it is
    /// dead-lettered unrun. `None`: the queue's own time to live.
    pub time_to_live: Option<Duration>,
    /// What the wire that it came by must give back with it, and nothing here
    /// reads. At most [`ENVELOPE_BYTES_MAX`].
    pub envelope: Bytes,
}

impl Message {
    /// Holds it to the limits above; the error says which one it breaks.
    pub fn check(&self) -> Result<(), String> {
        let id = &self.id;
        let chars = id.chars().count();
        if !(1..=MESSAGE_ID_CHARS_MAX).contains(&chars) {
            return Err(format!(
                "the message id has {chars} characters; 1 to {MESSAGE_ID_CHARS_MAX} are taken"
            ));
        }
        if id.chars().any(char::is_control) {
            return Err("the message id has a control character".to_owned());
        }
        bounded("the job type", self.job_type.len(), 0, JOB_TYPE_BYTES_MAX)?;
        bounded("the payload", self.payload.len(), 0, PAYLOAD_BYTES_MAX)?;
        bounded("the envelope", self.envelope.len(), 0, ENVELOPE_BYTES_MAX)?;
        bounded(
            "the content type",
            self.content_type.len(),
            0,
            CONTENT_TYPE_BYTES_MAX,
        )?;
        bounded(
            "the trace context",
            self.traceparent.as_ref().map_or(0, String::len),
            0,
            TRACEPARENT_BYTES_MAX,
        )?;
        if self.properties.len() > PROPERTIES_MAX {
            return Err(format!(
                "there are {} properties; at most {PROPERTIES_MAX} are taken",
                self.properties.len()
            ));
        }
        for (name, value) in &self.properties {
            bounded("a property's name", name.len(), 1, PROPERTY_NAME_BYTES_MAX)?;
            bounded(
                &format!("the value of property `{name}`"),
                value.len(),
                0,
                PROPERTY_VALUE_BYTES_MAX,
            )?;
        }
        let all = self.properties.iter();
        bounded(
            "the properties together",
            all.map(|(name, value)| name.len() + value.len()).sum(),
            0,
            PROPERTIES_BYTES_MAX,
        )?;
        if self.delay > DELAY_MAX {
            return Err(format!(
                "the delay is {:?}; at most {DELAY_MAX:?} are taken",
                self.delay
            ));
        }
        Ok(())
    }
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

/// Proof of acceptance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Number of the message in its queue, rising in order of acceptance. For
    /// a duplicate: the number of the message that is already there.
    pub sequence: u64,
    /// True if the id was already known within the duplicate window: nothing was added.
    pub duplicate: bool,
}

/// Why a message was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The sender's fault; a retry of the same message cannot help.
    #[error("{0}")]
    Invalid(String),
    /// The queue holds all it may; a retry helps once consumers have caught up.
    #[error("queue `{queue}` is full: it holds {held_bytes} of {limit_bytes} bytes")]
    Full {
        /// The queue's name.
        queue: String,
        /// Bytes it holds now.
        held_bytes: u64,
        /// Bytes it may hold.
        limit_bytes: u64,
    },
    /// The store cannot write; a retry may help. The message may turn out to
    /// be in the queue nevertheless, so repeat it under the same id.
    #[error("queue unavailable: {0}")]
    Unavailable(String),
}

/// One locked message, handed to one consumer.
#[derive(Debug)]
pub struct Delivery {
    /// The message as it was sent (`delay` is zero: it has been due).
    pub message: Message,
    /// The right to settle it.
    pub lock: Lock,
    /// Which delivery this is; the first is 1. Survives restarts.
    pub delivery_count: u32,
    /// When the queue accepted the message.
    pub enqueued_at: Millis,
}

/// The right to settle one delivery. Settling consumes it; dropping it
/// without settling lets the lock run out.
#[derive(Debug)]
pub struct Lock {
    /// Number of the message in its queue.
    pub sequence: u64,
    /// Names this lock; a later lock on the same message has another token.
    pub token: Uuid,
    /// When the lock runs out unless renewed.
    pub locked_until: Millis,
    /// How long each lock, and each renewal, lasts.
    pub duration: Duration,
}

/// How a delivery ends.
#[derive(Clone, Debug, PartialEq)]
pub enum Settlement {
    /// Done: the message leaves the queue, its result stays readable for a while.
    Complete {
        /// What the worker returned.
        output: Output,
    },
    /// Give it back, due again after `delay`. The delivery stays counted.
    Retry {
        /// How long to hold it back. At most [`DELAY_MAX`].
        delay: Duration,
    },
    /// Move it to the dead letters.
    DeadLetter {
        /// Short name of the cause, to filter by.
        reason: String,
        /// What happened, for people.
        description: String,
    },
    /// Give it back: due at once in its old place. The delivery stays counted.
    Abandon,
    /// Give it back as if this delivery had never been: due at once in its old
    /// place, not counted.
    Release,
}

/// A worker's result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// The bytes; empty when there is no result.
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
    /// Media type of the bytes.
    pub content_type: String,
}

/// What is kept of one attempt, for the job's page and for the dead letter.
/// The queue stores it and never reads it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attempt {
    /// Which attempt; the first is 1.
    pub number: u32,
    /// When it began.
    pub started_at: Millis,
    /// When it ended.
    pub ended_at: Millis,
    /// How it ended, as a short name such as `completed` or `trap`.
    pub outcome: String,
    /// What went wrong, for people.
    pub error: Option<String>,
    /// True if chaos injected the failure.
    pub injected: bool,
    /// Digest of the component that ran it.
    pub component_digest: String,
    /// What the guest logged or printed, oldest first.
    pub logs: Vec<LogLine>,
    /// Lines dropped because the attempt's log was full.
    pub log_lines_dropped: u64,
}

/// One line of a guest's log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogLine {
    /// When it was written.
    pub at: Millis,
    /// `debug`, `info`, `warn`, `error`, `stdout` or `stderr`.
    pub level: String,
    /// The text.
    pub message: String,
}

/// Why a lock could not be renewed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenewError {
    /// The lock ran out or was already settled: someone else may hold the
    /// message now. A retry cannot help.
    #[error("the lock on this delivery is lost")]
    LockLost,
    /// The store cannot answer; the lock stands until it runs out, and a retry may help.
    #[error("queue unavailable: {0}")]
    Unavailable(String),
}

/// Why a delivery was not settled.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// The lock ran out or was already settled: someone else may hold the
    /// message now. Nothing was changed; a retry cannot help.
    #[error("the lock on this delivery is lost")]
    LockLost,
    /// The store cannot write. The lock comes back with the error: it stands
    /// until it runs out, and a retry under it may help.
    #[error("queue unavailable: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
        /// The right to try again.
        lock: Lock,
    },
}

/// The store cannot answer; a retry may help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("queue unavailable: {0}")]
pub struct Unavailable(pub String);

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Held back until the time its sender asked for.
    Scheduled,
    /// Ready, waiting for a worker.
    Queued,
    /// Locked by a worker.
    Running,
    /// Held back after a failed attempt.
    Retrying,
    /// Done.
    Completed,
    /// Among the dead letters.
    Dead,
}

impl JobState {
    /// The name that the job's page and the metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Completed => "completed",
            Self::Dead => "dead",
        }
    }
}

/// All that is known of one job.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The job's id.
    pub id: String,
    /// Number of its message.
    pub sequence: u64,
    /// What kind of job it is.
    pub job_type: String,
    /// Where it stands.
    pub state: JobState,
    /// When the queue accepted it.
    pub enqueued_at: Millis,
    /// When it is due, while it waits.
    pub due_at: Option<Millis>,
    /// When it completed or died.
    pub finished_at: Option<Millis>,
    /// Deliveries counted so far.
    pub delivery_count: u32,
    /// Every recorded attempt, oldest first (the newest [`ATTEMPTS_KEPT_MAX`]).
    pub attempts: Vec<Attempt>,
    /// The result, once completed.
    pub output: Option<Output>,
    /// Why it is dead, if it is.
    pub dead_letter: Option<DeadLetter>,
    /// Trace context it was sent with.
    pub traceparent: Option<String>,
}

/// Attempts kept in a job's history; older ones are dropped first. Ten is the
/// default number of attempts, so a usual job keeps all of them.
pub const ATTEMPTS_KEPT_MAX: usize = 32;

/// Why a message lies among the dead letters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Short name of the cause.
    pub reason: String,
    /// What happened, for people.
    pub description: String,
}

/// Reason of a message that was delivered as often as it may be without ever
/// being settled (its host crashed each time). Service Bus uses the same name.
pub const REASON_MAX_DELIVERY_COUNT: &str = "MaxDeliveryCountExceeded";
/// Reason of a message that waited longer than its time to live. Service Bus uses the same name.
pub const REASON_TTL_EXPIRED: &str = "TTLExpiredException";

/// What a queue holds right now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStats {
    /// Due and not locked.
    pub ready: u64,
    /// Locked by a consumer.
    pub locked: u64,
    /// Held back: scheduled by the sender, or waiting for a retry.
    pub scheduled: u64,
    /// Dead letters.
    pub dead: u64,
    /// Bytes held, dead letters included: what the size bound counts.
    pub bytes: u64,
    /// When the oldest ready or locked message became due, if there is one.
    pub oldest_due_at: Option<Millis>,
    /// Settles and renewals refused because their lock was lost, since start.
    pub locks_lost: u64,
}

/// A dead letter with its message.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadMessage {
    /// Number of the message in its queue.
    pub sequence: u64,
    /// The message as it was sent.
    pub message: Message,
    /// When the queue accepted it.
    pub enqueued_at: Millis,
    /// Deliveries counted before it died.
    pub delivery_count: u32,
    /// Why it is dead.
    pub dead_letter: DeadLetter,
}

/// Settings of one queue. Each is set in the manifest, or by who creates the
/// queue while the host runs; see the README for defaults and reasons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueConfig {
    /// Its name in the manifest.
    pub name: String,
    /// How long a lock, and each renewal, lasts.
    pub lock_duration: Duration,
    /// Deliveries after which an unsettled message is dead-lettered instead of delivered again.
    pub max_delivery_count: u32,
    /// How long an id is remembered, from acceptance. Zero: ids are not compared.
    pub duplicate_window: Duration,
    /// How long a message may wait once due. `None`: for ever.
    pub time_to_live: Option<Duration>,
    /// Whether a message that waited too long is dead-lettered; it is dropped otherwise.
    pub dead_letter_expired: bool,
    /// Bytes it may hold, dead letters included.
    pub max_bytes: u64,
    /// How finished jobs are kept.
    pub retention: Retention,
}

/// How long completed jobs stay readable; whichever bound is met first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retention {
    /// Age after which one is forgotten.
    pub age: Duration,
    /// How many are kept.
    pub count: u64,
    /// Bytes (results, logs and records) that they may take.
    pub bytes: u64,
}

/// Which dead letters (or jobs) an operation is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The one with this job id.
    One(String),
    /// The one with this number.
    Sequence(u64),
    /// Every one.
    All,
}
