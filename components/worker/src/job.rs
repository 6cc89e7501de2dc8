//! What the sample worker makes of a payload.

use std::fmt;

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The payload's member that sets how long the simulated work takes, in
/// milliseconds. Absent: [`WORK_MS_DEFAULT`].
pub const WORK_MS: &str = "workMs";
/// Work that nobody asked for takes no time.
pub const WORK_MS_DEFAULT: u64 = 0;
/// Longest simulated work, in milliseconds: ten minutes, longer than any
/// deadline that the sample is meant to show.
pub const WORK_MS_MAX: u64 = 600_000;
/// Reason of the dead letter of a job whose payload no retry can mend.
pub const INVALID_PAYLOAD: &str = "InvalidPayload";

/// A job that can be done.
#[derive(Debug, PartialEq, Eq)]
pub struct Work {
    /// How long it takes, in milliseconds.
    pub work_ms: u64,
    /// Its result, as JSON: `{"sha256": "<64 hex digits>", "length": <bytes>}`
    /// of the payload's canonical form.
    pub result: Vec<u8>,
}

/// Why a job can't be done, ever.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The payload is not JSON; the parser's words.
    NotJson(String),
    /// `workMs` is no length of work; its value.
    BadWorkMs(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson(error) => write!(f, "the payload cannot be read as JSON: {error}"),
            Self::BadWorkMs(value) => write!(
                f,
                "`{WORK_MS}` in the payload is {value}; it must be a whole number from 0 to {WORK_MS_MAX}"
            ),
        }
    }
}

/// Reads a payload and works out its result.
///
/// The canonical form is that of RFC 8785 (JCS): no white space, members
/// sorted by name, numbers as ECMAScript prints a double. Of members with the
/// same name the last one counts.
pub fn prepare(payload: &[u8]) -> Result<Work, Refusal> {
    let payload: Value =
        serde_json::from_slice(payload).map_err(|error| Refusal::NotJson(error.to_string()))?;
    let work_ms = work_ms(&payload)?;
    let canonical = serde_json_canonicalizer::to_vec(&payload)
        .map_err(|error| Refusal::NotJson(error.to_string()))?;
    let outcome = Outcome {
        sha256: hex::encode(Sha256::digest(&canonical)),
        length: canonical.len(),
    };
    let result = serde_json::to_vec(&outcome)
        .expect("a struct of a string and a number always has a JSON form");
    Ok(Work { work_ms, result })
}

#[derive(Serialize)]
struct Outcome {
    sha256: String,
    length: usize,
}

fn work_ms(payload: &Value) -> Result<u64, Refusal> {
    let Some(value) = payload.get(WORK_MS) else {
        return Ok(WORK_MS_DEFAULT);
    };
    match value.as_u64() {
        Some(work_ms) if work_ms <= WORK_MS_MAX => Ok(work_ms),
        _ => Err(Refusal::BadWorkMs(in_words(value))),
    }
}

/// A value as an error shows it: what is short as it is, what may be long by
/// its kind.
fn in_words(value: &Value) -> String {
    match value {
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(payload: &str) -> String {
        String::from_utf8(prepare(payload.as_bytes()).unwrap().result).unwrap()
    }

    #[test]
    fn the_result_is_the_digest_and_length_of_the_canonical_payload() {
        // printf '{"n":1}' | sha256sum
        let expected = r#"{"sha256":"2bfd14f43d17fc7cea24e0917a8879b4b2f880b8baeec1b9d90fbaad655e71bd","length":7}"#;
        assert_eq!(result(r#"{"n":1}"#), expected);
        assert_eq!(result(" {\n\"n\" : 1.0 } "), expected);
        // printf 'null' | sha256sum
        let expected = r#"{"sha256":"74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b","length":4}"#;
        assert_eq!(result("null"), expected);
    }

    #[test]
    fn equal_payloads_have_equal_results_however_they_are_written() {
        for (one, other) in [
            (r#"{"b":2,"a":1}"#, r#"{ "a" : 1e0, "b" : 2.00 }"#),
            (r#""\u00e9\/""#, r#""é/""#),
            ("[1E3,-0,0.000001]", "[1000,0,1e-6]"),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
        ] {
            assert_eq!(result(one), result(other), "{one} and {other}");
        }
        assert_ne!(result("[1,2]"), result("[2,1]"));
    }

    #[test]
    fn work_takes_as_long_as_the_payload_says() {
        let work_ms = |payload: &str| prepare(payload.as_bytes()).map(|work| work.work_ms);
        assert_eq!(work_ms(r#"{"workMs": 250}"#), Ok(250));
        assert_eq!(work_ms(r#"{"workMs": 600000}"#), Ok(WORK_MS_MAX));
        assert_eq!(work_ms(r#"{"workms": 250}"#), Ok(WORK_MS_DEFAULT));
        for payload in ["[]", "7", r#""workMs""#, "null"] {
            assert_eq!(work_ms(payload), Ok(WORK_MS_DEFAULT), "{payload}");
        }
        for (value, shown) in [
            ("600001", "600001"),
            ("-1", "-1"),
            ("1.5", "1.5"),
            ("null", "null"),
            (r#""250""#, "a string"),
            ("[250]", "an array"),
            ("{}", "an object"),
        ] {
            let payload = format!(r#"{{"workMs":{value}}}"#);
            assert_eq!(work_ms(&payload), Err(Refusal::BadWorkMs(shown.to_owned())));
        }
    }

    #[test]
    fn what_is_not_json_is_refused_in_one_sentence() {
        for payload in [
            &b""[..],
            b"{",
            b"{\"n\":1} x",
            b"\xff",
            b"1e999",
            br#""\ud800""#,
            &[b'['; 100_000],
        ] {
            let refusal = prepare(payload).unwrap_err();
            assert!(matches!(refusal, Refusal::NotJson(_)), "{payload:?}");
            let sentence = refusal.to_string();
            assert!(sentence.starts_with("the payload cannot be read as JSON: "));
            assert!(sentence.len() < 256, "{sentence}");
        }
    }
}
