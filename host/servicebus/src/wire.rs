//! How a queue's [`Message`] and a message on the wire stand for each other.
//!
//! | on the wire | in the queue |
//! | --- | --- |
//! | `MessageId` | `id` |
//! | `Label` | `job_type` |
//! | body, `Content-Type` | `payload`, `content_type` (empty: none was sent) |
//! | custom properties | `properties`, as text |
//! | `traceparent`, else `Diagnostic-Id` | `traceparent` |
//! | `TimeToLive`, `ScheduledEnqueueTimeUtc` | `time_to_live`, `delay` |
//!
//! Whatever else came with a message (types of properties, `CorrelationId`,
//! `ReplyTo`, …) is kept in its `envelope`, and goes out again as it came.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use orchestrator_queue::Message;
use serde::{Deserialize, Serialize};

use crate::broker_properties::BrokerProperties;
use crate::properties::PropertyValue;
use crate::sending::CONTENT_TYPE;

/// Name of the property that Azure's client libraries put the trace context in.
pub const DIAGNOSTIC_ID: &str = "Diagnostic-Id";
/// The W3C's own name for it.
pub const TRACEPARENT: &str = "traceparent";

/// One message on the wire.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WireMessage {
    /// What the broker knows of it.
    pub broker: BrokerProperties,
    /// Custom properties, in order.
    pub custom: Vec<(String, PropertyValue)>,
    /// Media type; none was given, or an empty one.
    pub content_type: Option<String>,
    /// The body's bytes.
    pub body: Bytes,
}

/// What a message's envelope holds: JSON.
#[derive(Default, Serialize, Deserialize)]
struct Envelope {
    /// Broker properties that the queue gives no meaning to, as a header.
    #[serde(default)]
    broker: String,
    /// Custom properties as header text, in order.
    #[serde(default)]
    custom: Vec<(String, String)>,
}

impl WireMessage {
    /// The message that a queue is to keep; an id is made when none was sent.
    pub fn into_message(self, now: SystemTime) -> Message {
        let Self {
            broker,
            custom,
            content_type,
            body,
        } = self;
        let envelope = envelope(&broker, &custom);
        let traceparent = [TRACEPARENT, DIAGNOSTIC_ID]
            .iter()
            .find_map(|name| text_of(&custom, name).filter(|text| is_traceparent(text)));
        let is_trace = |name: &str| {
            name.eq_ignore_ascii_case(TRACEPARENT) || name.eq_ignore_ascii_case(DIAGNOSTIC_ID)
        };
        // Stands for a header that a batch cannot carry.
        let is_content_type = |name: &str| name.eq_ignore_ascii_case(CONTENT_TYPE);
        Message {
            id: broker
                .message_id
                .unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string()),
            job_type: broker.label.unwrap_or_default(),
            payload: body,
            content_type: content_type
                .or_else(|| text_of(&custom, CONTENT_TYPE))
                .unwrap_or_default(),
            properties: custom
                .iter()
                .filter(|(name, _)| traceparent.is_none() || !is_trace(name))
                .filter(|(name, _)| !is_content_type(name))
                .map(|(name, value)| (name.clone(), value.to_text()))
                .collect(),
            traceparent,
            delay: broker
                .scheduled_enqueue_time
                .and_then(|at| at.duration_since(now).ok())
                .unwrap_or_default(),
            time_to_live: broker.time_to_live,
            envelope,
        }
    }

    /// A queue's message as it goes out.
    pub fn from_message(message: Message, now: SystemTime) -> Self {
        let envelope: Option<Envelope> = serde_json::from_slice(&message.envelope).ok();
        let (broker, custom) = match envelope {
            Some(envelope) => (
                BrokerProperties::parse_sent(&envelope.broker).unwrap_or_default(),
                envelope
                    .custom
                    .iter()
                    .map(|(name, text)| (name.clone(), PropertyValue::parse_received(text)))
                    .collect(),
            ),
            None => (
                BrokerProperties::default(),
                own_properties(message.properties, message.traceparent),
            ),
        };
        let text = |text: String| Some(text).filter(|text| !text.is_empty());
        Self {
            broker: BrokerProperties {
                message_id: Some(message.id),
                label: text(message.job_type),
                time_to_live: message.time_to_live,
                scheduled_enqueue_time: (message.delay > Duration::ZERO)
                    .then(|| whole_seconds(now + message.delay)),
                ..broker
            },
            custom,
            content_type: text(message.content_type),
            body: message.payload,
        }
    }
}

/// The properties of a message that was sent without the wire.
fn own_properties(
    properties: Vec<(String, String)>,
    traceparent: Option<String>,
) -> Vec<(String, PropertyValue)> {
    let traces = traceparent.into_iter().flat_map(|traceparent| {
        [DIAGNOSTIC_ID, TRACEPARENT].map(|name| (name.to_owned(), traceparent.clone()))
    });
    properties
        .into_iter()
        .chain(traces)
        .map(|(name, value)| (name, PropertyValue::String(value)))
        .collect()
}

/// What must be kept beside the message's own fields; empty when nothing must.
fn envelope(broker: &BrokerProperties, custom: &[(String, PropertyValue)]) -> Bytes {
    let extras = BrokerProperties {
        correlation_id: broker.correlation_id.clone(),
        partition_key: broker.partition_key.clone(),
        reply_to: broker.reply_to.clone(),
        reply_to_session_id: broker.reply_to_session_id.clone(),
        session_id: broker.session_id.clone(),
        to: broker.to.clone(),
        via_partition_key: broker.via_partition_key.clone(),
        ..BrokerProperties::default()
    };
    if extras == BrokerProperties::default() && custom.is_empty() {
        return Bytes::new();
    }
    let envelope = Envelope {
        broker: extras.to_header(),
        custom: custom
            .iter()
            .map(|(name, value)| (name.clone(), value.to_header()))
            .collect(),
    };
    serde_json::to_vec(&envelope).map_or_else(|_| Bytes::new(), Bytes::from)
}

fn text_of(custom: &[(String, PropertyValue)], wanted: &str) -> Option<String> {
    let found = custom
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(wanted));
    found.map(|(_, value)| value.to_text())
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, and what later versions may add.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(5, '-').collect();
    let is_hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    matches!(parts.as_slice(), [version, trace, parent, flags, ..]
        if is_hex(version, 2) && is_hex(trace, 32) && is_hex(parent, 16) && is_hex(flags, 2))
}

/// The wire has whole seconds: the next one, so that nothing is due early.
pub fn whole_seconds(at: SystemTime) -> SystemTime {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let up = u64::from(since.subsec_nanos() > 0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs() + up)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn message() -> Message {
        Message {
            id: "m1".to_owned(),
            job_type: "demo".to_owned(),
            payload: Bytes::from_static(b"{}"),
            content_type: "application/json".to_owned(),
            properties: vec![("tenant".to_owned(), "a\"b".to_owned())],
            traceparent: Some(TRACE.to_owned()),
            delay: Duration::ZERO,
            time_to_live: Some(Duration::from_secs(90)),
            envelope: Bytes::new(),
        }
    }

    #[test]
    fn a_message_survives_the_wire() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let mut there = WireMessage::from_message(message(), now).into_message(now);
        // Kept as it came, for who reads it by the wire again.
        there.envelope = Bytes::new();
        assert_eq!(there, message());
    }

    #[test]
    fn what_the_queue_gives_no_meaning_to_goes_out_as_it_came() {
        let now = SystemTime::UNIX_EPOCH;
        let came = WireMessage {
            broker: BrokerProperties {
                message_id: Some("m1".to_owned()),
                correlation_id: Some("c".to_owned()),
                reply_to: Some("answers".to_owned()),
                ..BrokerProperties::default()
            },
            custom: vec![
                ("propint".to_owned(), PropertyValue::Int(1)),
                (
                    "Diagnostic-Id".to_owned(),
                    PropertyValue::String(TRACE.to_owned()),
                ),
            ],
            content_type: None,
            body: Bytes::from_static(b"hello"),
        };
        let kept = came.clone().into_message(now);
        assert_eq!(kept.traceparent.as_deref(), Some(TRACE));
        assert_eq!(kept.properties, [("propint".to_owned(), "1".to_owned())]);
        assert_eq!(WireMessage::from_message(kept, now), came);
    }

    #[test]
    fn a_media_type_that_came_as_a_property_is_one_and_no_property() {
        let text = |text: &str| PropertyValue::String(text.to_owned());
        let came = WireMessage {
            custom: vec![
                (CONTENT_TYPE.to_owned(), text("application/json")),
                ("tenant".to_owned(), text("a")),
            ],
            ..WireMessage::default()
        };
        let kept = came.clone().into_message(SystemTime::UNIX_EPOCH);
        assert_eq!(kept.content_type, "application/json");
        assert_eq!(kept.properties, [("tenant".to_owned(), "a".to_owned())]);
        // Who reads it over the wire finds it there as it came.
        let again = WireMessage::from_message(kept, SystemTime::UNIX_EPOCH);
        assert_eq!(again.custom, came.custom);
    }

    #[test]
    fn a_delay_is_rounded_up_to_the_wires_seconds() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        let late = Message {
            delay: Duration::from_millis(200),
            ..message()
        };
        let sent = WireMessage::from_message(late, now)
            .broker
            .scheduled_enqueue_time;
        assert_eq!(sent, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2)));
    }

    #[test]
    fn what_is_no_trace_context_stays_a_property() {
        let came = WireMessage {
            custom: vec![(
                "traceparent".to_owned(),
                PropertyValue::String("x".to_owned()),
            )],
            ..WireMessage::default()
        };
        let kept = came.into_message(SystemTime::UNIX_EPOCH);
        assert_eq!(kept.traceparent, None);
        assert_eq!(kept.properties.len(), 1);
        assert_eq!(kept.id.len(), 32);
    }
}
