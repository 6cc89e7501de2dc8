//! POST in, 202 out: the application listener.
//!
//! A connection is accepted when a permit for it is free, its request's body
//! is read here, bounded in size and time, and only then does a component see
//! the request: a slow or endless client costs a connection and nothing else.

mod body;
mod job_page;
mod listener;
mod outbox;
mod problem;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

use crate::components::HttpSlot;
use crate::config::Router;
use crate::queue::Queue;
use crate::telemetry::Telemetry;

pub use job_page::{Result as JobResult, result_of};
pub use listener::serve;
pub use outbox::outbox;

/// Body of every answer of this listener.
type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// How requests are taken.
#[derive(Clone, Debug)]
pub struct IngestConfig {
    /// Connections at one time; more wait in the socket's backlog.
    pub connections_max: usize,
    /// Time to read a request, and time for a component to answer it.
    pub request_timeout: Duration,
}

/// What the application listener serves.
pub struct Application {
    /// Which route is whose.
    pub router: Router,
    /// The HTTP components, by the router's index.
    pub components: Vec<Arc<HttpSlot>>,
    /// The queues and how often each job of theirs is tried, for the jobs' pages.
    pub queues: Vec<(Queue, u32)>,
    /// Where events go.
    pub telemetry: Telemetry,
}
