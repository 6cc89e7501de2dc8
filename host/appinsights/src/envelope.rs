//! The items that Application Insights takes, as JSON.
//!
//! Every text is cut to the limit that the service documents for its place, at
//! a character's end: an item that is too long is refused whole.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

/// Longest name of a request, dependency, event or metric, in bytes.
pub const NAME_BYTES_MAX: usize = 1_024;
/// Longest value of a property, in bytes.
pub const PROPERTY_BYTES_MAX: usize = 8_192;
/// Longest name of a property or measurement, in bytes.
pub const PROPERTY_NAME_BYTES_MAX: usize = 150;
/// Longest message, exception message or stack, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 32_768;
/// Longest name of a role, in bytes.
pub const ROLE_BYTES_MAX: usize = 256;
/// Properties of one item.
pub const PROPERTIES_MAX: usize = 100;

/// A text within its limit.
pub fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// One item.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope<'a> {
    name: String,
    #[serde(serialize_with = "time")]
    time: SystemTime,
    i_key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sample_rate: Option<f64>,
    tags: BTreeMap<&'static str, Cow<'a, str>>,
    data: Body<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    base_type: String,
    base_data: Data<'a>,
}

/// Where an item belongs.
#[derive(Clone, Debug, Default)]
pub struct Place<'a> {
    /// The resource's key.
    pub key: &'a str,
    /// Name of the role: the node on the application map.
    pub role: &'a str,
    /// Which instance of the role.
    pub instance: &'a str,
    /// Trace id, in hexadecimal.
    pub operation: Option<String>,
    /// Name of the operation.
    pub operation_name: Option<&'a str>,
    /// Id of the enclosing span.
    pub parent: Option<String>,
    /// Percentage of items that this one stands for; none: it was not sampled.
    pub sample_rate: Option<f64>,
}

type Properties<'a> = BTreeMap<Cow<'a, str>, Cow<'a, str>>;
type Measurements<'a> = BTreeMap<Cow<'a, str>, f64>;

/// What an item says.
#[derive(Debug, Serialize)]
#[serde(untagged)]
#[expect(
    missing_docs,
    reason = "the fields are those of the service's schema, under its names"
)]
pub enum Data<'a> {
    /// Something was asked of us.
    #[serde(rename_all = "camelCase")]
    Request {
        ver: u8,
        id: String,
        name: &'a str,
        #[serde(serialize_with = "as_duration")]
        duration: Duration,
        response_code: Cow<'a, str>,
        success: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        source: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        url: Option<&'a str>,
        properties: Properties<'a>,
        measurements: Measurements<'a>,
    },
    /// We asked something of others.
    #[serde(rename_all = "camelCase")]
    Dependency {
        ver: u8,
        id: String,
        name: &'a str,
        #[serde(serialize_with = "as_duration")]
        duration: Duration,
        #[serde(skip_serializing_if = "Option::is_none")]
        result_code: Option<String>,
        success: bool,
        #[serde(rename = "type")]
        kind: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        target: Option<String>,
        properties: Properties<'a>,
        measurements: Measurements<'a>,
    },
    /// Something went wrong.
    #[serde(rename_all = "camelCase")]
    Exception {
        ver: u8,
        exceptions: [Exception<'a>; 1],
        severity_level: Severity,
        properties: Properties<'a>,
    },
    /// Somebody said something.
    #[serde(rename_all = "camelCase")]
    Message {
        ver: u8,
        message: &'a str,
        severity_level: Severity,
        properties: Properties<'a>,
    },
    /// Something happened.
    #[serde(rename_all = "camelCase")]
    Event {
        ver: u8,
        name: &'a str,
        properties: Properties<'a>,
        measurements: Measurements<'a>,
    },
    /// Something was measured.
    #[serde(rename_all = "camelCase")]
    Metric {
        ver: u8,
        metrics: [Metric<'a>; 1],
        properties: Properties<'a>,
    },
}

impl Data<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::Request { .. } => "Request",
            Self::Dependency { .. } => "RemoteDependency",
            Self::Exception { .. } => "Exception",
            Self::Message { .. } => "Message",
            Self::Event { .. } => "Event",
            Self::Metric { .. } => "Metric",
        }
    }
}

/// One exception.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Exception<'a> {
    /// What kind of failure.
    pub type_name: &'a str,
    /// What it says.
    pub message: &'a str,
    /// Whether `stack` is all of it.
    pub has_full_stack: bool,
    /// Where, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<&'a str>,
}

/// One measured value, or several of them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metric<'a> {
    /// Its name.
    pub name: &'a str,
    /// The value, or the sum of several.
    pub value: f64,
    /// How many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The least of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// The greatest of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

/// How bad something is; a number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// 0
    Verbose,
    /// 1
    Information,
    /// 2
    Warning,
    /// 3
    Error,
    /// 4
    Critical,
}

impl Serialize for Severity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(*self as u8)
    }
}

impl<'a> Envelope<'a> {
    /// An item of this place and time.
    pub fn new(place: Place<'a>, time: SystemTime, data: Data<'a>) -> Self {
        let mut tags = BTreeMap::new();
        tags.insert("ai.cloud.role", cut(place.role, ROLE_BYTES_MAX).into());
        tags.insert(
            "ai.cloud.roleInstance",
            cut(place.instance, ROLE_BYTES_MAX).into(),
        );
        tags.insert(
            "ai.internal.sdkVersion",
            concat!("orchestrator:", env!("CARGO_PKG_VERSION")).into(),
        );
        if let Some(operation) = place.operation {
            tags.insert("ai.operation.id", operation.into());
        }
        if let Some(name) = place.operation_name {
            tags.insert("ai.operation.name", cut(name, NAME_BYTES_MAX).into());
        }
        if let Some(parent) = place.parent {
            tags.insert("ai.operation.parentId", parent.into());
        }
        Self {
            name: format!("Microsoft.ApplicationInsights.{}", data.kind()),
            time,
            i_key: place.key,
            sample_rate: place.sample_rate,
            tags,
            data: Body {
                base_type: format!("{}Data", data.kind()),
                base_data: data,
            },
        }
    }

    /// As it goes over the wire.
    pub fn to_json(&self) -> String {
        // No map here has a key that is not text, and numbers are finite.
        serde_json::to_string(self).unwrap_or_default()
    }
}

fn time<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let at = jiff::Timestamp::try_from(*at).unwrap_or_default();
    serializer.collect_str(&format_args!("{at:.6}"))
}

/// `D.HH:MM:SS.ffffff`
fn as_duration<S: Serializer>(took: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let seconds = took.as_secs();
    serializer.collect_str(&format_args!(
        "{}.{:02}:{:02}:{:02}.{:06}",
        // The service takes less than 1,000 days.
        (seconds / 86_400).min(999),
        seconds / 3_600 % 24,
        seconds / 60 % 60,
        seconds % 60,
        took.subsec_micros()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
        assert_eq!(cut("🦀🦀", 7), "🦀");
    }

    #[test]
    fn an_item_looks_as_documented() {
        let place = Place {
            key: "key",
            role: "jobs",
            instance: "node-1",
            operation: Some("0af7651916cd43dd8448eb211c80319c".to_owned()),
            operation_name: Some("ProcessJob"),
            parent: Some("b7ad6b7169203331".to_owned()),
            sample_rate: Some(100.0),
        };
        let data = Data::Request {
            ver: 2,
            id: "d6afde92d3863f82".to_owned(),
            name: "ProcessJob",
            duration: Duration::from_micros(93_784_000_027),
            response_code: "0".into(),
            success: true,
            source: Some("ns/jobs".to_owned()),
            url: None,
            properties: [("MessageId".into(), "m".into())].into(),
            measurements: [("timeSinceEnqueued".into(), 1.5)].into(),
        };
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_005);
        let json: serde_json::Value =
            serde_json::from_str(&Envelope::new(place, at, data).to_json()).expect("JSON");
        let expected = serde_json::json!({
            "name": "Microsoft.ApplicationInsights.Request",
            "time": "2023-11-14T22:13:20.000005Z",
            "iKey": "key",
            "sampleRate": 100.0,
            "tags": {
                "ai.cloud.role": "jobs",
                "ai.cloud.roleInstance": "node-1",
                "ai.internal.sdkVersion": "orchestrator:0.1.0",
                "ai.operation.id": "0af7651916cd43dd8448eb211c80319c",
                "ai.operation.name": "ProcessJob",
                "ai.operation.parentId": "b7ad6b7169203331",
            },
            "data": { "baseType": "RequestData", "baseData": {
                "ver": 2, "id": "d6afde92d3863f82", "name": "ProcessJob",
                "duration": "1.02:03:04.000027", "responseCode": "0", "success": true,
                "source": "ns/jobs", "properties": { "MessageId": "m" },
                "measurements": { "timeSinceEnqueued": 1.5 },
            }},
        });
        assert_eq!(json, expected);
    }
}
