//! Any document is refused or read without a panic. What was read and is written again, for the service or for a
//! client, reads back to the same, whatever names stand around it; an element without content may be written with
//! one tag or with two. Hostile names never make an entry out of what is none. Durations read back as written.
//!
//! An input is tried as a document and as the content of a `QueueDescription`.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use orchestrator_servicebus::atom::{
    self, AtomError, Counts, QueueDescription, QueueFacts, TimeToLive,
};
use quick_xml::events::Event;
use quick_xml::{Reader, Writer};

/// Longest text of a document that an error repeats, in characters.
const SHOWN_CHARS_MAX: usize = 100;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    check_document(data, &text);
    let entry = format!(
        "<entry xmlns=\"http://www.w3.org/2005/Atom\"><content type=\"application/xml\"><QueueDescription xmlns=\"http://schemas.microsoft.com/netservices/2010/10/servicebus/connect\" xmlns:c=\"http://schemas.microsoft.com/netservices/2011/06/servicebus\">{text}</QueueDescription></content></entry>"
    );
    check_document(entry.as_bytes(), &text);
    check_names(&text);
    if let Some(duration) = atom::parse_iso8601_duration(&text) {
        let written = atom::iso8601_duration(duration);
        assert_eq!(
            atom::parse_iso8601_duration(&written),
            Some(duration),
            "{written}"
        );
    }
});

fn check_document(document: &[u8], name: &str) {
    let read = atom::parse_counts(document);
    let description = read.clone().map(|(description, _)| description);
    assert_eq!(atom::parse_queue_entry(document), description);
    match &read {
        Ok((description, counts)) => check_written(description, *counts, name),
        Err(AtomError::BadValue { value, .. }) => {
            assert!(value.chars().count() <= SHOWN_CHARS_MAX);
        }
        Err(AtomError::Malformed(_) | AtomError::NotAnEntry) => {}
    }
    if !matches!(read, Err(AtomError::Malformed(_)))
        && let Some(expanded) = with_two_tags(document)
        && expanded.len() <= atom::DOCUMENT_BYTES_MAX
    {
        assert_eq!(
            atom::parse_counts(&expanded),
            read,
            "{}",
            String::from_utf8_lossy(&expanded)
        );
    }
}

fn check_written(description: &QueueDescription, counts: Counts, name: &str) {
    let request = atom::description_entry(description);
    let expected = QueueDescription {
        // A queue is not created with these.
        forward_to: None,
        enable_partitioning: None,
        ..description.clone()
    };
    assert_eq!(
        atom::parse_queue_entry(request.as_bytes()),
        Ok(expected),
        "{request}"
    );
    // An answer is the server's, whose counts add up to a number that there is.
    let total = counts.active.checked_add(counts.dead_letter);
    if total
        .and_then(|total| total.checked_add(counts.scheduled))
        .is_none()
    {
        return;
    }
    let facts = QueueFacts {
        name: name.to_owned(),
        created_at_ms: counts.active,
        updated_at_ms: counts.dead_letter,
        accessed_at_ms: Some(counts.scheduled),
        size_bytes: counts.active,
        counts,
    };
    let expected = with_defaults(description);
    for (is_put, counts) in [(false, counts), (true, Counts::default())] {
        let answer = atom::queue_entry(name, Some(name), description, &facts, is_put);
        assert_eq!(
            atom::parse_counts(answer.as_bytes()),
            Ok((expected.clone(), counts)),
            "{answer}"
        );
    }
    let queues = [(description.clone(), facts)];
    let feed = atom::queue_feed(name, Some(name), &queues);
    assert_eq!(
        atom::parse_counts(feed.as_bytes()),
        Err(AtomError::NotAnEntry)
    );
}

/// What an answer tells of a queue whose settings were left open.
fn with_defaults(description: &QueueDescription) -> QueueDescription {
    let given = description.clone();
    QueueDescription {
        lock_duration: given.lock_duration.or(Some(Duration::from_secs(60))),
        max_size_megabytes: given.max_size_megabytes.or(Some(1_024)),
        requires_duplicate_detection: given.requires_duplicate_detection.or(Some(false)),
        requires_session: given.requires_session.or(Some(false)),
        default_message_time_to_live: given
            .default_message_time_to_live
            .or(Some(TimeToLive::Forever)),
        dead_lettering_on_message_expiration: given
            .dead_lettering_on_message_expiration
            .or(Some(false)),
        duplicate_detection_history_time_window: given
            .duplicate_detection_history_time_window
            .or(Some(Duration::from_secs(600))),
        max_delivery_count: given.max_delivery_count.or(Some(10)),
        forward_to: given.forward_to,
        enable_partitioning: given.enable_partitioning.or(Some(false)),
    }
}

/// What is written around text of a stranger stays well-formed, and is no entry of a queue.
fn check_names(name: &str) {
    for document in [
        atom::empty_feed(name, name, Some(name)),
        atom::namespace_entry(name, Some(name), name, 0),
        atom::error_body(400, name),
    ] {
        assert_eq!(
            atom::parse_counts(document.as_bytes()),
            Err(AtomError::NotAnEntry),
            "{document}"
        );
    }
}

/// The document with `<a></a>` for every `<a/>`, which XML says is the same; `None` for what is not XML.
fn with_two_tags(document: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader::from_str(std::str::from_utf8(document).ok()?);
    let mut writer = Writer::new(Vec::with_capacity(2 * document.len()));
    loop {
        match reader.read_event().ok()? {
            Event::Eof => return Some(writer.into_inner()),
            Event::Empty(element) => {
                // The reader takes more for a tag than XML does, also what is another one without its last slash.
                let name = element.name();
                let is_name = !name.as_ref().is_empty() && name.as_ref().iter().all(is_of_name);
                if !is_name || element.attributes().any(|attribute| attribute.is_err()) {
                    return None;
                }
                writer.write_event(Event::Start(element.borrow())).ok()?;
                writer.write_event(Event::End(element.to_end())).ok()?;
            }
            event => writer.write_event(event).ok()?,
        }
    }
}

fn is_of_name(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'_' | b'-' | b'.')
}
