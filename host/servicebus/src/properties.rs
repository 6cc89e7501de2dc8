//! Custom properties of messages: each is an HTTP header of its own, whose
//! text tells the type of the value.

use std::time::SystemTime;

use serde_json::Value;

use crate::broker_properties::{escape, format_date};

/// Longest text of one property, in bytes, as Service Bus allows.
pub const PROPERTY_TEXT_BYTES_MAX: usize = 32 * 1024;

/// Headers that are never custom properties, in lower case and in order: those
/// of HTTP itself and what proxies add to it, and those with a meaning to
/// Service Bus. Not `priority`, although RFC 9218 defines it: the example in
/// the documentation of Service Bus has a property of that name.
const NOT_CUSTOM: &[&str] = &[
    "age",
    "allow",
    "alt-svc",
    "authentication-info",
    "authorization",
    "brokerproperties",
    "cache-control",
    "connection",
    "cookie",
    "date",
    "etag",
    "expect",
    "expires",
    "forwarded",
    "from",
    "host",
    "http2-settings",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "last-modified",
    "location",
    "max-forwards",
    "origin",
    "pragma",
    "range",
    "referer",
    "retry-after",
    "server",
    // These two carry tokens for a second entity.
    "servicebusdlqsupplementaryauthorization",
    "servicebussupplementaryauthorization",
    "set-cookie",
    "strict-transport-security",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-ms-client-request-id",
    "x-ms-retrypolicy",
];

/// The same by how they start.
const NOT_CUSTOM_PREFIXES: &[&str] = &["accept", "access-control-", "content-", "proxy-", "sec-"];

/// The value of a custom property.
#[derive(Clone, Debug, PartialEq)]
pub enum PropertyValue {
    /// Text. On the wire a text that is a date cannot be told from a date.
    String(String),
    /// A whole number.
    Int(i64),
    /// Another number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A date; the wire keeps whole seconds of the years 1970 to 9999.
    Date(SystemTime),
}

/// What becomes of text that should have been in quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leniency {
    /// An error, as the documentation of Service Bus says.
    Strict,
    /// A string, as some clients send it.
    Lenient,
}

/// Why a header is not the value of a property. Does not repeat the value, which may be confidential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PropertyError {
    /// Text that is neither quoted, nor a number, nor a truth value.
    #[error("an unquoted property must be `true`, `false` or a number; put text in double quotes")]
    Unquoted,
    /// Text that starts with a quote and does not end with one.
    #[error("a property that starts with a double quote must end with one; add it")]
    Unterminated,
    /// Longer than [`PROPERTY_TEXT_BYTES_MAX`].
    #[error(
        "a property has {0} bytes, more than the {PROPERTY_TEXT_BYTES_MAX} allowed; move it into the body"
    )]
    TooLong(usize),
}

impl PropertyValue {
    /// Reads a header, of at most [`PROPERTY_TEXT_BYTES_MAX`] bytes. In quotes:
    /// a date or a string; otherwise `true`, `false` or a number.
    ///
    /// A whole number that does not fit 64 bits becomes a float.
    pub fn parse(header_text: &str, leniency: Leniency) -> Result<Self, PropertyError> {
        if header_text.len() > PROPERTY_TEXT_BYTES_MAX {
            return Err(PropertyError::TooLong(header_text.len()));
        }
        let text = header_text.trim_matches([' ', '\t']);
        match (Self::read(text), leniency) {
            (Err(error), Leniency::Strict) => Err(error),
            (read, _) => Ok(read.unwrap_or_else(|_| Self::String(text.to_owned()))),
        }
    }

    /// Reads a header that the service has let in: as [`Lenient`](Leniency::Lenient),
    /// and as long as it is.
    pub fn parse_received(header_text: &str) -> Self {
        let text = header_text.trim_matches([' ', '\t']);
        Self::read(text).unwrap_or_else(|_| Self::String(text.to_owned()))
    }

    fn read(text: &str) -> Result<Self, PropertyError> {
        let Some(rest) = text.strip_prefix('"') else {
            return parse_unquoted(text).ok_or(PropertyError::Unquoted);
        };
        // Quotes inside may come without a backslash, as one client sends them: only the last one ends it.
        let inner = rest.strip_suffix('"').ok_or(PropertyError::Unterminated)?;
        Ok(date_or_string(unescape(inner)))
    }

    /// The header, in visible ASCII and blanks. Strings are in quotes, with
    /// `\"`, `\\` and `\uXXXX` for what a header cannot hold; a float that is no
    /// number becomes a string, as the wire has no float for it.
    pub fn to_header(&self) -> String {
        match self {
            Self::String(text) => quote(text),
            Self::Float(number) if !number.is_finite() => quote(&self.to_text()),
            Self::Date(time) => quote(&format_date(*time)),
            Self::Int(_) | Self::Float(_) | Self::Bool(_) => self.to_text(),
        }
    }

    /// The value as plain text, for a guest: strings as they are, dates as
    /// HTTP writes them, numbers and truth values as on the wire.
    pub fn to_text(&self) -> String {
        match self {
            Self::String(text) => text.clone(),
            Self::Int(number) => number.to_string(),
            // This form keeps the point of a whole number, without which it would be read as an integer.
            Self::Float(number) => format!("{number:?}"),
            Self::Bool(truth) => truth.to_string(),
            Self::Date(time) => format_date(*time),
        }
    }

    /// Reads the value in an item of a batch, where a string that is a date
    /// is one, as in a header. `None` for `null`, arrays and objects.
    pub fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(date_or_string(text.clone())),
            Value::Bool(truth) => Some(Self::Bool(*truth)),
            Value::Number(number) => match number.as_i64() {
                Some(number) => Some(Self::Int(number)),
                None => number.as_f64().map(Self::Float),
            },
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// The value in an item of a batch; a float that is no number becomes a string.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Int(number) => Value::from(*number),
            Self::Float(number) if number.is_finite() => Value::from(*number),
            Self::Bool(truth) => Value::from(*truth),
            Self::String(_) | Self::Float(_) | Self::Date(_) => Value::from(self.to_text()),
        }
    }
}

/// Whether a header is a custom property: whatever has no meaning to HTTP or
/// Service Bus. The case of the name does not matter; `traceparent` is custom.
pub fn is_custom(header_name: &str) -> bool {
    let name = header_name.to_ascii_lowercase();
    !NOT_CUSTOM.contains(&name.as_str())
        && !NOT_CUSTOM_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

/// A date only if it is written exactly as this module writes dates: then nothing is lost by reading it.
fn date_or_string(text: String) -> PropertyValue {
    match httpdate::parse_http_date(&text) {
        Ok(time) if format_date(time) == text => PropertyValue::Date(time),
        _ => PropertyValue::String(text),
    }
}

fn parse_unquoted(text: &str) -> Option<PropertyValue> {
    match text {
        "true" => return Some(PropertyValue::Bool(true)),
        "false" => return Some(PropertyValue::Bool(false)),
        _ => {}
    }
    if let Ok(number) = text.parse() {
        return Some(PropertyValue::Int(number));
    }
    // Rust also reads `inf` and `nan`, which the wire does not have.
    let is_numeric = text
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'));
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    number.filter(|_| is_numeric).map(PropertyValue::Float)
}

fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            ' '..='~' => quoted.push(character),
            other => escape(other, &mut quoted),
        }
    }
    quoted.push('"');
    quoted
}

/// Undoes the escapes of [`quote`]; any other backslash is one.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('\\') {
        plain.push_str(&rest[..position]);
        rest = &rest[position..];
        let (character, length) = match rest.as_bytes() {
            [_, b'"', ..] => ('"', 2),
            [_, b'\\', ..] => ('\\', 2),
            bytes => escaped_character(bytes).unwrap_or(('\\', 1)),
        };
        plain.push(character);
        rest = &rest[length..];
    }
    plain.push_str(rest);
    plain
}

/// The character of one `\uXXXX`, or of two that are a surrogate pair, and the bytes they take.
fn escaped_character(text: &[u8]) -> Option<(char, usize)> {
    const UNIT_BYTES: usize = 6;
    let first = escaped_unit(text)?;
    let second = text.get(UNIT_BYTES..).and_then(escaped_unit);
    let decoded = char::decode_utf16([first].into_iter().chain(second)).next()?;
    let character = decoded.ok()?;
    Some((character, UNIT_BYTES * character.len_utf16()))
}

fn escaped_unit(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0, |unit, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(unit << 4 | u16::try_from(digit).ok()?)
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn strict(text: &str) -> Result<PropertyValue, PropertyError> {
        PropertyValue::parse(text, Leniency::Strict)
    }

    fn string(text: &str) -> PropertyValue {
        PropertyValue::String(text.into())
    }

    fn date() -> PropertyValue {
        PropertyValue::Date(UNIX_EPOCH + Duration::from_secs(784_111_777))
    }

    #[test]
    fn reads_each_type() {
        for (text, expected) in [
            ("1", PropertyValue::Int(1)),
            (" -5\t", PropertyValue::Int(-5)),
            ("9223372036854775807", PropertyValue::Int(i64::MAX)),
            (
                "9223372036854775808",
                PropertyValue::Float(9_223_372_036_854_775_808.0),
            ),
            ("2.22", PropertyValue::Float(2.22)),
            ("-1e3", PropertyValue::Float(-1000.0)),
            ("true", PropertyValue::Bool(true)),
            ("false", PropertyValue::Bool(false)),
            (r#""hi there""#, string("hi there")),
            (r#""1""#, string("1")),
            (r#""true""#, string("true")),
            (r#""""#, string("")),
            (r#"" x ""#, string(" x ")),
            (r#""Sun, 06 Nov 1994 08:49:37 GMT""#, date()),
            // Only the service's own form is a date.
            (
                r#""Sun Nov  6 08:49:37 1994""#,
                string("Sun Nov  6 08:49:37 1994"),
            ),
            (
                r#""Sun, 06 Nov 1994 08:49:37 CET""#,
                string("Sun, 06 Nov 1994 08:49:37 CET"),
            ),
        ] {
            assert_eq!(strict(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn other_text_is_an_error_or_a_string() {
        for text in [
            "High",
            "True",
            "",
            "inf",
            "-inf",
            "NaN",
            "1e999",
            "0x10",
            "1,5",
            "e",
            "-",
            ".",
            "x\"y\"",
            "Sun, 06 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(strict(text), Err(PropertyError::Unquoted), "{text}");
            assert_eq!(
                PropertyValue::parse(text, Leniency::Lenient),
                Ok(string(text))
            );
        }
        for text in ["\"", "\"x", "\"x\"y"] {
            assert_eq!(strict(text), Err(PropertyError::Unterminated), "{text}");
            assert_eq!(
                PropertyValue::parse(text, Leniency::Lenient),
                Ok(string(text))
            );
        }
        let long = "1".repeat(PROPERTY_TEXT_BYTES_MAX + 1);
        for leniency in [Leniency::Strict, Leniency::Lenient] {
            assert_eq!(
                PropertyValue::parse(&long, leniency),
                Err(PropertyError::TooLong(long.len()))
            );
        }
    }

    #[test]
    fn undoes_its_own_escapes_and_no_others() {
        for (text, expected) in [
            (r#""say \"hi\"""#, r#"say "hi""#),
            (r#""say "hi"""#, r#"say "hi""#),
            (r#""a\\b""#, r"a\b"),
            (r#""C:\new\users""#, r"C:\new\users"),
            (r#""tail\""#, r"tail\"),
            (r#""\u00e9\u00E9""#, "éé"),
            (r#""\ud83d\ude00!""#, "\u{1f600}!"),
            (r#""\ud83d\u0041""#, r"\ud83dA"),
            (r#""\ude00""#, r"\ude00"),
            (r#""\ud83d""#, r"\ud83d"),
            (r#""\u12""#, r"\u12"),
            (r#""\u+123""#, r"\u+123"),
            (r#""\uéé""#, r"\uéé"),
            (r#""\\u00e9""#, r"\u00e9"),
        ] {
            assert_eq!(strict(text), Ok(string(expected)), "{text}");
        }
    }

    #[test]
    fn writes_each_type() {
        for (value, header, text) in [
            (string("hi"), r#""hi""#, "hi"),
            (
                string("é\"\\\n\u{7f}\u{1f600}"),
                r#""\u00e9\"\\\u000a\u007f\ud83d\ude00""#,
                "é\"\\\n\u{7f}\u{1f600}",
            ),
            (PropertyValue::Int(-1), "-1", "-1"),
            (PropertyValue::Float(1.0), "1.0", "1.0"),
            (PropertyValue::Float(2.22), "2.22", "2.22"),
            (PropertyValue::Float(f64::NAN), r#""NaN""#, "NaN"),
            (PropertyValue::Float(f64::INFINITY), r#""inf""#, "inf"),
            (PropertyValue::Bool(true), "true", "true"),
            (
                date(),
                r#""Sun, 06 Nov 1994 08:49:37 GMT""#,
                "Sun, 06 Nov 1994 08:49:37 GMT",
            ),
        ] {
            assert_eq!(value.to_header(), header);
            assert_eq!(value.to_text(), text);
        }
    }

    #[test]
    fn json_keeps_the_type() {
        for (value, expected) in [
            (string("x"), json!("x")),
            (PropertyValue::Int(i64::MIN), json!(i64::MIN)),
            (PropertyValue::Float(1.0), json!(1.0)),
            (PropertyValue::Bool(false), json!(false)),
            (date(), json!("Sun, 06 Nov 1994 08:49:37 GMT")),
        ] {
            assert_eq!(value.to_json(), expected);
            assert_eq!(PropertyValue::from_json(&expected), Some(value));
        }
        assert_eq!(PropertyValue::Float(f64::NAN).to_json(), json!("NaN"));
        for other in [json!(null), json!([]), json!({})] {
            assert_eq!(PropertyValue::from_json(&other), None);
        }
    }

    #[test]
    fn knows_what_is_custom() {
        for name in [
            "traceparent",
            "tracestate",
            "Diagnostic-Id",
            "Priority",
            "Customer",
            "DeadLetterReason",
            "x-job-type",
            "contents",
            "section",
        ] {
            assert!(is_custom(name), "{name}");
        }
        for name in [
            "Authorization",
            "BrokerProperties",
            "Content-Type",
            "content-length",
            "Content-Encoding",
            "Host",
            "User-Agent",
            "Accept",
            "Accept-Encoding",
            "Date",
            "Server",
            "Transfer-Encoding",
            "Connection",
            "Keep-Alive",
            "Proxy-Authorization",
            "TE",
            "Trailer",
            "Upgrade",
            "Expect",
            "Location",
            "Cookie",
            "x-ms-retrypolicy",
            "X-MS-Client-Request-Id",
            "Strict-Transport-Security",
            "ServiceBusSupplementaryAuthorization",
        ] {
            assert!(!is_custom(name), "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn strings_survive(text in prop_oneof![any::<String>(), r#"[\\"u0-9a-fé]{0,20}"#]) {
            let header = string(&text).to_header();
            prop_assert!(header.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            prop_assert_eq!(strict(&header), Ok(string(&text)));
        }

        #[test]
        fn numbers_survive(int in any::<i64>(), float in prop::num::f64::NORMAL | prop::num::f64::ZERO) {
            for value in [PropertyValue::Int(int), PropertyValue::Float(float)] {
                prop_assert_eq!(strict(&value.to_header()), Ok(value));
            }
        }

        #[test]
        fn no_text_panics(text in r#""?[\\"ud8éc0-9 ]*.*"?"#) {
            prop_assert!(PropertyValue::parse(&text, Leniency::Lenient).is_ok());
            let _ = strict(&text);
        }
    }
}
