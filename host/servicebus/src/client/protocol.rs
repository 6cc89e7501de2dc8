//! Retry with backoff, dead-lettering and giving back, over a wire that has
//! none of them.
//!
//! Each is two requests, in this order: **send a copy**, then **delete the
//! original** under its lock.
//!
//! | end of a delivery | copy goes to | copy's `MessageId` | counts |
//! | --- | --- | --- | --- |
//! | retry | the queue, scheduled | `{job}:r{sequence number}` | all attempts so far |
//! | give back | the queue, at once | `{job}:g{sequence number}` | all but this one |
//! | dead-letter | `{queue}-parked` | `{job}:d{sequence number}` | all, with reason and history |
//! | redrive | from there to the queue | `{job}:v{sequence number}` | none: attempts begin anew |
//! | redrive | from `$DeadLetterQueue` | `{job}:x{sequence number}` | none |
//!
//! The copy's id is a pure function of the job and the message that it
//! replaces, by its sequence number. So a copy that is sent twice is one
//! message where the queue detects duplicates, and no two copies have one id:
//! inside the duplicate window the service would drop the second, and with it
//! the job. (For the same reason it is never the original's. Counting attempts
//! would not do: a delivery that is given back, or a dead letter that is brought
//! back, counts them again.)
//!
//! What a crash leaves:
//!
//! - before the copy is sent: the original, delivered again when its lock runs
//!   out. Its delivery counts.
//! - between copy and delete: both. A host that knows that it sent the copy
//!   deletes the original when it comes again, unrun. Another host runs it:
//!   the job can run twice, as at-least-once allows; if that attempt fails,
//!   its copy has the same id and is dropped as a duplicate.
//! - after the delete: the copy.
//!
//! No crash leaves neither. A copy carries what it must in properties:
//! [`JOB_ID`], [`ATTEMPTS`], [`ENQUEUED_AT`], [`HISTORY`], and the parked one
//! `DeadLetterReason` and `DeadLetterErrorDescription` as the service's own
//! dead letters do.

use std::time::{Duration, SystemTime};

use orchestrator_queue::{Attempt, DeadLetter, Millis};

use crate::broker_properties::BrokerProperties;
use crate::properties::PropertyValue;
use crate::wire::{WireMessage, whole_seconds};

/// Property of a copy: the id that the job was sent with.
pub const JOB_ID: &str = "orchestrator-job-id";
/// Property of a copy: attempts spent before it.
pub const ATTEMPTS: &str = "orchestrator-attempts";
/// Property of a copy: when the job was accepted, in milliseconds since 1970-01-01 UTC.
pub const ENQUEUED_AT: &str = "orchestrator-enqueued-at";
/// Property of a copy: its attempts so far as JSON, without their logs.
pub const HISTORY: &str = "orchestrator-history";
/// Names that the service gives a dead letter's reason and description.
pub const DEAD_LETTER_REASON: &str = "DeadLetterReason";
/// See [`DEAD_LETTER_REASON`].
pub const DEAD_LETTER_DESCRIPTION: &str = "DeadLetterErrorDescription";
/// What the name of the queue for dead letters ends with.
pub const PARKED: &str = "-parked";
/// Longest history in a property, in bytes as a header: what a property may have, and room
/// for the others among all headers. The oldest attempts are left out first.
pub const HISTORY_BYTES_MAX: usize = 16 * 1024;
/// Longest error text of one attempt in a history, in characters.
pub const HISTORY_ERROR_CHARS_MAX: usize = 500;

/// What a received message is to this host.
#[derive(Clone, Debug, PartialEq)]
pub struct Lineage {
    /// The job's id: that of the first message.
    pub job: String,
    /// Attempts spent by copies before this message.
    pub attempts_before: u32,
    /// When the job was accepted.
    pub enqueued_at: Millis,
    /// Attempts that are told of.
    pub history: Vec<Attempt>,
}

impl Lineage {
    /// Reads what copies carry; a message that is no copy begins a lineage.
    pub fn of(message: &WireMessage, enqueued_at: SystemTime) -> Self {
        let text = |wanted: &str| {
            let mut custom = message.custom.iter();
            custom
                .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                .map(|(_, value)| value.to_text())
        };
        let since = enqueued_at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            job: text(JOB_ID)
                .or_else(|| message.broker.message_id.clone())
                .unwrap_or_default(),
            attempts_before: text(ATTEMPTS)
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
            enqueued_at: text(ENQUEUED_AT)
                .and_then(|text| text.parse().ok())
                .unwrap_or_else(|| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
            history: text(HISTORY)
                .and_then(|text| serde_json::from_str(&text).ok())
                .unwrap_or_default(),
        }
    }
}

/// How a copy leaves its original.
#[derive(Clone, Debug, PartialEq)]
pub enum CopyFor {
    /// Another attempt, after a delay.
    Retry(Duration),
    /// As if this delivery had never been.
    GiveBack,
    /// The parked queue.
    DeadLetter(DeadLetter),
    /// Back from the parked queue, with fresh attempts.
    Redrive,
    /// Back from the service's own dead letters, whose numbers are others.
    RedriveFromService,
}

/// The copy of the message with this number, which was delivered `deliveries`
/// times since its own sending.
pub fn copy(
    original: &WireMessage,
    lineage: &Lineage,
    sequence: u64,
    deliveries: u32,
    copy_for: &CopyFor,
    now: SystemTime,
) -> WireMessage {
    let spent = lineage.attempts_before.saturating_add(deliveries);
    let (kind, attempts, due) = match copy_for {
        CopyFor::Retry(delay) => ('r', spent, Some(*delay)),
        CopyFor::GiveBack => ('g', spent.saturating_sub(1), None),
        CopyFor::DeadLetter(_) => ('d', spent, None),
        CopyFor::Redrive => ('v', 0, None),
        CopyFor::RedriveFromService => ('x', 0, None),
    };
    let ours = [
        JOB_ID,
        ATTEMPTS,
        ENQUEUED_AT,
        HISTORY,
        DEAD_LETTER_REASON,
        DEAD_LETTER_DESCRIPTION,
    ];
    let mut custom: Vec<(String, PropertyValue)> = original
        .custom
        .iter()
        .filter(|(name, _)| !ours.iter().any(|ours| ours.eq_ignore_ascii_case(name)))
        .cloned()
        .collect();
    let mut add = |name: &str, text: String| {
        custom.push((name.to_owned(), PropertyValue::String(text)));
    };
    add(JOB_ID, lineage.job.clone());
    add(ATTEMPTS, attempts.to_string());
    add(ENQUEUED_AT, lineage.enqueued_at.to_string());
    add(HISTORY, history(&lineage.history));
    if let CopyFor::DeadLetter(letter) = copy_for {
        add(DEAD_LETTER_REASON, letter.reason.clone());
        add(DEAD_LETTER_DESCRIPTION, letter.description.clone());
    }
    // What only the service says is left out, but for what the sender said.
    let sent = &original.broker;
    WireMessage {
        broker: BrokerProperties {
            correlation_id: sent.correlation_id.clone(),
            label: sent.label.clone(),
            message_id: Some(id(&lineage.job, &format!(":{kind}{sequence}"))),
            partition_key: sent.partition_key.clone(),
            reply_to: sent.reply_to.clone(),
            reply_to_session_id: sent.reply_to_session_id.clone(),
            session_id: sent.session_id.clone(),
            to: sent.to.clone(),
            scheduled_enqueue_time: due
                .filter(|delay| !delay.is_zero())
                .map(|delay| whole_seconds(now + delay)),
            // A job that runs again has shown that it is wanted: its time
            // begins anew, and dead letters do not expire.
            time_to_live: sent
                .time_to_live
                .filter(|_| !matches!(copy_for, CopyFor::DeadLetter(_))),
            ..BrokerProperties::default()
        },
        custom,
        content_type: original.content_type.clone(),
        body: original.body.clone(),
    }
}

/// The same copy where there is no room for the attempts so far.
pub fn without_history(mut copy: WireMessage) -> WireMessage {
    copy.custom.retain(|(name, _)| name != HISTORY);
    copy
}

/// Job and suffix, within the length of an id: a long job's id is cut and told
/// apart by its digest.
fn id(job: &str, suffix: &str) -> String {
    use sha2::{Digest, Sha256};
    const CHARS_MAX: usize = orchestrator_queue::MESSAGE_ID_CHARS_MAX;
    if job.chars().count() + suffix.len() <= CHARS_MAX {
        return format!("{job}{suffix}");
    }
    let digest = Sha256::digest(job);
    let digest: String = digest[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let room = CHARS_MAX.saturating_sub(suffix.len() + digest.len() + 1);
    let cut: String = job.chars().take(room).collect();
    format!("{cut}~{digest}{suffix}")
}

/// Attempts as a property: without logs, errors cut, the oldest dropped first.
fn history(attempts: &[Attempt]) -> String {
    let mut told: Vec<Attempt> = attempts
        .iter()
        .map(|attempt| Attempt {
            logs: Vec::new(),
            error: attempt
                .error
                .as_ref()
                .map(|error| error.chars().take(HISTORY_ERROR_CHARS_MAX).collect()),
            ..attempt.clone()
        })
        .collect();
    loop {
        let text = serde_json::to_string(&told).unwrap_or_default();
        // As a header it is longer: quotes and what is not ASCII are escaped.
        let header = PropertyValue::String(text.clone()).to_header();
        if header.len() <= HISTORY_BYTES_MAX || told.is_empty() {
            return text;
        }
        told.remove(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + NOW
    }

    fn original() -> WireMessage {
        WireMessage {
            broker: BrokerProperties {
                message_id: Some("job-1".to_owned()),
                label: Some("demo".to_owned()),
                correlation_id: Some("c".to_owned()),
                sequence_number: Some(7),
                delivery_count: Some(1),
                ..BrokerProperties::default()
            },
            custom: vec![("tenant".to_owned(), PropertyValue::Int(5))],
            content_type: Some("application/json".to_owned()),
            body: bytes::Bytes::from_static(b"{}"),
        }
    }

    #[test]
    fn a_lineage_goes_on_through_retries_and_ends_parked() {
        let first = Lineage::of(&original(), now());
        assert_eq!((first.job.as_str(), first.attempts_before), ("job-1", 0));
        let retried = copy(
            &original(),
            &first,
            7,
            1,
            &CopyFor::Retry(Duration::from_millis(1)),
            now(),
        );
        assert_eq!(retried.broker.message_id.as_deref(), Some("job-1:r7"));
        assert_eq!(
            retried.broker.scheduled_enqueue_time,
            Some(now() + Duration::from_secs(1))
        );
        assert_eq!(retried.broker.correlation_id.as_deref(), Some("c"));
        assert_eq!(retried.broker.sequence_number, None);

        // Delivered twice (a host died once), then parked.
        let second = Lineage::of(&retried, now() + NOW);
        assert_eq!((second.job.as_str(), second.attempts_before), ("job-1", 1));
        assert_eq!(second.enqueued_at, first.enqueued_at);
        let letter = DeadLetter {
            reason: "R".to_owned(),
            description: "D".to_owned(),
        };
        let parked = copy(&retried, &second, 9, 2, &CopyFor::DeadLetter(letter), now());
        assert_eq!(parked.broker.message_id.as_deref(), Some("job-1:d9"));
        let value = |wanted: &str| {
            let found: Vec<_> = parked
                .custom
                .iter()
                .filter(|(name, _)| name == wanted)
                .collect();
            assert_eq!(found.len(), 1, "{wanted}");
            found[0].1.to_text()
        };
        assert_eq!(
            (value(DEAD_LETTER_REASON), value(ATTEMPTS)),
            ("R".to_owned(), "3".to_owned())
        );
        assert_eq!(value("tenant"), "5");
        let redriven = copy(
            &parked,
            &Lineage::of(&parked, now()),
            1,
            1,
            &CopyFor::Redrive,
            now(),
        );
        assert_eq!(Lineage::of(&redriven, now()).attempts_before, 0);
        assert!(
            redriven
                .custom
                .iter()
                .all(|(name, _)| name != DEAD_LETTER_REASON)
        );
    }

    #[test]
    fn giving_back_spends_no_attempt() {
        let lineage = Lineage {
            attempts_before: 2,
            ..Lineage::of(&original(), now())
        };
        let back = copy(&original(), &lineage, 7, 1, &CopyFor::GiveBack, now());
        assert_eq!(Lineage::of(&back, now()).attempts_before, 2);
        assert_eq!(back.broker.scheduled_enqueue_time, None);
    }

    #[test]
    fn giving_back_twice_makes_two_messages() {
        let lineage = Lineage::of(&original(), now());
        let id = |sequence| {
            copy(
                &original(),
                &lineage,
                sequence,
                1,
                &CopyFor::GiveBack,
                now(),
            )
            .broker
            .message_id
        };
        assert_eq!(id(1), id(1));
        assert_ne!(id(1), id(2));
    }

    #[test]
    fn the_same_end_makes_the_same_id_and_a_long_job_keeps_apart() {
        let long = |last: char| {
            let mut message = original();
            message.broker.message_id = Some(format!("{}{last}", "x".repeat(127)));
            let lineage = Lineage::of(&message, now());
            copy(
                &message,
                &lineage,
                7,
                1,
                &CopyFor::Retry(Duration::ZERO),
                now(),
            )
            .broker
            .message_id
            .unwrap()
        };
        assert_eq!(long('a'), long('a'));
        assert_ne!(long('a'), long('b'));
        assert_eq!(long('a').chars().count(), 128);
    }

    #[test]
    fn a_history_stays_within_its_bound() {
        let attempt = Attempt {
            error: Some("e".repeat(10_000)),
            ..Attempt::default()
        };
        let text = history(&vec![attempt; 200]);
        assert!(text.len() < HISTORY_BYTES_MAX && text.len() > HISTORY_BYTES_MAX / 2);
    }
}
