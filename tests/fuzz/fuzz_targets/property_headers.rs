//! Any text is refused or read without a panic, and leniency only turns what strictness refuses into text. What was
//! read, and the text itself as a value, survives a header and an item of a batch: the same type, the same value.

#![no_main]

use libfuzzer_sys::fuzz_target;
use orchestrator_servicebus::properties::{
    Leniency, PROPERTY_TEXT_BYTES_MAX, PropertyError, PropertyValue,
};

fuzz_target!(|text: &str| {
    let strict = PropertyValue::parse(text, Leniency::Strict);
    let lenient = PropertyValue::parse(text, Leniency::Lenient);
    match (&strict, &lenient) {
        (Ok(strict), Ok(lenient)) => assert_same(strict, lenient),
        (Err(PropertyError::Unquoted | PropertyError::Unterminated), Ok(lenient)) => {
            let kept = text.trim_matches([' ', '\t']);
            assert_same(&PropertyValue::String(kept.to_owned()), lenient);
        }
        (Err(PropertyError::TooLong(strict)), Err(PropertyError::TooLong(lenient))) => {
            assert!(*strict == text.len() && strict == lenient);
            assert!(text.len() > PROPERTY_TEXT_BYTES_MAX);
        }
        (strict, lenient) => panic!("{strict:?} but {lenient:?}"),
    }
    if let Ok(value) = &lenient {
        survives(value);
    }
    // An item of a batch can have any text as a value, also what no header can hold as it is.
    survives(&PropertyValue::String(text.to_owned()));
});

fn survives(value: &PropertyValue) {
    let header = value.to_header();
    assert!(
        header.bytes().all(|byte| matches!(byte, b' '..=b'~')),
        "{header:?}"
    );
    // HTTP takes blanks off both ends of a header.
    assert_eq!(header, header.trim());
    assert_survived(value, &PropertyValue::parse_received(&header));
    match PropertyValue::parse(&header, Leniency::Strict) {
        Ok(read) => assert_survived(value, &read),
        // Escapes make a text longer: what a sender may say need not be something that it may repeat.
        Err(PropertyError::TooLong(length)) => {
            assert!(length == header.len() && length > PROPERTY_TEXT_BYTES_MAX);
        }
        Err(error) => panic!("{header}: {error}"),
    }
    // Through text, as a batch goes over the wire.
    let item = value.to_json().to_string();
    match serde_json::from_str(&item).map(|item| PropertyValue::from_json(&item)) {
        Ok(Some(read)) => assert_survived(value, &read),
        other => panic!("{item}: {other:?}"),
    }
}

/// The same, save that the wire has one form for a date and for the text of a date.
fn assert_survived(value: &PropertyValue, read: &PropertyValue) {
    match (value, read) {
        (PropertyValue::String(text), PropertyValue::Date(_)) => assert_eq!(read.to_text(), *text),
        _ => assert_same(value, read),
    }
}

/// As `==`, but also tells the two zeros of a float apart.
fn assert_same(one: &PropertyValue, other: &PropertyValue) {
    match (one, other) {
        (PropertyValue::Float(one), PropertyValue::Float(other)) => {
            assert_eq!(one.to_bits(), other.to_bits(), "{one:?} and {other:?}");
        }
        _ => assert_eq!(one, other),
    }
}
