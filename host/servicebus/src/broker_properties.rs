//! The `BrokerProperties` header: what the broker itself knows about a message, as one JSON object.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use uuid::Uuid;

/// Longest `BrokerProperties` header, in bytes: what Service Bus allows for all headers of a message.
pub const BROKER_PROPERTIES_BYTES_MAX: usize = 64 * 1024;
/// Longest `MessageId`, `SessionId` and `PartitionKey`, in characters.
pub const ID_CHARS_MAX: usize = 128;
/// The `TimeToLive` of a message that never expires, in seconds: the largest
/// time span of .NET, as the service writes it.
#[expect(
    clippy::excessive_precision,
    reason = "the digits that the service writes"
)]
pub const TIME_TO_LIVE_FOREVER_SECONDS: f64 = 922337203685.47754;

/// The same as text: Rust would print fewer digits.
const TIME_TO_LIVE_FOREVER: &str = "922337203685.47754";
/// The same in whole seconds, which is where "forever" starts: the fraction
/// loses its last digits on the way through clients.
const TIME_TO_LIVE_FOREVER_WHOLE_SECONDS: u64 = 922_337_203_685;
/// .NET's date for "never set".
const DATE_NEVER: &str = "Mon, 01 Jan 0001 00:00:00 GMT";
/// 9999-12-31 23:59:59 UTC, the last second that the date format can say.
const DATE_LAST_UNIX_SECONDS: u64 = 253_402_300_799;

/// What the broker knows about a message. `None`: the key is absent.
#[derive(Default, Clone, Debug, PartialEq)]
pub struct BrokerProperties {
    /// Id of what the message answers or belongs to.
    pub correlation_id: Option<String>,
    /// The application's label, elsewhere called the subject.
    pub label: Option<String>,
    /// Identity and duplicate-detection key, at most [`ID_CHARS_MAX`] characters.
    pub message_id: Option<String>,
    /// Which partition it goes to, at most [`ID_CHARS_MAX`] characters.
    pub partition_key: Option<String>,
    /// Where an answer should go.
    pub reply_to: Option<String>,
    /// The session that an answer should be in.
    pub reply_to_session_id: Option<String>,
    /// The session it belongs to, at most [`ID_CHARS_MAX`] characters.
    pub session_id: Option<String>,
    /// Whom it is for; the broker does not route by it.
    pub to: Option<String>,
    /// Which partition of a transfer queue it goes through.
    pub via_partition_key: Option<String>,
    /// Media type of the body. Only in items of our batches: a single message has it as a header.
    pub content_type: Option<String>,
    /// When it becomes visible, to the second.
    pub scheduled_enqueue_time: Option<SystemTime>,
    /// How long it may wait before it expires, read to the millisecond.
    /// `None`: forever, or as long as the queue says.
    pub time_to_live: Option<Duration>,
    /// Whether [`Self::to_header`] writes [`TIME_TO_LIVE_FOREVER_SECONDS`] for an absent
    /// `time_to_live`, as the service does in its answers. Parsing leaves it false.
    pub time_to_live_forever: bool,
    /// Where it was dead-lettered, if it was forwarded from there. Not read from senders.
    pub dead_letter_source: Option<String>,
    /// Which delivery this is; the first is 1. Not read from senders.
    pub delivery_count: Option<u32>,
    /// Its number where it was first accepted; 0 in a queue. Not read from senders.
    pub enqueued_sequence_number: Option<u64>,
    /// When it was accepted, to the second. Not read from senders.
    pub enqueued_time: Option<SystemTime>,
    /// Names the lock on it. Not read from senders.
    pub lock_token: Option<Uuid>,
    /// When the lock on it runs out, to the second. Not read from senders.
    pub locked_until: Option<SystemTime>,
    /// Its number in its queue. Not read from senders.
    pub sequence_number: Option<u64>,
    /// `Active`, `Deferred` or `Scheduled`. Not read from senders.
    pub state: Option<String>,
}

/// Why broker properties could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerPropertiesError {
    /// The header is longer than [`BROKER_PROPERTIES_BYTES_MAX`].
    #[error(
        "`BrokerProperties` has {0} bytes, more than the {BROKER_PROPERTIES_BYTES_MAX} allowed; shorten its values"
    )]
    TooLong(usize),
    /// It is not JSON.
    #[error("`BrokerProperties` is not JSON: {0}")]
    NotJson(String),
    /// It is JSON of another kind.
    #[error("`BrokerProperties` must be a JSON object")]
    NotAnObject,
    /// A value is not what its key needs.
    #[error("`{key}` in `BrokerProperties` must be {expected}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// What its value must be.
        expected: &'static str,
    },
}

impl BrokerProperties {
    /// Reads a sender's header. Numbers may be strings (one client sends all
    /// values as strings), `TimeToLiveTimeSpan` stands in for a missing
    /// `TimeToLive`, unknown keys and those that only the broker sets are ignored.
    pub fn parse_sent(text: &str) -> Result<Self, BrokerPropertiesError> {
        if text.len() > BROKER_PROPERTIES_BYTES_MAX {
            return Err(BrokerPropertiesError::TooLong(text.len()));
        }
        Self::from_value(&parse_json(text)?, false)
    }

    /// Reads the header of a received message.
    pub fn parse_received(text: &str) -> Result<Self, BrokerPropertiesError> {
        Self::from_value(&parse_json(text)?, true)
    }

    /// Reads a JSON object: that of a header or of an item of a batch.
    /// `received`: with the keys that only the broker sets, and without the
    /// limits that the broker has already applied.
    pub fn from_value(value: &Value, received: bool) -> Result<Self, BrokerPropertiesError> {
        let object = value
            .as_object()
            .ok_or(BrokerPropertiesError::NotAnObject)?;
        let field = |key| Field::find(object, key);
        let id = |key| {
            if received {
                field(key).text()
            } else {
                field(key).id()
            }
        };
        let mut properties = Self {
            correlation_id: field("CorrelationId").text()?,
            label: field("Label").text()?,
            message_id: id("MessageId")?,
            partition_key: id("PartitionKey")?,
            reply_to: field("ReplyTo").text()?,
            reply_to_session_id: field("ReplyToSessionId").text()?,
            session_id: id("SessionId")?,
            to: field("To").text()?,
            via_partition_key: field("ViaPartitionKey").text()?,
            content_type: field("ContentType").text()?,
            scheduled_enqueue_time: field("ScheduledEnqueueTimeUtc").date()?,
            time_to_live: match field("TimeToLive") {
                Field { value: None, .. } => field("TimeToLiveTimeSpan").time_span()?,
                present => present.seconds()?,
            },
            ..Self::default()
        };
        if received {
            properties.dead_letter_source = field("DeadLetterSource").text()?;
            properties.delivery_count = field("DeliveryCount").count()?;
            properties.enqueued_sequence_number = field("EnqueuedSequenceNumber").sequence()?;
            properties.enqueued_time = field("EnqueuedTimeUtc").date()?;
            properties.lock_token = field("LockToken").guid()?;
            properties.locked_until = field("LockedUntilUtc").date()?;
            properties.sequence_number = field("SequenceNumber").sequence()?;
            properties.state = field("State").text()?;
        }
        Ok(properties)
    }

    /// The header: JSON in visible ASCII and blanks, keys in alphabetical
    /// order, absent ones left out. Dates lose their fraction of a second and
    /// are moved into the years 1970 to 9999, the only ones the format has here.
    pub fn to_header(&self) -> String {
        let mut object = Writer::default();
        object.text("ContentType", self.content_type.as_deref());
        object.text("CorrelationId", self.correlation_id.as_deref());
        object.text("DeadLetterSource", self.dead_letter_source.as_deref());
        object.number("DeliveryCount", self.delivery_count.map(u64::from));
        object.number("EnqueuedSequenceNumber", self.enqueued_sequence_number);
        object.date("EnqueuedTimeUtc", self.enqueued_time);
        object.text("Label", self.label.as_deref());
        let lock_token = self.lock_token.map(|token| token.to_string());
        object.text("LockToken", lock_token.as_deref());
        object.date("LockedUntilUtc", self.locked_until);
        object.text("MessageId", self.message_id.as_deref());
        object.text("PartitionKey", self.partition_key.as_deref());
        object.text("ReplyTo", self.reply_to.as_deref());
        object.text("ReplyToSessionId", self.reply_to_session_id.as_deref());
        object.date("ScheduledEnqueueTimeUtc", self.scheduled_enqueue_time);
        object.number("SequenceNumber", self.sequence_number);
        object.text("SessionId", self.session_id.as_deref());
        object.text("State", self.state.as_deref());
        match self.time_to_live {
            Some(time) => object.raw("TimeToLive", &seconds_text(time)),
            None if self.time_to_live_forever => object.raw("TimeToLive", TIME_TO_LIVE_FOREVER),
            None => {}
        }
        object.text("To", self.to.as_deref());
        object.text("ViaPartitionKey", self.via_partition_key.as_deref());
        object.finish()
    }
}

fn parse_json(text: &str) -> Result<Value, BrokerPropertiesError> {
    serde_json::from_str(text).map_err(|error| BrokerPropertiesError::NotJson(error.to_string()))
}

/// The value of a key; JSON's `null` counts as absent.
struct Field<'a> {
    key: &'static str,
    value: Option<&'a Value>,
}

impl<'a> Field<'a> {
    fn find(object: &'a Map<String, Value>, key: &'static str) -> Self {
        let value = object.get(key).or_else(|| {
            let mut pairs = object.iter();
            pairs.find_map(|(name, value)| name.eq_ignore_ascii_case(key).then_some(value))
        });
        Self {
            key,
            value: value.filter(|value| !value.is_null()),
        }
    }

    /// The value as `read` sees it, or an error that says what it should be.
    fn read<T>(
        &self,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, BrokerPropertiesError> {
        let Some(value) = self.value else {
            return Ok(None);
        };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(BrokerPropertiesError::Invalid {
                key: self.key,
                expected,
            }),
        }
    }

    fn text(&self) -> Result<Option<String>, BrokerPropertiesError> {
        self.read("a string", |value| value.as_str().map(str::to_owned))
    }

    fn id(&self) -> Result<Option<String>, BrokerPropertiesError> {
        self.read("a string of at most 128 characters", |value| {
            let text = value.as_str()?;
            (text.chars().count() <= ID_CHARS_MAX).then(|| text.to_owned())
        })
    }

    fn date(&self) -> Result<Option<SystemTime>, BrokerPropertiesError> {
        let date = self.read(
            "a date like `Sun, 06 Nov 1994 08:49:37 GMT`",
            |value| match value.as_str()? {
                DATE_NEVER => Some(None),
                text => httpdate::parse_http_date(text).ok().map(Some),
            },
        )?;
        Ok(date.flatten())
    }

    /// Not through a floating-point number: that would lose digits of large ones.
    fn sequence(&self) -> Result<Option<u64>, BrokerPropertiesError> {
        self.read("a whole number from 0", |value| match value {
            Value::String(text) => text.parse().ok(),
            value => value.as_u64(),
        })
    }

    fn count(&self) -> Result<Option<u32>, BrokerPropertiesError> {
        let count = self.sequence()?.map(u32::try_from).transpose();
        count.map_err(|_| BrokerPropertiesError::Invalid {
            key: self.key,
            expected: "a whole number of at most 32 bits",
        })
    }

    fn guid(&self) -> Result<Option<Uuid>, BrokerPropertiesError> {
        self.read("a GUID", |value| value.as_str()?.parse().ok())
    }

    fn seconds(&self) -> Result<Option<Duration>, BrokerPropertiesError> {
        let time = self.read("a number of seconds, not negative", |value| {
            let seconds = match value {
                Value::String(text) => text.parse().ok()?,
                value => value.as_f64()?,
            };
            time_of_seconds(seconds)
        })?;
        Ok(time.flatten())
    }

    fn time_span(&self) -> Result<Option<Duration>, BrokerPropertiesError> {
        let time = self.read("a time span like `1.02:03:04`, not negative", |value| {
            time_of_span(value.as_str()?)
        })?;
        Ok(time.flatten())
    }
}

/// A time to live, `Some(None)` for one that never ends, `None` for a negative one.
///
/// Rounded to the millisecond, which is what 64 bits can tell apart over the
/// whole range, but never to zero: that would expire at once.
fn time_of_seconds(seconds: f64) -> Option<Option<Duration>> {
    if seconds < 0.0 {
        return None;
    }
    if !seconds.is_finite() || seconds.floor() >= TIME_TO_LIVE_FOREVER_SECONDS.floor() {
        return Some(None);
    }
    // Exact: not negative and below 2^50.
    let millis = (seconds * 1000.0).round() as u64;
    Some(time_of_millis(millis, seconds > 0.0))
}

/// A time to live; `None` for one that never ends, which rounding can make of one that just does not.
fn time_of_millis(millis: u64, is_positive: bool) -> Option<Duration> {
    let time = Duration::from_millis(millis.max(u64::from(is_positive)));
    (time.as_secs() < TIME_TO_LIVE_FOREVER_WHOLE_SECONDS).then_some(time)
}

/// The same from .NET's `[d.]hh:mm:ss[.fffffff]`.
fn time_of_span(text: &str) -> Option<Option<Duration>> {
    let mut parts = text.splitn(3, ':');
    let (days_and_hours, minutes, seconds) = (parts.next()?, parts.next()?, parts.next()?);
    let (days, hours) = days_and_hours
        .split_once('.')
        .unwrap_or(("0", days_and_hours));
    let (seconds, fraction) = match seconds.split_once('.') {
        Some((seconds, fraction)) => (seconds, digits(fraction, 7).map(|_| fraction)?),
        None => (seconds, "0"),
    };
    let whole = |text, below: u64| digits(text, 2).filter(|number| *number < below);
    // Eight digits of days, as .NET has: no overflow below.
    let seconds = ((digits(days, 8)? * 24 + whole(hours, 24)?) * 60 + whole(minutes, 60)?) * 60
        + whole(seconds, 60)?;
    if seconds >= TIME_TO_LIVE_FOREVER_WHOLE_SECONDS {
        return Some(None);
    }
    let nanos = digits(&format!("{fraction:0<9}"), 9)?;
    let millis = seconds * 1000 + (nanos + 500_000) / 1_000_000;
    Some(time_of_millis(millis, seconds > 0 || nanos > 0))
}

/// One to `most` decimal digits, without a sign.
fn digits(text: &str, most: usize) -> Option<u64> {
    let are_digits = text.len() <= most && text.bytes().all(|byte| byte.is_ascii_digit());
    if are_digits { text.parse().ok() } else { None }
}

/// Seconds as a JSON number, exactly.
fn seconds_text(time: Duration) -> String {
    if time.as_secs() >= TIME_TO_LIVE_FOREVER_WHOLE_SECONDS {
        return TIME_TO_LIVE_FOREVER.to_owned();
    }
    if time.subsec_nanos() == 0 {
        return time.as_secs().to_string();
    }
    let text = format!("{}.{:09}", time.as_secs(), time.subsec_nanos());
    text.trim_end_matches('0').to_owned()
}

/// A date as HTTP writes it, to the second, moved into the years 1970 to 9999.
pub(crate) fn format_date(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
        .min(DATE_LAST_UNIX_SECONDS);
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Writes a character that a header cannot hold as one or two `\uXXXX`.
pub(crate) fn escape(character: char, out: &mut String) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        // Writing to a string cannot fail.
        let _ = write!(out, "\\u{unit:04x}");
    }
}

/// A JSON object in the making.
#[derive(Default)]
struct Writer(String);

impl Writer {
    fn raw(&mut self, key: &str, value: &str) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        // Writing to a string cannot fail.
        let _ = write!(self.0, "\"{key}\":{value}");
    }

    fn text(&mut self, key: &str, value: Option<&str>) {
        let Some(value) = value else { return };
        let mut escaped = String::with_capacity(value.len() + 2);
        // JSON's own escapes leave DEL and everything beyond ASCII as they are.
        for character in Value::from(value).to_string().chars() {
            match character {
                ' '..='~' => escaped.push(character),
                other => escape(other, &mut escaped),
            }
        }
        self.raw(key, &escaped);
    }

    fn number(&mut self, key: &str, value: Option<u64>) {
        if let Some(value) = value {
            self.raw(key, &value.to_string());
        }
    }

    fn date(&mut self, key: &str, value: Option<SystemTime>) {
        self.text(key, value.map(format_date).as_deref());
    }

    fn finish(mut self) -> String {
        self.0.push_str(if self.0.is_empty() { "{}" } else { "}" });
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn sent(text: &str) -> BrokerProperties {
        BrokerProperties::parse_sent(text).unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn reads_a_sender() {
        let properties = sent(
            r#"{"CorrelationId":"c","Label":"l","MessageId":"m","PartitionKey":"p","ReplyTo":"r",
            "ReplyToSessionId":"rs","SessionId":"s","To":"t","ViaPartitionKey":"v","ContentType":"text/plain",
            "ScheduledEnqueueTimeUtc":"Sun, 06 Nov 1994 08:49:37 GMT","TimeToLive":1.5,"ForcePersistence":true,"New":[1]}"#,
        );
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            properties,
            BrokerProperties {
                correlation_id: text("c"),
                label: text("l"),
                message_id: text("m"),
                partition_key: text("p"),
                reply_to: text("r"),
                reply_to_session_id: text("rs"),
                session_id: text("s"),
                to: text("t"),
                via_partition_key: text("v"),
                content_type: text("text/plain"),
                scheduled_enqueue_time: Some(at(784_111_777)),
                time_to_live: Some(Duration::from_millis(1_500)),
                ..BrokerProperties::default()
            }
        );
        assert_eq!(sent("{}"), BrokerProperties::default());
        assert_eq!(sent(r#"{"Label":null}"#), BrokerProperties::default());
        assert_eq!(sent(r#"{"messageid":"m"}"#).message_id, text("m"));
    }

    #[test]
    fn ignores_what_only_the_broker_sets_in_a_sender() {
        let text = r#"{"DeadLetterSource":1,"DeliveryCount":"x","EnqueuedSequenceNumber":-1,"EnqueuedTimeUtc":"x",
            "LockToken":"x","LockedUntilUtc":0,"SequenceNumber":"x","State":0}"#;
        assert_eq!(sent(text), BrokerProperties::default());
        assert!(BrokerProperties::parse_received(text).is_err());
    }

    #[test]
    fn reads_the_recorded_kind_of_answer() {
        let text = r#"{"DeliveryCount":1,"EnqueuedSequenceNumber":0,"EnqueuedTimeUtc":"Sat, 25 Oct 2014 00:55:58 GMT","LockToken":"7da9cfd5-40d5-4bb1-8d64-ec5a52e1c547","LockedUntilUtc":"Sat, 25 Oct 2014 00:56:58 GMT","MessageId":"0123","SequenceNumber":41095346599755778,"State":"Active","TimeToLive":922337203685.47754}"#;
        let mut properties = BrokerProperties::parse_received(text).unwrap();
        assert_eq!(properties.delivery_count, Some(1));
        assert_eq!(properties.enqueued_sequence_number, Some(0));
        assert_eq!(properties.sequence_number, Some(41_095_346_599_755_778));
        assert_eq!(properties.locked_until, Some(at(1_414_198_618)));
        assert_eq!(properties.time_to_live, None);
        properties.time_to_live_forever = true;
        assert_eq!(properties.to_header(), text);
    }

    #[test]
    fn numbers_may_come_as_strings() {
        let text =
            r#"{"TimeToLive":"90","SequenceNumber":"18446744073709551615","DeliveryCount":"3"}"#;
        let properties = BrokerProperties::parse_received(text).unwrap();
        assert_eq!(properties.time_to_live, Some(Duration::from_secs(90)));
        assert_eq!(properties.sequence_number, Some(u64::MAX));
        assert_eq!(properties.delivery_count, Some(3));
    }

    #[test]
    fn reads_every_time_to_live() {
        let millis = |millis| Some(Duration::from_millis(millis));
        for (text, expected) in [
            (r#"{"TimeToLive":0}"#, millis(0)),
            (r#"{"TimeToLive":0.0001}"#, millis(1)),
            (r#"{"TimeToLive":1209600.001}"#, millis(1_209_600_001)),
            (r#"{"TimeToLive":"1e3"}"#, millis(1_000_000)),
            (
                r#"{"TimeToLive":922337203684}"#,
                millis(922_337_203_684_000),
            ),
            (r#"{"TimeToLive":922337203685.47754}"#, None),
            (r#"{"TimeToLive":922337203685.4775}"#, None),
            (r#"{"TimeToLive":1e300}"#, None),
            (r#"{"TimeToLive":"Infinity"}"#, None),
            (r#"{"TimeToLive":"NaN"}"#, None),
            (r#"{"TimeToLiveTimeSpan":"0.00:00:40"}"#, millis(40_000)),
            (r#"{"TimeToLiveTimeSpan":"01:02:03"}"#, millis(3_723_000)),
            (
                r#"{"TimeToLiveTimeSpan":"1.02:03:04.5"}"#,
                millis(93_784_500),
            ),
            (
                r#"{"TimeToLiveTimeSpan":"10675199.02:48:05.4775807"}"#,
                None,
            ),
            (r#"{"TimeToLiveTimeSpan":"99999999.00:00:00"}"#, None),
            (
                r#"{"TimeToLive":1,"TimeToLiveTimeSpan":"2"}"#,
                millis(1_000),
            ),
        ] {
            assert_eq!(sent(text).time_to_live, expected, "{text}");
        }
    }

    #[test]
    fn a_time_to_live_that_rounds_to_for_ever_reads_back() {
        for text in [
            r#"{"TimeToLive":922337203684.9996}"#,
            r#"{"TimeToLiveTimeSpan":"10675199.02:48:04.9999999"}"#,
            r#"{"TimeToLive":0.1234567890123}"#,
        ] {
            let read = sent(text);
            assert_eq!(
                sent(&read.to_header()).time_to_live,
                read.time_to_live,
                "{text}"
            );
        }
    }

    #[test]
    fn what_the_service_let_in_is_read_however_long_it_is() {
        let long = format!(
            r#"{{"Label":"{}"}}"#,
            "x".repeat(BROKER_PROPERTIES_BYTES_MAX)
        );
        assert!(BrokerProperties::parse_sent(&long).is_err());
        assert!(BrokerProperties::parse_received(&long).is_ok());
    }

    #[test]
    fn errors_name_the_key() {
        let long = format!(r#""{}""#, "x".repeat(ID_CHARS_MAX + 1));
        for (key, value) in [
            ("MessageId", long.as_str()),
            ("SessionId", &long),
            ("PartitionKey", &long),
            ("MessageId", "42"),
            ("Label", "[]"),
            ("TimeToLive", "-1"),
            ("TimeToLive", "-0.5"),
            ("TimeToLive", r#""-1""#),
            ("TimeToLive", r#""-Infinity""#),
            ("TimeToLive", r#""soon""#),
            ("TimeToLive", "true"),
            ("TimeToLiveTimeSpan", r#""-0.00:00:01""#),
            ("TimeToLiveTimeSpan", r#""00:00""#),
            ("TimeToLiveTimeSpan", r#""24:00:00""#),
            ("TimeToLiveTimeSpan", r#""00:60:00""#),
            ("TimeToLiveTimeSpan", r#""00:00:60""#),
            ("TimeToLiveTimeSpan", r#""00:00:00.""#),
            ("TimeToLiveTimeSpan", r#""+1.00:00:00""#),
            ("TimeToLiveTimeSpan", r#""00:00:00:00""#),
            ("ScheduledEnqueueTimeUtc", r#""2026-01-01T00:00:00Z""#),
            ("ScheduledEnqueueTimeUtc", "0"),
        ] {
            let error = BrokerProperties::parse_sent(&format!(r#"{{"{key}":{value}}}"#));
            let error = error.unwrap_err();
            assert!(
                matches!(error, BrokerPropertiesError::Invalid { key: named, .. } if named == key),
                "{key} {value}: {error}"
            );
            assert!(error.to_string().contains(&format!("`{key}`")));
        }
        for (key, value) in [
            ("DeliveryCount", "4294967296"),
            ("SequenceNumber", "1.5"),
            ("SequenceNumber", "-1"),
            ("LockToken", r#""x""#),
            ("LockedUntilUtc", r#""soon""#),
        ] {
            let text = format!(r#"{{"{key}":{value}}}"#);
            let error = BrokerProperties::parse_received(&text).unwrap_err();
            assert!(error.to_string().contains(&format!("`{key}`")), "{error}");
        }
    }

    #[test]
    fn an_id_may_have_128_characters() {
        let id = "é".repeat(ID_CHARS_MAX);
        let text = format!(r#"{{"MessageId":"{id}"}}"#);
        assert_eq!(sent(&text).message_id, Some(id));
    }

    #[test]
    fn a_date_that_was_never_set_is_absent() {
        let text = format!(r#"{{"ScheduledEnqueueTimeUtc":"{DATE_NEVER}"}}"#);
        assert_eq!(sent(&text), BrokerProperties::default());
    }

    #[test]
    fn refuses_what_is_no_object() {
        for text in ["[]", "1", "null", r#""x""#] {
            assert_eq!(
                BrokerProperties::parse_sent(text),
                Err(BrokerPropertiesError::NotAnObject)
            );
        }
        for text in ["", "{", "{'MessageId':'m'}", r#"{"TimeToLive":1e999}"#] {
            assert!(matches!(
                BrokerProperties::parse_sent(text),
                Err(BrokerPropertiesError::NotJson(_))
            ));
        }
        let long = " ".repeat(BROKER_PROPERTIES_BYTES_MAX + 1);
        assert_eq!(
            BrokerProperties::parse_sent(&long),
            Err(BrokerPropertiesError::TooLong(long.len()))
        );
    }

    #[test]
    fn the_header_is_ascii() {
        let properties = BrokerProperties {
            label: Some("é\u{1f600}\"\\\n\u{7f}".into()),
            ..BrokerProperties::default()
        };
        assert_eq!(
            properties.to_header(),
            r#"{"Label":"\u00e9\ud83d\ude00\"\\\n\u007f"}"#
        );
        assert_eq!(BrokerProperties::default().to_header(), "{}");
    }

    #[test]
    fn the_header_has_times_of_any_size() {
        let mut properties = BrokerProperties {
            time_to_live: Some(Duration::from_secs(90)),
            ..BrokerProperties::default()
        };
        assert_eq!(properties.to_header(), r#"{"TimeToLive":90}"#);
        properties.time_to_live = Some(Duration::from_millis(1_050));
        assert_eq!(properties.to_header(), r#"{"TimeToLive":1.05}"#);
        properties.time_to_live = Some(Duration::MAX);
        assert_eq!(
            properties.to_header(),
            r#"{"TimeToLive":922337203685.47754}"#
        );
        assert_eq!(
            TIME_TO_LIVE_FOREVER.parse(),
            Ok(TIME_TO_LIVE_FOREVER_SECONDS)
        );
        for (time, expected) in [
            (
                UNIX_EPOCH - Duration::from_secs(1),
                "Thu, 01 Jan 1970 00:00:00 GMT",
            ),
            (
                at(DATE_LAST_UNIX_SECONDS + 1),
                "Fri, 31 Dec 9999 23:59:59 GMT",
            ),
        ] {
            assert_eq!(format_date(time), expected);
        }
    }

    fn text() -> impl Strategy<Value = Option<String>> {
        option::of(any::<String>())
    }

    fn date() -> impl Strategy<Value = Option<SystemTime>> {
        option::of((0..=DATE_LAST_UNIX_SECONDS).prop_map(at))
    }

    fn any_properties() -> impl Strategy<Value = BrokerProperties> {
        let texts = (
            [text(), text(), text(), text(), text(), text()],
            [text(), text(), text(), text(), text(), text()],
        );
        let dates = [date(), date(), date()];
        let forever_millis = TIME_TO_LIVE_FOREVER_WHOLE_SECONDS * 1000;
        let time_to_live = option::of(prop_oneof![0..100_000u64, 0..forever_millis]);
        let numbers = (
            any::<Option<u32>>(),
            any::<Option<u64>>(),
            any::<Option<u64>>(),
        );
        let lock_token = any::<Option<u128>>();
        (texts, dates, time_to_live, numbers, lock_token).prop_map(
            |((first, second), dates, time_to_live, numbers, lock_token)| {
                let [
                    correlation_id,
                    label,
                    message_id,
                    partition_key,
                    reply_to,
                    state,
                ] = first;
                let [
                    reply_to_session_id,
                    session_id,
                    to,
                    via_partition_key,
                    content_type,
                    source,
                ] = second;
                let [scheduled_enqueue_time, enqueued_time, locked_until] = dates;
                BrokerProperties {
                    correlation_id,
                    label,
                    message_id,
                    partition_key,
                    reply_to,
                    reply_to_session_id,
                    session_id,
                    to,
                    via_partition_key,
                    content_type,
                    scheduled_enqueue_time,
                    time_to_live: time_to_live.map(Duration::from_millis),
                    time_to_live_forever: false,
                    dead_letter_source: source,
                    delivery_count: numbers.0,
                    enqueued_sequence_number: numbers.1,
                    enqueued_time,
                    lock_token: lock_token.map(Uuid::from_u128),
                    locked_until,
                    sequence_number: numbers.2,
                    state,
                }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_reads_back(properties in any_properties()) {
            let header = properties.to_header();
            prop_assert!(header.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            let object: Map<String, Value> = serde_json::from_str(&header).unwrap();
            let mut keys: Vec<_> = object.keys().collect();
            keys.sort();
            // A quote inside a value has a backslash before it, so this finds keys only.
            let positions: Vec<_> =
                keys.iter().map(|key| header.find(&format!("\"{key}\":"))).collect();
            prop_assert!(positions.is_sorted(), "{}", header);
            prop_assert_eq!(BrokerProperties::parse_received(&header), Ok(properties));
        }

        #[test]
        fn no_text_panics(key in "TimeToLive|TimeToLiveTimeSpan|ScheduledEnqueueTimeUtc|LockToken", value in ".*") {
            let value = serde_json::json!({ key: value });
            let _ = BrokerProperties::from_value(&value, true);
        }
    }
}
