//! Atom, as the management interface speaks it: queues as entries and feeds.
//!
//! Written by hand, because the service and its clients mind the order of
//! elements and the prefixes; read by names and namespaces, because clients
//! choose their own prefixes.

use std::fmt::Write as _;
use std::time::Duration;

use quick_xml::NsReader;
use quick_xml::escape::escape;
use quick_xml::events::Event;
use quick_xml::name::ResolveResult;

const ATOM: &str = "http://www.w3.org/2005/Atom";
const SERVICE_BUS: &str = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect";
const COUNTS: &str = "http://schemas.microsoft.com/netservices/2011/06/servicebus";
const INSTANCE: &str = "http://www.w3.org/2001/XMLSchema-instance";
/// How a time is written that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";
/// The longest duration of .NET, which means: for ever.
const FOREVER: &str = "P10675199DT2H48M5.4775807S";
/// From here on a duration means for ever: clients lose the last digits.
const FOREVER_MIN: Duration = Duration::from_secs(10_675_199 * 86_400);
/// Largest document that is read, in bytes: an entry has some 4 KB.
pub const DOCUMENT_BYTES_MAX: usize = 256 * 1024;
/// Deepest nesting that is read: an entry has 5 levels.
const DEPTH_MAX: usize = 32;

/// What a client may set of a queue; none: not given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueDescription {
    /// How long a lock lasts.
    pub lock_duration: Option<Duration>,
    /// How much it may hold, in megabytes of 1,048,576 bytes.
    pub max_size_megabytes: Option<u64>,
    /// Whether ids are compared.
    pub requires_duplicate_detection: Option<bool>,
    /// Whether its messages belong to sessions.
    pub requires_session: Option<bool>,
    /// How long a message may wait that does not say.
    pub default_message_time_to_live: Option<TimeToLive>,
    /// Whether a message that waited too long is dead-lettered.
    pub dead_lettering_on_message_expiration: Option<bool>,
    /// How long ids are remembered.
    pub duplicate_detection_history_time_window: Option<Duration>,
    /// Deliveries before a message is dead-lettered.
    pub max_delivery_count: Option<u32>,
    /// Where messages are passed on to.
    pub forward_to: Option<String>,
    /// Whether it is kept in parts.
    pub enable_partitioning: Option<bool>,
}

/// How long a message may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeToLive {
    /// Without end.
    Forever,
    /// So long.
    For(Duration),
}

/// What is told of a queue beside its settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueFacts {
    /// Its name.
    pub name: String,
    /// When it was created: milliseconds since 1970-01-01 UTC.
    pub created_at_ms: u64,
    /// When its settings changed last.
    pub updated_at_ms: u64,
    /// When it was used last; none: never.
    pub accessed_at_ms: Option<u64>,
    /// Bytes it holds.
    pub size_bytes: u64,
    /// Messages it holds.
    pub counts: Counts,
}

/// How many messages a queue holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ready or locked.
    pub active: u64,
    /// Dead.
    pub dead_letter: u64,
    /// Not due yet.
    pub scheduled: u64,
}

/// Why a document was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AtomError {
    /// Not well-formed, too deep, too large, or with a document type.
    #[error("the document is not XML that is taken here: {0}")]
    Malformed(String),
    /// An element has a value that it cannot have.
    #[error("`{element}` cannot be `{value}`")]
    BadValue {
        /// The element.
        element: String,
        /// Its text.
        value: String,
    },
    /// There is no entry with a queue in it. Of an answer: the queue does not exist.
    #[error("the document is no entry with a `QueueDescription`")]
    NotAnEntry,
}

/// Reads what a client wants of a queue.
pub fn parse_queue_entry(body: &[u8]) -> Result<QueueDescription, AtomError> {
    parse(body).map(|(description, _)| description)
}

/// Reads what the service says of a queue.
pub fn parse_counts(body: &[u8]) -> Result<(QueueDescription, Counts), AtomError> {
    parse(body)
}

/// Namespace and name of an open element.
type Open = (Vec<u8>, Vec<u8>);

fn parse(body: &[u8]) -> Result<(QueueDescription, Counts), AtomError> {
    let malformed = |what: &dyn std::fmt::Display| AtomError::Malformed(what.to_string());
    if body.len() > DOCUMENT_BYTES_MAX {
        return Err(malformed(&format!(
            "it is larger than {DOCUMENT_BYTES_MAX} bytes"
        )));
    }
    let text = std::str::from_utf8(body).map_err(|error| malformed(&error))?;
    let mut reader = NsReader::from_str(text.trim_start_matches('\u{feff}'));
    reader.config_mut().expand_empty_elements = true;
    let (mut description, mut counts) = (QueueDescription::default(), Counts::default());
    let (mut open, mut value): (Vec<Open>, String) = (Vec::new(), String::new());
    let (mut is_queue, mut is_feed) = (false, false);
    loop {
        let (namespace, event) = reader
            .read_resolved_event()
            .map_err(|error| malformed(&error))?;
        let namespace = match namespace {
            ResolveResult::Bound(namespace) => namespace.0.to_vec(),
            _ => Vec::new(),
        };
        match event {
            Event::Start(element) => {
                if open.len() == DEPTH_MAX {
                    return Err(malformed(&format!("it is nested deeper than {DEPTH_MAX}")));
                }
                let name = element.local_name().as_ref().to_vec();
                is_feed |= open.is_empty() && name == b"feed";
                is_queue |= name == b"QueueDescription" && namespace == SERVICE_BUS.as_bytes();
                open.push((namespace, name));
                value.clear();
            }
            Event::End(_) => {
                let Some((namespace, name)) = open.pop() else {
                    return Err(malformed(&"an end without a beginning"));
                };
                let parent = open.last().map(|(_, name)| name.as_slice());
                let name = String::from_utf8_lossy(&name).into_owned();
                if namespace == SERVICE_BUS.as_bytes() && parent == Some(b"QueueDescription") {
                    set(&mut description, &name, value.trim())?;
                } else if namespace == COUNTS.as_bytes() && parent == Some(b"CountDetails") {
                    count(&mut counts, &name, value.trim())?;
                }
                value.clear();
            }
            Event::Text(text) => {
                value.push_str(&text.decode().map_err(|error| malformed(&error))?);
            }
            Event::CData(data) => {
                value.push_str(&data.decode().map_err(|error| malformed(&error))?);
            }
            Event::GeneralRef(reference) => {
                let name = reference.decode().map_err(|error| malformed(&error))?;
                let resolved = match reference.resolve_char_ref() {
                    Ok(Some(char)) => Some(char.to_string()),
                    Ok(None) => quick_xml::escape::resolve_xml_entity(&name).map(str::to_owned),
                    Err(error) => return Err(malformed(&error)),
                };
                value += &resolved.ok_or_else(|| malformed(&format!("entity `{name}`")))?;
            }
            Event::DocType(_) => return Err(malformed(&"it has a document type")),
            Event::Eof => break,
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
    }
    if !open.is_empty() {
        return Err(malformed(&"it is cut off"));
    }
    if is_feed || !is_queue {
        return Err(AtomError::NotAnEntry);
    }
    Ok((description, counts))
}

fn set(description: &mut QueueDescription, element: &str, text: &str) -> Result<(), AtomError> {
    let bad = || AtomError::BadValue {
        element: element.to_owned(),
        value: text.chars().take(100).collect(),
    };
    let duration = || parse_iso8601_duration(text).ok_or_else(bad);
    let flag = || match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(bad()),
    };
    match element {
        "LockDuration" => description.lock_duration = Some(duration()?),
        "MaxSizeInMegabytes" => {
            description.max_size_megabytes = Some(text.parse().map_err(|_| bad())?);
        }
        "RequiresDuplicateDetection" => description.requires_duplicate_detection = Some(flag()?),
        "RequiresSession" => description.requires_session = Some(flag()?),
        "DefaultMessageTimeToLive" => {
            let lifetime = duration()?;
            description.default_message_time_to_live = Some(if lifetime >= FOREVER_MIN {
                TimeToLive::Forever
            } else {
                TimeToLive::For(lifetime)
            });
        }
        "DeadLetteringOnMessageExpiration" => {
            description.dead_lettering_on_message_expiration = Some(flag()?);
        }
        "DuplicateDetectionHistoryTimeWindow" => {
            description.duplicate_detection_history_time_window = Some(duration()?);
        }
        "MaxDeliveryCount" => {
            description.max_delivery_count = Some(text.parse().map_err(|_| bad())?);
        }
        "ForwardTo" if !text.is_empty() => description.forward_to = Some(text.to_owned()),
        "EnablePartitioning" => description.enable_partitioning = Some(flag()?),
        _ => {}
    }
    Ok(())
}

fn count(counts: &mut Counts, element: &str, text: &str) -> Result<(), AtomError> {
    let place = match element {
        "ActiveMessageCount" => &mut counts.active,
        "DeadLetterMessageCount" => &mut counts.dead_letter,
        "ScheduledMessageCount" => &mut counts.scheduled,
        _ => return Ok(()),
    };
    *place = text.parse().map_err(|_| AtomError::BadValue {
        element: element.to_owned(),
        value: text.chars().take(100).collect(),
    })?;
    Ok(())
}

/// One queue. The answer to a PUT leaves out times of use and counts.
pub fn queue_entry(
    base: &str,
    api_version: Option<&str>,
    description: &QueueDescription,
    facts: &QueueFacts,
    is_put_reply: bool,
) -> String {
    entry(base, api_version, description, facts, is_put_reply, true)
}

/// Every queue.
pub fn queue_feed(
    base: &str,
    api_version: Option<&str>,
    queues: &[(QueueDescription, QueueFacts)],
) -> String {
    let entries: String = queues
        .iter()
        .map(|(description, facts)| entry(base, api_version, description, facts, false, false))
        .collect();
    feed(base, "$Resources/Queues", "Queues", api_version, &entries)
}

/// How the service answers for an entity that it does not have.
pub fn empty_feed(base: &str, path: &str, api_version: Option<&str>) -> String {
    feed(base, path, "Publicly Listed Services", api_version, "")
}

/// What is told of the namespace.
pub fn namespace_entry(
    base: &str,
    api_version: Option<&str>,
    name: &str,
    created_at_ms: u64,
) -> String {
    let (id, at) = (id(base, "$namespaceinfo", api_version), time(created_at_ms));
    format!(
        "<entry xmlns=\"{ATOM}\"><id>{id}</id><title type=\"text\">{name}</title><updated>{at}</updated><author><name>{name}</name></author><link rel=\"self\" href=\"{id}\"/><content type=\"application/xml\"><NamespaceInfo xmlns=\"{SERVICE_BUS}\" xmlns:i=\"{INSTANCE}\"><CreatedTime>{at}</CreatedTime><MessagingSKU>Standard</MessagingSKU><ModifiedTime>{at}</ModifiedTime><Name>{name}</Name><NamespaceType>Messaging</NamespaceType></NamespaceInfo></content></entry>",
        name = escape(name)
    )
}

/// A refusal.
pub fn error_body(status: u16, detail: &str) -> String {
    format!(
        "<Error><Code>{status}</Code><Detail>{}</Detail></Error>",
        escape(detail)
    )
}

/// What a client sends to create a queue with these settings.
pub fn description_entry(description: &QueueDescription) -> String {
    let mut elements = String::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            // Writing to a string cannot fail.
            let _ = write!(elements, "<{name}>{}</{name}>", escape(&value));
        }
    };
    let flag = |flag: Option<bool>| flag.map(|flag| flag.to_string());
    add(
        "LockDuration",
        description.lock_duration.map(iso8601_duration),
    );
    add(
        "MaxSizeInMegabytes",
        description.max_size_megabytes.map(|n| n.to_string()),
    );
    add(
        "RequiresDuplicateDetection",
        flag(description.requires_duplicate_detection),
    );
    add("RequiresSession", flag(description.requires_session));
    add(
        "DefaultMessageTimeToLive",
        description.default_message_time_to_live.map(lifetime),
    );
    add(
        "DeadLetteringOnMessageExpiration",
        flag(description.dead_lettering_on_message_expiration),
    );
    add(
        "DuplicateDetectionHistoryTimeWindow",
        description
            .duplicate_detection_history_time_window
            .map(iso8601_duration),
    );
    add(
        "MaxDeliveryCount",
        description.max_delivery_count.map(|n| n.to_string()),
    );
    format!(
        "<entry xmlns=\"{ATOM}\"><content type=\"application/xml\"><QueueDescription xmlns=\"{SERVICE_BUS}\" xmlns:i=\"{INSTANCE}\">{elements}</QueueDescription></content></entry>"
    )
}

fn entry(
    base: &str,
    api_version: Option<&str>,
    description: &QueueDescription,
    facts: &QueueFacts,
    is_put_reply: bool,
    is_root: bool,
) -> String {
    let id = id(base, &facts.name, api_version);
    let name = escape(&facts.name);
    let (created, updated) = (time(facts.created_at_ms), time(facts.updated_at_ms));
    let xmlns = if is_root {
        format!(" xmlns=\"{ATOM}\"")
    } else {
        String::new()
    };
    let Counts {
        active,
        dead_letter,
        scheduled,
    } = facts.counts;
    let forward = description.forward_to.as_ref().map_or(String::new(), |to| {
        format!("<ForwardTo>{}</ForwardTo>", escape(to))
    });
    let (times, counts) = if is_put_reply {
        (String::new(), String::new())
    } else {
        let accessed = facts.accessed_at_ms.map_or(NEVER.to_owned(), time);
        (
            format!(
                "<CreatedAt>{created}</CreatedAt><UpdatedAt>{updated}</UpdatedAt><AccessedAt>{accessed}</AccessedAt>"
            ),
            format!(
                "<CountDetails xmlns:d2p1=\"{COUNTS}\"><d2p1:ActiveMessageCount>{active}</d2p1:ActiveMessageCount><d2p1:DeadLetterMessageCount>{dead_letter}</d2p1:DeadLetterMessageCount><d2p1:ScheduledMessageCount>{scheduled}</d2p1:ScheduledMessageCount><d2p1:TransferMessageCount>0</d2p1:TransferMessageCount><d2p1:TransferDeadLetterMessageCount>0</d2p1:TransferDeadLetterMessageCount></CountDetails>"
            ),
        )
    };
    let lock = iso8601_duration(description.lock_duration.unwrap_or(Duration::from_secs(60)));
    let size = description.max_size_megabytes.unwrap_or(1_024);
    let detects = description.requires_duplicate_detection.unwrap_or(false);
    let sessions = description.requires_session.unwrap_or(false);
    let lifetime = lifetime(
        description
            .default_message_time_to_live
            .unwrap_or(TimeToLive::Forever),
    );
    let letters = description
        .dead_lettering_on_message_expiration
        .unwrap_or(false);
    let window = iso8601_duration(
        description
            .duplicate_detection_history_time_window
            .unwrap_or(Duration::from_secs(600)),
    );
    let deliveries = description.max_delivery_count.unwrap_or(10);
    let parts = description.enable_partitioning.unwrap_or(false);
    let (held, messages) = (facts.size_bytes, active + dead_letter + scheduled);
    format!(
        "<entry{xmlns}><id>{id}</id><title type=\"text\">{name}</title><published>{created}</published><updated>{updated}</updated><author><name>data-orchestrator</name></author><link rel=\"self\" href=\"{id}\"/><content type=\"application/xml\"><QueueDescription xmlns=\"{SERVICE_BUS}\" xmlns:i=\"{INSTANCE}\"><LockDuration>{lock}</LockDuration><MaxSizeInMegabytes>{size}</MaxSizeInMegabytes><RequiresDuplicateDetection>{detects}</RequiresDuplicateDetection><RequiresSession>{sessions}</RequiresSession><DefaultMessageTimeToLive>{lifetime}</DefaultMessageTimeToLive><DeadLetteringOnMessageExpiration>{letters}</DeadLetteringOnMessageExpiration><DuplicateDetectionHistoryTimeWindow>{window}</DuplicateDetectionHistoryTimeWindow><MaxDeliveryCount>{deliveries}</MaxDeliveryCount><EnableBatchedOperations>true</EnableBatchedOperations><SizeInBytes>{held}</SizeInBytes><MessageCount>{messages}</MessageCount><IsAnonymousAccessible>false</IsAnonymousAccessible><AuthorizationRules></AuthorizationRules><Status>Active</Status>{forward}{times}<SupportOrdering>true</SupportOrdering>{counts}<AutoDeleteOnIdle>{FOREVER}</AutoDeleteOnIdle><EnablePartitioning>{parts}</EnablePartitioning><EntityAvailabilityStatus>Available</EntityAvailabilityStatus></QueueDescription></content></entry>"
    )
}

fn feed(base: &str, path: &str, title: &str, api_version: Option<&str>, entries: &str) -> String {
    let id = id(base, path, api_version);
    let at = NEVER;
    format!(
        "<feed xmlns=\"{ATOM}\"><title type=\"text\">{title}</title><id>{id}</id><updated>{at}</updated><link rel=\"self\" href=\"{id}\"/>{entries}</feed>"
    )
}

/// An entity's address as the caller asked for it: clients read its name from
/// the end, so there is no query where the caller sent none.
fn id(base: &str, path: &str, api_version: Option<&str>) -> String {
    let query = api_version.map_or(String::new(), |version| format!("?api-version={version}"));
    escape(format!("{base}/{path}{query}")).into_owned()
}

fn time(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| NEVER.to_owned(), |at| format!("{at:.3}"))
}

fn lifetime(lifetime: TimeToLive) -> String {
    match lifetime {
        TimeToLive::Forever => FOREVER.to_owned(),
        TimeToLive::For(lifetime) => iso8601_duration(lifetime),
    }
}

/// As `P1DT2H3M4.5S`, parts of zero left out.
pub fn iso8601_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours) = (seconds / 86_400, seconds / 3_600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    let mut text = "P".to_owned();
    if days > 0 {
        text += &format!("{days}D");
    }
    let mut rest = String::new();
    for (part, unit) in [(hours, 'H'), (minutes, 'M')] {
        if part > 0 {
            rest += &format!("{part}{unit}");
        }
    }
    let nanos = duration.subsec_nanos();
    if nanos > 0 {
        let fraction = format!("{nanos:09}");
        rest += &format!("{seconds}.{}S", fraction.trim_end_matches('0'));
    } else if seconds > 0 || (days == 0 && rest.is_empty()) {
        rest += &format!("{seconds}S");
    }
    if rest.is_empty() {
        return text;
    }
    text + "T" + &rest
}

/// Reads days, hours, minutes and seconds of ISO 8601; none for anything else.
pub fn parse_iso8601_duration(text: &str) -> Option<Duration> {
    let rest = text.trim().strip_prefix('P')?;
    let (days, times) = rest.split_once('T').unwrap_or((rest, ""));
    if days.is_empty() && times.is_empty() {
        return None;
    }
    let mut seconds: f64 = 0.0;
    for (part, units) in [(days, "D"), (times, "HMS")] {
        let (mut number, mut last) = (String::new(), 0);
        for c in part.chars() {
            if c.is_ascii_digit() || c == '.' {
                number.push(c);
                continue;
            }
            let at = units.find(c)? + 1;
            // Each unit once, and in their order.
            if at <= last {
                return None;
            }
            last = at;
            let factor = match c {
                'D' => 86_400.0,
                'H' => 3_600.0,
                'M' => 60.0,
                _ => 1.0,
            };
            seconds += number.parse::<f64>().ok()? * factor;
            number.clear();
        }
        if !number.is_empty() {
            return None;
        }
    }
    // Beyond all that .NET can say, and far below where a float skips whole seconds.
    let most = FOREVER_MIN + Duration::from_secs(86_400);
    Some(Duration::try_from_secs_f64(seconds).ok()?.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_they_are_written() {
        for (text, duration) in [
            ("PT1M", Duration::from_secs(60)),
            ("PT30S", Duration::from_secs(30)),
            ("P1DT2H3M4.5S", Duration::from_millis(93_784_500)),
            ("P7D", Duration::from_secs(7 * 86_400)),
            ("PT0S", Duration::ZERO),
        ] {
            assert_eq!(parse_iso8601_duration(text), Some(duration), "{text}");
            assert_eq!(iso8601_duration(duration), text);
        }
        assert!(
            parse_iso8601_duration("P10675199DT2H48M5.477539S").is_some_and(|d| d >= FOREVER_MIN)
        );
        for bad in [
            "",
            "P",
            "1M",
            "PT1X",
            "PT1M1M",
            "PT5",
            "P1M",
            "PT-1S",
            "PT1e99999H",
        ] {
            assert_eq!(parse_iso8601_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_duration_beyond_all_writes_and_reads_as_itself() {
        let most = parse_iso8601_duration("PT9999999999999999S").unwrap();
        assert!(most >= FOREVER_MIN);
        assert_eq!(parse_iso8601_duration(&iso8601_duration(most)), Some(most));
    }

    #[test]
    fn an_element_without_content_is_the_same_either_way() {
        let entry = |element: &str| {
            let body = format!(
                r#"<entry xmlns="http://www.w3.org/2005/Atom"><content type="application/xml"><QueueDescription xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect">{element}</QueueDescription></content></entry>"#
            );
            parse_queue_entry(body.as_bytes()).map_err(|error| error.to_string())
        };
        assert_eq!(
            entry("<LockDuration/>"),
            entry("<LockDuration></LockDuration>")
        );
        let defaults = parse_queue_entry(
            br#"<entry xmlns="http://www.w3.org/2005/Atom"><content type="application/xml"><QueueDescription xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"/></content></entry>"#,
        );
        assert_eq!(defaults.unwrap(), QueueDescription::default());
    }

    #[test]
    fn entries_of_every_client_are_read() {
        let legacy = r#"<?xml version="1.0" encoding="utf-8"?><entry xmlns:d="http://schemas.microsoft.com/ado/2007/08/dataservices" xmlns="http://www.w3.org/2005/Atom"><title /><updated>2026</updated><author><name /></author><id /><content type="application/xml"><QueueDescription xmlns:i="http://www.w3.org/2001/XMLSchema-instance" xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"><LockDuration>PT30S</LockDuration><MaxDeliveryCount>3</MaxDeliveryCount></QueueDescription></content></entry>"#;
        let newer = r#"<ns0:entry xmlns:ns0="http://www.w3.org/2005/Atom"><ns0:content type="application/xml"><QueueDescription xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"><LockDuration>PT30S</LockDuration><DefaultMessageTimeToLive>P10675199DT2H48M5.477539S</DefaultMessageTimeToLive><MaxDeliveryCount>3</MaxDeliveryCount><Unknown><Deeper>1</Deeper></Unknown></QueueDescription></ns0:content></ns0:entry>"#;
        for body in [legacy, newer] {
            let description = parse_queue_entry(body.as_bytes()).unwrap();
            assert_eq!(description.lock_duration, Some(Duration::from_secs(30)));
            assert_eq!(description.max_delivery_count, Some(3));
        }
        let forever = parse_queue_entry(newer.as_bytes()).unwrap();
        assert_eq!(
            forever.default_message_time_to_live,
            Some(TimeToLive::Forever)
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        let description = QueueDescription {
            lock_duration: Some(Duration::from_secs(45)),
            max_size_megabytes: Some(2_048),
            requires_duplicate_detection: Some(true),
            requires_session: Some(false),
            default_message_time_to_live: Some(TimeToLive::For(Duration::from_secs(90))),
            dead_lettering_on_message_expiration: Some(true),
            duplicate_detection_history_time_window: Some(Duration::from_secs(20)),
            max_delivery_count: Some(7),
            forward_to: None,
            enable_partitioning: Some(false),
        };
        let facts = QueueFacts {
            name: "a/b&c".to_owned(),
            counts: Counts {
                active: 1,
                dead_letter: 2,
                scheduled: 3,
            },
            ..QueueFacts::default()
        };
        let entry = queue_entry("http://h:1", None, &description, &facts, false);
        let read = parse_counts(entry.as_bytes()).unwrap();
        assert_eq!(read, (description.clone(), facts.counts));
        assert!(entry.contains("<id>http://h:1/a/b&amp;c</id>"), "{entry}");
        let put = queue_entry("http://h:1", Some("2017-04"), &description, &facts, true);
        assert!(put.contains("?api-version=2017-04") && !put.contains("CountDetails"));
        let wanted = QueueDescription {
            enable_partitioning: None,
            ..description.clone()
        };
        assert_eq!(
            parse_queue_entry(description_entry(&description).as_bytes()),
            Ok(wanted)
        );
        // A feed is how the service says that there is no such queue.
        let feed = queue_feed("http://h:1", None, &[(description, facts)]);
        assert_eq!(parse_counts(feed.as_bytes()), Err(AtomError::NotAnEntry));
        assert_eq!(
            parse_counts(empty_feed("http://h:1", "q", None).as_bytes()),
            Err(AtomError::NotAnEntry)
        );
        namespace_entry("http://h:1", None, "n", 0);
        assert_eq!(
            error_body(401, "a<b"),
            "<Error><Code>401</Code><Detail>a&lt;b</Detail></Error>"
        );
    }

    #[test]
    fn hostile_documents_are_refused() {
        let deep = format!("<a>{}</a>", "<b>".repeat(100));
        let bomb = r#"<!DOCTYPE x [<!ENTITY a "b">]><entry xmlns="http://www.w3.org/2005/Atom">&a;</entry>"#;
        for bad in [deep.as_str(), bomb, "<entry", "<entry>", "", "text"] {
            assert!(parse_queue_entry(bad.as_bytes()).is_err(), "{bad}");
        }
        let wrong = description_entry(&QueueDescription::default()).replace(
            "</QueueDescription>",
            "<MaxDeliveryCount>many</MaxDeliveryCount></QueueDescription>",
        );
        let error = parse_queue_entry(wrong.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "`MaxDeliveryCount` cannot be `many`");
    }

    proptest::proptest! {
        #[test]
        fn no_document_is_fatal(body in proptest::collection::vec(0_u8..255, 0..400)) {
            let _ = parse_counts(&body);
        }
    }
}
