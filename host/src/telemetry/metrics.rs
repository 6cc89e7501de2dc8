//! The metrics that `/metrics` serves, in Prometheus' text format.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Names that guests may give to their own metrics, all components together.
/// Each name is a time series that lives until the host stops.
const GUEST_METRIC_NAMES_MAX: usize = 200;

/// Bucket bounds of durations, in seconds: from a job that does nothing to
/// one that runs for minutes, each bound about 2.5 times the one before.
const DURATION_BUCKETS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0,
    300.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabel {
    queue: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    queue: String,
    outcome: &'static str,
    version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    queue: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    component: String,
    status: u16,
    version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FateLabel {
    fate: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ComponentStepLabels {
    component: String,
    step: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ComponentLabel {
    component: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GuestMetricLabels {
    component: String,
    name: String,
}

/// Versions that have series of their own, of all components together; those
/// that were used longest ago go first, as each costs a series for every outcome.
const VERSIONS_MAX: usize = 64;
/// How much of a digest names a version: no two of one component are alike in it.
const VERSION_CHARS: usize = 12;

/// The series of one version.
#[derive(Default)]
struct Series {
    version: String,
    attempts: HashSet<AttemptLabels>,
    requests: HashSet<RequestLabels>,
}

/// The name of a version in labels.
fn version(digest: &str) -> String {
    digest[..digest.floor_char_boundary(VERSION_CHARS)].to_owned()
}

/// Most are known, and cost no copy.
fn remember<L: Clone + Eq + std::hash::Hash>(known: &mut HashSet<L>, labels: &L) {
    if !known.contains(labels) {
        known.insert(labels.clone());
    }
}

type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

/// What a queue holds at the moment of a scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct QueueGauges {
    /// Due and not locked.
    pub ready: u64,
    /// Locked.
    pub locked: u64,
    /// Held back.
    pub scheduled: u64,
    /// Dead letters.
    pub dead: u64,
    /// Bytes held.
    pub bytes: u64,
    /// Age of the oldest job that is due.
    pub oldest_age: Duration,
    /// Deliveries in this host's hands.
    pub in_flight: u64,
}

/// Every metric of this host.
pub struct Metrics {
    registry: Registry,
    job_success: Family<QueueLabel, Counter>,
    attempts: Family<AttemptLabels, Counter>,
    attempt_seconds: Durations<QueueLabel>,
    job_seconds: Durations<QueueLabel>,
    retries: Family<QueueLabel, Counter>,
    dead_letters: Family<QueueLabel, Counter>,
    locks_lost: Family<QueueLabel, Counter>,
    given_back: Family<QueueLabel, Counter>,
    faults_injected: Family<QueueLabel, Counter>,
    requests: Family<RequestLabels, Counter>,
    component_changes: Family<ComponentStepLabels, Counter>,
    versions: Mutex<VecDeque<Series>>,
    telemetry_items: Family<FateLabel, Counter>,
    request_seconds: Durations<ComponentLabel>,
    messages: Family<StateLabels, Gauge>,
    in_flight: Family<QueueLabel, Gauge>,
    bytes: Family<QueueLabel, Gauge>,
    oldest_age_seconds: Family<QueueLabel, Gauge<f64, AtomicU64>>,
    guest_sum: Family<GuestMetricLabels, Gauge<f64, AtomicU64>>,
    guest_count: Family<GuestMetricLabels, Counter>,
    guest_names: Mutex<BTreeSet<(String, String)>>,
    guest_dropped: Counter,
}

fn durations() -> Histogram {
    Histogram::new(DURATION_BUCKETS)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("orchestrator"),
            job_success: Family::default(),
            attempts: Family::default(),
            attempt_seconds: Family::new_with_constructor(durations),
            job_seconds: Family::new_with_constructor(durations),
            retries: Family::default(),
            dead_letters: Family::default(),
            locks_lost: Family::default(),
            given_back: Family::default(),
            faults_injected: Family::default(),
            requests: Family::default(),
            component_changes: Family::default(),
            versions: Mutex::default(),
            telemetry_items: Family::default(),
            request_seconds: Family::new_with_constructor(durations),
            messages: Family::default(),
            in_flight: Family::default(),
            bytes: Family::default(),
            oldest_age_seconds: Family::default(),
            guest_sum: Family::default(),
            guest_count: Family::default(),
            guest_names: Mutex::default(),
            guest_dropped: Counter::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register(
            "build",
            "Version of this host",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        r.register(
            "job_success",
            "JobSuccess: jobs completed",
            self.job_success.clone(),
        );
        r.register(
            "attempts",
            "Attempts ended, by outcome and version of the worker",
            self.attempts.clone(),
        );
        r.register(
            "attempt_duration_seconds",
            "Time one attempt took",
            self.attempt_seconds.clone(),
        );
        r.register(
            "job_duration_seconds",
            "Time from acceptance to completion",
            self.job_seconds.clone(),
        );
        r.register(
            "retries",
            "Attempts that led to another one",
            self.retries.clone(),
        );
        r.register(
            "dead_letters",
            "Jobs moved to the dead letters",
            self.dead_letters.clone(),
        );
        r.register(
            "locks_lost",
            "Attempts cancelled because their lock was lost",
            self.locks_lost.clone(),
        );
        r.register(
            "given_back",
            "Deliveries given back without spending an attempt",
            self.given_back.clone(),
        );
        r.register(
            "faults_injected",
            "Faults injected by chaos",
            self.faults_injected.clone(),
        );
        r.register(
            "http_requests",
            "Requests answered, by component, its version and status",
            self.requests.clone(),
        );
        r.register(
            "telemetry_items",
            "Items for Application Insights, by what became of them",
            self.telemetry_items.clone(),
        );
        r.register(
            "component_changes",
            "What happened to versions of components",
            self.component_changes.clone(),
        );
        r.register(
            "http_request_duration_seconds",
            "Time to answer a request",
            self.request_seconds.clone(),
        );
        r.register(
            "queue_messages",
            "Messages in a queue, by state",
            self.messages.clone(),
        );
        r.register(
            "queue_in_flight",
            "Deliveries this host is working on",
            self.in_flight.clone(),
        );
        r.register(
            "queue_bytes",
            "Bytes a queue holds, dead letters included",
            self.bytes.clone(),
        );
        r.register(
            "queue_oldest_age_seconds",
            "Age of the oldest job that is due",
            self.oldest_age_seconds.clone(),
        );
        r.register(
            "guest_metric_sum",
            "Sum of the values a component gave to log-metric",
            self.guest_sum.clone(),
        );
        r.register(
            "guest_metric_values",
            "Number of values a component gave to log-metric",
            self.guest_count.clone(),
        );
        r.register(
            "guest_metric_dropped",
            "Values dropped: over a bound, not finite, or badly named",
            self.guest_dropped.clone(),
        );
    }

    /// The text that `/metrics` answers.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Sets the gauges of one queue, just before a scrape is answered.
    pub fn set_queue(&self, queue: &str, gauges: QueueGauges) {
        for (state, count) in [
            ("ready", gauges.ready),
            ("locked", gauges.locked),
            ("scheduled", gauges.scheduled),
            ("dead", gauges.dead),
        ] {
            let labels = StateLabels {
                queue: queue.to_owned(),
                state,
            };
            self.messages
                .get_or_create(&labels)
                .set(count.cast_signed());
        }
        let label = label(queue);
        self.in_flight
            .get_or_create(&label)
            .set(gauges.in_flight.cast_signed());
        self.bytes
            .get_or_create(&label)
            .set(gauges.bytes.cast_signed());
        self.oldest_age_seconds
            .get_or_create(&label)
            .set(gauges.oldest_age.as_secs_f64());
    }

    /// Remembers a version's series. A new version may cost the oldest one its own.
    fn series_of(&self, version: &str, remember: impl FnOnce(&mut Series)) {
        let mut all = self
            .versions
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let place = all.iter().rposition(|known| known.version == version);
        let known = place.and_then(|place| all.remove(place));
        let mut series = known.unwrap_or_else(|| Series {
            version: version.to_owned(),
            ..Series::default()
        });
        remember(&mut series);
        all.push_back(series);
        if all.len() > VERSIONS_MAX
            && let Some(oldest) = all.pop_front()
        {
            for labels in &oldest.attempts {
                self.attempts.remove(labels);
            }
            for labels in &oldest.requests {
                self.requests.remove(labels);
            }
        }
    }

    /// Sets what became of telemetry, just before a scrape is answered.
    pub fn set_telemetry(&self, fates: [(&'static str, u64); 3]) {
        for (fate, count) in fates {
            let counter = self.telemetry_items.get_or_create(&FateLabel { fate });
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }

    pub(super) fn component_changed(&self, component: &str, step: &'static str) {
        let labels = ComponentStepLabels {
            component: component.to_owned(),
            step,
        };
        self.component_changes.get_or_create(&labels).inc();
    }

    pub(super) fn attempt(&self, queue: &str, outcome: &'static str, digest: &str, took: Duration) {
        let labels = AttemptLabels {
            queue: queue.to_owned(),
            outcome,
            version: version(digest),
        };
        self.attempts.get_or_create(&labels).inc();
        self.series_of(&labels.version, |series| {
            remember(&mut series.attempts, &labels)
        });
        self.attempt_seconds
            .get_or_create(&label(queue))
            .observe(took.as_secs_f64());
    }

    pub(super) fn succeeded(&self, queue: &str, since_enqueued: Duration) {
        self.job_success.get_or_create(&label(queue)).inc();
        self.job_seconds
            .get_or_create(&label(queue))
            .observe(since_enqueued.as_secs_f64());
    }

    pub(super) fn retried(&self, queue: &str) {
        self.retries.get_or_create(&label(queue)).inc();
    }

    pub(super) fn dead_lettered(&self, queue: &str) {
        self.dead_letters.get_or_create(&label(queue)).inc();
    }

    pub(super) fn lock_lost(&self, queue: &str) {
        self.locks_lost.get_or_create(&label(queue)).inc();
    }

    pub(super) fn given_back(&self, queue: &str) {
        self.given_back.get_or_create(&label(queue)).inc();
    }

    pub(super) fn fault_injected(&self, queue: &str) {
        self.faults_injected.get_or_create(&label(queue)).inc();
    }

    pub(super) fn request(
        &self,
        component: &str,
        digest: Option<&str>,
        status: u16,
        took: Duration,
    ) {
        let labels = RequestLabels {
            component: component.to_owned(),
            status,
            version: digest.map_or_else(|| "-".to_owned(), version),
        };
        self.requests.get_or_create(&labels).inc();
        if digest.is_some() {
            self.series_of(&labels.version, |series| {
                remember(&mut series.requests, &labels)
            });
        }
        let label = ComponentLabel {
            component: component.to_owned(),
        };
        self.request_seconds
            .get_or_create(&label)
            .observe(took.as_secs_f64());
    }

    /// False if it was dropped: there are too many names.
    pub(super) fn guest_metric(&self, component: &str, name: &str, value: f64) -> bool {
        let key = (component.to_owned(), name.to_owned());
        let mut names = self
            .guest_names
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if !names.contains(&key) && names.len() >= GUEST_METRIC_NAMES_MAX {
            drop(names);
            self.guest_metrics_dropped(1);
            return false;
        }
        names.insert(key);
        drop(names);
        let labels = GuestMetricLabels {
            component: component.to_owned(),
            name: name.to_owned(),
        };
        self.guest_sum.get_or_create(&labels).inc_by(value);
        self.guest_count.get_or_create(&labels).inc();
        true
    }

    pub(super) fn guest_metrics_dropped(&self, count: u64) {
        self.guest_dropped.inc_by(count);
    }

    /// Jobs completed since start, and attempts that were retried or ended in
    /// the dead letters: what `status` shows.
    pub fn totals(&self, queue: &str) -> Totals {
        let label = label(queue);
        Totals {
            completed: self.job_success.get_or_create(&label).get(),
            retried: self.retries.get_or_create(&label).get(),
            dead_lettered: self.dead_letters.get_or_create(&label).get(),
            locks_lost: self.locks_lost.get_or_create(&label).get(),
        }
    }
}

/// What became of a queue's jobs on this host since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Completed.
    pub completed: u64,
    /// Attempts that led to another one.
    pub retried: u64,
    /// Moved to the dead letters.
    pub dead_lettered: u64,
    /// Attempts whose lock was lost.
    pub locks_lost: u64,
}

fn label(queue: &str) -> QueueLabel {
    QueueLabel {
        queue: queue.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_there_with_its_prefix_and_counts() {
        let metrics = Metrics::default();
        metrics.succeeded("jobs", Duration::from_millis(3));
        metrics.attempt(
            "jobs",
            "completed",
            "0123456789abcdef",
            Duration::from_millis(2),
        );
        metrics.set_queue(
            "jobs",
            QueueGauges {
                ready: 4,
                ..QueueGauges::default()
            },
        );
        let text = metrics.encode().expect("metrics");
        for line in [
            "orchestrator_job_success_total{queue=\"jobs\"} 1",
            "orchestrator_attempts_total{queue=\"jobs\",outcome=\"completed\",version=\"0123456789ab\"} 1",
            "orchestrator_queue_messages{queue=\"jobs\",state=\"ready\"} 4",
        ] {
            assert!(text.contains(line), "{line} is missing from\n{text}");
        }
    }

    #[test]
    fn versions_cannot_make_series_without_end() {
        let metrics = Metrics::default();
        for n in 0..VERSIONS_MAX + 50 {
            let digest = format!("{n:064x}").chars().rev().collect::<String>();
            metrics.attempt("jobs", "completed", &digest, Duration::ZERO);
            metrics.request("ingest", Some(&digest), 202, Duration::ZERO);
        }
        let text = metrics.encode().expect("metrics");
        assert_eq!(
            text.matches("orchestrator_attempts_total{").count(),
            VERSIONS_MAX
        );
        assert_eq!(
            text.matches("orchestrator_http_requests_total{").count(),
            VERSIONS_MAX
        );
    }

    #[test]
    fn a_guest_cannot_make_series_without_end() {
        let metrics = Metrics::default();
        for n in 0..GUEST_METRIC_NAMES_MAX + 50 {
            let is_kept = metrics.guest_metric("worker", &format!("name{n}"), 1.0);
            assert_eq!(is_kept, n < GUEST_METRIC_NAMES_MAX);
        }
        assert_eq!(metrics.guest_dropped.get(), 50);
        metrics.guest_metric("worker", "name0", 1.0);
        assert_eq!(metrics.guest_dropped.get(), 50);
    }
}
