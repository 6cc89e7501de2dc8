//! The metrics that `/metrics` serves, in Prometheus' text format.
//!
//! What is counted by queue or component begins at zero when the host starts:
//! a series whose first value is 1 hides that increase from a query. Series of
//! versions come with their first job or request, and only so many are kept.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orchestrator_appinsights::transport::Counts;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::events::{ComponentStep, Consequence, SendAnswer};
use super::process::Process;

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
    consequence: &'static str,
    version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueVersionLabels {
    queue: String,
    version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SendLabels {
    queue: String,
    answer: &'static str,
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
struct ComponentVersionLabels {
    component: String,
    version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RunningLabels {
    component: String,
    version: String,
    role: &'static str,
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
    queues: HashSet<QueueVersionLabels>,
    components: HashSet<ComponentVersionLabels>,
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

/// A queue at the moment of a scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct QueueGauges {
    /// What it holds; none if this host may not ask for it.
    pub held: Option<Held>,
    /// Bytes it may hold; none if that is not this host's to say.
    pub bytes_max: Option<u64>,
    /// Deliveries in this host's hands.
    pub in_flight: u64,
    /// How many those may be.
    pub concurrency: usize,
}

/// What a queue holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// Due and not locked.
    pub ready: u64,
    /// Locked.
    pub locked: u64,
    /// Held back.
    pub scheduled: u64,
    /// Dead letters.
    pub dead: u64,
    /// Bytes held; none where messages are counted only.
    pub bytes: Option<u64>,
    /// Age of the oldest job that is due.
    pub oldest_age: Duration,
}

/// A component at the moment of a scrape.
#[derive(Clone, Debug)]
pub struct ComponentGauges {
    /// Its name.
    pub component: String,
    /// Digest of the version that runs.
    pub current: String,
    /// Digest of the candidate, if there is one.
    pub canary: Option<String>,
    /// Versions that were replaced and still have something to end.
    pub draining: usize,
}

/// Every metric of this host.
pub struct Metrics {
    registry: Registry,
    process: Process,
    /// Held while a scrape is answered.
    scraping: Mutex<()>,
    sends: Family<SendLabels, Counter>,
    job_success: Family<QueueLabel, Counter>,
    attempts: Family<AttemptLabels, Counter>,
    attempt_seconds: Durations<QueueVersionLabels>,
    job_seconds: Durations<QueueVersionLabels>,
    retries: Family<QueueLabel, Counter>,
    dead_letters: Family<QueueLabel, Counter>,
    locks_lost: Family<QueueLabel, Counter>,
    given_back: Family<QueueLabel, Counter>,
    faults_injected: Family<QueueLabel, Counter>,
    requests: Family<RequestLabels, Counter>,
    component_changes: Family<ComponentStepLabels, Counter>,
    versions: Mutex<VecDeque<Series>>,
    running: Family<RunningLabels, Gauge>,
    draining: Family<ComponentLabel, Gauge>,
    store_ready: Gauge,
    telemetry_items: Family<FateLabel, Counter>,
    telemetry_retries: Counter,
    telemetry_waiting: Gauge,
    request_seconds: Durations<ComponentVersionLabels>,
    messages: Family<StateLabels, Gauge>,
    in_flight: Family<QueueLabel, Gauge>,
    concurrency: Family<QueueLabel, Gauge>,
    bytes: Family<QueueLabel, Gauge>,
    bytes_max: Family<QueueLabel, Gauge>,
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
            process: Process::default(),
            scraping: Mutex::default(),
            sends: Family::default(),
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
            running: Family::default(),
            draining: Family::default(),
            store_ready: Gauge::default(),
            telemetry_items: Family::default(),
            telemetry_retries: Counter::default(),
            telemetry_waiting: Gauge::default(),
            request_seconds: Family::new_with_constructor(durations),
            messages: Family::default(),
            in_flight: Family::default(),
            concurrency: Family::default(),
            bytes: Family::default(),
            bytes_max: Family::default(),
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
            "sends",
            "Jobs that components of this host sent, by what the queue answered",
            self.sends.clone(),
        );
        r.register(
            "job_success",
            "JobSuccess: jobs completed",
            self.job_success.clone(),
        );
        r.register(
            "attempts",
            "Attempts ended, by outcome, what followed from it and version of the worker",
            self.attempts.clone(),
        );
        r.register(
            "attempt_duration_seconds",
            "Time one attempt took, by version of the worker",
            self.attempt_seconds.clone(),
        );
        r.register(
            "job_duration_seconds",
            "Time from acceptance to completion, by the version that completed the job",
            self.job_seconds.clone(),
        );
        r.register(
            "retries",
            "Attempts that led to another one",
            self.retries.clone(),
        );
        r.register(
            "dead_letters",
            "Jobs that an attempt moved to the dead letters",
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
            "Attempts that chaos ended or spoiled",
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
            "telemetry_retries",
            "Requests to Application Insights that were repeated",
            self.telemetry_retries.clone(),
        );
        r.register(
            "telemetry_waiting_items",
            "Items for Application Insights that wait to be sent",
            self.telemetry_waiting.clone(),
        );
        r.register(
            "store_ready",
            "1 while jobs can be made durable, 0 while they are refused",
            self.store_ready.clone(),
        );
        r.register(
            "component_running",
            "1 for each version that gets work: current or canary",
            self.running.clone(),
        );
        r.register(
            "component_draining_versions",
            "Versions that were replaced and still have a job or request to end",
            self.draining.clone(),
        );
        r.register(
            "component_changes",
            "What happened to versions of components",
            self.component_changes.clone(),
        );
        r.register(
            "http_request_duration_seconds",
            "Time to answer a request, by component and its version",
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
            "queue_concurrency",
            "Deliveries this host works on at most",
            self.concurrency.clone(),
        );
        r.register(
            "queue_bytes",
            "Bytes a queue holds, dead letters included",
            self.bytes.clone(),
        );
        r.register(
            "queue_max_bytes",
            "Bytes a queue may hold; then jobs are refused",
            self.bytes_max.clone(),
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

    /// Begins the series of a queue.
    pub fn know_queue(&self, queue: &str) {
        let label = label(queue);
        for family in [
            &self.job_success,
            &self.retries,
            &self.dead_letters,
            &self.locks_lost,
            &self.given_back,
            &self.faults_injected,
        ] {
            family.get_or_create(&label).inc_by(0);
        }
        for answer in SendAnswer::ALL {
            let labels = send_labels(queue, answer);
            self.sends.get_or_create(&labels).inc_by(0);
        }
    }

    /// Begins the series of a component.
    pub fn know_component(&self, component: &str) {
        for step in ComponentStep::ALL {
            let labels = ComponentStepLabels {
                component: component.to_owned(),
                step: step.as_str(),
            };
            self.component_changes.get_or_create(&labels).inc_by(0);
        }
    }

    /// The text that `/metrics` answers, once `set` has said what is known at
    /// this moment only. One at a time: what no longer runs is forgotten
    /// before what runs is set.
    pub fn scrape(&self, set: impl FnOnce(&Self)) -> Result<String, fmt::Error> {
        let _one = locked(&self.scraping);
        self.running.clear();
        set(self);
        self.process.refresh();
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, self.process.registry())?;
        encode_eof(&mut text)?;
        Ok(text)
    }

    /// Sets the gauges of one queue.
    pub fn set_queue(&self, queue: &str, gauges: QueueGauges) {
        let QueueGauges {
            held,
            bytes_max,
            in_flight,
            concurrency,
        } = gauges;
        let label = label(queue);
        for (state, count) in [
            ("ready", held.map(|held| held.ready)),
            ("locked", held.map(|held| held.locked)),
            ("scheduled", held.map(|held| held.scheduled)),
            ("dead", held.map(|held| held.dead)),
        ] {
            let labels = StateLabels {
                queue: queue.to_owned(),
                state,
            };
            set(&self.messages, &labels, count);
        }
        set(&self.bytes, &label, held.and_then(|held| held.bytes));
        set(&self.bytes_max, &label, bytes_max);
        set(&self.in_flight, &label, Some(in_flight));
        set(&self.concurrency, &label, Some(concurrency as u64));
        match held {
            Some(held) => {
                let age = self.oldest_age_seconds.get_or_create(&label);
                age.set(held.oldest_age.as_secs_f64());
            }
            None => {
                self.oldest_age_seconds.remove(&label);
            }
        }
    }

    /// Sets which versions of a component run.
    pub fn set_component(&self, gauges: &ComponentGauges) {
        let running = |digest: &str, role| {
            let labels = RunningLabels {
                component: gauges.component.clone(),
                version: version(digest),
                role,
            };
            self.running.get_or_create(&labels).set(1);
        };
        running(&gauges.current, "current");
        if let Some(canary) = &gauges.canary {
            running(canary, "canary");
        }
        let label = ComponentLabel {
            component: gauges.component.clone(),
        };
        set(&self.draining, &label, Some(gauges.draining as u64));
    }

    /// Sets whether jobs can be made durable.
    pub fn set_store_ready(&self, is_ready: bool) {
        self.store_ready.set(i64::from(is_ready));
    }

    /// Remembers a version's series. A new version may cost the oldest one its own.
    fn series_of(&self, version: &str, remember: impl FnOnce(&mut Series)) {
        let mut all = locked(&self.versions);
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
            for labels in &oldest.queues {
                self.attempt_seconds.remove(labels);
                self.job_seconds.remove(labels);
            }
            for labels in &oldest.components {
                self.request_seconds.remove(labels);
            }
        }
    }

    /// Sets what became of telemetry.
    pub fn set_telemetry(&self, counts: Counts) {
        for (fate, count) in [
            ("sent", counts.sent),
            ("dropped-here", counts.dropped_here),
            ("dropped-there", counts.dropped_there),
        ] {
            catch_up(
                &self.telemetry_items.get_or_create(&FateLabel { fate }),
                count,
            );
        }
        catch_up(&self.telemetry_retries, counts.retries);
        self.telemetry_waiting.set(counts.waiting.cast_signed());
    }

    pub(super) fn component_changed(&self, component: &str, step: ComponentStep) {
        let labels = ComponentStepLabels {
            component: component.to_owned(),
            step: step.as_str(),
        };
        self.component_changes.get_or_create(&labels).inc();
    }

    pub(super) fn sent(&self, queue: &str, answer: SendAnswer) {
        self.sends.get_or_create(&send_labels(queue, answer)).inc();
    }

    pub(super) fn attempt(
        &self,
        queue: &str,
        outcome: &'static str,
        consequence: Consequence,
        digest: &str,
        took: Duration,
    ) {
        let labels = AttemptLabels {
            queue: queue.to_owned(),
            outcome,
            consequence: consequence.as_str(),
            version: version(digest),
        };
        let of_version = QueueVersionLabels {
            queue: queue.to_owned(),
            version: labels.version.clone(),
        };
        self.attempts.get_or_create(&labels).inc();
        self.attempt_seconds
            .get_or_create(&of_version)
            .observe(took.as_secs_f64());
        if let Consequence::Completed { since_enqueued } = consequence {
            self.job_success.get_or_create(&label(queue)).inc();
            self.job_seconds
                .get_or_create(&of_version)
                .observe(since_enqueued.as_secs_f64());
        }
        self.series_of(&labels.version, |series| {
            remember(&mut series.attempts, &labels);
            remember(&mut series.queues, &of_version);
        });
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
        let of_version = ComponentVersionLabels {
            component: component.to_owned(),
            version: labels.version.clone(),
        };
        self.requests.get_or_create(&labels).inc();
        self.request_seconds
            .get_or_create(&of_version)
            .observe(took.as_secs_f64());
        if digest.is_some() {
            self.series_of(&labels.version, |series| {
                remember(&mut series.requests, &labels);
                remember(&mut series.components, &of_version);
            });
        }
    }

    /// False if it was dropped: there are too many names.
    pub(super) fn guest_metric(&self, component: &str, name: &str, value: f64) -> bool {
        let key = (component.to_owned(), name.to_owned());
        let mut names = locked(&self.guest_names);
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

fn send_labels(queue: &str, answer: SendAnswer) -> SendLabels {
    SendLabels {
        queue: queue.to_owned(),
        answer: answer.as_str(),
    }
}

/// Sets a gauge, or removes it where there is nothing to say.
fn set<L>(family: &Family<L, Gauge>, labels: &L, value: Option<u64>)
where
    L: Clone + Eq + std::hash::Hash,
{
    match value {
        Some(value) => {
            family.get_or_create(labels).set(value.cast_signed());
        }
        None => {
            family.remove(labels);
        }
    }
}

/// Brings a counter to what was counted elsewhere.
fn catch_up(counter: &Counter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: Consequence = Consequence::Completed {
        since_enqueued: Duration::from_millis(3),
    };

    #[test]
    fn every_metric_is_there_with_its_prefix_and_counts() {
        let metrics = Metrics::default();
        metrics.know_queue("jobs");
        let took = Duration::from_millis(2);
        metrics.attempt("jobs", "completed", DONE, "0123456789abcdef", took);
        let held = Held {
            ready: 4,
            ..Held::default()
        };
        let known = QueueGauges {
            held: Some(held),
            ..QueueGauges::default()
        };
        let text = metrics.scrape(|metrics| metrics.set_queue("jobs", known));
        let text = text.expect("metrics");
        for line in [
            "orchestrator_job_success_total{queue=\"jobs\"} 1",
            "orchestrator_retries_total{queue=\"jobs\"} 0",
            "orchestrator_sends_total{queue=\"jobs\",answer=\"full\"} 0",
            "orchestrator_attempts_total{queue=\"jobs\",outcome=\"completed\",consequence=\"completed\",version=\"0123456789ab\"} 1",
            "orchestrator_job_duration_seconds_count{queue=\"jobs\",version=\"0123456789ab\"} 1",
            "orchestrator_queue_messages{queue=\"jobs\",state=\"ready\"} 4",
        ] {
            assert!(text.contains(line), "{line} is missing from\n{text}");
        }
        assert_eq!(text.matches("# EOF").count(), 1);
        let unknown = QueueGauges::default();
        let text = metrics.scrape(|metrics| metrics.set_queue("jobs", unknown));
        let text = text.expect("metrics");
        assert!(!text.contains("orchestrator_queue_messages{"), "{text}");
        assert!(text.contains("orchestrator_queue_in_flight{queue=\"jobs\"} 0"));
    }

    #[test]
    fn a_version_that_no_longer_runs_is_gone_from_those_that_do() {
        let metrics = Metrics::default();
        let component = |current: &str, canary: Option<&str>| ComponentGauges {
            component: "worker".to_owned(),
            current: current.to_owned(),
            canary: canary.map(str::to_owned),
            draining: 0,
        };
        let running = |gauges: ComponentGauges| {
            let text = metrics.scrape(|metrics| metrics.set_component(&gauges));
            let text = text.expect("metrics");
            let lines = text.lines();
            let found = lines.filter(|line| line.starts_with("orchestrator_component_running{"));
            found.map(str::to_owned).collect::<BTreeSet<_>>()
        };
        assert_eq!(running(component("aa", Some("bb"))).len(), 2);
        let left = running(component("bb", None));
        let expected = "orchestrator_component_running{component=\"worker\",version=\"bb\",role=\"current\"} 1";
        assert_eq!(left, BTreeSet::from([expected.to_owned()]));
    }

    #[test]
    fn versions_cannot_make_series_without_end() {
        let metrics = Metrics::default();
        for n in 0..VERSIONS_MAX + 50 {
            let digest = format!("{n:064x}").chars().rev().collect::<String>();
            metrics.attempt("jobs", "completed", DONE, &digest, Duration::ZERO);
            metrics.request("ingest", Some(&digest), 202, Duration::ZERO);
        }
        let text = metrics.scrape(|_| {}).expect("metrics");
        for series in [
            "orchestrator_attempts_total{",
            "orchestrator_attempt_duration_seconds_count{",
            "orchestrator_job_duration_seconds_count{",
            "orchestrator_http_requests_total{",
            "orchestrator_http_request_duration_seconds_count{",
        ] {
            assert_eq!(text.matches(series).count(), VERSIONS_MAX, "{series}");
        }
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
