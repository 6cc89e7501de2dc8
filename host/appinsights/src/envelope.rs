//! The items that Application Insights takes, as JSON.
//!
//! Every text is cut to the limit that the service documents for its place, at
//! a character's end: an item that is too long is refused whole.

use std::borrow::Cow;
use std::fmt::Display;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanId, TraceId};
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

/// Room made for an item, in bytes: most are smaller.
const ITEM_BYTES_USUAL: usize = 1_024;

/// A text within its limit.
pub fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// One item.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope<'a> {
    name: &'static str,
    #[serde(serialize_with = "time")]
    time: SystemTime,
    i_key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sample_rate: Option<f64>,
    tags: Tags<'a>,
    data: Body<'a>,
}

#[derive(Debug, Serialize)]
struct Tags<'a> {
    #[serde(rename = "ai.cloud.role")]
    role: &'a str,
    #[serde(rename = "ai.cloud.roleInstance")]
    instance: &'a str,
    #[serde(rename = "ai.internal.sdkVersion")]
    version: &'static str,
    #[serde(
        rename = "ai.operation.id",
        serialize_with = "as_text",
        skip_serializing_if = "Option::is_none"
    )]
    operation: Option<TraceId>,
    #[serde(rename = "ai.operation.name", skip_serializing_if = "Option::is_none")]
    operation_name: Option<&'a str>,
    #[serde(
        rename = "ai.operation.parentId",
        serialize_with = "as_text",
        skip_serializing_if = "Option::is_none"
    )]
    parent: Option<SpanId>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    base_type: &'static str,
    base_data: Data<'a>,
}

/// Where an item belongs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    /// The resource's key.
    pub key: &'a str,
    /// Name of the role: the node on the application map.
    pub role: &'a str,
    /// Which instance of the role.
    pub instance: &'a str,
    /// Its trace.
    pub operation: Option<TraceId>,
    /// Name of the operation.
    pub operation_name: Option<&'a str>,
    /// The enclosing span.
    pub parent: Option<SpanId>,
    /// Percentage of items that this one stands for; none: it was not sampled.
    pub sample_rate: Option<f64>,
}

/// Texts by name.
pub type Properties<'a> = Pairs<'a, Cow<'a, str>>;
/// Numbers by name.
pub type Measurements<'a> = Pairs<'a, f64>;

/// Values by name; of those that have the same name, the last. A list: there
/// are few of them, and every job makes several.
#[derive(Debug, Default)]
pub struct Pairs<'a, V>(Vec<(&'a str, V)>);

impl<'a, V> Pairs<'a, V> {
    /// Adds a value, or takes the place of one.
    pub fn insert(&mut self, name: &'a str, value: V) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name, value)),
        }
    }
}

impl<'a, V> FromIterator<(&'a str, V)> for Pairs<'a, V> {
    fn from_iter<I: IntoIterator<Item = (&'a str, V)>>(pairs: I) -> Self {
        let pairs = pairs.into_iter();
        let mut all = Self(Vec::with_capacity(pairs.size_hint().1.unwrap_or(0)));
        for (name, value) in pairs {
            all.insert(name, value);
        }
        all
    }
}

impl<'a, V> IntoIterator for Pairs<'a, V> {
    type Item = (&'a str, V);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<V: Serialize> Serialize for Pairs<'_, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

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
        #[serde(serialize_with = "as_id")]
        id: SpanId,
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
        #[serde(serialize_with = "as_id")]
        id: SpanId,
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
    /// The item's name, and the type of its data.
    fn names(&self) -> (&'static str, &'static str) {
        macro_rules! names {
            ($kind:literal) => {
                (
                    concat!("Microsoft.ApplicationInsights.", $kind),
                    concat!($kind, "Data"),
                )
            };
        }
        match self {
            Self::Request { .. } => names!("Request"),
            Self::Dependency { .. } => names!("RemoteDependency"),
            Self::Exception { .. } => names!("Exception"),
            Self::Message { .. } => names!("Message"),
            Self::Event { .. } => names!("Event"),
            Self::Metric { .. } => names!("Metric"),
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
        let (name, base_type) = data.names();
        Self {
            name,
            time,
            i_key: place.key,
            sample_rate: place.sample_rate,
            tags: Tags {
                role: cut(place.role, ROLE_BYTES_MAX),
                instance: cut(place.instance, ROLE_BYTES_MAX),
                version: concat!("orchestrator:", env!("CARGO_PKG_VERSION")),
                operation: place.operation,
                operation_name: place.operation_name.map(|name| cut(name, NAME_BYTES_MAX)),
                parent: place.parent,
            },
            data: Body {
                base_type,
                base_data: data,
            },
        }
    }

    /// As it goes over the wire.
    pub fn to_json(&self) -> String {
        let mut json = Vec::with_capacity(ITEM_BYTES_USUAL);
        // No map here has a key that is not text, and numbers are finite.
        match serde_json::to_writer(&mut json, self) {
            // What the serializer writes is UTF-8.
            Ok(()) => String::from_utf8(json).unwrap_or_default(),
            Err(_) => String::new(),
        }
    }
}

/// Any identifier, as it writes itself.
fn as_text<S: Serializer>(id: &Option<impl Display>, serializer: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => serializer.collect_str(id),
        None => serializer.serialize_none(),
    }
}

fn as_id<S: Serializer>(id: &SpanId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
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
            operation: TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").ok(),
            operation_name: Some("ProcessJob"),
            parent: SpanId::from_hex("b7ad6b7169203331").ok(),
            sample_rate: Some(100.0),
        };
        let data = Data::Request {
            ver: 2,
            id: SpanId::from_hex("d6afde92d3863f82").expect("hexadecimal"),
            name: "ProcessJob",
            duration: Duration::from_micros(93_784_000_027),
            response_code: "0".into(),
            success: true,
            source: Some("ns/jobs".to_owned()),
            url: None,
            properties: [("MessageId", "m".into())].into_iter().collect(),
            measurements: [("timeSinceEnqueued", 1.5)].into_iter().collect(),
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
