//! JSON taken apart one level at a time.
//!
//! The payload of a job is opaque here: it is checked for syntax and depth and
//! passed on as the text it came as. So values stay slices of the body, and
//! nothing recurses, however deep a body nests.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// One member of an object: its name and the text of its value.
pub type Member<'a> = (Cow<'a, str>, &'a str);

/// The members of the object that `text` is, in order, repeated names included.
pub fn members(text: &str) -> Result<Vec<Member<'_>>, serde_json::Error> {
    serde_json::from_str(text).map(|Members(members)| members)
}

/// Checks that `text` is one JSON value.
pub fn check(text: &str) -> Result<(), serde_json::Error> {
    serde_json::from_str::<&RawValue>(text).map(drop)
}

/// What kind of value `value` is, in words for an error; `value` is JSON.
pub fn kind(value: &str) -> &'static str {
    match value.trim_ascii_start().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// The string that `value` is. `value` is JSON, as [`members`] returns it.
pub fn string(value: &str) -> Result<Cow<'_, str>, String> {
    let Some(inner) = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
    else {
        return Err(format!("must be a string, not {}", kind(value)));
    };
    if !inner.contains('\\') {
        return Ok(Cow::Borrowed(inner));
    }
    serde_json::from_str::<String>(value)
        .map(Cow::Owned)
        .map_err(|_| "must be valid Unicode; it holds half of a surrogate pair".to_owned())
}

/// True if arrays and objects in `value` nest deeper than `depth_max` levels.
/// `value` is JSON, as [`members`] returns it.
pub fn is_deeper_than(value: &str, depth_max: usize) -> bool {
    let mut depth = 0;
    let mut in_string = false;
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => in_string = !in_string,
            // The escaped byte may be a quote, which does not end the string.
            b'\\' if in_string => drop(bytes.next()),
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > depth_max {
                    return true;
                }
            }
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
    }
    false
}

struct Members<'a>(Vec<Member<'a>>);

#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let mut members = Vec::new();
        while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
            members.push((name, value.get()));
        }
        Ok(Members(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_their_order_and_exact_text() {
        let members = members(r#" { "b" : [1, 2] , "a":{"x": 1.0}, "b":null } "#).unwrap();
        let expected = [("b", "[1, 2]"), ("a", r#"{"x": 1.0}"#), ("b", "null")];
        assert_eq!(
            members,
            expected.map(|(name, value)| (Cow::Borrowed(name), value))
        );
    }

    #[test]
    fn names_are_compared_unescaped() {
        let members = members(r#"{"\u0061\/": 1}"#).unwrap();
        assert_eq!(members[0].0, "a/");
    }

    #[test]
    fn a_bottomless_body_is_refused_without_recursion() {
        let open = "[".repeat(260_000);
        assert!(check(&open).is_err());
        assert!(check(&format!("{open}{}", "]".repeat(260_000))).is_ok());
        assert!(members(&format!(r#"{{"a":{open}"#)).is_err());
    }

    #[test]
    fn depth_counts_open_brackets_outside_strings() {
        assert!(!is_deeper_than("1", 0));
        assert!(!is_deeper_than(r#""[[[{{{""#, 0));
        assert!(!is_deeper_than(r#""\"[[\\""#, 0));
        assert!(is_deeper_than("[]", 0));
        assert!(!is_deeper_than(r#"[{"a":[]},[[]]]"#, 3));
        assert!(is_deeper_than(r#"[{"a":[]},[[]]]"#, 2));
        assert!(is_deeper_than(r#"["]]]", [[]]]"#, 2));
    }

    #[test]
    fn strings_are_read_and_other_kinds_are_named() {
        assert_eq!(string(r#""plain ☃""#).unwrap(), "plain ☃");
        assert_eq!(string(r#""a\n\"\ud83d\ude00""#).unwrap(), "a\n\"😀");
        assert_eq!(string("\"\"").unwrap(), "");
        for (value, kind) in [
            ("1e999", "a number"),
            ("-1", "a number"),
            ("true", "a boolean"),
            ("null", "null"),
            ("{}", "an object"),
            ("[]", "an array"),
        ] {
            assert_eq!(string(value), Err(format!("must be a string, not {kind}")));
        }
    }

    #[test]
    fn half_a_surrogate_pair_is_no_string() {
        assert!(
            string(r#""\ud800""#)
                .unwrap_err()
                .contains("surrogate pair")
        );
    }
}
