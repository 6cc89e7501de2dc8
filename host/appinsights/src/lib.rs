//! OpenTelemetry to Application Insights: exporters for the SDK's spans, logs
//! and metrics that show what Azure Functions would show.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`connection_string`] | where to send, by the string that the portal gives |
//! | [`envelope`] | the wire's items, every text cut to its limit between characters |
//! | [`convert`] | spans, log records and metrics → items |
//! | [`sampler`] | which traces are kept, as the official SDKs decide |
//! | [`transport`] | bounded queue, batches, the service's table of answers |
//!
//! The exporters never wait for the network: they hand items to the
//! [`transport`], which has bounds and counts what it drops. There is a crate
//! for this protocol, `opentelemetry-application-insights`; it cuts texts at
//! byte positions, so that one message of a guest, with the right character at
//! the right place, ends its batch thread for good (0.46: `&s[..len]` in
//! `models/sanitize.rs`), it sends in the exporter's own thread, and it treats
//! redirects, quotas and authentication otherwise than the official exporters.

pub mod connection_string;
pub mod convert;
pub mod envelope;
mod exporter;
pub mod sampler;
pub mod transport;

pub use exporter::Exporter;
