//! The contract's limits on a message. A host that keeps queues itself may take
//! more; here a message over them is refused before anything is sent.

use std::collections::BTreeSet;

use orchestrator_queue::Message;

/// Messages that one `send-many` may hold.
pub const SEND_MANY_MAX: usize = 1_000;
/// Longest value of a custom property, in bytes.
pub const PROPERTY_VALUE_BYTES_MAX: usize = 4_096;
/// Longest message id, in bytes of visible ASCII.
pub const ID_BYTES_MAX: usize = 128;

/// Holds a message to the contract; the error says which limit it breaks.
pub fn check(message: &Message) -> Result<(), String> {
    let id = &message.id;
    if !(1..=ID_BYTES_MAX).contains(&id.len()) || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "the message id must have 1 to {ID_BYTES_MAX} characters of visible ASCII"
        ));
    }
    if message.job_type.is_empty() {
        return Err("the job type is empty".to_owned());
    }
    let mut names = BTreeSet::new();
    for (name, value) in &message.properties {
        if value.len() > PROPERTY_VALUE_BYTES_MAX {
            return Err(format!(
                "the value of property `{name}` has {} bytes; at most {PROPERTY_VALUE_BYTES_MAX} are taken",
                value.len()
            ));
        }
        if !names.insert(name) {
            return Err(format!("property `{name}` is there more than once"));
        }
    }
    message.check()
}

/// The refusal of too many messages at once, if they are.
pub fn check_count(messages: usize) -> Result<(), String> {
    if messages > SEND_MANY_MAX {
        return Err(format!(
            "{messages} messages at once; at most {SEND_MANY_MAX} are taken"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use orchestrator_queue::{DELAY_MAX, PAYLOAD_BYTES_MAX, PROPERTIES_MAX};

    use super::*;

    fn message() -> Message {
        Message {
            id: "!".repeat(ID_BYTES_MAX),
            job_type: "t".repeat(256),
            payload: Bytes::from(vec![0; PAYLOAD_BYTES_MAX]),
            content_type: "application/json".to_owned(),
            properties: (0..13)
                .map(|n| (format!("{n:0128}"), "v".repeat(PROPERTY_VALUE_BYTES_MAX)))
                .collect(),
            traceparent: None,
            delay: DELAY_MAX,
            time_to_live: None,
            envelope: Bytes::new(),
        }
    }

    type Spoil = fn(&mut Message);

    #[test]
    fn a_message_at_its_limits_is_taken_and_one_beyond_is_not() {
        assert_eq!(check(&message()), Ok(()));
        let refusals: [(&str, Spoil); 11] = [
            ("id", |message| message.id.clear()),
            ("id", |message| message.id.push('x')),
            ("id", |message| message.id = "a b".to_owned()),
            ("id", |message| message.id = "ä".to_owned()),
            ("job type", |message| message.job_type.clear()),
            ("job type", |message| message.job_type.push('t')),
            ("payload", |message| {
                message.payload = Bytes::from(vec![0; PAYLOAD_BYTES_MAX + 1]);
            }),
            ("value of property", |message| {
                message.properties[0].1.push('v')
            }),
            ("more than once", |message| {
                message.properties = vec![Default::default(); 2]
            }),
            ("properties", |message| {
                let many = (0..=PROPERTIES_MAX).map(|n| (n.to_string(), String::new()));
                message.properties = many.collect();
            }),
            ("delay", |message| message.delay += Duration::from_millis(1)),
        ];
        for (told, spoil) in refusals {
            let mut message = message();
            spoil(&mut message);
            let refusal = check(&message).unwrap_err();
            assert!(refusal.contains(told), "{told}: {refusal}");
        }
    }

    #[test]
    fn a_thousand_at_once_are_taken() {
        assert_eq!(check_count(1_000), Ok(()));
        assert!(check_count(1_001).unwrap_err().contains("1001"));
    }
}
