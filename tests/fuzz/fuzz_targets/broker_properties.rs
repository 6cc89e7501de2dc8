//! Any text is refused or read without a panic. What was read is written as a header of visible ASCII and blanks that
//! reads back to the same value. A sender's header and a receiver's agree on the keys that both read, and differ only
//! where the contract says so: in the keys of the broker and in the length of ids.
//!
//! An input is tried as a header, as the value of a key whose value has a form of its own, and as a time to live.

#![no_main]

use libfuzzer_sys::fuzz_target;
use orchestrator_servicebus::broker_properties::{
    BROKER_PROPERTIES_BYTES_MAX, BrokerProperties, BrokerPropertiesError, ID_CHARS_MAX,
};

/// What only the broker sets, hence what a sender's header is not read for.
const BROKER_KEYS: &[&str] = &[
    "DeadLetterSource",
    "DeliveryCount",
    "EnqueuedSequenceNumber",
    "EnqueuedTimeUtc",
    "LockToken",
    "LockedUntilUtc",
    "SequenceNumber",
    "State",
];

/// What has a limit in a sender's header only.
const ID_KEYS: &[&str] = &["MessageId", "PartitionKey", "SessionId"];

/// What has a text with a form of its own, which the fuzzer finds sooner without JSON around it.
const TYPED_KEYS: [&str; 5] = [
    "TimeToLive",
    "TimeToLiveTimeSpan",
    "ScheduledEnqueueTimeUtc",
    "LockToken",
    "SequenceNumber",
];

fuzz_target!(|text: &str| {
    check(text);
    let key = TYPED_KEYS[text.len() % TYPED_KEYS.len()];
    check(&serde_json::json!({ key: text }).to_string());
    let ticks = ticks(text);
    check(&format!(r#"{{"TimeToLive":{}}}"#, ticks as f64 / 1e7));
    check(&format!(
        r#"{{"TimeToLiveTimeSpan":"{}"}}"#,
        time_span(ticks)
    ));
});

fn check(text: &str) {
    let sent = BrokerProperties::parse_sent(text);
    let received = BrokerProperties::parse_received(text);
    match (&sent, &received) {
        (Ok(sent), Ok(received)) => assert_eq!(*sent, without_broker_keys(received)),
        (Ok(_), Err(BrokerPropertiesError::Invalid { key, .. })) => {
            assert!(BROKER_KEYS.contains(key), "`{key}` is also a sender's");
        }
        (Err(BrokerPropertiesError::Invalid { key, .. }), Ok(_)) => {
            assert!(ID_KEYS.contains(key), "`{key}` has no limit");
        }
        (Err(BrokerPropertiesError::TooLong(length)), _) => {
            assert!(*length == text.len() && *length > BROKER_PROPERTIES_BYTES_MAX);
        }
        (Err(_), Err(_)) => {}
        (sent, received) => panic!("{sent:?} but {received:?}"),
    }
    if let Ok(sent) = &sent {
        for id in [&sent.message_id, &sent.partition_key, &sent.session_id] {
            let characters = id.as_deref().map_or(0, |id| id.chars().count());
            assert!(characters <= ID_CHARS_MAX);
        }
        assert_eq!(*sent, without_broker_keys(sent));
        reads_back(sent);
        // Escapes make a header longer: what a sender may say need not be something that it may repeat.
        let header = sent.to_header();
        if header.len() <= BROKER_PROPERTIES_BYTES_MAX {
            assert_eq!(
                BrokerProperties::parse_sent(&header).as_ref(),
                Ok(sent),
                "{header}"
            );
        }
    }
    if let Ok(received) = &received {
        reads_back(received);
    }
}

/// A time of any size out of the start of a text, in .NET's unit of 100 ns.
fn ticks(text: &str) -> u64 {
    let bytes = text.bytes().take(8);
    bytes.fold(0, |ticks, byte| ticks << 8 | u64::from(byte))
}

/// As .NET writes a time.
fn time_span(ticks: u64) -> String {
    let (seconds, ticks) = (ticks / 10_000_000, ticks % 10_000_000);
    let (minutes, seconds) = (seconds / 60, seconds % 60);
    let (hours, minutes) = (minutes / 60, minutes % 60);
    let (days, hours) = (hours / 24, hours % 24);
    format!("{days}.{hours:02}:{minutes:02}:{seconds:02}.{ticks:07}")
}

fn without_broker_keys(properties: &BrokerProperties) -> BrokerProperties {
    BrokerProperties {
        dead_letter_source: None,
        delivery_count: None,
        enqueued_sequence_number: None,
        enqueued_time: None,
        lock_token: None,
        locked_until: None,
        sequence_number: None,
        state: None,
        ..properties.clone()
    }
}

fn reads_back(properties: &BrokerProperties) {
    let header = properties.to_header();
    assert!(
        header.bytes().all(|byte| matches!(byte, b' '..=b'~')),
        "{header:?}"
    );
    // The service writes a time to live into every answer; a reader cannot tell that from an absent one.
    let with_forever = BrokerProperties {
        time_to_live_forever: true,
        ..properties.clone()
    };
    for header in [header, with_forever.to_header()] {
        assert_eq!(
            BrokerProperties::parse_received(&header).as_ref(),
            Ok(properties),
            "{header}"
        );
    }
}
