//! Everything the program says about itself.
//!
//! Each thing that happens is a struct in [`events`]; emitting it writes its
//! log line and moves its metrics together, so call sites carry no wording.
//! This module holds plain values: it imports no other module of the host.
//!
//! Levels: `error` is loss, or a person must act; `warn` is surprising but
//! nothing is lost; `info` is the host's own life and, up to a line rate,
//! what becomes of jobs; `debug` is the rest.

pub mod events;
mod init;
mod line_budget;
mod metrics;
mod process;
pub mod traces;

use std::sync::Arc;

use tokio::sync::broadcast;

pub use init::{LogFormat, LogGuard, start_logging};
pub use line_budget::LineBudget;
pub use metrics::{ComponentGauges, Held, Metrics, QueueGauges};
pub use traces::{Traces, TracesConfig, TracesError};

/// Events that a follower may be behind before it misses some.
const EVENTS_BEHIND_MAX: usize = 256;

/// What events are emitted into. Clones share it.
#[derive(Clone, Default)]
pub struct Telemetry(Arc<Inner>);

#[derive(Default)]
struct Inner {
    metrics: Metrics,
    job_lines: LineBudget,
    observer: Option<Observer>,
    followers: Followers,
    traces: Option<Traces>,
}

/// Who follows events as they happen.
struct Followers(broadcast::Sender<Told>);

impl Default for Followers {
    fn default() -> Self {
        Self(broadcast::Sender::new(EVENTS_BEHIND_MAX))
    }
}

/// One event for followers.
#[derive(Clone, Debug)]
pub struct Told {
    /// What kind of event.
    pub kind: &'static str,
    /// Its facts, as a JSON object.
    pub json: Arc<str>,
}

/// Called with the end of every attempt, on the task that settled it: must not block.
type Observer = Box<dyn Fn(&events::AttemptEnded<'_>) + Send + Sync>;

impl Telemetry {
    /// Telemetry that also tells `observer` of every attempt's end.
    pub fn observed(
        traces: Option<Traces>,
        observer: impl Fn(&events::AttemptEnded<'_>) + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            observer: Some(Box::new(observer)),
            traces,
            ..Inner::default()
        }))
    }

    /// Tells whoever follows events.
    pub(crate) fn tell(&self, kind: &'static str, facts: &serde_json::Value) {
        let json = facts.to_string().into();
        // Nobody may follow.
        let _ = self.0.followers.0.send(Told { kind, json });
    }

    /// Events from now on.
    pub fn follow(&self) -> broadcast::Receiver<Told> {
        self.0.followers.0.subscribe()
    }

    /// Telemetry that also leaves the host.
    pub fn exporting(traces: Option<Traces>) -> Self {
        Self(Arc::new(Inner {
            traces,
            ..Inner::default()
        }))
    }

    /// What leaves the host, if anything does.
    pub fn traces(&self) -> Option<&Traces> {
        self.0.traces.as_ref()
    }

    /// Sends what is left, within a bound.
    pub async fn close(&self) {
        if let Some(traces) = &self.0.traces {
            traces.close().await;
        }
    }

    pub(crate) fn observe(&self, ended: &events::AttemptEnded<'_>) {
        if let Some(observer) = &self.0.observer {
            observer(ended);
        }
    }

    /// The metrics, to serve them and to set gauges.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// True if one more line about a job may be written now.
    pub(crate) fn may_write_job_line(&self) -> bool {
        self.0.job_lines.take()
    }
}
