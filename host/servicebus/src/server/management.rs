//! Operations on queues.
//!
//! A queue of the manifest can be looked at; its settings stand in the manifest,
//! so it is neither changed nor deleted here. Sessions, forwarding and topics
//! are refused by name.

use std::time::Duration;

use http::{StatusCode, header};
use hyper::body::Incoming;
use orchestrator_queue::local::{CreateError, Queue};
use orchestrator_queue::{QueueConfig, Retention};

use super::answer::{Answer, Refusal};
use super::path::Management;
use super::{Call, Server, read};
use crate::atom::{self, Counts, QueueDescription, QueueFacts, TimeToLive};

const ENTRY: &str = "application/atom+xml;type=entry;charset=utf-8";
const FEED: &str = "application/atom+xml;type=feed;charset=utf-8";
/// Name under which the queues are one namespace.
const NAMESPACE: &str = "data-orchestrator";
/// Queues listed when the caller does not say how many.
const TOP_DEFAULT: usize = 100;
/// Largest description, in bytes.
const ENTRY_BYTES_MAX: usize = 64 * 1024;

/// The service's default: a minute.
const LOCK_DEFAULT: Duration = Duration::from_secs(60);
/// The service takes no longer ones.
const LOCK_MAX: Duration = Duration::from_secs(300);
const LOCK_MIN: Duration = Duration::from_secs(1);
const MAX_DELIVERY_COUNT_DEFAULT: u32 = 10;
const MAX_DELIVERY_COUNT_MAX: u32 = 2_000;
const DUPLICATE_WINDOW_DEFAULT: Duration = Duration::from_secs(600);
const DUPLICATE_WINDOW_MIN: Duration = Duration::from_secs(20);
const DUPLICATE_WINDOW_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
const SIZE_MEGABYTES_DEFAULT: u64 = 1_024;
/// 80 GB: the service's largest queue.
const SIZE_MEGABYTES_MAX: u64 = 81_920;
const MEGABYTE: u64 = 1024 * 1024;
/// How completed messages are remembered in created queues: for the pages of
/// jobs, if a host of this process runs them.
const RETENTION: Retention = Retention {
    age: Duration::from_secs(24 * 3600),
    count: 100_000,
    bytes: 256 * MEGABYTE,
};

impl Server {
    pub(super) async fn manage(
        &self,
        operation: Management,
        call: &Call,
        body: Incoming,
    ) -> Result<Answer, Refusal> {
        match operation {
            Management::Put(name) => self.put(name, call, body).await,
            Management::Get(name) => Ok(match self.queues.find(&name) {
                Some(queue) => self.entry(&queue, call, StatusCode::OK, false).await,
                // So the service answers for what it does not have.
                None => {
                    let feed = atom::empty_feed(&call.base, &name, call.api_version());
                    Answer::text(StatusCode::OK, FEED, feed)
                }
            }),
            Management::Delete(name) => match self.queues.find(&name) {
                Some(queue) if self.queues.delete(queue.name()).await? => {
                    Ok(Answer::empty(StatusCode::OK))
                }
                Some(_) => Err(manifests_own(&name)),
                None => Err(Refusal::not_found(&name)),
            },
            Management::List => Ok(self.list(call).await),
            Management::Namespace => {
                let version = call.api_version();
                let entry =
                    atom::namespace_entry(&call.base, version, NAMESPACE, self.started_at_ms);
                Ok(Answer::text(StatusCode::OK, ENTRY, entry))
            }
        }
    }

    async fn put(&self, name: String, call: &Call, body: Incoming) -> Result<Answer, Refusal> {
        let description = atom::parse_queue_entry(&read(body, ENTRY_BYTES_MAX).await?)
            .map_err(|error| Refusal::bad_request(error.to_string()))?;
        let is_update = call.head.headers.contains_key(header::IF_MATCH);
        let existing = self.queues.find(&name);
        let base = existing
            .as_ref()
            .filter(|_| is_update)
            .map(|queue| queue.config());
        let config = config(name, description, base)?;
        let name = config.name.clone();
        let (queue, status) = match (existing, is_update) {
            (Some(_), false) => return Err(Refusal::conflict()),
            (None, true) => return Err(Refusal::not_found(&name)),
            (Some(_), true) => match self.queues.configure(config).await? {
                Some(queue) => (queue, StatusCode::OK),
                None => return Err(manifests_own(&name)),
            },
            (None, false) => match self.queues.create(config).await {
                Ok(queue) => (queue, StatusCode::CREATED),
                Err(CreateError::Exists(_)) => return Err(Refusal::conflict()),
                Err(CreateError::TooMany) => {
                    return Err(Refusal::quota(CreateError::TooMany.to_string()));
                }
                Err(CreateError::Unavailable(error)) => return Err(error.into()),
            },
        };
        Ok(self.entry(&queue, call, status, true).await)
    }

    async fn entry(&self, queue: &Queue, call: &Call, status: StatusCode, is_put: bool) -> Answer {
        let (description, facts) = self.described(queue).await;
        let entry = atom::queue_entry(&call.base, call.api_version(), &description, &facts, is_put);
        Answer::text(status, ENTRY, entry)
    }

    async fn list(&self, call: &Call) -> Answer {
        let number = |name: &str| call.parameter(name).and_then(|text| text.parse().ok());
        let skip = number("$skip").or_else(|| number("%24skip")).unwrap_or(0);
        let top = number("$top")
            .or_else(|| number("%24top"))
            .unwrap_or(TOP_DEFAULT);
        let mut queues = self.queues.list();
        queues.sort_by(|one, other| one.name().cmp(other.name()));
        let mut described = Vec::new();
        for queue in queues.iter().skip(skip).take(top) {
            described.push(self.described(queue).await);
        }
        let feed = atom::queue_feed(&call.base, call.api_version(), &described);
        Answer::text(StatusCode::OK, FEED, feed)
    }

    async fn described(&self, queue: &Queue) -> (QueueDescription, QueueFacts) {
        let (config, stats) = (queue.config(), queue.stats().await);
        let has_window = !config.duplicate_window.is_zero();
        let description = QueueDescription {
            lock_duration: Some(config.lock_duration),
            max_size_megabytes: Some(config.max_bytes.div_ceil(MEGABYTE)),
            requires_duplicate_detection: Some(has_window),
            requires_session: Some(false),
            default_message_time_to_live: Some(
                config
                    .time_to_live
                    .map_or(TimeToLive::Forever, TimeToLive::For),
            ),
            dead_lettering_on_message_expiration: Some(config.dead_letter_expired),
            duplicate_detection_history_time_window: Some(if has_window {
                config.duplicate_window
            } else {
                DUPLICATE_WINDOW_DEFAULT
            }),
            max_delivery_count: Some(config.max_delivery_count),
            forward_to: None,
            enable_partitioning: Some(false),
        };
        let facts = QueueFacts {
            name: queue.name().to_owned(),
            // The store does not keep when; this is when this server began.
            created_at_ms: self.started_at_ms,
            updated_at_ms: self.started_at_ms,
            accessed_at_ms: None,
            size_bytes: stats.bytes,
            counts: Counts {
                active: stats.ready + stats.locked,
                dead_letter: stats.dead,
                scheduled: stats.scheduled,
            },
        };
        (description, facts)
    }
}

fn manifests_own(name: &str) -> Refusal {
    Refusal::bad_request(format!(
        "Queue '{name}' stands in the manifest: change it there."
    ))
}

/// The settings of a queue to create, or of one to change.
fn config(
    name: String,
    given: QueueDescription,
    existing: Option<&QueueConfig>,
) -> Result<QueueConfig, Refusal> {
    check_name(&name)?;
    if given.requires_session == Some(true) {
        return Err(Refusal::bad_request(
            "`RequiresSession`: sessions are not offered here",
        ));
    }
    if given.forward_to.is_some_and(|to| !to.is_empty()) {
        return Err(Refusal::bad_request(
            "`ForwardTo`: forwarding is not offered here",
        ));
    }
    let lock_duration = given
        .lock_duration
        .or(existing.map(|config| config.lock_duration))
        .unwrap_or(LOCK_DEFAULT);
    within("LockDuration", lock_duration, LOCK_MIN, LOCK_MAX)?;
    let window = given
        .duplicate_detection_history_time_window
        .unwrap_or(DUPLICATE_WINDOW_DEFAULT);
    let duplicate_window = match given.requires_duplicate_detection {
        Some(true) => {
            within(
                "DuplicateDetectionHistoryTimeWindow",
                window,
                DUPLICATE_WINDOW_MIN,
                DUPLICATE_WINDOW_MAX,
            )?;
            window
        }
        Some(false) => Duration::ZERO,
        None => existing.map_or(Duration::ZERO, |config| config.duplicate_window),
    };
    let max_delivery_count = given
        .max_delivery_count
        .or(existing.map(|config| config.max_delivery_count))
        .unwrap_or(MAX_DELIVERY_COUNT_DEFAULT);
    if !(1..=MAX_DELIVERY_COUNT_MAX).contains(&max_delivery_count) {
        return Err(Refusal::bad_request(format!(
            "`MaxDeliveryCount` is {max_delivery_count}; 1 to {MAX_DELIVERY_COUNT_MAX} are taken"
        )));
    }
    let size = given
        .max_size_megabytes
        .or(existing.map(|config| config.max_bytes / MEGABYTE))
        .unwrap_or(SIZE_MEGABYTES_DEFAULT);
    if !(1..=SIZE_MEGABYTES_MAX).contains(&size) {
        return Err(Refusal::bad_request(format!(
            "`MaxSizeInMegabytes` is {size}; 1 to {SIZE_MEGABYTES_MAX} are taken"
        )));
    }
    Ok(QueueConfig {
        // A queue keeps the case that it was created with.
        name: existing.map_or(name, |config| config.name.clone()),
        lock_duration,
        max_delivery_count,
        duplicate_window,
        time_to_live: match given.default_message_time_to_live {
            Some(TimeToLive::For(lifetime)) => Some(lifetime),
            Some(TimeToLive::Forever) => None,
            None => existing.and_then(|config| config.time_to_live),
        },
        dead_letter_expired: given
            .dead_lettering_on_message_expiration
            .or(existing.map(|config| config.dead_letter_expired))
            .unwrap_or(false),
        max_bytes: size * MEGABYTE,
        retention: existing.map_or(RETENTION, |config| config.retention),
    })
}

fn within(what: &str, value: Duration, min: Duration, max: Duration) -> Result<(), Refusal> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Refusal::bad_request(format!(
        "`{what}` is {value:?}; {min:?} to {max:?} are taken"
    )))
}

/// Letters, digits, `.`, `-`, `_`, and `/` between segments, as the service has it.
fn check_name(name: &str) -> Result<(), Refusal> {
    let is_sound = |segment: &str| {
        !segment.is_empty()
            && segment
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
    };
    if name.split('/').all(is_sound) {
        return Ok(());
    }
    Err(Refusal::bad_request(format!(
        "'{name}' is no name of a queue: letters, digits, '.', '-', '_', and '/' between parts"
    )))
}
