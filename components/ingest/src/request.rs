//! A body turned into a job, or into everything that is wrong with it.

use std::borrow::Cow;
use std::collections::BTreeSet;

use uuid::Builder;

use crate::faults::Faults;
use crate::json::{self, Member};

/// Largest body, in bytes: the largest message of Service Bus's standard tier.
pub const BODY_BYTES_MAX: usize = 262_144;
/// Levels of arrays and objects that a payload may nest. Readers in most
/// languages recurse, with a bound; .NET's, one of the strictest, has this one.
pub const PAYLOAD_DEPTH_MAX: usize = 64;
/// Longest `jobType`, in bytes, as in the queue's contract.
pub const JOB_TYPE_BYTES_MAX: usize = 256;
/// Longest `jobId`, in bytes: what Service Bus takes as a message id.
pub const JOB_ID_BYTES_MAX: usize = 128;
/// Most properties of one job, as in the queue's contract.
pub const PROPERTIES_MAX: usize = 64;
/// Longest name of a property, in bytes, as in the queue's contract.
pub const PROPERTY_NAME_BYTES_MAX: usize = 128;
/// Longest value of a property, in bytes, as in the queue's contract.
pub const PROPERTY_VALUE_BYTES_MAX: usize = 4_096;
/// Longest `delaySeconds`: 365 days, as in the queue's contract.
pub const DELAY_SECONDS_MAX: u32 = 31_536_000;

const MILLIS_PER_SECOND: f64 = 1_000.0;

/// A job as its sender asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRequest<'a> {
    /// What kind of job it is.
    pub job_type: Cow<'a, str>,
    /// The payload's JSON, character for character as it was sent.
    pub payload: &'a str,
    /// Its identity, if the sender gave it one.
    pub job_id: Option<Cow<'a, str>>,
    /// How long to hold it back, in milliseconds.
    pub delay_ms: u64,
    /// Custom properties, in the order sent.
    pub properties: Vec<(String, String)>,
}

/// An id for a job that came without one: a UUIDv7, so that ids sort by time.
pub fn new_job_id(now_ms: u64, random: &[u8; 10]) -> String {
    Builder::from_unix_timestamp_millis(now_ms, random)
        .into_uuid()
        .to_string()
}

impl<'a> JobRequest<'a> {
    /// Reads a body, which the caller has held to [`BODY_BYTES_MAX`].
    pub fn parse(body: &'a [u8]) -> Result<Self, Faults> {
        let fields = Fields::read(body)?;
        let mut faults = fields.faults;
        let job_type = match fields.job_type {
            Some(value) => job_type(value),
            None => Err(format!(
                "is required: a string of 1 to {JOB_TYPE_BYTES_MAX} bytes"
            )),
        };
        let job_type = faults.check("jobType", job_type);
        let payload = match fields.payload {
            Some(value) => payload(value),
            None => Err("is required: any JSON value, `null` included".to_owned()),
        };
        let payload = faults.check("payload", payload);
        let job_id = fields
            .job_id
            .and_then(|value| faults.check("jobId", job_id(value)));
        let delay_ms = fields
            .delay_seconds
            .and_then(|value| faults.check("delaySeconds", delay_ms(value)))
            .unwrap_or(0);
        let properties = fields
            .properties
            .map(|value| properties(value, &mut faults))
            .unwrap_or_default();
        match (job_type, payload) {
            (Some(job_type), Some(payload)) if faults.count() == 0 => Ok(Self {
                job_type,
                payload,
                job_id,
                delay_ms,
                properties,
            }),
            _ => Err(faults),
        }
    }
}

impl Faults {
    /// The value of a field of the body, or nothing and one fault more.
    fn check<T>(&mut self, field: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|detail| self.add(&[field], detail)).ok()
    }
}

/// The text of each field that the body has, not yet looked into.
#[derive(Default)]
struct Fields<'a> {
    job_type: Option<&'a str>,
    payload: Option<&'a str>,
    job_id: Option<&'a str>,
    delay_seconds: Option<&'a str>,
    properties: Option<&'a str>,
    faults: Faults,
}

impl<'a> Fields<'a> {
    fn read(body: &'a [u8]) -> Result<Self, Faults> {
        let mut fields = Self::default();
        for (name, value) in body_members(body)? {
            let field = match &*name {
                "jobType" => &mut fields.job_type,
                "payload" => &mut fields.payload,
                "jobId" => &mut fields.job_id,
                "delaySeconds" => &mut fields.delay_seconds,
                "properties" => &mut fields.properties,
                _ => {
                    let detail = "is not a field of a job; these are `jobType`, `payload`, `jobId`, `delaySeconds` and `properties`";
                    fields.faults.add(&[&name], detail);
                    continue;
                }
            };
            if field.replace(value).is_some() {
                fields.faults.add(&[&name], "is there more than once");
            }
        }
        Ok(fields)
    }
}

fn body_members(body: &[u8]) -> Result<Vec<Member<'_>>, Faults> {
    let text = std::str::from_utf8(body).map_err(|error| {
        Faults::of_body(format_args!(
            "the body is not UTF-8 from byte {} on",
            error.valid_up_to()
        ))
    })?;
    if text.starts_with('\u{feff}') {
        return Err(Faults::of_body(
            "the body begins with a byte order mark; JSON is sent without one",
        ));
    }
    let start = text.trim_ascii_start();
    if start.is_empty() {
        return Err(Faults::of_body("the body is empty; a job is a JSON object"));
    }
    let malformed = |error| Faults::of_body(format_args!("the body is not JSON: {error}"));
    if !start.starts_with('{') {
        json::check(text).map_err(malformed)?;
        return Err(Faults::of_body(format_args!(
            "the body must be an object, not {}",
            json::kind(text)
        )));
    }
    json::members(text).map_err(malformed)
}

fn job_type(value: &str) -> Result<Cow<'_, str>, String> {
    let job_type = json::string(value)?;
    within("bytes", job_type.len(), 1, JOB_TYPE_BYTES_MAX)?;
    Ok(job_type)
}

fn payload(value: &str) -> Result<&str, String> {
    if json::is_deeper_than(value, PAYLOAD_DEPTH_MAX) {
        return Err(format!(
            "nests deeper than {PAYLOAD_DEPTH_MAX} arrays and objects"
        ));
    }
    Ok(value)
}

fn job_id(value: &str) -> Result<Cow<'_, str>, String> {
    let job_id = json::string(value)?;
    within("bytes", job_id.len(), 1, JOB_ID_BYTES_MAX)?;
    if let Some(c) = job_id.chars().find(|c| !c.is_ascii_graphic()) {
        return Err(format!(
            "holds {c:?}; only visible ASCII is taken, which is `!` (0x21) to `~` (0x7E)"
        ));
    }
    if matches!(&*job_id, "." | "..") {
        return Err("must not be `.` or `..`: in a job's URL these mean another place".to_owned());
    }
    Ok(job_id)
}

fn delay_ms(value: &str) -> Result<u64, String> {
    let range = || format!("must be a number of seconds from 0 to {DELAY_SECONDS_MAX}");
    let seconds: f64 = value
        .parse()
        .map_err(|_| format!("{}, not {}", range(), json::kind(value)))?;
    if !(0.0..=f64::from(DELAY_SECONDS_MAX)).contains(&seconds) {
        return Err(range());
    }
    Ok((seconds * MILLIS_PER_SECOND).round() as u64)
}

fn properties(value: &str, faults: &mut Faults) -> Vec<(String, String)> {
    let Ok(members) = json::members(value) else {
        let detail = match json::kind(value) {
            "an object" => "has a name that is not valid Unicode".to_owned(),
            kind => format!("must be an object of strings, not {kind}"),
        };
        faults.add(&["properties"], detail);
        return Vec::new();
    };
    if let Err(detail) = within("properties", members.len(), 0, PROPERTIES_MAX) {
        faults.add(&["properties"], detail);
    }
    let mut names = BTreeSet::new();
    let mut properties = Vec::with_capacity(members.len().min(PROPERTIES_MAX));
    for (name, value) in &members {
        match property(name, value, !names.insert(name)) {
            Ok(value) => properties.push((name.clone().into_owned(), value)),
            Err(detail) => faults.add(&["properties", name], detail),
        }
    }
    properties
}

fn property(name: &str, value: &str, is_repeated: bool) -> Result<String, String> {
    if is_repeated {
        return Err("is there more than once".to_owned());
    }
    within("bytes in its name", name.len(), 1, PROPERTY_NAME_BYTES_MAX)?;
    let value = json::string(value)?;
    within("bytes", value.len(), 0, PROPERTY_VALUE_BYTES_MAX)?;
    Ok(value.into_owned())
}

fn within(unit: &str, found: usize, min: usize, max: usize) -> Result<(), String> {
    if (min..=max).contains(&found) {
        return Ok(());
    }
    Err(format!("must have {min} to {max} {unit}; it has {found}"))
}

#[cfg(test)]
mod tests;
