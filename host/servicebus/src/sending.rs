//! What a request that sends messages looks like, whoever makes it: the host's
//! own client, or a component that reaches the service through its host.

use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Map, Value, json};

use crate::properties::PropertyValue;
use crate::wire::WireMessage;

/// Media type of a batch.
pub const BATCH: &str = "application/vnd.microsoft.servicebus.json";
/// Property of a message whose media type the batch form cannot carry.
pub const CONTENT_TYPE: &str = "orchestrator-content-type";
/// Messages of one batch.
const BATCH_MESSAGES_MAX: usize = 256;
/// Bytes of one batch: the service's limit on its small tiers, less room for
/// what it counts beside the body.
const BATCH_BYTES_MAX: usize = 240 * 1024;
/// What must be escaped in a path's segment.
const SEGMENT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'/');

/// A message in the form that it is sent in.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// Text: an element of a batch.
    Text(String),
    /// Other bytes: a request of its own.
    Bytes(Box<WireMessage>),
}

impl From<WireMessage> for Item {
    fn from(message: WireMessage) -> Self {
        let Ok(body) = std::str::from_utf8(&message.body) else {
            return Self::Bytes(Box::new(message));
        };
        let mut properties: Map<String, Value> = message
            .custom
            .iter()
            .map(|(name, value)| (name.clone(), value.to_json()))
            .collect();
        let mut broker: Value =
            serde_json::from_str(&message.broker.to_header()).unwrap_or_else(|_| json!({}));
        if let Some(content_type) = &message.content_type {
            // The batch form is not known to carry it: as a broker property for
            // who knows that one, and as a custom one for every other.
            broker["ContentType"] = Value::String(content_type.clone());
            let value = PropertyValue::String(content_type.clone());
            properties.insert(CONTENT_TYPE.to_owned(), value.to_json());
        }
        Self::Text(
            json!({ "Body": body, "BrokerProperties": broker, "UserProperties": properties })
                .to_string(),
        )
    }
}

/// Whether another message may go out with a batch for the same queue.
pub fn fits<'a>(batch: impl Iterator<Item = &'a Item>, next: &'a Item) -> bool {
    let (mut messages, mut bytes) = (0, 0);
    for item in batch.chain([next]) {
        let Item::Text(text) = item else {
            return false;
        };
        messages += 1;
        bytes += text.len() + 1;
    }
    messages <= BATCH_MESSAGES_MAX && bytes <= BATCH_BYTES_MAX
}

/// A `POST` that sends messages.
#[derive(Clone, Debug, PartialEq)]
pub struct SendRequest {
    /// The path, without its first slash.
    pub path: String,
    /// Names and values in visible ASCII and blanks, without `Authorization`.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

impl SendRequest {
    /// Sends these to `queue`: texts that [`fits`] has let together, or one
    /// message of other bytes.
    pub fn new<'a>(queue: &str, items: impl Iterator<Item = &'a Item>) -> Self {
        let path = format!("{}/messages", path(queue));
        let mut texts = Vec::new();
        for item in items {
            match item {
                Item::Text(text) => texts.push(text.as_str()),
                Item::Bytes(message) => return Self::single(path, message),
            }
        }
        Self {
            path,
            headers: vec![("content-type".to_owned(), BATCH.to_owned())],
            body: Bytes::from(format!("[{}]", texts.join(","))),
        }
    }

    fn single(path: String, message: &WireMessage) -> Self {
        let mut headers = vec![("BrokerProperties".to_owned(), message.broker.to_header())];
        let content_type = message.content_type.iter();
        headers.extend(content_type.map(|value| ("content-type".to_owned(), value.clone())));
        let custom = message.custom.iter();
        headers.extend(custom.map(|(name, value)| (name.clone(), value.to_header())));
        Self {
            path,
            headers,
            body: message.body.clone(),
        }
    }
}

/// A queue's path, its parts escaped.
pub fn path(queue: &str) -> String {
    queue
        .split('/')
        .map(|segment| utf8_percent_encode(segment, SEGMENT).to_string())
        .collect::<Vec<_>>()
        .join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker_properties::BrokerProperties;

    fn message(id: &str, body: &'static [u8]) -> WireMessage {
        WireMessage {
            broker: BrokerProperties {
                message_id: Some(id.to_owned()),
                ..BrokerProperties::default()
            },
            custom: vec![("Tenant".to_owned(), PropertyValue::String("ä".to_owned()))],
            content_type: Some("application/json".to_owned()),
            body: Bytes::from_static(body),
        }
    }

    #[test]
    fn texts_go_together_and_other_bytes_alone() {
        let texts = [
            Item::from(message("a", b"1")),
            Item::from(message("b", b"2")),
        ];
        assert!(fits(texts[..1].iter(), &texts[1]));
        let request = SendRequest::new("a queue/x", texts.iter());
        assert_eq!(request.path, "a%20queue/x/messages");
        assert_eq!(
            request.headers,
            [("content-type".to_owned(), BATCH.to_owned())]
        );
        let items: Vec<Value> = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(
            items[1],
            json!({
                "Body": "2",
                "BrokerProperties": {"MessageId": "b", "ContentType": "application/json"},
                "UserProperties": {"Tenant": "ä", CONTENT_TYPE: "application/json"},
            })
        );

        let bytes = Item::from(message("c", b"\xff"));
        assert!(!fits(texts.iter(), &bytes) && !fits([&bytes].into_iter(), &texts[0]));
        let request = SendRequest::new("q", [&bytes].into_iter());
        assert_eq!(request.body, Bytes::from_static(b"\xff"));
        let header = |name: &str| {
            let found = request.headers.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(header("BrokerProperties"), Some("{\"MessageId\":\"c\"}"));
        assert_eq!(header("content-type"), Some("application/json"));
        assert_eq!(header("Tenant"), Some("\"\\u00e4\""));
    }

    #[test]
    fn a_batch_stays_within_its_bounds() {
        let item = Item::Text("x".repeat(BATCH_BYTES_MAX / 2));
        assert!(!fits([&item].into_iter(), &item));
        let small = Item::Text("x".to_owned());
        let many = vec![small.clone(); BATCH_MESSAGES_MAX];
        assert!(fits(many[1..].iter(), &small));
        assert!(!fits(many.iter(), &small));
    }
}
